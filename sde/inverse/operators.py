"""Operators of the field, each with its adjoint and its singular values in the cheapest form."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from sde.inverse.operator import Function, LinearOperator


class Mask(LinearOperator):
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
    norm = 1.0

    def __init__(self, seen: Tensor) -> None:
        if seen.dtype is not torch.bool:
            raise TypeError(f"seen must be of bool, got {seen.dtype}: pass seen > 0, say")
        super().__init__(seen.shape)
        self.register_buffer("seen", seen.detach().clone())

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.check(x) * self.seen.to(x.device)

    def adjoint(self, y: Tensor) -> Tensor:  # noqa: D102
        return self(y)

    def filter(self, x: Tensor, f: Function) -> Tensor:  # noqa: D102
        return f(cast(Tensor, self.seen).to(x)) * x

    def filter_measured(self, y: Tensor, f: Function) -> Tensor:  # noqa: D102
        return self.filter(y, f)
