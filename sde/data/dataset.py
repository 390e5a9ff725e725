"""What every data set here is: a batch `x` on the scale a network likes, and the way back from it.

    raw = mean + scale x

`mean` and `scale` belong to the *population*, not to the draw: two draws of one toy set are on one scale, so
that a model trained on the first can be held against the second, and a sample of a hundred points is not
stretched by its own luck. `scale` is one number for all coordinates, so that circles stay round.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    r"""Data ready to train on, `x = (raw - mean) / scale`, with class labels where the data have classes.

    Attributes:
        x: the data, (n, \*D), float32.
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
        """Samples on the scale of `x`, taken back to raw units: `mean + scale x`."""
        return self._mean_like(x) + self.scale * x

    def standardize(self, raw: Tensor) -> Tensor:
        """Raw data brought to the scale of `x`: `(raw - mean) / scale`."""
        return (raw - self._mean_like(raw)) / self.scale

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
        return f"Dataset({self.name!r}, x={tuple(self.x.shape)}{classes})"

    def _mean_like(self, x: Tensor) -> Tensor | float:
        return self.mean.to(x) if isinstance(self.mean, Tensor) else self.mean
