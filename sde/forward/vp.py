r"""The variance-preserving SDEs of Song et al.: beta linear in t, alpha = exp(-B/2) with B the integral of beta.

As in `sde.forward.zoo`, `published` states the printed coefficients a second time, for law 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sde.forward.arguments import interval, positive
from sde.forward.scalar import Rates, ScalarSDE
from sde.shape import as_time


@dataclass(frozen=True)
class _LinearBeta(ScalarSDE):
    """What VP and sub-VP share: beta(t) linear in t, alpha = exp(-B/2) with B its integral."""

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-3
    t_max: float = 1.0

    def __post_init__(self) -> None:
        positive(beta_min=self.beta_min, beta_max=self.beta_max)
        interval(self.t_min, self.t_max)
        last = self.beta_min + self.t_max * (self.beta_max - self.beta_min)
        if not (math.isfinite(last) and last > 0):
            raise ValueError(
                f"beta must stay positive up to t_max = {self.t_max}, beta_min = {self.beta_min} and "
                f"beta_max = {self.beta_max} (at t = 1) take it to {last:.3g}: lower t_max or raise beta_max"
            )

    def beta(self, t: Tensor) -> Tensor:
        """Rate of forgetting, 1 / time."""
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def integral(self, t: Tensor) -> Tensor:
        """B(t), the integral of beta from 0."""
        return self.beta_min * t + 0.5 * t**2 * (self.beta_max - self.beta_min)

    def when(self, integral: Tensor) -> Tensor:
        """Time at which B takes a value: the root of a quadratic, written so that it does not cancel."""
        slope = self.beta_max - self.beta_min
        integral = integral.clamp_max(self.integral(torch.tensor(self.t_max).double()).item())  # of t_max, at most
        return 2 * integral / (self.beta_min + torch.sqrt(self.beta_min**2 + 2 * slope * integral))

    def alpha(self, t: Tensor) -> Tensor:
        """exp(-B/2)."""
        return torch.exp(-self.integral(t) / 2)


@dataclass(frozen=True)
class VP(_LinearBeta):
    """Variance-preserving SDE: dx = -beta(t) x / 2 dt + sqrt(beta(t)) dW, beta(t) = beta_min + t (beta_max - beta_min).

    alpha = exp(-B/2), sigma^2 = 1 - exp(-B), where B is the integral of beta.

    Args:
        beta_min: beta at t = 0, per unit of time. Default .1, as in the paper.
        beta_max: beta at t = 1. Default 20, as in the paper.
        t_min: Where sampling stops; 1e-3 in the paper.
        t_max: Time of the prior.

    References:
        Song et al. (2021), 2011.13456, eq. 11 and appendix C; the continuous limit of Ho et al. (2020), 2006.11239.

    Example:
        >>> import torch, sde
        >>> vp = sde.VP()
        >>> [round(float(c), 4) for c in vp.levels(torch.tensor(1.0))]
        [0.0066, 1.0]
    """

    def sigma(self, t: Tensor) -> Tensor:  # noqa: D102
        return torch.sqrt(-torch.expm1(-self.integral(t)))

    def log_snr(self, t: float | Tensor) -> Tensor:  # noqa: D102
        integral = self.integral(as_time(t))
        return -(integral + torch.log(-torch.expm1(-integral)))

    def inverse(self, log_snr: Tensor) -> Tensor:  # noqa: D102
        return self.when(torch.nn.functional.softplus(-log_snr))

    def rates(self, t: Tensor) -> Rates:  # noqa: D102
        integral = self.integral(t)
        alpha, sigma = torch.exp(-integral / 2), torch.sqrt(-torch.expm1(-integral))
        dalpha = -self.beta(t) * alpha / 2
        return alpha, sigma, dalpha, -alpha * dalpha / sigma

    def published(self, t: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        b = self.beta_min + t * (self.beta_max - self.beta_min)
        return -b / 2, torch.sqrt(b)


@dataclass(frozen=True)
class SubVP(_LinearBeta):
    """Sub-variance-preserving SDE: dx = -beta x / 2 dt + sqrt(beta (1 - exp(-2 B))) dW.

    alpha = exp(-B/2), sigma = 1 - exp(-B): the variance is below that of VP at every t.

    Args:
        beta_min: beta at t = 0, per unit of time.
        beta_max: beta at t = 1.
        t_min: Where sampling stops.
        t_max: Time of the prior.

    References:
        Song et al. (2021), 2011.13456, eq. 12 and appendix C.

    Example:
        >>> import torch, sde
        >>> float(sde.SubVP().sigma(torch.tensor(0.5))) < float(sde.VP().sigma(torch.tensor(0.5)))
        True
    """

    def sigma(self, t: Tensor) -> Tensor:  # noqa: D102
        return -torch.expm1(-self.integral(t))

    def inverse(self, log_snr: Tensor) -> Tensor:  # noqa: D102
        return self.when(2 * torch.asinh(torch.exp(-log_snr / 2) / 2))  # sigma / alpha = 2 sinh(B / 2)

    def rates(self, t: Tensor) -> Rates:  # noqa: D102
        b, integral = self.beta(t), self.integral(t)
        alpha = torch.exp(-integral / 2)
        return alpha, -torch.expm1(-integral), -b * alpha / 2, b * alpha**2

    def published(self, t: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        b = self.beta_min + t * (self.beta_max - self.beta_min)
        integral = self.beta_min * t + t**2 * (self.beta_max - self.beta_min) / 2
        return -b / 2, torch.sqrt(b * (1 - torch.exp(-2 * integral)))
