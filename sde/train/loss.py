r"""Denoising score matching: one loss for every parameterisation and SDE.

For z = x0 - mean and u = alpha z + sigma eps the network's raw output F regresses a combination of the endpoints,

    loss = E_t E_{x0, eps} w(t) |F(c_in u, c) - (p z + q eps)|^2 / d,

whose minimiser is E[p z + q eps | u], that is the score (Vincent 2011; Song & Ermon 2019, 1907.05600). A matrix SDE's
network sees the statistic of the state, a scalar pair like any other, so that it is trained by the same lines.

A weight is a function of `Levels`. Errors of F, eps and x0 are proportional, with det = alpha q - sigma p:
eps error = (alpha / det) F error and z error = (sigma / det) F error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sde.score import Levels, ScoreModel
from sde.train.times import Times

Weight = Callable[[Levels, float], Tensor]
"""Weight of the error of F at given levels, for data of a given scale."""


def unit(at: Levels, scale: float) -> Tensor:
    """1 / variance of the regression's target: every noise level counts alike. For edm this is EDM's weight.

    References:
        Karras et al. (2022), 2206.00364, eq. 8.
    """
    return 1 / (at.p**2 * scale**2 + at.q**2)


def constant(at: Levels, scale: float) -> Tensor:
    """1: the raw error of F; for eps the simple loss of Ho, Jain & Abbeel (2020), 2006.11239, eq. 14."""
    return torch.ones_like(at.p)


def likelihood(at: Levels, scale: float) -> Tensor:
    """g^2 / 2 on the score's error: with uniform times the loss bounds the negative log-likelihood, up to a constant.

    References:
        Song, Durkan, Murray & Ermon (2021), 2101.09258, theorem 1; Kingma et al. (2021), 2107.00630.
    """
    det = at.alpha * at.q - at.sigma * at.p
    # g^2 / (2 sigma^2) = sigma' / sigma - alpha' / alpha, times (alpha / det)^2 for the error of eps.
    return at.alpha * (at.alpha * at.dsigma - at.sigma * at.dalpha) / (at.sigma * det**2)


def min_snr(gamma: float = 5.0) -> Weight:
    """min(SNR, gamma) on the error of x0 in units of the data's scale.

    Args:
        gamma: Cap of the signal-to-noise ratio.

    References:
        Hang et al. (2023), 2303.09556, section 3.4.

    Example:
        >>> import torch, sde
        >>> model = sde.ScoreModel(sde.nets.MLP(dim=2, width=8), sde.VP(), "eps")
        >>> w = sde.train.min_snr(5.0)(model.levels(torch.tensor([0.001, 1.0])), 1.0)
        >>> bool(w[0] < 0.01), round(float(w[1]), 3)  # of an eps network: min(SNR, 5) / SNR
        (True, 1.0)
    """

    def weight(at: Levels, scale: float) -> Tensor:
        snr = (at.alpha * scale / at.sigma) ** 2
        return snr.clamp_max(gamma) * (at.sigma / (scale * (at.alpha * at.q - at.sigma * at.p))) ** 2

    weight.__name__ = f"min_snr({gamma:g})"  # what a file keeps of it
    return weight


class Rows(NamedTuple):
    """Coefficients of the loss at times t: input a z + b eps, target p z + q eps; p and q hold root = sqrt(w)."""

    a: Tensor
    b: Tensor
    p: Tensor
    q: Tensor
    root: Tensor
    clock: Tensor


def rows(model: ScoreModel, t: Tensor, weight: Weight = unit, times: Times | None = None) -> Rows:
    """Coefficients of the loss at a tensor of times, drawn from `times`, float64, in its shape."""
    at = model.levels(t)
    made, less = weight(at, model.scale), None if times is None else times.correction(at, model.sde, model.scale)
    root = torch.sqrt(made if less is None else made * less)
    return Rows(at.alpha * at.c_in, at.sigma * at.c_in, at.p * root, at.q * root, root, at.clock)


def regression(
    net: Callable[..., Tensor], z: Tensor, eps: Tensor, row: Rows, weighted: bool = True, **cond: Any
) -> Tensor:
    """Mean loss of a batch of centred data z, noise eps and coefficients that broadcast against them."""
    raw = net(row.a * z + row.b * eps, row.clock, **cond)
    target = torch.addcmul(row.p * z, row.q, eps)
    return torch.nn.functional.mse_loss(raw * row.root if weighted else raw, target)


def denoising(model: ScoreModel, x0: Tensor, t: Tensor, eps: Tensor, weight: Weight = unit, **cond: Any) -> Tensor:
    r"""The loss of one batch: what a training loop of one's own calls.

    Args:
        model: Score model.
        x0: Data, (B, \*D).
        t: Times, (B,).
        eps: Standard normal, shaped as x0.
        weight: `unit`, `constant`, `likelihood`, `min_snr(gamma)` or one's own.
        **cond: Passed to the network.

    Example:
        >>> import torch, sde
        >>> model = sde.ScoreModel(sde.nets.MLP(dim=2, width=32), sde.VP())
        >>> loss = sde.train.denoising(model, torch.randn(64, 2), torch.rand(64), torch.randn(64, 2))
        >>> loss.shape
        torch.Size([])
    """
    row = shaped(rows(model, t, weight), x0)
    return regression(model.net, x0 - model.mean.to(x0.dtype), eps, row, **cond)


def shaped(row: Rows, x: Tensor) -> Rows:
    r"""Rows with leading axes (..., B), shaped and cast to multiply (..., B, \*D); the clock keeps its shape."""
    ones = (1,) * (x.ndim - 1)
    a, b, p, q, root = (c.to(x.dtype).reshape(c.shape + ones) for c in row[:-1])
    return Rows(a, b, p, q, root, row.clock.to(torch.promote_types(x.dtype, torch.float32)))
