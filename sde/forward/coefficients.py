r"""A forward SDE from its drift and diffusion, its moments by quadrature.

For dx = f(t) x dt + g(t) dW with exact data at t = 0,

    log alpha(t) = int_0^t f,        sigma(t)^2 = alpha(t)^2 int_0^t g^2 / alpha^2.

The integrals up to the edges of equal panels are made once; a time adds the rest of its own panel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from sde.forward.scalar import Rates, ScalarSDE


def _like(made: float | Tensor, t: Tensor) -> Tensor:
    """What f or g returned, a number perhaps, as a tensor shaped as the times."""
    return torch.as_tensor(made, dtype=t.dtype, device=t.device).expand_as(t)


@dataclass(frozen=True)
class FromCoefficients(ScalarSDE):
    r"""SDE from its drift and diffusion: dx = f(t) x dt + g(t) dW, for those who think in f and g.

    log alpha is the integral of f and sigma^2 = alpha^2 times that of g^2 / alpha^2, by Gauss–Legendre quadrature
    (8 nodes on each of 256 panels: to rounding for smooth f and g).

    Args:
        f: Function of a tensor of times, per unit of time.
        g: Function of a tensor of times.
        t_min: Where sampling stops.
        t_max: Time of the prior.

    Example:
        >>> import torch, sde
        >>> custom = sde.FromCoefficients(f=lambda t: -t, g=lambda t: torch.sqrt(2 * t))
        >>> bool(torch.isclose(custom.sigma(torch.tensor(0.5)), (-torch.expm1(torch.tensor(-0.25))).sqrt()))
        True
    """

    f: Callable[[Tensor], Tensor]
    g: Callable[[Tensor], Tensor]
    t_min: float = 1e-3
    t_max: float = 1.0

    panels = 256

    def __post_init__(self) -> None:
        for name, value in {"f": self.f, "g": self.g}.items():
            if not callable(value):
                raise TypeError(f"{name} must be a function of a tensor of times, got {value!r}: pass lambda t: ...")
        if not (np.isfinite(self.t_max) and 0 <= self.t_min < self.t_max):
            raise ValueError(f"t_min and t_max must satisfy 0 <= t_min < t_max, got {self.t_min} and {self.t_max}")

    def _quadrature(self, integrand: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> Tensor:
        u, w = (torch.as_tensor(c, dtype=low.dtype, device=low.device) for c in np.polynomial.legendre.leggauss(8))
        half = (high - low).unsqueeze(-1) / 2
        nodes = low.unsqueeze(-1) + half * (1 + u)
        return (half * w * _like(integrand(nodes), nodes)).sum(-1)

    @cached_property
    def _edges(self) -> Tensor:
        return torch.linspace(0, self.t_max, self.panels + 1, dtype=torch.float64)

    @cached_property
    def _log_alphas(self) -> Tensor:
        pieces = self._quadrature(self.f, self._edges[:-1], self._edges[1:])
        return torch.cat([torch.zeros(1, dtype=torch.float64), pieces.cumsum(0)])

    @cached_property
    def _noises(self) -> Tensor:
        pieces = self._quadrature(self._unfaded, self._edges[:-1], self._edges[1:])
        return torch.cat([torch.zeros(1, dtype=torch.float64), pieces.cumsum(0)])

    def _panel(self, t: Tensor) -> tuple[Tensor, Tensor]:
        i = (t.detach() / self.t_max * self.panels).long().clamp(0, self.panels - 1)
        return i, self._edges.to(t)[i]

    def _log_alpha(self, t: Tensor) -> Tensor:
        i, start = self._panel(t)
        return self._log_alphas.to(t)[i] + self._quadrature(self.f, start, t)

    def _unfaded(self, t: Tensor) -> Tensor:
        return _like(self.g(t), t) ** 2 * torch.exp(-2 * self._log_alpha(t))

    def alpha(self, t: Tensor) -> Tensor:  # noqa: D102
        return torch.exp(self._log_alpha(t))

    def sigma(self, t: Tensor) -> Tensor:  # noqa: D102
        i, start = self._panel(t)
        return self.alpha(t) * torch.sqrt(self._noises.to(t)[i] + self._quadrature(self._unfaded, start, t))

    def rates(self, t: Tensor) -> Rates:  # noqa: D102
        alpha, sigma = self.alpha(t), self.sigma(t)
        f, g = self.published(t)
        return alpha, sigma, f * alpha, (g**2 + 2 * f * sigma**2) / (2 * sigma)

    def published(self, t: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        return _like(self.f(t), t), _like(self.g(t), t)
