r"""How nearly two models give the same points the same codes.

The code of x0 is where the probability flow of the data's own law carries it, and no architecture occurs in that law:
networks that learnt it well encode alike, whatever they are made of. For codes a_i and b_i of the same n points

    apart^2 = 2 mean_i |a_i - mean a|^2 n / (n - 1),      same^2 = mean_i |a_i - b_i|^2,      both over d,

are the squared distances of the codes of two different points and of one point by two models, by coordinate. That
both have the law of noise says nothing of their agreement: codes that know nothing of each other have same = apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sde.shape import as_time


@dataclass(frozen=True)
class CodeAgreement:
    """Distances between codes by two models, root mean squares by coordinate, in units of the codes.

    Attributes:
        distances: Between the two codes of each point, (n,).
        apart: Between the codes of two different points.
        correlation: Pearson's, of the coordinates of the two codes, each less its mean over points.
        matched: Share of points whose code by the first model is nearest to their own by the second.

    Example:
        >>> found = CodeAgreement(torch.tensor([0.3, 0.4]), apart=1.4, correlation=0.99, matched=1.0)
        >>> round(found.same, 3), round(found.ratio, 3)
        (0.354, 0.253)
    """

    distances: Tensor
    apart: float
    correlation: float
    matched: float

    @property
    def same(self) -> float:
        """Between the two codes of one point."""
        return float(self.distances.square().mean().sqrt())

    @property
    def ratio(self) -> float:
        """`same / apart`: 0 for equal codes, about 1 for codes that know nothing of each other."""
        return self.same / self.apart


def compare_codes(a: Tensor, b: Tensor) -> CodeAgreement:
    r"""Agreement of two models' codes of the same points: how near they are, beside codes of different points.

    Args:
        a: Codes by one model, `encode(model, x0)`, (n, \*D).
        b: Codes of the same points, in the same order, by another model under the same SDE, or by the exact score.

    Raises:
        ValueError: If there are fewer than two codes, their shapes differ, or the first are all equal.

    References:
        Song et al. (2021), 2011.13456, section 4.3; Khrulkov et al. (2023), 2202.07477.

    Example:
        >>> import torch, sde
        >>> x0 = torch.randn(100, 2, generator=torch.Generator().manual_seed(0)).double()
        >>> codes = [sde.inverse.encode(sde.ExactScore(sde.Gaussian([0.0, 0.0], v), sde.VP()), x0) for v in (1.0, 1.21)]
        >>> found = sde.inverse.compare_codes(*codes)  # 10 % off in scale: codes are 9 % shorter
        >>> round(found.ratio, 2), round(found.correlation, 3)
        (0.06, 1.0)
    """
    if a.shape != b.shape or a.ndim < 2 or len(a) < 2:
        raise ValueError(
            f"a and b must both be (n, *D), n at least 2, got {tuple(a.shape)} and {tuple(b.shape)}: encode the same "
            "points by both models"
        )
    u, v = as_time(a.flatten(1)), as_time(b.flatten(1))  # in the best precision of the device
    d, n = u.shape[1], len(u)
    centred, other = u - u.mean(0), v - v.mean(0)
    spread, of_other = centred.square().sum(), other.square().sum()
    if float(spread) == 0:
        raise ValueError("all codes in a are equal, so that there is no distance to compare with: encode unlike points")
    distances = ((u - v).square().sum(1) / d).sqrt()
    apart = float((2 * spread / ((n - 1) * d)).sqrt())
    correlation = float((centred * other).sum() / (spread * of_other).sqrt())
    nearest = torch.cdist(u, v).argmin(1)
    matched = float((nearest == torch.arange(n, device=u.device)).double().mean())
    return CodeAgreement(distances, apart, correlation, matched)
