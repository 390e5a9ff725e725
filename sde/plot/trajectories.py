"""Runs of an SDE or ODE: paths in the plane or over time, and snapshots.

A trajectory has times `t` (N,) and states `x` (N, B, D), D = 1 or 2, data at t = 0. Pictures over time run in its own
direction: a forward run and the reverse run beside it read like a film and the film rewound. A path keeps its colour
from panel to panel, so that runs from the same noise can be followed pairwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sde.plot.points import marker_size
from sde.plot.style import (
    COLOURS,
    GREY,
    Limits,
    Trajectory,
    as_limits,
    common_limits,
    follows,
    new_axes,
    panels,
    pick,
    plane,
    row_of_axes,
    run_limits,
    states,
    style,
    time_title,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def paths(
    trajectory: Trajectory,
    n: int = 15,
    ax: Axes | None = None,
    limits: float | Sequence[float] | None = None,
    **kwargs: Any,
) -> Axes:
    """The first n paths of a run: in the plane for states (N, B, 2), over time for states (N, B, 1).

    In the plane a path grows darker as it runs, from a ring to a dot, and grey dots are the ends of all.

    Args:
        trajectory: the run.
        n: how many paths.
        ax: axes to draw on.
        limits: a radius, or (left, right, bottom, top); of x alone for states on a line.
        **kwargs: for matplotlib's `LineCollection`.

    Example:
        >>> from types import SimpleNamespace
        >>> walk = torch.randn(50, 10, 2).cumsum(0) * 0.1
        >>> ax = paths(SimpleNamespace(t=torch.linspace(0, 1, 50), x=walk), n=5)
        >>> len(ax.collections[0].get_segments())  # 5 paths of 49 steps
        245
    """
    from matplotlib.collections import LineCollection

    t, x = states("trajectory", trajectory, 1, 2)
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}: pass n=15, say")
    few = x[:, :n]
    box = run_limits([(t, x)]) if limits is None else as_limits("limits", limits)
    with style():
        ax = new_axes(ax, f"{few.shape[1]} of {x.shape[1]} paths, t = {t[0]:.3g} → {t[-1]:.3g}")
        if few.shape[2] == 1:
            over = np.stack([np.broadcast_to(t[:, None], few.shape[:2]), few[..., 0]], -1)
            look = {"colors": _colours(few.shape[1]), "linewidths": 1.0, "alpha": 0.8, **kwargs}
            ax.add_collection(LineCollection(list(over.swapaxes(0, 1)), **look))
            over_time(ax, t, box)
        else:
            _in_the_plane(ax, few, x[-1], kwargs)
            plane(ax, box)
    return ax


def _in_the_plane(ax: Axes, few: np.ndarray, ends: np.ndarray, kwargs: dict[str, Any]) -> None:
    from matplotlib.collections import LineCollection
    from matplotlib.colors import to_rgba_array

    steps, n = few.shape[0] - 1, few.shape[1]
    colours = _colours(n)
    segments = np.stack([few[:-1], few[1:]], 2).swapaxes(0, 1).reshape(-1, 2, 2)  # path by path
    # Lines come out of the dark: what an SDE does early on would else hide where it ends.
    inks = to_rgba_array(colours).repeat(steps, 0)
    inks[:, 3] = np.tile(np.linspace(0.12, 0.9, steps), n)
    ax.add_collection(LineCollection(list(segments), **{"colors": inks, "linewidths": 0.9, **kwargs}))
    ax.scatter(*ends.T, s=marker_size(len(ends)), color=GREY, alpha=0.35, linewidths=0, zorder=0.5)
    ax.scatter(*few[0].T, s=16, facecolors="white", edgecolors=colours, linewidths=1.0, zorder=3)
    ax.scatter(*few[-1].T, s=22, color=colours, edgecolors="white", linewidths=0.6, zorder=4)


def _colours(n: int) -> list[str]:
    return [COLOURS[k % 7] for k in range(n)]


def compare_paths(
    trajectories: Mapping[str, Trajectory],
    n: int = 15,
    axes: Sequence[Axes] | np.ndarray | None = None,
    limits: float | Sequence[float] | None = None,
    **kwargs: Any,
) -> Figure:
    """Paths of several runs side by side, on the same limits: SDE and ODE from the same noise, say.

    Args:
        trajectories: name → run; all in the plane, or all on a line.
        n: how many paths; path k has one colour in every panel.
        axes: as many axes to draw on.
        limits: a radius, or (left, right, bottom, top).
        **kwargs: for `paths`.

    Example:
        >>> from types import SimpleNamespace
        >>> run = SimpleNamespace(t=torch.linspace(1, 0, 50), x=torch.randn(50, 10, 2).cumsum(0))
        >>> [ax.get_title() for ax in compare_paths({"SDE": run, "ODE": run}).axes]
        ['SDE', 'ODE']
    """
    runs = panels("trajectories", trajectories, "trajectories")
    if limits is None:
        limits = run_limits(states(f"trajectories[{name!r}]", run, 1, 2) for name, run in runs.items())
    with style():
        figure, row = row_of_axes(len(runs), axes, size=(3.6, 3.6))
        for ax, (name, run) in zip(row, runs.items(), strict=True):
            paths(run, n, ax=ax, limits=limits, **kwargs)
            ax.set_title(name)
            follows(ax, row[0])
    return figure


def snapshots(
    trajectory: Trajectory,
    times: int | Sequence[float] | Tensor = 6,
    axes: Sequence[Axes] | np.ndarray | None = None,
    limits: float | Sequence[float] | None = None,
    **kwargs: Any,
) -> Figure:
    """A run in the plane as a strip of scatter plots, in the order in which it ran.

    Args:
        trajectory: the run, states (N, B, 2).
        times: how many, evenly spread over the recorded states; or at which times (the nearest recorded ones).
        axes: as many axes to draw on.
        limits: a radius, or (left, right, bottom, top). By default common to all panels, unless the noise is five times
            as wide as the data or more: then each panel has its own, which its ticks tell.
        **kwargs: for matplotlib's `scatter`.

    Example:
        >>> from types import SimpleNamespace
        >>> run = SimpleNamespace(t=torch.linspace(1, 0, 50), x=torch.randn(50, 10, 2))
        >>> [ax.get_title() for ax in snapshots(run, times=[1, 0]).axes]
        ['t = 1', 't = 0']
    """
    from sde.plot.points import scatter

    t, x = states("trajectory", trajectory, 2)
    rows = pick(t, times)
    whole, data = common_limits(x[rows]), common_limits([x[t.argmin()]])
    wide = whole[1] - whole[0] >= 5 * (data[1] - data[0])
    with style():
        figure, row = row_of_axes(len(rows), axes, size=(2.3, 2.6))
        for ax, k in zip(row, rows, strict=True):
            box = (common_limits([x[k]]) if wide else whole) if limits is None else as_limits("limits", limits)
            scatter(torch.as_tensor(x[k]), ax=ax, limits=box, **kwargs)
            ax.set_title(time_title(t[k]))
            follows(ax, row[0])
    return figure


def over_time(ax: Axes, t: np.ndarray, box: Limits) -> None:
    """Axes of x over t, in the direction of the run; t on a logarithmic scale where the run's own grid asks for it."""
    if wants_log(t):
        ax.set_xscale("log")
    ax.set(xlabel="t", ylabel="x", xlim=(t[0], t[-1]), ylim=box[2:])


def wants_log(t: np.ndarray) -> bool:
    """Whether a run spent most of its steps in the last tenth of its time, as where time is the noise itself."""
    return bool(t.min() > 0 and np.median(t) < t.max() / 10)
