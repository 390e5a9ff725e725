"""Runs on a line: their densities against exact ones, and the picture of density and paths over time.

A trajectory has times `t` (N,) and states `x` (N, B, 1). An exact log-density is a function of x (M, 1) and t () with
values (M,), as an exact model's `log_prob` is. Time runs as the run did: from left to right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sde.plot.style import (
    BLACK,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    Limits,
    Trajectory,
    common_limits,
    pick,
    row_of_axes,
    run_limits,
    states,
    style,
    time_title,
    to_numpy,
)
from sde.plot.trajectories import over_time, paths, wants_log

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INKS = (VERMILLION, ORANGE, GREEN, PURPLE, BLACK)  # those that stand out from the shading

LogProb = Callable[[Tensor, Tensor], Tensor]


def marginals(
    trajectory: Trajectory,
    log_prob: LogProb | None = None,
    times: int | Sequence[float] | Tensor = 5,
    axes: Sequence[Axes] | np.ndarray | None = None,
    bins: int = 60,
    device: torch.device | str = "cpu",
    **kwargs: Any,
) -> Figure:
    """Histograms of a run on a line at several times, against the exact densities.

    Args:
        trajectory: the run, states (N, B, 1).
        log_prob: x (M, 1) and t () → log p_t (M,): the curve to be met.
        times: how many, evenly spread over the recorded states; or at which times (the nearest recorded ones).
        axes: as many axes to draw on.
        bins: of the histograms.
        device: where to evaluate `log_prob`.
        **kwargs: for matplotlib's `hist`.

    Example:
        >>> from types import SimpleNamespace
        >>> run = SimpleNamespace(t=torch.tensor([0.0, 1.0]), x=torch.randn(2, 500, 1))
        >>> figure = marginals(run, lambda x, t: -(x[:, 0] ** 2) / 2 - 0.919, times=2)
        >>> [ax.get_title() for ax in figure.axes]
        ['t = 0', 't = 1']
    """
    t, x = states("trajectory", trajectory, 1)
    rows = pick(t, times)
    with style():
        figure, row = row_of_axes(len(rows), axes, size=(2.4, 2.3))
        for ax, k in zip(row, rows, strict=True):
            low, high = common_limits([x[k]], keep=0.9995)[:2]
            look = {"color": SKY, "label": "run", **kwargs}
            # weights, not density=True: what lies beyond the limits counts in the total as it does under the curve
            weights = np.full(x.shape[1], bins / (high - low) / x.shape[1])
            ax.hist(x[k, :, 0], bins=bins, range=(low, high), weights=weights, **look)
            if log_prob is not None:
                at = np.linspace(low, high, 400)
                ax.plot(at, _density(log_prob, at, t[k], device), color=BLACK, label="exact")
            ax.set(title=time_title(t[k]), xlabel="x", xlim=(low, high), yticks=[])
            ax.spines["left"].set_visible(False)
        row[0].set_ylabel("density")
        if log_prob is not None:
            row[0].legend(loc="upper left", handlelength=1.2, borderaxespad=0)
    return figure


def space_time(
    trajectory: Trajectory,
    log_prob: LogProb | None = None,
    n: int = 6,
    ax: Axes | None = None,
    bounds: float | Sequence[float] | None = None,
    log_time: bool | None = None,
    device: torch.device | str = "cpu",
    **kwargs: Any,
) -> Axes:
    """The classic picture of a run on a line: p_t(x) as shading over (t, x), paths on top, the ends beside it.

    Each time is shaded from zero to its own maximum. Without `log_prob` the shading counts the run's own states. The
    end densities show the run as bars and the exact density as a line.

    Args:
        trajectory: the run, states (N, B, 1).
        log_prob: x (M, 1) and t () → log p_t (M,).
        n: how many paths.
        ax: axes to draw on; the end densities are put outside, to the left and right.
        bounds: a radius, or (bottom, top) for x.
        log_time: a logarithmic time axis; needs t > 0. By default where most of the run's steps lie in the last tenth
            of its time, as with SDEs whose time is the noise itself.
        device: where to evaluate `log_prob`.
        **kwargs: for matplotlib's `pcolormesh`.

    References:
        Song et al. (2021), Score-based generative modeling through stochastic differential equations, figure 2,
        arXiv:2011.13456.

    Example:
        >>> from types import SimpleNamespace
        >>> run = SimpleNamespace(t=torch.linspace(0, 1, 20), x=torch.randn(20, 500, 1))
        >>> space_time(run).get_xlabel()
        't'
    """
    t, x = states("trajectory", trajectory, 1)
    log_time = wants_log(t) if log_time is None else log_time
    if log_time and t.min() <= 0:
        raise ValueError(f"log_time needs times above 0, got {t.min():.3g}: pass log_time=False")
    box = _bounds_of_x(bounds, t, x)
    with style():
        ax = _axes_with_margins(f"density and {n} of {x.shape[1]} paths") if ax is None else ax
        at = np.linspace(box[2], box[3], 300)
        _shade(ax, t, x, at, log_prob, log_time, device, kwargs)
        look = {"colors": INKS, "linewidths": 1.0, "alpha": 0.9}
        paths(trajectory, n, ax=ax, limits=box, **look) if n else over_time(ax, t, box)
        ax.set_xscale("log" if log_time else "linear")
        ax.set_xlim(t[0], t[-1])
        for left, k in ((True, 0), (False, -1)):
            exact = None if log_prob is None else _density(log_prob, at, t[k], device)
            _end_density(ax, left, x[k, :, 0], at, exact, time_title(t[k]))
        ax.set_ylabel("")
        ax.tick_params(left=False, labelleft=False)
    return ax


def _shade(
    ax: Axes,
    t: np.ndarray,
    x: np.ndarray,
    at: np.ndarray,
    log_prob: LogProb | None,
    log_time: bool,
    device: torch.device | str,
    kwargs: dict[str, Any],
) -> None:
    """p_t(x) at the points `at` and 160 times, or a histogram at the run's own times, each time on its own scale."""
    if log_prob is None:
        edges = np.linspace(at[0], at[-1], 81)
        now, at = t, (edges[1:] + edges[:-1]) / 2
        image = np.stack([np.histogram(row[:, 0], bins=edges)[0] for row in x], 1).astype(float)
    else:
        now = (np.geomspace if log_time else np.linspace)(t[0], t[-1], 160)
        image = np.stack([_density(log_prob, at, s, device) for s in now], 1)
    image /= np.maximum(image.max(0), 1e-300)
    look = {"cmap": "Blues", "vmin": 0, "vmax": 1, "shading": "nearest", "rasterized": True, **kwargs}
    ax.pcolormesh(now, at, image, **look)


