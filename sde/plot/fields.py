"""Fields on the plane: a density, a score, and both as time goes on.

A callable is asked for its values at grid points, (N, 2) → (N,) for a log-density and (N, 2) → (N, 2) for a
score; the strips hand it the time too, `f(x, t)` with t of shape (). Densities are drawn from zero to their
own maximum, panel by panel: p_t falls by orders of magnitude on the way to noise, and its shape is what the
eye should follow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from sde.plot.style import (
    FIELD,
    Limits,
    as_limits,
    common_limits,
    follows,
    new_axes,
    plane,
    points,
    row_of_axes,
    style,
    time_title,
    to_numpy,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Bounds = float | Sequence[float]


class Dataset(Protocol):
    """Anything with points of its own."""

    @property
    def x(self) -> Tensor:
        """Points, (n, 2)."""
        ...


def density(
    log_prob: Callable[[Tensor], Tensor] | Tensor | Dataset,
    bounds: Bounds | None = None,
    ax: Axes | None = None,
    resolution: int = 200,
    device: torch.device | str = "cpu",
    **kwargs: Any,
) -> Axes:
    """Density in the plane as a picture: exact from a log-density, or a histogram of a sample.

    Args:
        log_prob: x (N, 2) → log p (N,); or a sample (n, 2), or a data set, to count.
        bounds: a radius, or (left, right, bottom, top); 3 for a function, what holds the points for a sample.
        ax: axes to draw on.
        resolution: cells along each side (a sample has a third as many, or its counts would be noise).
        device: where to evaluate.
        **kwargs: for matplotlib's `imshow`.

    Example:
        >>> density(lambda x: -x.square().sum(1) / 2).get_aspect()
        1.0
    """
    if callable(log_prob) and not isinstance(log_prob, Tensor):
        box = as_limits("bounds", 3.0 if bounds is None else bounds)
        values = _on_grid("log_prob", log_prob, box, resolution, device, ())
        if np.isneginf(values.max()):
            raise ValueError(f"bounds must hold some of the density, got {box}, where it is zero: pass wider ones")
        image = np.exp(values - values.max())  # up to a factor: no overflow where a density is sharp
        title = "density"
    else:
        xy = points("log_prob", log_prob)
        box = common_limits([xy]) if bounds is None else as_limits("bounds", bounds)
        image = np.histogram2d(xy[:, 1], xy[:, 0], bins=resolution // 3, range=[box[2:], box[:2]])[0]
        title = f"density of {len(xy)} points"
    with style():
        ax = new_axes(ax, title)
        look = {"cmap": FIELD, "vmin": 0, "interpolation": "bilinear", **kwargs}
        ax.imshow(image, origin="lower", extent=box, **look)
        plane(ax, box)
    return ax


def density_strip(
    log_prob: Callable[[Tensor, Tensor], Tensor],
    times: Sequence[float] | Tensor,
    bounds: Bounds | Sequence[Bounds] = 3.0,
    axes: Sequence[Axes] | np.ndarray | None = None,
    **kwargs: Any,
) -> Figure:
    """Density over time: one panel for each time, each on its own colour scale.

    Args:
        log_prob: x (N, 2) and t () → log p_t (N,).
        times: when.
        bounds: a radius, or (left, right, bottom, top); or one of them for each time.
        axes: as many axes to draw on.
        **kwargs: for `density`.

    Example:
        >>> figure = density_strip(lambda x, t: -x.square().sum(1) / (1 + t), times=[0, 0.5, 1])
        >>> [ax.get_title() for ax in figure.axes]
        ['t = 0', 't = 0.5', 't = 1']
    """

    def draw(ax: Axes, t: Tensor, box: Bounds) -> None:
        density(lambda x: log_prob(x, t), box, ax=ax, **kwargs)

    return _strip(times, bounds, axes, draw)


def score_field(
    score: Callable[[Tensor], Tensor],
    bounds: Bounds = 3.0,
    ax: Axes | None = None,
    resolution: int = 17,
    device: torch.device | str = "cpu",
    **kwargs: Any,
) -> Axes:
    """Score field in the plane: arrows that point to where the density grows.

    Lengths grow as the root of the magnitude, or one steep corner would hide all the rest; the colour says
    the magnitude itself.

    Args:
        score: x (N, 2) → ∇ log p (N, 2), or something with `.score`, as a score model gives.
        bounds: a radius, or (left, right, bottom, top).
        ax: axes to draw on: those of `density`, say, with color="white".
        resolution: arrows along each side.
        device: where to evaluate.
        **kwargs: for matplotlib's `quiver`.

    Example:
        >>> ax = density(lambda x: -x.square().sum(1) / 2)
        >>> score_field(lambda x: -x, ax=ax, color="white") is ax
        True
    """
    box = as_limits("bounds", bounds)
    values = _on_grid("score", score, box, resolution, device, (2,)).reshape(-1, 2)
    x = to_numpy(_grid(box, resolution))
    length = np.linalg.norm(values, axis=1, keepdims=True)
    arrows = values / np.sqrt(np.maximum(length, 1e-12) * max(length.max(), 1e-12))  # longest is 1
    cell = (box[1] - box[0]) / resolution
    with style():
        alone = ax is None
        ax = new_axes(ax, "score", size=(4.8, 4.0))
        look: dict[str, Any] = {"width": 0.005, "headwidth": 4, "headlength": 4, "headaxislength": 3.6, "pivot": "mid"}
        look |= {"angles": "xy", "scale_units": "xy", "scale": 1 / (1.1 * cell), **kwargs}
        colour = () if {"color", "facecolor", "fc"} & look.keys() else (length[:, 0],)
        drawn = ax.quiver(x[:, 0], x[:, 1], arrows[:, 0], arrows[:, 1], *colour, **look)
        if alone and colour:
            ax.figure.colorbar(drawn, ax=ax, label="|∇ log p|", shrink=0.8)
        plane(ax, box)
    return ax


def score_strip(
    score: Callable[[Tensor, Tensor], Tensor],
    times: Sequence[float] | Tensor,
    bounds: Bounds | Sequence[Bounds] = 3.0,
    log_prob: Callable[[Tensor, Tensor], Tensor] | None = None,
    axes: Sequence[Axes] | np.ndarray | None = None,
    **kwargs: Any,
) -> Figure:
    """Score field over time, on top of the density where it is given.

    Args:
        score: x (N, 2) and t () → ∇ log p_t (N, 2), or something with `.score`: a score model is one.
        times: when.
        bounds: a radius, or (left, right, bottom, top); or one of them for each time.
        log_prob: x (N, 2) and t () → log p_t (N,), drawn beneath.
        axes: as many axes to draw on.
        **kwargs: for `score_field`.

    Example:
        >>> figure = score_strip(lambda x, t: -x / (1 + t), times=[0, 1])
        >>> len(figure.axes)
        2
    """

    def draw(ax: Axes, t: Tensor, box: Bounds) -> None:
        look = kwargs
        if log_prob is not None:
            beneath = log_prob
            density(lambda x: beneath(x, t), box, ax=ax, device=kwargs.get("device", "cpu"))
            look = {"color": "white", **kwargs}
        score_field(lambda x: score(x, t), box, ax=ax, **look)

    return _strip(times, bounds, axes, draw)


def _strip(
    times: Sequence[float] | Tensor,
    bounds: Any,
    axes: Sequence[Axes] | np.ndarray | None,
    draw: Callable[[Axes, Tensor, Bounds], None],
) -> Figure:
    t = torch.as_tensor(times, dtype=torch.float32).flatten()
    if not len(t) or not t.isfinite().all():
        raise ValueError(f"times must hold at least one finite time, got {t.tolist()}: pass times=[0, 0.5, 1], say")
    each = isinstance(bounds, Sequence) and len(bounds) == len(t) and (len(t) != 4 or np.ndim(bounds[0]) > 0)
    with style():
        figure, row = row_of_axes(len(t), axes)
        for k, (ax, now) in enumerate(zip(row, t, strict=True)):
            draw(ax, now, bounds[k] if each else bounds)
            ax.set_title(time_title(float(now)))
            follows(ax, row[0])
    return figure


def _grid(box: Limits, resolution: int) -> Tensor:
    """Centres of resolution² cells, (N, 2), x₁ fastest, from the bottom up."""
    if resolution < 2:
        raise ValueError(f"resolution must be at least 2, got {resolution}: pass resolution=50, say")
    u = (torch.arange(resolution, dtype=torch.float64) + 0.5) / resolution
    x1, x2 = box[0] + (box[1] - box[0]) * u, box[2] + (box[3] - box[2]) * u
    return torch.stack([x1.repeat(resolution), x2.repeat_interleave(resolution)], -1).float()


def _on_grid(
    name: str,
    f: Callable[[Tensor], Tensor],
    box: Limits,
    resolution: int,
    device: torch.device | str,
    inner: tuple[int, ...],
) -> np.ndarray:
    """f at the grid, as (resolution, resolution) and the inner shape; shape and finiteness checked."""
    x = _grid(box, resolution).to(device)
    values = f(x)
    values = getattr(values, name, values)  # a model gives a point, whose `score` it is
    if tuple(values.shape) != (len(x), *inner):
        wanted = ", ".join(["N", *map(str, inner)]) + ("" if inner else ",")
        raise ValueError(
            f"{name} must map (N, 2) to ({wanted}), got {tuple(values.shape)} for N = {len(x)}: reshape what it returns"
        )
    array = to_numpy(values)
    if np.isnan(array).any() or np.isposinf(array).any():
        raise ValueError(f"{name} must be finite on the grid, got nan or inf within {box}: look at its ends in time")
    return array.reshape(resolution, resolution, *inner)
