"""What all pictures share: colours told apart by everyone, plain axes, common limits, panels in a row.

Colours are those of Okabe and Ito (2008), safe for all common kinds of colour blindness; fields use viridis.
matplotlib is imported when a picture is drawn, never before.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY, BLACK, YELLOW = COLOURS = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#000000",
    "#F0E442",
)
GREY = "#8A8A8A"
FIELD = "viridis"

RC = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#555555",
    "axes.labelsize": 10,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 11,
    "figure.dpi": 100,
    "font.size": 10,
    "image.cmap": FIELD,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "savefig.bbox": "tight",
    "savefig.dpi": 150,
    "xtick.color": "#555555",
    "xtick.labelcolor": "black",
    "xtick.labelsize": 9,
    "ytick.color": "#555555",
    "ytick.labelcolor": "black",
    "ytick.labelsize": 9,
}


class Trajectory(Protocol):
    """A recorded run: `t` of shape (N,), `x` of shape (N, B, ...); `t` decreases on the way from noise to data."""

    @property
    def t(self) -> Tensor:
        """Times, (N,)."""
        ...

    @property
    def x(self) -> Tensor:
        """States, (N, B, ...)."""
        ...


@contextmanager
def style(**overrides: Any) -> Iterator[None]:
    """The look of the package's own pictures, for pictures of one's own: readable type, no frame, safe colours.

    Keyword arguments are matplotlib's rcParams with dots written as underscores.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> with style(font_size=14):
        ...     plt.rcParams["font.size"], plt.rcParams["axes.spines.top"]
        (14.0, False)
    """
    import matplotlib
    from cycler import cycler

    names = {name.replace(".", "_"): name for name in matplotlib.rcParams}
    unknown = sorted(set(overrides) - set(names))
    if unknown:
        raise ValueError(f"style has no setting {unknown[0]}: pass an rcParam with _ for each dot, font_size=12, say")
    rc = {**RC, "axes.prop_cycle": cycler(color=COLOURS[:6])}
    changed: Any = {**rc, **{names[k]: v for k, v in overrides.items()}}
    with matplotlib.rc_context(changed):
        yield
        interactive = matplotlib.is_interactive()
    # A notebook's backend, loaded by the first figure, switches this on: it must not go with the style.
    matplotlib.interactive(interactive)


def new_axes(ax: Axes | None, title: str, size: tuple[float, float] = (4.2, 4.0)) -> Axes:
    """`ax` as it is, or the axes of a new figure, titled."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    ax = plt.subplots(figsize=size, layout="constrained")[1]
    ax.set_title(title)
    return ax


def row_of_axes(
    n: int, axes: Sequence[Axes] | np.ndarray | None, size: tuple[float, float] = (2.6, 2.8)
) -> tuple[Figure, list[Axes]]:
    """A figure and its n axes in a row: the given ones, or new ones of `size` inches each."""
    if axes is None:
        import matplotlib.pyplot as plt

        # A figure of one panel is a little wider, or its title would not fit.
        width = size[0] * n if n > 1 else 1.5 * size[0]
        figure, grid = plt.subplots(1, n, figsize=(width, size[1]), layout="constrained", squeeze=False)
        return figure, list(grid[0])
    flat = list(np.asarray(axes, dtype=object).ravel())
    if len(flat) != n:
        raise ValueError(
            f"axes must hold {n} axes, one for each panel, got {len(flat)}: pass axes=None to have them made"
        )
    return flat[0].figure, flat


def plane(ax: Axes, limits: Limits) -> None:
    """Axes of the (x₁, x₂) plane within limits: equal aspect, the same ticks both ways, named."""
    ax.set_aspect("equal")
    ax.set(xlabel="x₁", ylabel="x₂", xlim=limits[:2], ylim=limits[2:])
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(_locator())


def _locator() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(5, steps=[1, 2, 5, 10])


def follows(ax: Axes, first: Axes) -> None:
    """Takes from a panel what the first of its row says already: the name of x₂, and its numbers if equal."""
    if ax is not first:
        ax.set_ylabel("")
        if ax.get_ylim() == first.get_ylim():
            ax.tick_params(labelleft=False)


Limits = tuple[float, float, float, float]


def common_limits(samples: Iterable[np.ndarray], keep: float = 0.999) -> Limits:
    """A square that holds all but the outermost points of every sample (n, 1 or 2), with a margin."""
    low, high = np.full(2, math.inf), np.full(2, -math.inf)  # a sample on a line counts for both axes
    for x in samples:
        finite = x[np.isfinite(x).all(1)]
        if len(finite):
            edges = np.quantile(finite, [1 - keep, keep], axis=0)
            low, high = np.minimum(low, edges[0]), np.maximum(high, edges[1])
    if not np.isfinite(low).all():
        raise ValueError("x must hold at least one finite point, got none: look for the step that made the first nan")
    centre, half = (low + high) / 2, max(float((high - low).max()) * 0.54, 1e-3)
    return (centre[0] - half, centre[0] + half, centre[1] - half, centre[1] + half)


