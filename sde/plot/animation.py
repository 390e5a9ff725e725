"""Trajectories as moving pictures, side by side: GIF, MP4 or HTML.

Frames are drawn on matplotlib's Agg canvas by blitting: the still parts once, then per frame only the points (or
images, or paths) and the time. A GIF gets one palette for all frames, no dithering, and from each frame only the pixels
that changed; both are what keep it small.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

from sde.plot.images import canvas, pictures
from sde.plot.movie import checked_path, write
from sde.plot.style import (
    COLOURS,
    Limits,
    Trajectory,
    as_limits,
    panels,
    plane,
    run_limits,
    states,
    style,
    time_title,
    to_numpy,
)
from sde.plot.trajectories import over_time

if TYPE_CHECKING:
    from matplotlib.animation import FuncAnimation
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def animate(
    trajectories: Trajectory | Mapping[str, Trajectory],
    path: str | PathLike[str] | None = None,
    frames: int = 60,
    fps: int = 20,
    n: int = 1000,
    limits: float | tuple[float, ...] | None = None,
    hold: float = 1.5,
    size: float = 3.0,
    **kwargs: Any,
) -> FuncAnimation:
    """Animation of one or more runs side by side, each under its title and its time.

    States in the plane (N, B, 2) move as points, states on a line (N, B, 1) grow as paths over time, images (N, B, 1 or
    3, height, width) appear as a grid. Where noise is five times as wide as the data or more, points are drawn at a
    scale that shrinks with it, written beside the time.

    Args:
        trajectories: a run, or title → run. Frame k shows each run at the same share of its recorded states.
        path: where to write it, .gif, .mp4 (needs the extra `sde[video]`) or .html; None only makes it.
        frames: how many, evenly spread over the recorded states; at most as many as there are.
        fps: frames a second.
        n: points shown (paths on a line: a thirtieth of it; images: 64 at most).
        limits: a radius, or (left, right, bottom, top).
        hold: seconds for which the last frame stays.
        size: width of a panel in inches, at 100 pixels each.
        **kwargs: for matplotlib's `plot`, which draws the points.

    Example:
        >>> import tempfile, torch
        >>> from pathlib import Path
        >>> from types import SimpleNamespace
        >>> run = SimpleNamespace(t=torch.linspace(1, 0, 5), x=torch.randn(5, 100, 2))
        >>> movie = animate({"SDE": run, "ODE": run})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     movie = animate(run, Path(folder) / "run.gif")
        ...     (Path(folder) / "run.gif").stat().st_size > 1000
        True
    """
    from matplotlib.animation import FuncAnimation

    target = None if path is None else checked_path(path)
    for name, value in (("frames", frames), ("fps", fps), ("n", n)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}: pass {name}=20, say")
    runs = (
        panels("trajectories", trajectories, "trajectories")
        if isinstance(trajectories, Mapping)
        else {"": trajectories}
    )
    count = min(frames, max(len(run.t) for run in runs.values()))
    with style():
        figure, draw = _scene(runs, count, n, limits, size, kwargs)
        order = [*range(count), *[count - 1] * round(hold * fps)]
        movie = FuncAnimation(figure, draw, frames=order, interval=1000 / fps, blit=True, init_func=lambda: draw(0))
        # An animation that nobody has looked at yet is no mistake here: no warning when it goes.
        movie._draw_was_started = True  # pyright: ignore[reportAttributeAccessIssue]
        if target is not None:
            write(target, figure, draw, count, fps, hold)
    return movie


def _scene(
    runs: dict[str, Any], count: int, n: int, limits: Any, size: float, kwargs: dict[str, Any]
) -> tuple[Figure, Callable[[int], list[Artist]]]:
    """The still figure, and the function that moves it to frame k and returns what moved."""
    import matplotlib.pyplot as plt

    titled = any(runs)
    figure, row = plt.subplots(
        1, len(runs), figsize=(size * len(runs), size + 0.35), layout="constrained", squeeze=False, dpi=100
    )
    flat = all(run.x.ndim == 3 for run in runs.values())
    box = None
    if flat:
        read = [states(f"trajectories[{name!r}]", run, 1, 2) for name, run in runs.items()]
        box = run_limits(read) if limits is None else as_limits("limits", limits)
    movers = []
    for k, (ax, (name, run)) in enumerate(zip(row[0], runs.items(), strict=True)):
        if titled:
            ax.set_title(name, pad=18)
        zoom = limits is None
        movers.append(_panel(ax, run, n, box, zoom, COLOURS[k % 6], kwargs))

    def draw(k: int) -> list[Artist]:
        share = k / max(count - 1, 1)
        return [artist for move in movers for artist in move(share)]

    return figure, draw


Move = Callable[[float], "list[Artist]"]


def _panel(
    ax: Axes, run: Trajectory, n: int, box: Limits | None, zoom: bool, colour: str, look: dict[str, Any]
) -> Move:
    """One panel's moving parts; `move(share)` puts them where the run was at that share of its states."""
    t = to_numpy(run.t)
    clock = ax.text(0.5, 1.02, "", transform=ax.transAxes, ha="center", va="bottom", fontsize=9, animated=True)
    if box is None:
        parts = _images(ax, run, n, look)
    elif run.x.shape[2] == 1:
        parts = _lines(ax, t, to_numpy(run.x)[:, : max(1, n // 30), 0], box, look)
    else:
        parts = _cloud(ax, to_numpy(run.x)[:, :n], box, zoom, {"color": colour, **look})

    def move(share: float) -> list[Artist]:
        k = round(share * (len(t) - 1))
        artists, note = parts(k)
        clock.set_text(time_title(t[k]) + note)
        return [*artists, clock]

    return move


Parts = Callable[[int], "tuple[list[Artist], str]"]


def _cloud(ax: Axes, x: np.ndarray, box: Limits, zoom: bool, look: dict[str, Any]) -> Parts:
    look = {"marker": "o", "linestyle": "", "markersize": 2.2, "markeredgewidth": 0, "alpha": 0.8, **look}
    (dots,) = ax.plot([], [], animated=True, **look)
    plane(ax, box)
    # what a frame must be shrunk by for nearly all of it to fit
    reach = np.quantile(np.abs(np.nan_to_num(x)).max(2), 0.99, axis=1) / max(map(abs, box))
    scale = np.maximum(reach, 1) if zoom and reach.max() > 1.5 else np.ones(len(x))

    def parts(k: int) -> tuple[list[Artist], str]:
        dots.set_data(x[k, :, 0] / scale[k], x[k, :, 1] / scale[k])
        return [dots], f", scale 1 : {scale[k]:.2g}" if scale[k] > 1.05 else ""

    return parts


def _lines(ax: Axes, t: np.ndarray, x: np.ndarray, box: Limits, look: dict[str, Any]) -> Parts:
    look = {"linewidth": 1.0, "alpha": 0.8, **look}
    lines = ax.plot(t[:1], x[:1], animated=True, **look)  # coloured in turn
    over_time(ax, t, box)

    def parts(k: int) -> tuple[list[Artist], str]:
        for line, values in zip(lines, x.T, strict=True):
            line.set_data(t[: k + 1], values[: k + 1])
        return list(lines), ""

    return parts


def _images(ax: Axes, run: Trajectory, n: int, look: dict[str, Any]) -> Parts:
    few = run.x[:, : min(n, 64)]
    if few.ndim != 5:
        raise ValueError(
            f"trajectories must all be points (N, B, 1 or 2) or all images (N, B, channels, height, width), got "
            f"{tuple(few.shape)}: pick what to show with trajectory.map(fn)"
        )
    side = int(np.ceil(np.sqrt(few.shape[1])))

    def frame(k: int) -> np.ndarray:
        x = few[k].float()
        return canvas(pictures("trajectories", x / x.abs().flatten().quantile(0.98).clamp(min=1)), side)

    image = ax.imshow(frame(0), **{"cmap": "gray", "vmin": 0, "vmax": 1, "animated": True, **look})
    ax.set_axis_off()

    def parts(k: int) -> tuple[list[Artist], str]:
        image.set_data(frame(k))
        return [image], ""

    return parts
