"""Pixels seen or hidden, and all of them seen: inpainting and denoising. Singular values 1 and 0."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from sde.inverse.operator import Function
from sde.inverse.operators.fixed import Fixed, picture
from sde.random import Generator, rand

Side = Literal["top", "bottom", "left", "right"]


class Mask(Fixed):
    r"""Pixels that are seen; the others are 0 in y. Singular values 1 and 0.

    Args:
        seen: True where a coordinate is seen, \*D.

    Raises:
        TypeError: If seen is not of bool.

    Example:
        >>> import torch, sde
        >>> sde.inverse.Mask(torch.tensor([True, False]))(torch.tensor([[3.0, 4.0]]))
        tensor([[3., 0.]])
    """

    seen: Tensor

    def __init__(self, seen: Tensor) -> None:
        if seen.dtype is not torch.bool:
            raise TypeError(f"seen must be of bool, got {seen.dtype}: pass seen > 0, say")
        super().__init__(seen.shape, seen.shape, 1.0, seen)
        self.register_buffer("seen", seen.detach().clone())

    @classmethod
    def box(cls, event: Sequence[int], top: int, left: int, height: int, width: int) -> Mask:
        r"""Mask that hides a box of pixels, in all channels.

        Args:
            event: Shape of a sample, (\*C, H, W).
            top: First hidden row, from 0 at the top.
            left: First hidden column, from 0 at the left.
            height: Rows hidden.
            width: Columns hidden.

        Raises:
            ValueError: If the box is empty or reaches beyond the picture.

        Example:
            >>> import sde
            >>> sde.inverse.Mask.box((1, 3, 4), top=1, left=0, height=2, width=3).seen.int()
            tensor([[[1, 1, 1, 1],
                     [0, 0, 0, 1],
                     [0, 0, 0, 1]]], dtype=torch.int32)
        """
        rows, columns = picture(event, "Mask.box")
        if min(height, width) < 1 or min(top, left) < 0 or top + height > rows or left + width > columns:
            raise ValueError(
                f"box of {height} x {width} at row {top}, column {left} must lie in the picture of {rows} x {columns}: "
                f"keep top + height <= {rows} and left + width <= {columns}"
            )
        seen = torch.ones(*event, dtype=torch.bool)
        seen[..., top : top + height, left : left + width] = False
        return cls(seen)

    @classmethod
    def halved(cls, event: Sequence[int], hidden: Side = "bottom") -> Mask:
        r"""Mask that hides one half of the picture (\*C, H, W); of an odd side, the smaller half.

        Example:
            >>> import sde
            >>> sde.inverse.Mask.halved((2, 4), hidden="right").seen.int()
            tensor([[1, 1, 0, 0],
                    [1, 1, 0, 0]], dtype=torch.int32)
        """
        rows, columns = picture(event, "Mask.halved")
        boxes = {
            "top": (0, 0, rows // 2, columns),
            "bottom": (rows - rows // 2, 0, rows // 2, columns),
            "left": (0, 0, rows, columns // 2),
            "right": (0, columns - columns // 2, rows, columns // 2),
        }
        if hidden not in boxes:
            raise ValueError(f"hidden must be one of {', '.join(boxes)}, got {hidden!r}")
        return cls.box(event, *boxes[hidden])

    @classmethod
    def random(cls, event: Sequence[int], share: float, generator: Generator = None) -> Mask:
        r"""Mask that sees each pixel, in all its channels, with probability share.

        Args:
            event: Shape of a sample: (\*C, H, W), or (D,) for D coordinates.
            share: Share of the pixels that are seen, from 0 to 1.
            generator: What draws them.

        Raises:
            ValueError: If share is not within [0, 1].

        Example:
            >>> import torch, sde
            >>> mask = sde.inverse.Mask.random((3, 8, 8), share=0.25, generator=torch.Generator().manual_seed(0))
            >>> mask.seen[0].sum().item(), bool((mask.seen[0] == mask.seen[2]).all())
            (20, True)
        """
        if not 0 <= share <= 1:
            raise ValueError(f"share must be between 0 and 1, got {share}: it is the share of pixels that are seen")
        pixels = rand(tuple(event[-2:]), generator) < share
        return cls(pixels.expand(*event))

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.check(x) * self.numbers(x)[0]

    def adjoint(self, y: Tensor) -> Tensor:  # noqa: D102
        return self.check_measured(y) * self.numbers(y)[0]

    def filter(self, x: Tensor, f: Function) -> Tensor:  # noqa: D102
        return f(self.numbers(x)[0]) * self.check(x)

    def filter_measured(self, y: Tensor, f: Function) -> Tensor:  # noqa: D102
        return f(self.numbers(y)[0]) * self.check_measured(y)


class Identity(Fixed):
    r"""All of x0 is seen: denoising. Every singular value is 1.

    Args:
        event: Shape D of a sample.

    Example:
        >>> import torch, sde
        >>> sde.inverse.Identity((2,))(torch.tensor([[3.0, 4.0]]))
        tensor([[3., 4.]])
    """

    def __init__(self, event: Sequence[int]) -> None:
        super().__init__(event, event, 1.0, torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.check(x)

    def adjoint(self, y: Tensor) -> Tensor:  # noqa: D102
        return self.check_measured(y)

    def filter(self, x: Tensor, f: Function) -> Tensor:  # noqa: D102
        return f(self.numbers(x)[0]) * self.check(x)

    def filter_measured(self, y: Tensor, f: Function) -> Tensor:  # noqa: D102
        return f(self.numbers(y)[0]) * self.check_measured(y)
