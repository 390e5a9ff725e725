r"""Nearest neighbours: has a model learnt the data, or remembered them? And how much of them does it cover?

With d₁(x) ≤ d₂(x) the distances from a sample to its nearest and second nearest training points, and s the median of
the same distance from one training point to the nearest other,

    d₁ / s     about 1 for a fresh draw of what the data came from, far below 1 for a copy,
    d₁ / d₂    far below 1 where one training point alone is near: Carlini et al. and Yoon et al. call it remembered
               below 1/3.

Precision and recall ask the same of balls: B_k(y) reaches from y to its k-th nearest in y's own sample.

    precision = share of generated points in the ball of any real one,       recall   = the same with roles exchanged
    density   = mean number of real balls that hold a generated point / k,   coverage = share of balls that hold one

All of it goes through tables of distances, a chunk at a time. Candidates are found by products of matrices, which is
quick and cancels where points are near; what is kept is measured again by differences.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sde.data import Dataset
from sde.metrics._samples import TABLE, pair
from sde.solvers.progress import bar

SPARE = 8
"""More candidates than asked for, as rounding may exchange near ones."""
REMEMBERED = 1 / 3


class Neighbours(NamedTuple):
    """Distances (n, k), nearest first, and the rows of the data that they lead to (n, k): see `neighbours`."""

    distance: Tensor
    rows: Tensor


def neighbours(
    samples: Tensor,
    data: Tensor | Dataset,
    k: int = 1,
    exclude_self: bool = False,
    device: torch.device | str | None = None,
    progress: bool | None = None,
) -> Neighbours:
    r"""Nearest training points of each sample in Euclidean distance: of pixels, or of features if given these.

    Args:
        samples: (n, \*D), floats; or bytes, which are taken as images in [-1, 1].
        data: (N, \*D), or a data set; may be bytes, and on another device: a chunk at a time is moved.
        k: How many.
        exclude_self: Where `samples` are rows of the data: leave out one point at distance 0.
        device: Where to compute. Default: that of `samples`.
        progress: True for a bar, False for none. Default: one that appears after two seconds.

    Returns:
        Distances, float32 or wider, and rows of the data, on the device of `samples`.

    Example:
        >>> data = torch.tensor([[0.0], [1.0], [5.0]])
        >>> neighbours(torch.tensor([[0.9], [4.0]]), data, k=2)
        Neighbours(distance=tensor([[0.1000, 0.9000], [1.0000, 3.0000]]), rows=tensor([[1, 0], [2, 1]]))
    """
    data = data.x if isinstance(data, Dataset) else data
    _check(samples, data, k + exclude_self)
    where = torch.device(device) if device is not None else samples.device
    parts = _row_chunks(samples, data)
    found = []
    with bar(len(samples), "neighbours", "sample", progress) as done:
        for part in parts:
            x = _floats(part.to(where)).flatten(1)
            distance, index = _nearest(x, data, k + exclude_self)
            found.append((distance[:, exclude_self:], index[:, exclude_self:]))
            done(len(part))
    distance, index = (torch.cat(both).to(samples.device) for both in zip(*found, strict=True))
    return Neighbours(distance, index)


def _nearest(x: Tensor, data: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest rows of data to each of x (n, d), over chunks of the data."""
    keep = min(k + SPARE, len(data))
    best, where = x.new_full((len(x), 0), 0.0), torch.zeros(len(x), 0, dtype=torch.int64, device=x.device)
    centre = _floats(data[: min(len(data), 1000)].to(x.device)).flatten(1).to(x).mean(0)  # less to cancel
    u = x - centre
    for first, chunk in _data_chunks(data):
        v = _floats(chunk.to(x.device, non_blocking=True)).flatten(1).to(x) - centre
        squares = torch.addmm(v.square().sum(1)[None], u, v.T, alpha=-2)  # without |u|², which orders nothing
        least, rows = squares.topk(min(keep, len(v)), dim=1, largest=False)
        best, where = torch.cat([best, least], 1), torch.cat([where, rows + first], 1)
        best, order = best.topk(min(keep, best.shape[1]), dim=1, largest=False)
        where = where.gather(1, order)
    exact = torch.stack([_differences(x, data, column) for column in where.T], 1)
    distance, order = exact.topk(k, dim=1, largest=False)
    return distance, where.gather(1, order)


def _differences(x: Tensor, data: Tensor, rows: Tensor) -> Tensor:
    return (x - _floats(data[rows.to(data.device)].to(x.device)).flatten(1).to(x)).norm(dim=1)


