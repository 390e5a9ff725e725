r"""Operators that treat rows and columns apart: y = R x C', and bicubic down-sampling.

From R = U_r S_r V_r' and C = U_c S_c V_c', two small matrices, come all singular values, s_ij = s_r,i s_c,j, and

    V f(s) V' x = V_r (f(s) * (V_r' x V_c)) V_c'.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sde.inverse.operator import Function
from sde.inverse.operators.fixed import Fixed, blocks, picture


class Separable(Fixed):
    r"""One matrix along the rows of a picture, another along its columns: y = R x C' for each channel.

    Args:
        event: Shape of a sample, (\*C, H, W).
        rows: R, (h, H).
        columns: C, (w, W).

    Raises:
        ValueError: If a matrix does not fit the picture.

    Example:
        >>> import torch, sde
        >>> mirror = torch.eye(4).flip(0)
        >>> sde.inverse.Separable((1, 2, 4), torch.eye(2), mirror)(torch.arange(8.0).reshape(1, 1, 2, 4))
        tensor([[[[3., 2., 1., 0.],
                  [7., 6., 5., 4.]]]])
    """

    def __init__(self, event: Sequence[int], rows: Tensor, columns: Tensor) -> None:
        sides = picture(event, type(self).__name__)
        for name, matrix, side in (("rows", rows, sides[0]), ("columns", columns, sides[1])):
            if matrix.ndim != 2 or matrix.shape[1] != side or not bool(torch.isfinite(matrix).all()):
                raise ValueError(
                    f"{name} must be a finite matrix of {side} columns for event={tuple(event)}, got shape "
                    f"{tuple(matrix.shape)}: it maps {side} pixels to those that are made of them"
                )
        r, c = (m.detach().cpu().double() for m in (rows, columns))
        (ur, sr, vrt), (uc, sc, vct) = torch.linalg.svd(r), torch.linalg.svd(c)
        norm = float(sr.max() * sc.max())
        measured = (*event[:-2], len(r), len(c))
        seen = _padded(sr, sides[0])[:, None] * _padded(sc, sides[1])
        made = _padded(sr, len(r))[:, None] * _padded(sc, len(c))
        super().__init__(event, measured, norm, r, c, vrt.mT, vct.mT, seen, ur, uc, made)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        rows, columns, *_ = self.numbers(x)
        return rows @ self.check(x) @ columns.mT

    def adjoint(self, y: Tensor) -> Tensor:  # noqa: D102
        rows, columns, *_ = self.numbers(y)
        return rows.mT @ self.check_measured(y) @ columns

    def filter(self, x: Tensor, f: Function) -> Tensor:  # noqa: D102
        _, _, vr, vc, s, *_ = self.numbers(x)
        return vr @ (f(s) * (vr.mT @ self.check(x) @ vc)) @ vc.mT

    def filter_measured(self, y: Tensor, f: Function) -> Tensor:  # noqa: D102
        *_, ur, uc, s = self.numbers(y)
        return ur @ (f(s) * (ur.mT @ self.check_measured(y) @ uc)) @ uc.mT


def _padded(s: Tensor, n: int) -> Tensor:
    """Singular values and zeros: n numbers."""
    return torch.cat([s, s.new_zeros(n - len(s))])


class Bicubic(Separable):
    r"""Bicubic down-sampling with anti-aliasing, as `torch.nn.functional.interpolate(antialias=True)` and PIL resize.

    A made pixel at the place c is the mean of pixels j weighted by the cubic convolution kernel k((j - c) / factor)
    with a = -1/2; the weights are normalised within the picture.

    Args:
        event: Shape of a sample, (\*C, H, W).
        factor: How many times smaller, which divides H and W.

    Raises:
        ValueError: If factor does not divide H and W.

    References:
        Keys (1981), Cubic convolution interpolation for digital image processing, doi 10.1109/TASSP.1981.1163711.

    Example:
        >>> import torch, sde
        >>> half = sde.inverse.Bicubic((1, 8, 8), factor=2)
        >>> half(torch.ones(1, 1, 8, 8)).shape, half.norm < 1
        (torch.Size([1, 1, 4, 4]), True)
    """

    def __init__(self, event: Sequence[int], factor: int) -> None:
        height, width = blocks(event, factor, "Bicubic")
        super().__init__(event, *(_cubic_weights(n, factor) for n in (height, width)))
        self.factor = factor


def _cubic_weights(made: int, factor: int) -> Tensor:
    """Weights (made, made * factor) of the pixels of a line."""
    centres = (torch.arange(made, dtype=torch.float64) + 0.5) * factor
    places = torch.arange(made * factor, dtype=torch.float64) + 0.5
    u = ((places - centres[:, None]) / factor).abs()
    inner, outer = 1.5 * u**3 - 2.5 * u**2 + 1, -0.5 * u**3 + 2.5 * u**2 - 4 * u + 2
    weights = torch.where(u < 1, inner, torch.where(u < 2, outer, 0.0))
    return weights / weights.sum(1, keepdim=True)
