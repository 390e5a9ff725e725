r"""Operators whose rows are orthogonal and equally long: means of pixels, grey of colours.

From A A' = s^2 I it follows that A has the one singular value s, that A'A / s^2 projects on what is seen, and

    filter(x, f) = f(0) x + (f(s) - f(0)) A' A x / s^2,        filter_measured(y, f) = f(s) y.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from sde.inverse.operator import Function
from sde.inverse.operators.fixed import Fixed, blocks


class Tight(Fixed):
    """An operator with A A' = s^2 I: write `forward` and `adjoint`.

    Args:
        event: Shape D of what it observes.
        measured: Shape E of what it makes of one sample.
        norm: s.
        numbers: Tensors that it is made of.
    """

    def __init__(self, event: Sequence[int], measured: Sequence[int], norm: float, *numbers: Tensor) -> None:
        super().__init__(event, measured, norm, torch.tensor([0.0, norm], dtype=torch.float64), *numbers)

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        r"""A' y: (B, \*D) for y (B, \*E)."""

    def filter(self, x: Tensor, f: Function) -> Tensor:  # noqa: D102
        unseen, seen = f(self.numbers(x)[0])
        return unseen * x + (seen - unseen) / self.norm**2 * self.adjoint(self(x))

    def filter_measured(self, y: Tensor, f: Function) -> Tensor:  # noqa: D102
        return f(self.numbers(y)[0])[1] * self.check_measured(y)


class AveragePool(Tight):
    r"""Mean over blocks of factor x factor pixels: down-sampling. Singular value 1 / factor.

    Args:
        event: Shape of a sample, (\*C, H, W).
        factor: Side of a block, which divides H and W.

    Raises:
        ValueError: If factor does not divide H and W.

    Example:
        >>> import torch, sde
        >>> pool = sde.inverse.AveragePool((1, 2, 4), factor=2)
        >>> pool(torch.arange(8.0).reshape(1, 1, 2, 4))
        tensor([[[[2.5000, 4.5000]]]])
    """

    def __init__(self, event: Sequence[int], factor: int) -> None:
        height, width = blocks(event, factor, "AveragePool")
        super().__init__(event, (*event[:-2], height, width), 1 / factor)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        k = self.factor
        return self.check(x).unflatten(-1, (-1, k)).unflatten(-3, (-1, k)).mean((-3, -1))

    def adjoint(self, y: Tensor) -> Tensor:  # noqa: D102
        k = self.factor
        tiles = (self.check_measured(y) / k**2)[..., :, None, :, None]
        return tiles.expand(*y.shape[:-1], k, y.shape[-1], k).flatten(-2).flatten(-3, -2)


class Grey(Tight):
    r"""Weighted sum of the channels: what colourisation undoes. Singular value \|weights\|.

    Args:
        event: Shape of a sample, (C, H, W).
        weights: One to a channel. The default is the luma of ITU-R BT.601 (as `PIL.Image.convert("L")`), whose sum 1
            keeps greys in [-1, 1].

    Raises:
        ValueError: If there is not one weight to each channel.

    Example:
        >>> import torch, sde
        >>> grey = sde.inverse.Grey((3, 1, 1))
        >>> grey(torch.tensor([1.0, 0.0, 0.0]).reshape(1, 3, 1, 1))
        tensor([[[[0.2990]]]])
    """

    def __init__(self, event: Sequence[int], weights: Sequence[float] = (0.299, 0.587, 0.114)) -> None:
        if len(event) != 3 or event[0] != len(weights):
            raise ValueError(
                f"Grey takes ({len(weights)}, H, W), one weight to a channel, got event={tuple(event)}: pass weights "
                "for its channels; a picture of one channel is grey already"
            )
        norm = math.hypot(*weights)
        if not 0 < norm < math.inf:
            raise ValueError(f"weights must be finite and not all 0, got {tuple(weights)}: leave the default, say")
        w = torch.tensor(weights, dtype=torch.float64)[:, None, None]
        super().__init__(event, (1, *event[1:]), norm, w)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return (self.check(x) * self.numbers(x)[1]).sum(1, keepdim=True)

    def adjoint(self, y: Tensor) -> Tensor:  # noqa: D102
        return self.check_measured(y) * self.numbers(y)[1]
