r"""Scalar SDEs: x_t = alpha(t) x0 + sigma(t) eps, one pair of numbers for every coordinate.

The moments determine the SDE dx = f x dt + g dW, and the SDE the moments:

    f = alpha' / alpha,        g^2 = 2 sigma sigma' - 2 f sigma^2,        velocity = alpha' x0 + sigma' eps.

The velocity needs no division by alpha, so it is finite where alpha = 0 and the drift is not. With
a = alpha_t / alpha_s and q = sigma_t^2 - a^2 sigma_s^2 for s < t,

    transition   x_t | x_s      ~ N(a x_s, q)
    bridge       x_s | x_t, x0  ~ N(alpha_s x0 + (a sigma_s^2 / sigma_t^2)(x_t - alpha_t x0), sigma_s^2 q / sigma_t^2)

the latter being the posterior of ancestral sampling (Ho, Jain & Abbeel 2020, 2006.11239, eq. 7).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import overload

import torch
from torch import Tensor

from sde.forward.arguments import shaped
from sde.forward.base import ForwardSDE
from sde.forward.point import Point
from sde.nodes import Node, tabulated
from sde.shape import Coefficient, as_time, expand, lincomb, plus, scaled

Rates = tuple[Tensor, Tensor, Tensor, Tensor]


def root(c: Coefficient) -> Coefficient:
    """Square root of a number or tensor, rounding below 0 clipped.

    Example:
        >>> root(4.0)
        2.0
    """
    return c.clamp_min(0).sqrt() if isinstance(c, Tensor) else math.sqrt(max(c, 0.0))


class ScalarSDE(ForwardSDE):
    """SDE given by alpha(t) and sigma(t): all that one writes to add a schedule.

    Both take a tensor of times (float64) and return one, with torch functions, so that autograd gives the rates.
    State `t_min`, `t_max` where the defaults do not fit.

    Example:
        >>> import torch, sde
        >>> class Linear(sde.ScalarSDE):
        ...     def alpha(self, t):
        ...         return 1 - t
        ...
        ...     def sigma(self, t):
        ...         return t
        >>> Linear().perturb(torch.zeros(4, 2), t=torch.rand(4)).x.shape
        torch.Size([4, 2])
    """

    t_min: float = 1e-3
    t_max: float = 1.0
    initial: tuple[float, float] = (1.0, 0.0)
    """alpha and sigma at t = 0."""

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Factor of the data at time t."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Standard deviation of the noise at time t."""

    def rates(self, t: Tensor) -> Rates:
        """alpha, sigma and their time derivatives: by autograd, unless a subclass states them."""
        with torch.inference_mode(False), torch.enable_grad():
            u = t.detach().clone().requires_grad_()
            # 0 u: a constant is a function of t as well.
            alpha, sigma = (self._made(name, u) + 0 * u for name in ("alpha", "sigma"))
            (dalpha,) = torch.autograd.grad(alpha.sum(), u, retain_graph=True)
            (dsigma,) = torch.autograd.grad(sigma.sum(), u)
        return alpha.detach(), sigma.detach(), dalpha, dsigma

    def log_snr(self, t: float | Tensor) -> Tensor:
        """Log alpha^2 / sigma^2, decreasing in t."""
        t = as_time(t)
        return 2 * (torch.log(self._made("alpha", t)) - torch.log(self._made("sigma", t)))

    def clock(self, t: Tensor) -> Tensor:
        """log(sigma / alpha) / 4, as in Karras et al. (2022), 2206.00364; cut at 4, as alpha may reach 0."""
        return (-self.log_snr(t) / 8).clamp(-4, 4)

    # Coefficients at a time: floats at a node, else tensors of the time's shape.

    @overload
    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]: ...
    @overload
    def levels(self, t: float | Tensor) -> tuple[Coefficient, Coefficient]: ...
    def levels(self, t: float | Tensor) -> tuple[Coefficient, Coefficient]:
        """alpha and sigma at t."""
        if type(t) is Node:  # from the column that every run needs
            return self.all_rates(t)[:2]
        t = as_time(t)
        return self._made("alpha", t), self._made("sigma", t)

    def _made(self, name: str, t: Tensor) -> Tensor:
        """alpha(t) or sigma(t) in the shape of t, or an error that says how to write it."""
        try:
            made = getattr(self, name)(t)
            if isinstance(made, Tensor) and made.shape == t.shape and made.dtype == t.dtype:
                return made
            return torch.as_tensor(made, dtype=t.dtype, device=t.device).expand_as(t)
        except (TypeError, RuntimeError, ValueError) as error:
            raise ValueError(
                f"{name}(t) of {type(self).__name__} fails for t of shape {tuple(t.shape)}: write it elementwise with "
                f"functions of torch (torch.exp, not math.exp): {error}"
            ) from error

    @tabulated
    def all_rates(self, t: float | Tensor) -> tuple[Coefficient, Coefficient, Coefficient, Coefficient]:
        """alpha, sigma, alpha', sigma' at t."""
        return self.rates(as_time(t))

    def levels_on(self, x: Tensor, t: float | Tensor) -> tuple[Coefficient, Coefficient]:
        """alpha and sigma at t, shaped to multiply x."""
        if type(t) is Node:
            return self.all_rates(t)[:2]
        alpha, sigma = self.levels(t)
        return expand(alpha, x), expand(sigma, x)

    def rates_on(self, x: Tensor, t: float | Tensor) -> tuple[Coefficient, Coefficient, Coefficient, Coefficient]:
        """alpha, sigma, alpha', sigma' at t, shaped to multiply x."""
        rates = self.all_rates(t)
        if type(t) is Node:
            return rates
        alpha, sigma, dalpha, dsigma = rates
        return expand(alpha, x), expand(sigma, x), expand(dalpha, x), expand(dsigma, x)

    def f_g2(self, x: Tensor, t: float | Tensor) -> tuple[Coefficient, Coefficient]:
        """f and g^2 at t, shaped to multiply x; infinite where alpha = 0."""
        alpha, sigma, dalpha, dsigma = self.rates_on(x, t)
        f = dalpha / alpha
        return f, 2 * sigma * (dsigma - f * sigma)

    # The actions.

    def mixed(self, x0: Tensor, t: float | Tensor, eps: Tensor) -> Tensor:  # noqa: D102
        shaped(eps, x0)
        alpha, sigma = self.levels_on(x0, t)
        if not isinstance(t, Tensor):
            alpha, sigma = float(alpha), float(sigma)
        return lincomb(alpha, x0, sigma, eps)

    def mean(self, x0: Tensor, t: float | Tensor) -> Tensor:  # noqa: D102
        return scaled(self.levels_on(x0, t)[0], x0)

    def unmean(self, r: Tensor, t: float | Tensor) -> Tensor:  # noqa: D102
        alpha = self.levels_on(r, t)[0]
        if isinstance(alpha, Tensor):
            return scaled(torch.where(alpha == 0, torch.zeros_like(alpha), 1 / alpha), r)
        return scaled(1 / alpha if alpha else 0.0, r)

    def color(self, eps: Tensor, t: float | Tensor) -> Tensor:  # noqa: D102
        return scaled(self.levels_on(eps, t)[1], eps)

    def whiten(self, r: Tensor, t: float | Tensor) -> Tensor:  # noqa: D102
        return scaled(1 / self.levels_on(r, t)[1], r)

    def score(self, eps: Tensor, t: float | Tensor) -> Tensor:  # noqa: D102
        return scaled(-1 / self.levels_on(eps, t)[1], eps)

    def tilt(self, g: Tensor, t: float | Tensor) -> Tensor:  # noqa: D102
        return scaled(self.levels_on(g, t)[1], g)

    def gain(self, s: Tensor, t: float | Tensor) -> Tensor:  # noqa: D102
        return scaled(self.f_g2(s, t)[1], s)

    def drift(self, x: Tensor, t: float | Tensor) -> Tensor:  # noqa: D102
        return scaled(self.f_g2(x, t)[0], x)

    def diffusion(self, x: Tensor, t: float | Tensor, z: Tensor) -> Tensor:  # noqa: D102
        return scaled(root(self.f_g2(x, t)[1]), z)

    def kick(self, y: Tensor, c: float, x: Tensor, t: float | Tensor, z: Tensor) -> Tensor:  # noqa: D102
        return plus(y, c * root(self.f_g2(x, t)[1]), z)

    def logdet(self, t: float | Tensor, x: Tensor) -> Coefficient:  # noqa: D102
        sigma = self.levels(t)[1]
        return x[0].numel() * (torch.log(sigma) if isinstance(sigma, Tensor) else math.log(sigma))

    def velocity(self, point: Point) -> Tensor:  # noqa: D102
        _, _, dalpha, dsigma = self.rates_on(point.x, point.t)
        return point.combine(dalpha, dsigma)

    def reverse_rates(self, x: Tensor, t: float | Tensor, eta: float) -> tuple[Coefficient, Coefficient]:
        """c0 and c1 of the reverse SDE's drift c0 x0 + c1 eps: the base class's formula with score = -eps / sigma."""
        alpha, sigma, dalpha, dsigma = self.all_rates(t) if type(t) is Node else self.rates_on(x, t)
        return dalpha, dsigma if eta == 0.0 else dsigma + eta**2 * (dsigma - sigma * dalpha / alpha)

    def reverse_drift(self, point: Point, eta: float) -> Tensor:  # noqa: D102
        if eta and point.coupled:
            return super().reverse_drift(point, eta)  # refuses
        return point.combine(*self.reverse_rates(point.x, point.t, eta))

    def singular(self, t: float | Tensor) -> bool:  # noqa: D102
        alpha, sigma = self.levels(t)
        return bool(alpha == 0) or bool(sigma == 0)

    def velocity_singular(self, t: float | Tensor) -> bool:  # noqa: D102
        return bool(self.levels(t)[1] == 0)

    def kernel(self, x: Tensor, s: float | Tensor, t: float | Tensor) -> tuple[Coefficient, Coefficient]:
        """(a, q) of x_t | x_s ~ N(a x_s, q), shaped to multiply x."""
        (alpha_s, sigma_s), (alpha_t, sigma_t) = self.levels_on(x, s), self.levels_on(x, t)
        a = alpha_t / alpha_s
        return a, sigma_t**2 - a**2 * sigma_s**2

    def transition(self, x: Tensor, s: float | Tensor, t: float | Tensor, z: Tensor) -> Tensor:  # noqa: D102
        a, q = self.kernel(x, s, t)
        return scaled(a, x) + scaled(root(q), z)

    def transition_gain(self, r: Tensor, s: float | Tensor, t: float | Tensor) -> Tensor:  # noqa: D102
        return scaled(self.kernel(r, s, t)[1], r)

    def bridge_pair(self, x: Tensor, t: float | Tensor, s: float | Tensor) -> tuple[Coefficient, Coefficient]:
        """(c, v) of the bridge as x_s = alpha_s x0 + c eps + sqrt(v) z, with eps the noise endpoint at t."""
        (alpha_s, sigma_s), (alpha_t, sigma_t) = self.levels_on(x, s), self.levels_on(x, t)
        a, ratio = alpha_t / alpha_s, sigma_s / sigma_t
        return a * sigma_s * ratio, ratio**2 * (sigma_t**2 - a**2 * sigma_s**2)

    def bridge(self, x0: Tensor, x: Tensor, t: float | Tensor, s: float | Tensor, z: Tensor) -> Tensor:  # noqa: D102
        c, v = self.bridge_pair(x, t, s)
        eps = self.whiten(x - self.mean(x0, t), t)
        return self.mean(x0, s) + scaled(c, eps) + scaled(root(v), z)

    def rates_of_statistic(self, t: Tensor) -> Rates:  # noqa: D102
        return self.rates(as_time(t))

    def statistic(self, x: Tensor, t: float | Tensor) -> tuple[Tensor, Coefficient, Coefficient]:  # noqa: D102
        return x, *self.levels_on(x, t)

    def log_residual(self, x: Tensor, t: float | Tensor) -> Coefficient:  # noqa: D102
        return 0.0
