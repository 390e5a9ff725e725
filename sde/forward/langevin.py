r"""Langevin systems: noise enters through momenta, and reaches the data smoothed.

Each is a `MatrixSDE` whose matrices follow from a few numbers of its paper; `published` states them a second time, as
printed, for law 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sde.forward.matrix import Matrix, MatrixSDE, check_clock


@dataclass(frozen=True)
class _Langevin(MatrixSDE):
    """What the named Langevin systems share: matrices from a few numbers."""

    beta: float = 4.0
    t_min: float = 1e-3
    t_max: float = 1.0

    def __post_init__(self) -> None:
        check_clock(self.beta, self.t_min, self.t_max)
        for name in ("mass", "gamma", "xi", "spread"):
            value = getattr(self, name, 1.0)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be positive and finite, got {value}: keep the default")


@dataclass(frozen=True)
class CLD(_Langevin):
    r"""Critically damped Langevin diffusion: position x and velocity v, noise enters through v alone.

    dx = beta v / M dt,   dv = (-beta x - beta Gamma v / M) dt + sqrt(2 Gamma beta) dW, critical where Gamma^2 = 4 M.

    Args:
        beta: Speed, per unit of time. Default 4, as in the paper.
        mass: M. Default 1/4, with Gamma = 1: critical damping.
        gamma: v starts with variance gamma M. Default .04, as in the paper.
        t_min: Where sampling stops; 1e-3 in the paper.
        t_max: Time of the prior.

    References:
        Dockhorn, Vahdat & Kreis (2022), 2112.07068, eq. 5 and section 3.3.

    Example:
        >>> import torch, sde
        >>> sde.CLD().perturb(torch.zeros(4, 2), t=torch.rand(4)).x.shape
        torch.Size([4, 2, 2])
    """

    mass: float = 0.25
    gamma: float = 0.04

    @property
    def friction(self) -> float:
        """Gamma at critical damping, 2 sqrt(M)."""
        return 2 * math.sqrt(self.mass)

    @property
    def F(self) -> Matrix:  # noqa: D102
        return [[0.0, 1 / self.mass], [-1.0, -self.friction / self.mass]]

    @property
    def G(self) -> Matrix:  # noqa: D102
        return [[0.0, 0.0], [0.0, math.sqrt(2 * self.friction)]]

    @property
    def embed(self) -> Sequence[float]:  # noqa: D102
        return [1.0, 0.0]

    @property
    def cov0(self) -> Matrix:  # noqa: D102
        return [[0.0, 0.0], [0.0, self.gamma * self.mass]]

    def published(self, t: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        m, big_gamma, b = self.mass, 2 * self.mass**0.5, self.beta
        f = torch.tensor([[0, b / m], [-b, -b * big_gamma / m]], dtype=t.dtype)
        g = torch.tensor([[0, 0], [0, math.sqrt(2 * big_gamma * b)]], dtype=t.dtype)
        return f.expand(*t.shape, 2, 2), g.expand(*t.shape, 2, 2)


@dataclass(frozen=True)
class ThirdOrderLangevin(_Langevin):
    r"""Third-order Langevin diffusion: position q, momentum p, auxiliary s; noise enters through s alone.

    dq = beta p dt,  dp = (-q + gamma s) beta dt,  ds = (-gamma p - xi s) beta dt + sqrt(2 xi beta) dW.

    The stationary law is N(0, I). With gamma = 2 sqrt 2 and xi = 3 sqrt 3 the drift has one triple eigenvalue -sqrt 3:
    critical damping.

    Args:
        beta: Speed, per unit of time.
        gamma: Coupling of p and s.
        xi: Friction of s.
        spread: p and s start with this variance.
        t_min: Where sampling stops.
        t_max: Time of the prior.

    References:
        Mou, Ma, Wainwright, Bartlett & Jordan (2021), 1908.10859; as a diffusion model: Shi & Liu (2024), 2404.12814.

    Example:
        >>> import torch, sde
        >>> sde.ThirdOrderLangevin().perturb(torch.zeros(4, 2), t=torch.rand(4)).x.shape
        torch.Size([4, 3, 2])
    """

    gamma: float = 2 * math.sqrt(2)
    xi: float = 3 * math.sqrt(3)
    spread: float = 0.04

    @property
    def F(self) -> Matrix:  # noqa: D102
        return [[0.0, 1.0, 0.0], [-1.0, 0.0, self.gamma], [0.0, -self.gamma, -self.xi]]

    @property
    def G(self) -> Matrix:  # noqa: D102
        return [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, math.sqrt(2 * self.xi)]]

    @property
    def embed(self) -> Sequence[float]:  # noqa: D102
        return [1.0, 0.0, 0.0]

    @property
    def cov0(self) -> Matrix:  # noqa: D102
        return [[0.0, 0.0, 0.0], [0.0, self.spread, 0.0], [0.0, 0.0, self.spread]]

    def published(self, t: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        b, c, xi = self.beta, self.gamma, self.xi
        f = torch.tensor([[0, b, 0], [-b, 0, b * c], [0, -b * c, -b * xi]], dtype=t.dtype)
        g = torch.zeros(3, 3, dtype=t.dtype)
        g[2, 2] = math.sqrt(2 * xi * b)
        return f.expand(*t.shape, 3, 3), g.expand(*t.shape, 3, 3)