def _end_density(ax: Axes, left: bool, x: np.ndarray, at: np.ndarray, exact: np.ndarray | None, title: str) -> None:
    """The ends' own pictures at the side of the main one: x upwards, density outwards."""
    side = ax.inset_axes((-0.17, 0, 0.15, 1) if left else (1.02, 0, 0.15, 1), sharey=ax)
    width = (at[-1] - at[0]) / 80
    look: dict[str, Any] = {"orientation": "horizontal", "color": SKY, "weights": np.full(len(x), 1 / width / len(x))}
    if np.mean((at[0] < x) & (x < at[-1])) > 0.2:  # else bars would be a handful of points
        side.hist(x, bins=80, range=(at[0], at[-1]), **look)
    if exact is not None:
        side.plot(exact, at, color=BLACK, linewidth=1)
    widest = 1.08 * max(side.get_xlim())
    side.set(xticks=[], xlim=(widest, 0) if left else (0, widest))
    side.set_title(title, fontsize=9)
    side.spines[["bottom", "right"]].set_visible(False)
    side.spines["left"].set_visible(left)
    side.tick_params(left=left, labelleft=left)
    if left:
        side.set_ylabel("x")


def _density(log_prob: LogProb, x: np.ndarray, t: float, device: torch.device | str) -> np.ndarray:
    """The density at points of a line, at one time."""
    at = torch.as_tensor(x, dtype=torch.float32, device=device)[:, None]
    values = log_prob(at, torch.tensor(t, dtype=torch.float32, device=device))
    if tuple(values.shape) != (len(x),):
        raise ValueError(
            f"log_prob must map x (M, 1) and t () to (M,), got {tuple(values.shape)} for M = {len(x)}: reshape it"
        )
    density = np.exp(to_numpy(values))
    if not np.isfinite(density).all():
        raise ValueError(f"log_prob must be finite, got nan or inf at t = {t:.4g}: start the run a little later")
    return density


def _bounds_of_x(bounds: float | Sequence[float] | None, t: np.ndarray, x: np.ndarray) -> Limits:
    if bounds is None:
        return run_limits([(t, x)])
    pair = [float(b) for b in np.asarray(bounds, dtype=float).ravel()]
    low, high = (-pair[0], pair[0]) if len(pair) == 1 else pair if len(pair) == 2 else (0.0, 0.0)
    if not low < high:
        raise ValueError(f"bounds must be a radius or (bottom, top), got {bounds}: pass bounds=3, say")
    return (low, high, low, high)


def _axes_with_margins(title: str) -> Axes:
    """Room at both sides for the end densities, which no layout engine sees."""
    import matplotlib.pyplot as plt

    margins = {"left": 0.2, "right": 0.86, "bottom": 0.16, "top": 0.88}
    ax = plt.subplots(figsize=(7.2, 3.4), gridspec_kw=margins)[1]
    ax.set_title(title)
    return ax
