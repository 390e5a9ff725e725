"""What every data set here is: a batch `x` on the scale a network likes, and the way back from it.

    raw = mean + scale x

`mean` and `scale` belong to the *population*, not to the draw: two draws of one toy set are on one scale, so
that a model trained on the first can be held against the second, and a sample of a hundred points is not
stretched by its own luck. `scale` is one number for all coordinates, so that circles stay round.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sde.data.pixels import HALF, from_uint8


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    r"""Data ready to train on, `x = (raw - mean) / scale`, with class labels where the data have classes.

    Attributes:
        x: the data, (n, \*D), float32; or uint8, for images kept as bytes that a trainer brings to [-1, 1] on the
            device, by `from_uint8`.
        label: the class of each row, (n,), int64; None where there are no classes.
        mean: the population's mean in raw units; a shape that broadcasts against one row of `x`.
        scale: one number: the root of the population's variance averaged over coordinates, in raw units.
            (For images: the map from raw grey levels to [-1, 1], whatever their mean and variance.)
        name: what to write above a picture of it.

    Example:
        >>> from sde.data import moons
        >>> data = moons(1000, generator=torch.Generator().manual_seed(0))
        >>> data
        Dataset('moons', x=(1000, 2), classes=2)
        >>> data[data.label == 1].x.shape[1:]
        torch.Size([2])
        >>> bool((data.unstandardize(data.x) > -1.5).all())  # the units of the textbook
        True
    """

    x: Tensor
    label: Tensor | None = None
    mean: Tensor | float = 0.0
    scale: float = 1.0
    name: str = "data"

    def unstandardize(self, x: Tensor) -> Tensor:
        """Samples on the scale of `x`, taken back to raw units: `mean + scale x`; bytes as `from_uint8` of them."""
        x = from_uint8(x) if x.dtype == torch.uint8 else x
        return self._mean_like(x) + self.scale * x

    def standardize(self, raw: Tensor) -> Tensor:
        """Raw data brought to the scale of `x`: `(raw - mean) / scale`."""
        return (raw - self._mean_like(raw)) / self.scale

    def statistics(self) -> tuple[Tensor, float]:
        r"""Mean (\*D) and root mean variance of this draw, on the scale that networks see: a `ScoreModel`'s arguments.

        mean_i = E x_i,   scale² = (1/d) Σ_i Var x_i. Sums in float64, chunk by chunk; those of bytes are exact.

        Example:
            >>> mean, scale = Dataset(torch.tensor([[0], [255]], dtype=torch.uint8)).statistics()
            >>> mean, scale  # of -1 and 1
            (tensor([0.]), 1.0)
        """
        if not self.x.numel():
            raise ValueError(f"x has shape {tuple(self.x.shape)}: there is nothing to take the mean of")
        levels = self.x.dtype == torch.uint8
        first, second = torch.zeros(()), torch.zeros(())
        for chunk in self.x.split(min(256, max(1, 2**24 // self.x[0].numel()))):
            # 256 squares of bytes sum to less than 2^24: exact in float32. Not every device has float64.
            exact = chunk.float() if levels else chunk.cpu().double()
            first = first + exact.sum(0).cpu().double()
            second = second + exact.square().sum(0).cpu().double()
        mean, variance = first / len(self), second / len(self) - (first / len(self)).square()
        unit, zero = (HALF, 1.0) if levels else (1.0, 0.0)
        return (mean / unit - zero).float(), math.sqrt(max(float(variance.mean()), 0.0)) / unit

    def to(self, device: torch.device | str) -> "Dataset":
        """The same data on another device."""
        label = None if self.label is None else self.label.to(device)
        return replace(self, x=self.x.to(device), label=label)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: slice | Tensor | Sequence[int]) -> "Dataset":
        if isinstance(rows, int):
            raise TypeError(f"rows must be a slice, a mask or indices, got {rows}: one row is data[{rows}:{rows + 1}]")
        return replace(self, x=self.x[rows], label=None if self.label is None else self.label[rows])

    def __repr__(self) -> str:
        classes = "" if self.label is None else f", classes={self.label.unique().numel()}"
        kind = " uint8" if self.x.dtype == torch.uint8 else ""
        return f"Dataset({self.name!r}, x={tuple(self.x.shape)}{kind}{classes})"

    def _mean_like(self, x: Tensor) -> Tensor | float:
        return self.mean.to(x) if isinstance(self.mean, Tensor) else self.mean
