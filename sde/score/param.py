r"""What a network's raw output F means: one conversion for every parameterisation.

With centred data z = x0 - mean of standard deviation s, a state u = alpha z + sigma eps and r^2 = alpha^2 s^2 +
sigma^2, each parameterisation is the regression of one linear combination of the endpoints,

    F = p z + q eps,                    input c_in u

| param    | p             | q            | source                                                    |
|----------|---------------|--------------|-----------------------------------------------------------|
| eps      | 0             | 1            | Ho, Jain & Abbeel (2020), 2006.11239                      |
| x0       | 1 / s         | 0            | the denoiser itself, in units of s                        |
| v        | -sigma/(s r)  | alpha s / r  | Salimans & Ho (2022), 2202.00512                          |
| edm      | sigma/(s r)   | -alpha s / r | Karras et al. (2022), 2206.00364, c_skip, c_out and c_in  |
| velocity | alpha' / k    | sigma' / k   | Lipman et al. (2023), 2210.02747                          |
| score    | 0             | -1 / sigma   | Song & Ermon (2019), 1907.05600                           |

Together with u = alpha z + sigma eps this is a 2 × 2 system, so that with det = alpha q - sigma p

    z = (q u - sigma F) / det,       eps = (alpha F - p u) / det.

Where det = 0 (eps and score at alpha = 0) the state carries nothing of x0: z = 0 and eps = u / sigma. Inputs are scaled
to unit variance, c_in = 1 / r; `velocity` alone keeps what flow matching does at s = 1 (c_in = k = 1), rescaled for
other s.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Combination = tuple[Tensor, Tensor, Tensor]
"""p, q and c_in."""


def _eps(alpha: Tensor, sigma: Tensor, dalpha: Tensor, dsigma: Tensor, s: float) -> Combination:
    return torch.zeros_like(alpha), torch.ones_like(alpha), 1 / torch.hypot(alpha * s, sigma)


def _x0(alpha: Tensor, sigma: Tensor, dalpha: Tensor, dsigma: Tensor, s: float) -> Combination:
    return torch.full_like(alpha, 1 / s), torch.zeros_like(alpha), 1 / torch.hypot(alpha * s, sigma)


def _v(alpha: Tensor, sigma: Tensor, dalpha: Tensor, dsigma: Tensor, s: float) -> Combination:
    c_in = 1 / torch.hypot(alpha * s, sigma)
    return -sigma / s * c_in, alpha * s * c_in, c_in


def _edm(alpha: Tensor, sigma: Tensor, dalpha: Tensor, dsigma: Tensor, s: float) -> Combination:
    p, q, c_in = _v(alpha, sigma, dalpha, dsigma, s)
    return -p, -q, c_in


def _velocity(alpha: Tensor, sigma: Tensor, dalpha: Tensor, dsigma: Tensor, s: float) -> Combination:
    if s == 1.0:
        return dalpha, dsigma, torch.ones_like(alpha)
    k = torch.hypot(dalpha * s, dsigma) / torch.hypot(dalpha, dsigma)
    return dalpha / k, dsigma / k, torch.hypot(alpha, sigma) / torch.hypot(alpha * s, sigma)


def _score(alpha: Tensor, sigma: Tensor, dalpha: Tensor, dsigma: Tensor, s: float) -> Combination:
    return torch.zeros_like(alpha), -1 / sigma, 1 / torch.hypot(alpha * s, sigma)


PARAMS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor, float], Combination]] = {
    "edm": _edm,
    "eps": _eps,
    "x0": _x0,
    "v": _v,
    "velocity": _velocity,
    "score": _score,
}

SCALAR_ONLY = ("velocity", "score")
"""Parameterisations of the state's own velocity or score; a matrix SDE's network sees the statistic instead."""


def endpoints(alpha: Tensor, sigma: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(a0, b0, a1, b1) with z = a0 u + b0 F and eps = a1 u + b1 F.

    Example:
        >>> one = torch.ones(1)
        >>> [float(c) for c in endpoints(one, 2 * one, 0 * one, one)]  # eps: z = u - 2 F, eps = F
        [1.0, -2.0, 0.0, 1.0]
    """
    det = alpha * q - sigma * p
    dead = torch.logical_not(det)
    over = det.masked_fill(dead, math.inf).reciprocal()  # masked first, so that gradients are finite too
    return q * over, -(sigma * over), torch.where(dead, sigma.reciprocal(), -(p * over)), alpha * over