def run_limits(runs: Iterable[tuple[np.ndarray, np.ndarray]]) -> Limits:
    """Common limits of runs (t, x); about the data alone where the noise is five times as wide or more."""
    pairs = list(runs)
    whole = common_limits(x.reshape(-1, x.shape[-1]) for _, x in pairs)
    data = common_limits(x[t.argmin()] for t, x in pairs)
    if whole[1] - whole[0] < 5 * (data[1] - data[0]):
        return whole
    half = data[1] - data[0]
    centre = (data[0] + data[1]) / 2, (data[2] + data[3]) / 2
    return (centre[0] - half, centre[0] + half, centre[1] - half, centre[1] + half)


def as_limits(name: str, bounds: float | Sequence[float]) -> Limits:
    """`r` as the square [-r, r]²; four numbers (left, right, bottom, top) as they are."""
    values = [float(v) for v in np.asarray(bounds, dtype=float).ravel()]
    limits = (-values[0], values[0], -values[0], values[0]) if len(values) == 1 else tuple(values)
    if len(limits) != 4 or not (limits[0] < limits[1] and limits[2] < limits[3]) or not np.isfinite(limits).all():
        raise ValueError(f"{name} must be a radius or (left, right, bottom, top), got {bounds}: pass {name}=3, say")
    return limits


def points(name: str, x: Any) -> np.ndarray:
    """A sample in the plane as an array (n, 2); things with `.x`, such as data sets, give theirs."""
    x = getattr(x, "x", x)
    array = to_numpy(x)
    if array.ndim != 2 or array.shape[1] != 2 or len(array) == 0:
        raise ValueError(
            f"{name} must be points of the plane (n, 2), got shape {tuple(array.shape)}: pick two, x[:, :2]; "
            "images go to grid, trajectories to paths or snapshots"
        )
    return array


def states(name: str, trajectory: Trajectory, *allowed: int) -> tuple[np.ndarray, np.ndarray]:
    """Times (N,) and states (N, B, D) of a trajectory of points whose D is one of `allowed`."""
    t, x = to_numpy(trajectory.t), to_numpy(trajectory.x)
    if t.ndim != 1 or len(t) < 2 or len(x) != len(t):
        raise ValueError(
            f"{name} must have t (N,) and x (N, B, D), N at least 2, got {t.shape} and {x.shape}: record more"
        )
    if x.ndim != 3 or x.shape[2] not in allowed or x.shape[1] == 0:
        wanted = " or ".join(f"(N, B, {d})" for d in allowed)
        raise ValueError(
            f"{name} must have states {wanted}, got {x.shape}: pick coordinates with "
            f"{name}.map(lambda x: x[:, :{max(allowed)}]), or a channel with x[:, 0]"
        )
    return t, x


def panels(name: str, things: Any, kind: str) -> dict[str, Any]:
    """A mapping from titles to things, refused if it is anything else or empty."""
    if not isinstance(things, Mapping) or not things:
        raise TypeError(
            f"{name} must map titles to {kind}, got {type(things).__name__}: pass {{'SDE': a, 'ODE': b}}, say"
        )
    return dict(things)


def pick(t: np.ndarray, times: int | Sequence[float] | Tensor) -> list[int]:
    """Indices into the times t: that many, evenly spread by index, or the nearest to each one given."""
    if isinstance(times, int):
        if times < 1:
            raise ValueError(f"times must be at least 1, got {times}: pass times=6, say")
        return np.linspace(0, len(t) - 1, min(times, len(t))).round().astype(int).tolist()
    wanted = to_numpy(torch.as_tensor(times)).ravel()
    slack = 1e-6 * (1 + np.abs(t).max())  # a time that went through float32
    if not len(wanted) or not ((t.min() - slack <= wanted) & (wanted <= t.max() + slack)).all():
        raise ValueError(
            f"times must lie between {t.min():.4g} and {t.max():.4g}, where the trajectory ran, got {wanted.tolist()}"
        )
    return [int(np.abs(t - w).argmin()) for w in wanted]


def to_numpy(x: Any) -> np.ndarray:
    """Any tensor or array as float64 numpy (bfloat16 and GPU tensors too)."""
    return torch.as_tensor(x).detach().cpu().to(torch.float64).numpy()


def time_title(t: float) -> str:
    """`t = 0.25`, in three digits."""
    return f"t = {t:.3g}"
