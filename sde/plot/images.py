"""Images in [-1, 1]: a grid of them, one being born, and generated ones beside their nearest training images.

Pictures (n, 1 or 3, height, width) are laid out on one canvas with white gaps, a single matplotlib image: quick, and
every pixel stays a square.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sde.plot.style import Trajectory, new_axes, pick, style, to_numpy

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def grid(images: Any, ncols: int | None = None, ax: Axes | None = None, **kwargs: Any) -> Axes:
    """Grid of images, row by row.

    Args:
        images: (n, 1 or 3, height, width) in [-1, 1], clamped beyond; or a data set of them.
        ncols: images in a row; by default about as many as rows.
        ax: axes to draw on.
        **kwargs: for matplotlib's `imshow`.

    Example:
        >>> ax = grid(torch.rand(12, 1, 8, 8) * 2 - 1, ncols=6)
        >>> ax.images[0].get_array().shape  # 2 rows and 6 columns of 8 pixels, with gaps of one
        (17, 53)
    """
    x = pictures("images", images)
    if ncols is not None and ncols < 1:
        raise ValueError(f"ncols must be at least 1, got {ncols}: pass ncols=8, say")
    columns = min(ncols or math.ceil(math.sqrt(len(x))), len(x))
    with style():
        return _show(x, columns, ax, f"{getattr(images, 'name', None) or 'images'}, {len(x)} shown", kwargs)[0]


def birth(
    trajectory: Trajectory,
    index: int = 0,
    times: int | Sequence[float] | Tensor = 10,
    ax: Axes | None = None,
    **kwargs: Any,
) -> Axes:
    """One image being born: its states along a run, in the order in which it ran, each under its time.

    Where noise exceeds [-1, 1] a state is shrunk to fit, so that the noise of every SDE is seen and not clipped.

    Args:
        trajectory: the run, states (N, B, 1 or 3, height, width).
        index: which image of the batch.
        times: how many, evenly spread over the recorded states; or at which times (the nearest recorded ones).
        ax: axes to draw on.
        **kwargs: for matplotlib's `imshow`.

    Example:
        >>> from types import SimpleNamespace
        >>> run = SimpleNamespace(t=torch.linspace(1, 0, 20), x=torch.randn(20, 4, 1, 8, 8))
        >>> [label.get_text() for label in birth(run, times=3).get_xticklabels()]
        ['1', '0.474', '0']
    """
    t = to_numpy(trajectory.t)
    if trajectory.x.ndim != 5 or len(trajectory.x) != len(t):
        raise ValueError(
            f"trajectory must have states (N, B, channels, height, width), got {tuple(trajectory.x.shape)}: "
            "points go to paths or snapshots; decode latents with trajectory.map(decoder)"
        )
    if not -trajectory.x.shape[1] <= index < trajectory.x.shape[1]:
        raise ValueError(f"index must be one of the {trajectory.x.shape[1]} images of the batch, got {index}")
    rows = pick(t, times)
    frames = trajectory.x[rows, index].float()
    widest = torch.quantile(frames.abs().flatten(1), 0.9, dim=1).clamp(min=1)
    x = pictures("trajectory", frames / widest[:, None, None, None])
    with style():
        ax, columns, _ = _show(x, len(x), ax, "an image being born" if t[0] > t[-1] else "an image dissolving", kwargs)
        ax.set_xticks(columns, [f"{t[k]:.3g}" for k in rows])
        ax.set_xlabel("t")
    return ax


def neighbours(images: Any, data: Any, n: int = 10, ax: Axes | None = None, **kwargs: Any) -> Axes:
    """Generated images above their nearest training images: new, or remembered?

    Nearest in Euclidean distance; below each pair its distance, as a share of the typical distance from one training
    image to the nearest other (the median): far below 1 is a copy.

    Args:
        images: generated ones, (m, 1 or 3, height, width) in [-1, 1]; the first n are shown.
        data: training images of the same shape, or a data set of them; at least two.
        n: how many pairs.
        ax: axes to draw on.
        **kwargs: for matplotlib's `imshow`.

    Example:
        >>> data = torch.rand(50, 1, 8, 8) * 2 - 1
        >>> ax = neighbours(data[:3], data)
        >>> [label.get_text() for label in ax.get_xticklabels()]  # the training images themselves
        ['0', '0', '0']
    """
    new, old = pictures("images", images)[:n], pictures("data", data)
    if new.shape[1:] != old.shape[1:] or len(old) < 2 or n < 1:
        raise ValueError(
            f"images and data must be pictures of one shape, two or more in data and n at least 1, got {new.shape}, "
            f"{old.shape} and n={n}: resize one like the other"
        )
    old_flat = torch.as_tensor(old).flatten(1)
    distance = torch.cdist(torch.as_tensor(new).flatten(1), old_flat, compute_mode=EXACT)
    nearest = distance.argmin(1)
    between = torch.cdist(old_flat[:: -(-len(old) // 500)], old_flat, compute_mode=EXACT)
    typical = between.topk(2, dim=1, largest=False).values[:, 1].median().clamp(min=1e-12)
    with style():
        ax, columns, rows = _show(
            np.concatenate([new, old[nearest.numpy()]]), len(new), ax, "images and their nearest in the data", kwargs
        )
        shares = distance.gather(1, nearest[:, None])[:, 0] / typical
        ax.set_xticks(columns, [f"{share:.2g}" for share in shares])
        ax.set_xlabel("distance / typical distance between training images")
        ax.set_yticks(rows, ["new", "nearest"])
    return ax


EXACT = "donot_use_mm_for_euclid_dist"  # the product form would leave a copy at a distance above zero


def pictures(name: str, images: Any) -> np.ndarray:
    """Images as (n, height, width, 1 or 3) in [0, 1]; what is not finite turns black."""
    x = to_numpy(getattr(images, "x", images))
    if x.ndim != 4 or x.shape[1] not in (1, 3) or 0 in x.shape:
        raise ValueError(
            f"{name} must be images (n, 1 or 3, height, width) in [-1, 1], got shape {x.shape}: "
            "one image is x[None], one channel of many x[:, :1]"
        )
    return np.nan_to_num((x.transpose(0, 2, 3, 1).clip(-1, 1) + 1) / 2, nan=0.0)


def canvas(x: np.ndarray, columns: int) -> np.ndarray:
    """Pictures (n, height, width, channels) laid out row by row with white gaps; grey ones lose their channel axis."""
    n, height, width, channels = x.shape
    rows, gap = math.ceil(n / columns), _gap(x)
    # each picture takes its gap along, to the right and below; the last row's and column's are cut off
    cells = np.ones((rows * columns, height + gap, width + gap, channels))
    cells[:n, :height, :width] = x
    table = cells.reshape(rows, columns, *cells.shape[1:]).swapaxes(1, 2)
    whole = table.reshape(rows * (height + gap), columns * (width + gap), channels)[:-gap, :-gap]
    return whole[..., 0] if channels == 1 else whole


def _gap(x: np.ndarray) -> int:
    return max(1, round(0.06 * max(x.shape[1:3])))


def _show(
    x: np.ndarray, columns: int, ax: Axes | None, title: str, kwargs: dict[str, Any]
) -> tuple[Axes, np.ndarray, np.ndarray]:
    """Pictures on one canvas in new or given axes; the centres of its columns and of its rows."""
    n, height, width, _ = x.shape
    rows, gap = math.ceil(n / columns), _gap(x)
    inch = float(np.clip(9 / columns, 0.3, 0.9))
    ax = new_axes(ax, title, size=(max(2.6, columns * inch + 0.3), max(1.3, rows * inch * height / width + 0.7)))
    look = {"cmap": "gray", "vmin": 0, "vmax": 1, "interpolation": "nearest", **kwargs}
    ax.imshow(canvas(x, columns), **look)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    column, row = np.arange(columns), np.arange(rows)
    return ax, column * (width + gap) + (width - 1) / 2, row * (height + gap) + (height - 1) / 2
