r"""The SDEs of a first lecture: no data, no noise end, just dx = f(x) dt + G(x) dW run up in time.

Each states what is known of it in closed form (a strong solution along a Brownian path, moments, a stationary law), so
that a solver's path can be laid over the truth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sde.forward.base import SDE
from sde.shape import as_time, expand, scaled


@dataclass(frozen=True)
class BrownianMotion(SDE):
    """Brownian motion with drift: dx = mu dt + s dW.

    Args:
        mu: Drift, per unit of time.
        s: Volatility, per root of time.

    References:
        Wiener (1923), J. Math. Phys. 2, 131.

    Example:
        >>> import torch, sde
        >>> bm = sde.BrownianMotion(mu=1.0)
        >>> bm.solution(torch.zeros(1, 1), 2.0, w=torch.ones(1, 1))
        tensor([[3.]])
    """

    mu: float = 0.0
    s: float = 1.0

    def drift(self, x: Tensor, t: float | Tensor) -> Tensor:  # noqa: D102
        return torch.full_like(x, self.mu)

    def diffusion(self, x: Tensor, t: float | Tensor, z: Tensor) -> Tensor:  # noqa: D102
        return self.s * z

    def solution(self, x0: Tensor, t: float | Tensor, w: Tensor) -> Tensor:
        """x_t = x0 + mu t + s W_t, for w = W_t."""
        return x0 + scaled(expand(self.mu * as_time(t), x0), torch.ones_like(x0)) + self.s * w


@dataclass(frozen=True)
class GeometricBrownianMotion(SDE):
    """Geometric Brownian motion: dx = mu x dt + s x dW (Itô), noise in proportion to the state.

    E x_t = x0 exp(mu t); log x_t is Brownian with drift mu - s^2 / 2. Euler–Maruyama has strong order 1/2 here; Heun
    and RK4 refuse it, as they would converge to the Stratonovich solution.

    Args:
        mu: Growth, per unit of time.
        s: Volatility, per root of time.

    References:
        Kloeden & Platen (1992), Numerical Solution of Stochastic Differential Equations, section 4.4.

    Example:
        >>> import torch, sde
        >>> gbm = sde.GeometricBrownianMotion(mu=0.5, s=1.0)
        >>> gbm.solution(torch.ones(1, 1), 1.0, w=torch.zeros(1, 1))
        tensor([[1.]])
    """

    mu: float = 0.1
    s: float = 0.4
    additive = False

    def drift(self, x: Tensor, t: float | Tensor) -> Tensor:  # noqa: D102
        return self.mu * x

    def diffusion(self, x: Tensor, t: float | Tensor, z: Tensor) -> Tensor:  # noqa: D102
        return self.s * x * z

    def solution(self, x0: Tensor, t: float | Tensor, w: Tensor) -> Tensor:
        """x_t = x0 exp((mu - s^2/2) t + s W_t), for w = W_t."""
        growth = scaled(expand((self.mu - self.s**2 / 2) * as_time(t), x0), torch.ones_like(x0))
        return x0 * torch.exp(growth + self.s * w)


@dataclass(frozen=True)
class DoubleWell(SDE):
    """Overdamped motion between two wells: dx = -V'(x) dt + s dW, V(x) = h (x^2 - 1)^2.

    The stationary density is proportional to exp(-2 V / s^2) in each coordinate; a path hops over the barrier of height
    h about every exp(2 h / s^2) units of time (Kramers).

    Args:
        h: Barrier height.
        s: Noise strength, per root of time.

    References:
        Kramers (1940), Physica 7, 284.

    Example:
        >>> import torch, sde
        >>> well = sde.DoubleWell()
        >>> well.drift(torch.tensor([[-1.0, 0.0, 1.0]]), 0.0).abs()
        tensor([[0., 0., 0.]])
    """

    h: float = 1.0
    s: float = 0.7

    def __post_init__(self) -> None:
        for name, value in {"h": self.h, "s": self.s}.items():
            if not (math.isfinite(value) and value > 0):
                raise ValueError(
                    f"{name} must be positive and finite, got {value}: without it there are no wells to hop"
                )

    def drift(self, x: Tensor, t: float | Tensor) -> Tensor:  # noqa: D102
        return -4 * self.h * x * (x**2 - 1)

    def diffusion(self, x: Tensor, t: float | Tensor, z: Tensor) -> Tensor:  # noqa: D102
        return self.s * z

    def stationary_log_prob(self, x: Tensor) -> Tensor:
        """Log of the stationary density of each coordinate, normalised by quadrature; shaped as x."""
        edge = math.sqrt(1 + self.s * math.sqrt(20 / self.h))  # where the density has fallen by exp(-40)
        grid = torch.linspace(-edge, edge, 20001, dtype=torch.float64)
        log_density = -2 * self.h * (grid**2 - 1) ** 2 / self.s**2
        log_z = torch.logsumexp(log_density, 0) + torch.log(grid[1] - grid[0])
        return -2 * self.h * (x**2 - 1) ** 2 / self.s**2 - log_z.to(x)