def _data_chunks(data: Tensor) -> list[tuple[int, Tensor]]:
    size = max(1, 2**25 // data[0].numel())
    return [(first, data[first : first + size]) for first in range(0, len(data), size)]


def _row_chunks(samples: Tensor, data: Tensor) -> tuple[Tensor, ...]:
    """Rows whose table against one chunk of the data holds at most 16 TABLE numbers."""
    return samples.split(max(1, 16 * TABLE // len(_data_chunks(data)[0][1])))


def _floats(x: Tensor) -> Tensor:
    if x.dtype == torch.uint8:
        return x.float() / 127.5 - 1
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _check(samples: Tensor, data: Tensor, k: int) -> None:
    if samples.ndim < 2 or not len(samples) or samples.shape[1:] != data.shape[1:]:
        raise ValueError(
            f"samples and data must be (n, *D) and (N, *D), got {tuple(samples.shape)} and {tuple(data.shape)}: "
            "reshape one like the other"
        )
    if not 1 <= k <= len(data):
        raise ValueError(f"k must be between 1 and the {len(data)} points of data, got {k}: pass k=1, say")


class Memorisation(NamedTuple):
    """What `memorisation` found.

    Attributes:
        ratio: d₁ / s for each sample, (n,): distance to the nearest training point, in units of the data's own spacing.
        gap: d₁ / d₂ for each sample, (n,).
        spacing: s, the median distance from one training point to the nearest other.
        rows: The two nearest rows of the data for each sample, (n, 2).
    """

    ratio: Tensor
    gap: Tensor
    spacing: float
    rows: Tensor

    @property
    def median(self) -> float:
        """Median of the ratio: about 1 for fresh draws."""
        return float(self.ratio.median())

    @property
    def remembered(self) -> float:
        """Share of samples with d₁ / d₂ below 1/3."""
        return float((self.gap < REMEMBERED).float().mean())

    def closest(self, n: int = 10) -> Tensor:
        """Rows of the n samples that are most like a training point: what to look at, by `sde.plot.neighbours`."""
        return self.ratio.argsort()[:n]

    def __str__(self) -> str:
        return (
            f"nearest training point at {self.median:.2f} of the data's own spacing (median; least "
            f"{float(self.ratio.min()):.2f}), {100 * self.remembered:.1f} % remembered"
        )


def memorisation(
    samples: Tensor,
    data: Tensor | Dataset,
    spacing_from: int = 2000,
    device: torch.device | str | None = None,
    progress: bool | None = None,
) -> Memorisation:
    r"""Whether samples are copies of training points: their distance to the nearest one beside the data's own spacing.

    Hold the figures against those of held-out data, which is what a model that remembers nothing would show.

    Args:
        samples: Generated points or images, (n, \*D), or their features.
        data: The training set, (N, \*D), or a data set.
        spacing_from: How many training points, evenly spread through their order, tell the data's own spacing.
        device: Where to compute. Default: that of `samples`.
        progress: As `neighbours`.

    References:
        Carlini et al. (2023), 2301.13188; Yoon et al. (2023), Diffusion probabilistic models generalize when they fail
        to memorize.

    Example:
        >>> data = torch.randn(500, 2)
        >>> memorisation(data[:50] + 1e-4, data).remembered, memorisation(torch.randn(50, 2), data).median > 0.5
        (1.0, True)
    """
    data = data.x if isinstance(data, Dataset) else data
    if len(data) < 2:
        raise ValueError(f"data must hold at least 2 points, got {len(data)}: a spacing needs a pair")
    few = data[:: -(-len(data) // spacing_from)]
    own = neighbours(few, data, 1, exclude_self=True, device=device or samples.device, progress=progress)
    near = neighbours(samples, data, 2, device=device, progress=progress)
    spacing = float(own.distance.median())
    first, second = near.distance.unbind(1)
    tiny = torch.finfo(first.dtype).tiny
    return Memorisation(first / max(spacing, tiny), first / second.clamp(min=tiny), spacing, near.rows)


class Coverage(NamedTuple):
    """Precision, recall, density and coverage of a generated sample: each about 1, or as `precision_recall` says."""

    precision: float
    recall: float
    density: float
    coverage: float


def precision_recall(real: Tensor, generated: Tensor, k: int = 3) -> Coverage:
    r"""Precision and recall of a generated sample, and density and coverage, by balls to the k-th nearest neighbour.

    For equal distributions and n = N points of each the expectation of density is 1 and that of coverage
    1 − Π_{i<k} (N − 1 − i) / (2N − 1 − i), about 1 − 2^−k; precision and recall are below 1, by an amount that only two
    halves of the data can tell.

    Args:
        real: Features (or points) of the data, (N, \*D).
        generated: Those of the model, (n, \*D).
        k: Which neighbour a ball reaches to: 3 in the first paper, 5 in the second.

    References:
        Kynkäänniemi et al. (2019), 1904.06991; Naeem et al. (2020), 2002.09797.

    Example:
        >>> x = torch.randn(500, 2)
        >>> narrow = precision_recall(x, 0.3 * torch.randn(500, 2))  # good samples that lack variety
        >>> narrow.precision > 0.9 > 0.5 > narrow.recall
        True
    """
    y, x = pair(real, generated)
    for name, sample in (("real", y), ("generated", x)):
        if len(sample) <= k or k < 1:
            raise ValueError(f"k must be at least 1 and below the {len(sample)} points of {name}, got {k}: pass k=3")
    radius_y, radius_x = (neighbours(s, s, k, exclude_self=True).distance[:, -1] for s in (y, x))
    held, covers = [], torch.zeros(len(y), dtype=torch.bool, device=y.device)
    recalled = covers.clone()
    for first in range(0, len(x), max(1, TABLE // len(y))):
        rows = slice(first, first + max(1, TABLE // len(y)))
        distance = torch.cdist(x[rows], y)
        inside = distance <= radius_y
        held.append(inside.sum(1))
        covers |= inside.any(0)
        recalled |= (distance <= radius_x[rows, None]).any(0)
    count = torch.cat(held).double()
    precision, density = (count > 0).double().mean(), count.mean() / k
    return Coverage(*(float(v) for v in (precision, recalled.double().mean(), density, covers.double().mean())))
