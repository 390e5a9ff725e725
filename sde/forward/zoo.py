r"""The scalar SDEs of the literature, with their defaults and the coefficients that their sources print.

`alpha`, `sigma` and `rates` are one statement of each SDE; `published` is another, copied from the paper and not
derived from the first. `sde.checks` integrates m' = f m, v' = 2 f v + g^2 from `initial` and compares (law 0).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sde.forward.arguments import interval, levels, positive
from sde.forward.scalar import Rates, ScalarSDE

ROOT2 = math.sqrt(2.0)


@dataclass(frozen=True)
class VE(ScalarSDE):
    """Variance-exploding SDE: dx = sigma(t) sqrt(2 log(sigma_max / sigma_min)) dW, sigma(t) geometric in t.

    alpha = 1, sigma(t) = sigma_min (sigma_max / sigma_min)^t. As in the authors' code sigma(0) = sigma_min, not 0.

    Args:
        sigma_min: Noise at t = 0, in units of the data.
        sigma_max: Noise at t = 1: about the largest distance between two data. Default 50, the paper's for CIFAR-10.
        t_min: Where sampling stops; 1e-5 in the paper.
        t_max: Time of the prior.

    References:
        Song et al. (2021), 2011.13456, eq. 9 and appendix C; Song & Ermon (2019), 1907.05600.

    Example:
        >>> import torch, sde
        >>> round(float(sde.VE().sigma(torch.tensor(1.0))), 3)
        50.0
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    t_min: float = 1e-5
    t_max: float = 1.0

    def __post_init__(self) -> None:
        levels(self.sigma_min, self.sigma_max)
        interval(self.t_min, self.t_max)

    def alpha(self, t: Tensor) -> Tensor:  # noqa: D102
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:  # noqa: D102
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** t

    def inverse(self, log_snr: Tensor) -> Tensor:  # noqa: D102
        return (-log_snr / 2 - math.log(self.sigma_min)) / math.log(self.sigma_max / self.sigma_min)

    def rates(self, t: Tensor) -> Rates:  # noqa: D102
        sigma = self.sigma(t)
        return (
            torch.ones_like(t),
            sigma,
            torch.zeros_like(t),
            sigma * math.log(self.sigma_max / self.sigma_min),
        )

    def published(self, t: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        growth = math.sqrt(2 * (math.log(self.sigma_max) - math.log(self.sigma_min)))
        return torch.zeros_like(t), self.sigma_min * (self.sigma_max / self.sigma_min) ** t * growth

    @property
    def initial(self) -> tuple[float, float]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Alpha and sigma at t = 0."""
        return 1.0, self.sigma_min


@dataclass(frozen=True)
class EDM(ScalarSDE):
    """Noise level as time: dx = sqrt(2 t) dW, alpha = 1, sigma = t.

    Args:
        sigma_min: Where sampling stops, in units of the data. Default .002, as in the paper.
        sigma_max: Noise of the prior. Default 80, as in the paper.

    References:
        Karras, Aittala, Aila & Laine (2022), 2206.00364, table 1, last column.

    Example:
        >>> import sde
        >>> edm = sde.EDM()
        >>> edm.t_min, edm.t_max
        (0.002, 80.0)
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        levels(self.sigma_min, self.sigma_max)

    @property
    def t_min(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The smallest noise level."""
        return self.sigma_min

    @property
    def t_max(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The largest noise level."""
        return self.sigma_max

    def alpha(self, t: Tensor) -> Tensor:  # noqa: D102
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:  # noqa: D102
        return t

    def inverse(self, log_snr: Tensor) -> Tensor:  # noqa: D102
        return torch.exp(-log_snr / 2)

    def rates(self, t: Tensor) -> Rates:  # noqa: D102
        return torch.ones_like(t), t, torch.zeros_like(t), torch.ones_like(t)

    def published(self, t: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        return torch.zeros_like(t), torch.sqrt(2 * t)


@dataclass(frozen=True)
class Cosine(ScalarSDE):
    """Cosine schedule in continuous time: alpha = cos(u(t)) / cos(u(0)), u(t) = (pi/2) (t + s) / (1 + s), VP.

    dx = -beta x / 2 dt + sqrt(beta) dW with beta(t) = pi / (1 + s) tan u(t), which is infinite at t = 1: time stops
    at .9946, where log SNR is that of VP at t = 1 (the choice of Lu et al. 2022, 2206.00927, appendix D).

    Args:
        s: Offset that keeps beta from vanishing at t = 0. Default .008, as in the paper.
        t_min: Where sampling stops.
        t_max: Time of the prior, below 1.

    References:
        Nichol & Dhariwal (2021), 2102.09672, eq. 17.

    Example:
        >>> import torch, sde
        >>> [round(float(c), 3) for c in sde.Cosine().levels(torch.tensor(0.5))]
        [0.703, 0.711]
    """

    s: float = 0.008
    t_min: float = 1e-3
    t_max: float = 0.9946

    def __post_init__(self) -> None:
        positive(s=self.s)
        interval(self.t_min, self.t_max)
        if self.t_max >= 1:
            raise ValueError(f"t_max must be below 1, where beta is infinite, got {self.t_max}: keep .9946")

    def angle(self, t: Tensor) -> Tensor:
        """u(t), radians."""
        return (t + self.s) / (1 + self.s) * (math.pi / 2)

    def alpha(self, t: Tensor) -> Tensor:  # noqa: D102
        return self.rates(t)[0]

    def sigma(self, t: Tensor) -> Tensor:  # noqa: D102
        return self.rates(t)[1]

    def inverse(self, log_snr: Tensor) -> Tensor:  # noqa: D102
        u0 = self.s / (1 + self.s) * (math.pi / 2)
        alpha2, sigma2 = torch.sigmoid(log_snr), torch.sigmoid(-log_snr)
        u = torch.atan2(torch.sqrt(sigma2 * math.cos(u0) ** 2 + math.sin(u0) ** 2), alpha2.sqrt() * math.cos(u0))
        return u / (math.pi / 2) * (1 + self.s) - self.s

    def rates(self, t: Tensor) -> Rates:  # noqa: D102
        u, u0 = self.angle(t), self.s / (1 + self.s) * (math.pi / 2)
        alpha = torch.cos(u) / math.cos(u0)
        # 1 - alpha^2 as a product, which does not cancel for small t.
        sigma = torch.sqrt(torch.sin(u - u0) * torch.sin(u + u0)) / math.cos(u0)
        dalpha = -torch.sin(u) / math.cos(u0) * (math.pi / 2) / (1 + self.s)
        return alpha, sigma, dalpha, -alpha * dalpha / sigma

    def published(self, t: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        beta = math.pi / (1 + self.s) * torch.tan((t + self.s) / (1 + self.s) * math.pi / 2)
        return -beta / 2, torch.sqrt(beta)


@dataclass(frozen=True)
class Flow(ScalarSDE):
    """Straight path between data and noise: alpha = 1 - t, sigma = t (rectified flow, flow matching).

    As an SDE dx = -x / (1 - t) dt + sqrt(2 t / (1 - t)) dW, infinite at t = 1; the velocity x' = eps - x0 is finite.

    Args:
        t_min: Where sampling stops.
        t_max: Time of the prior; x is pure noise at 1.

    References:
        Lipman et al. (2023), 2210.02747; Liu, Gong & Liu (2023), 2209.03003. Their time runs from noise to data;
        here data are at t = 0, as everywhere in this package.

    Example:
        >>> import torch, sde
        >>> flow = sde.Flow()
        >>> point = flow.at(torch.zeros(1, 2), 0.25, torch.ones(1, 2))
        >>> point.x, point.velocity
        (tensor([[0.2500, 0.2500]]), tensor([[1., 1.]]))
    """

    t_min: float = 1e-5
    t_max: float = 1.0

    def __post_init__(self) -> None:
        interval(self.t_min, self.t_max)
        if self.t_max > 1:
            raise ValueError(f"t_max must be at most 1, where x is pure noise, got {self.t_max}: keep 1")

    def alpha(self, t: Tensor) -> Tensor:  # noqa: D102
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:  # noqa: D102
        return t

    def inverse(self, log_snr: Tensor) -> Tensor:  # noqa: D102
        return torch.sigmoid(-log_snr / 2)

    def rates(self, t: Tensor) -> Rates:  # noqa: D102
        return 1 - t, t, -torch.ones_like(t), torch.ones_like(t)

    def clock(self, t: Tensor) -> Tensor:
        """t itself: log(sigma / alpha) is infinite at t = 1."""
        return t

    def published(self, t: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        return -1 / (1 - t), torch.sqrt(2 * t / (1 - t))


@dataclass(frozen=True)
class OrnsteinUhlenbeck(ScalarSDE):
    """Ornstein–Uhlenbeck process: dx = -theta x dt + s dW.

    alpha = exp(-theta t), sigma^2 = s^2 (1 - exp(-2 theta t)) / (2 theta).

    Args:
        theta: Rate of mean reversion, per unit of time.
        s: Noise strength; the default makes the stationary law N(0, 1) at theta = 1.
        t_min: Where sampling stops.
        t_max: Time of the prior; at 5 the data have faded to exp(-5) = .7 %.

    References:
        Uhlenbeck & Ornstein (1930), Phys. Rev. 36, 823. VP is this process run on the clock B(t).

    Example:
        >>> import torch, sde
        >>> round(float(sde.OrnsteinUhlenbeck().sigma(torch.tensor(5.0))), 4)
        1.0
    """

    theta: float = 1.0
    s: float = ROOT2
    t_min: float = 1e-4
    t_max: float = 5.0

    def __post_init__(self) -> None:
        positive(theta=self.theta, s=self.s)
        interval(self.t_min, self.t_max)

    def alpha(self, t: Tensor) -> Tensor:  # noqa: D102
        return torch.exp(-self.theta * t)

    def sigma(self, t: Tensor) -> Tensor:  # noqa: D102
        return self.s * torch.sqrt(-torch.expm1(-2 * self.theta * t) / (2 * self.theta))

    def inverse(self, log_snr: Tensor) -> Tensor:  # noqa: D102
        return torch.log1p(2 * self.theta / self.s**2 * torch.exp(-log_snr)) / (2 * self.theta)

    def rates(self, t: Tensor) -> Rates:  # noqa: D102
        alpha, sigma = self.alpha(t), self.sigma(t)
        return alpha, sigma, -self.theta * alpha, self.s**2 * alpha**2 / (2 * sigma)

    def published(self, t: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        return -self.theta * torch.ones_like(t), self.s * torch.ones_like(t)
