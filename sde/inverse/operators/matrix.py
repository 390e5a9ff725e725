r"""Any matrix, by its singular value decomposition A = U S V': for small samples, and for random projections.

With U and V kept for the singular values above 0 alone, filter(x, f) = f(0) x + V (f(s) - f(0)) V' x.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sde.inverse.operator import RANK, Function
from sde.inverse.operators.fixed import Fixed
from sde.random import Generator, randn


class Matrix(Fixed):
    r"""Any linear operator, as a matrix over flattened samples.

    Args:
        matrix: A, (m, d).
        event: Shape D of a sample, d numbers. Default: (d,).
        measured: Shape E of an observation, m numbers. Default: (m,).

    Raises:
        ValueError: If the matrix is not finite or does not fit the shapes.

    Example:
        >>> import torch, sde
        >>> total = sde.inverse.Matrix(torch.ones(1, 3))
        >>> total.pinv(total(torch.tensor([[1.0, 2.0, 3.0]])))
        tensor([[2., 2., 2.]])
    """

    def __init__(
        self, matrix: Tensor, event: Sequence[int] | None = None, measured: Sequence[int] | None = None
    ) -> None:
        if matrix.ndim != 2 or not matrix.numel() or not bool(torch.isfinite(matrix).all()):
            raise ValueError(f"matrix must be finite, of shape (m, d), got shape {tuple(matrix.shape)}: clean it first")
        m, d = matrix.shape
        event, measured = (d,) if event is None else event, (m,) if measured is None else measured
        if math.prod(event) != d or math.prod(measured) != m:
            raise ValueError(
                f"matrix is {m} x {d}, event={tuple(event)} has {math.prod(event)} numbers and measured="
                f"{tuple(measured)} {math.prod(measured)}: they must be {d} and {m}"
            )
        a = matrix.detach().cpu().double()
        u, s, vt = torch.linalg.svd(a, full_matrices=False)
        kept = s > RANK * s.max()
        spectrum = torch.cat([s.new_zeros(1), s[kept]])
        super().__init__(event, measured, float(s.max()), a, u[:, kept], vt[kept].mT, spectrum)

    @classmethod
    def random(cls, event: Sequence[int], measurements: int, generator: Generator = None) -> Matrix:
        r"""Random projections, with entries of N(0, 1/m): \|A x\|^2 is \|x\|^2 in the mean.

        Args:
            event: Shape D of a sample.
            measurements: How many numbers are observed, m.
            generator: What draws them.

        Raises:
            ValueError: If measurements is less than 1.

        References:
            Candès & Tao (2006), math/0410542, for what m numbers tell.

        Example:
            >>> import torch, sde
            >>> four = sde.inverse.Matrix.random((1, 8, 8), 4, torch.Generator().manual_seed(0))
            >>> four(torch.zeros(2, 1, 8, 8)).shape
            torch.Size([2, 4])
        """
        if measurements < 1:
            raise ValueError(f"measurements must be at least 1, got {measurements}: pass how many numbers are observed")
        a = randn((measurements, math.prod(event)), generator, dtype=torch.float64)
        return cls(a / math.sqrt(measurements), event)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return (self.check(x).flatten(1) @ self.numbers(x)[0].mT).unflatten(1, self.measured)

    def adjoint(self, y: Tensor) -> Tensor:  # noqa: D102
        return (self.check_measured(y).flatten(1) @ self.numbers(y)[0]).unflatten(1, self.event)

    def filter(self, x: Tensor, f: Function) -> Tensor:  # noqa: D102
        _, _, v, s = self.numbers(x)
        return _filtered(self.check(x), v, f(s))

    def filter_measured(self, y: Tensor, f: Function) -> Tensor:  # noqa: D102
        _, u, _, s = self.numbers(y)
        return _filtered(self.check_measured(y), u, f(s))


def _filtered(x: Tensor, basis: Tensor, f: Tensor) -> Tensor:
    """f[0] x, with the part within the basis (n, r) multiplied by f[1:] instead."""
    flat = x.flatten(1)
    return (f[0] * flat + ((flat @ basis) * (f[1:] - f[0])) @ basis.mT).reshape(x.shape)
