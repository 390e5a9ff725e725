"""Samples in the plane: one, or several side by side on common limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from sde.plot.style import (
    COLOURS,
    as_limits,
    common_limits,
    follows,
    new_axes,
    panels,
    plane,
    points,
    row_of_axes,
    style,
    to_numpy,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def scatter(
    x: Any,
    label: Tensor | None = None,
    ax: Axes | None = None,
    limits: float | Sequence[float] | None = None,
    **kwargs: Any,
) -> Axes:
    """Scatter of points in the plane, coloured by class where there are classes.

    Args:
        x: points (n, 2), or a data set, whose labels are then used.
        label: the class of each point, (n,); up to eight classes are told apart by colour.
        ax: axes to draw on.
        limits: a radius, or (left, right, bottom, top).
        **kwargs: for matplotlib's `scatter`.

    Example:
        >>> from sde.data import moons
        >>> scatter(moons(500)).get_xlabel()
        'x₁'
    """
    xy = points("x", x)
    label = getattr(x, "label", None) if label is None else label
    with style():
        ax = new_axes(ax, f"{getattr(x, 'name', None) or 'points'}, n = {len(xy)}")
        look = {"s": marker_size(len(xy)), "alpha": 0.7, "linewidths": 0, "rasterized": len(xy) > 5000, **kwargs}
        if label is not None:
            classes = to_numpy(label).astype(int)
            if classes.shape != (len(xy),):
                raise ValueError(f"label must be ({len(xy)},), one class for each point, got shape {classes.shape}")
            look.setdefault("color", np.array(COLOURS)[classes % len(COLOURS)])
        elif not {"c", "color"} & look.keys():
            look["color"] = COLOURS[0]
        ax.scatter(xy[:, 0], xy[:, 1], **look)
        plane(ax, common_limits([xy]) if limits is None else as_limits("limits", limits))
    return ax


def compare(
    samples: Mapping[str, Any],
    axes: Sequence[Axes] | np.ndarray | None = None,
    limits: float | Sequence[float] | None = None,
    **kwargs: Any,
) -> Figure:
    """Several samples side by side, on the same limits, each under its name.

    Args:
        samples: name → points (n, 2) or data set.
        axes: as many axes to draw on.
        limits: a radius, or (left, right, bottom, top); by default what holds them all.
        **kwargs: for matplotlib's `scatter`.

    Example:
        >>> from sde.data import circles, moons
        >>> figure = compare({"moons": moons(500), "circles": circles(500)})
        >>> [ax.get_title() for ax in figure.axes]
        ['moons', 'circles']
    """
    named = {name: points(f"samples[{name!r}]", x) for name, x in panels("samples", samples, "points").items()}
    box = common_limits(named.values()) if limits is None else as_limits("limits", limits)
    with style():
        figure, row = row_of_axes(len(named), axes, size=(3.1, 3.2))
        for k, (ax, (name, xy)) in enumerate(zip(row, named.items(), strict=True)):
            colour = {} if {"c", "color"} & kwargs.keys() else {"color": COLOURS[k % 7]}
            scatter(xy, ax=ax, limits=box, **colour, **kwargs)
            ax.set_title(name)
            follows(ax, row[0])
    return figure


def marker_size(n: int) -> float:
    """An area that lets neither ten points vanish nor ten thousand become a blot."""
    return float(np.clip(3000 / n, 1.5, 18))
