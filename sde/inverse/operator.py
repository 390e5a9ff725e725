r"""What an observation is made by: y = A(x0), linear or not, on tensors.

A linear A is U S V' with singular values s. A method never needs U and V themselves, only functions of A'A and A A',

    filter(x, f) = V f(s) V' x,        filter_measured(y, f) = U f(s) U' y,        s = 0 beyond the rank,

which each operator does in its cheapest way: pixel by pixel for a mask, by a Fourier transform for a blur, block by
block for a mean of pixels. From them follow the pseudo-inverse and the solves that posteriors are made of,

    A^+ = filter(A' y, s -> 1/s^2 or 0),      (v A A' + c I)^-1 = filter_measured(., s -> 1 / (v s^2 + c)).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

Function = Callable[[Tensor], Tensor]
"""Numbers from singular values, in the same shape."""

RANK = 1e-5
"""A singular value of this size beside the largest is 0."""


class Operator(nn.Module, ABC):
    r"""A differentiable map from x (B, \*D) to y (B, \*E).

    Args:
        event: Shape D of what it observes.

    Attributes:
        linear: True for a `LinearOperator`.
    """

    linear = False

    def __init__(self, event: Sequence[int]) -> None:
        super().__init__()
        self.event = torch.Size(event)
        if not self.event or min(self.event) < 1:
            raise ValueError(f"event must be the shape of one sample, got {tuple(event)}: (1, 28, 28), say")

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        r"""A(x): (B, \*E) for x (B, \*D)."""

    @property
    def measured(self) -> torch.Size:
        """Shape E of what it makes of one sample."""
        return self(torch.zeros(1, *self.event)).shape[1:]

    def check(self, x: Tensor) -> Tensor:
        """`x` itself, or an error that says which shape the operator was made for."""
        if x.shape[1:] != self.event:
            raise ValueError(
                f"x has shape {tuple(x.shape)}, and {type(self).__name__} was made for "
                f"(B, {', '.join(map(str, self.event))}): make the operator for event={tuple(x.shape[1:])}"
            )
        return x


class LinearOperator(Operator):
    """A linear map: write `forward`, `adjoint`, `filter` and `filter_measured`.

    Attributes:
        norm: The largest singular value.
    """

    linear = True
    norm: float

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        r"""A' y: (B, \*D) for y (B, \*E)."""

    @abstractmethod
    def filter(self, x: Tensor, f: Function) -> Tensor:
        r"""V f(s) V' x: (B, \*D), with s = 0 where A sees nothing."""

    @abstractmethod
    def filter_measured(self, y: Tensor, f: Function) -> Tensor:
        r"""U f(s) U' y: (B, \*E), with s = 0 for what no x makes."""

    # Derived from these.

    def pinv(self, y: Tensor) -> Tensor:
        r"""A^+ y: the x of least norm that comes nearest to y. (B, \*D)."""
        low = RANK * self.norm
        return self.filter(self.adjoint(y), lambda s: torch.where(s > low, s.clamp_min(low) ** -2, 0.0))

    def project(self, x: Tensor, y: Tensor) -> Tensor:
        r"""The nearest point to x with A x = y, where there is one: x + A^+ (y - A x). (B, \*D)."""
        return x + self.pinv(y - self(x))

    def solve(self, y: Tensor, variance: float, noise: float) -> Tensor:
        r"""(variance A A' + noise^2 I)^-1 y: (B, \*E), with the pseudo-inverse where both vanish."""
        low = RANK * self.norm

        def f(s: Tensor) -> Tensor:
            total = variance * s**2 + noise**2
            return torch.where((s > low) | (noise > 0), 1 / total.clamp_min(torch.finfo(s.dtype).tiny), 0.0)

        return self.filter_measured(y, f)

    def matrix(self) -> Tensor:
        """A as a matrix over flattened samples, (m, d), float64: for small d."""
        d = self.event.numel()
        return self(torch.eye(d, dtype=torch.float64).reshape(d, *self.event)).flatten(1).T
