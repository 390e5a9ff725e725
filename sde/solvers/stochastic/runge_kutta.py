r"""Solvers made for noise: Milstein where it depends on the state, stochastic Runge–Kutta where it does not.

Along one Brownian path Euler–Maruyama converges as h^(1/2), or h where G does not depend on x. The Itô–Taylor series
says what is missing. For dx = f dt + G dW, with h = s - t and I = int_t^s (W_u - W_t) du (`Noise.increment_and_area`),

    diagonal noise      strong order 1     g_i dg_i/dx_i (dW_i^2 - |h|) / 2                               `Milstein`
    additive noise      strong order 1.5   (df/dx) G I  +  dG/dt (h dW - I)  +  order 2 of the drift      `SRA1`, `SRA3`

The Runge–Kutta rules reach these terms without derivatives: U = I / h is a normal variable of the size of dW, with
variance |h| / 3 and covariance |h| / 2 with it. Their slopes see part of the noise through c U, with weights b such
that sum b c = 1 (the term above) and sum b c^2 = 3/2 (that of the second derivative of f, in the mean). In
distribution they are of order 2. Heun and RK4 (`sde.solvers.onestep`), which see dW alone, have strong order 1.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, add

from sde.forward import SDE
from sde.random import Noise
from sde.solvers.onestep import Euler
from sde.solvers.solver import Solver


class Milstein(Euler):
    """Milstein's method for diagonal noise: x + f h + g dW + g g' (dW^2 - |h|) / 2, with g' by autograd.

    Strong order 1 where Euler–Maruyama has 1/2. Noise is diagonal where coordinate i of G(x, t) z depends on x_i and
    z_i alone; the first step of each run checks it at the state it starts from. Additive noise has g' = 0: there the
    step is Euler–Maruyama's, to the bit.

    Raises:
        ValueError: If the noise is not diagonal, in the first step.

    References:
        Milstein (1975), Theory Probab. Appl. 19, 557; Kloeden & Platen (1992), section 10.3.

    Example:
        >>> import torch, sde
        >>> gbm, path = sde.GeometricBrownianMotion(mu=0.5, s=1.0), sde.BrownianPath(torch.Generator().manual_seed(0))
        >>> x = sde.integrate(gbm, torch.ones(1, 1), torch.linspace(0, 1, 257), Milstein(), noise=path)
        >>> round((x / gbm.solution(torch.ones(1, 1), 1.0, path.increment(x, 0.0, 1.0))).item(), 2)
        1.00
    """

    order, strong, weak = 1.0, 1.0, 1.0
    eta = 1.0
    _seen = False

    def start(self, sde: SDE, times: Tensor) -> Solver:  # noqa: D102
        fresh = copy.copy(self)
        fresh._seen = False
        return fresh

    def step(self, sde: SDE, x: Tensor, t: float, s: float, noise: Noise) -> Tensor:  # noqa: D102
        if not sde.noisy or sde.additive:
            return super().step(sde, x, t, s, noise)
        if not self._seen:
            _require_diagonal(sde, x, t)
            self._seen = True
        h, z = float(s) - float(t), noise.normal(x, t, s)
        rate = _noise_gradient(sde, x, t, z**2 - 1)
        g = sde.diffusion(x, t, torch.ones_like(x))
        return add(x, sde.drift(x, t), alpha=h) + g * add(math.sqrt(abs(h)) * z, rate, alpha=abs(h) / 2)


def _noise_gradient(sde: SDE, x: Tensor, t: float, z: Tensor) -> Tensor:
    """Gradient in x of the sum of G(x, t) z: for diagonal noise g'(x) z; differentiable where gradients are on."""
    keep = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.enable_grad():
        u = x if keep and x.requires_grad else x.detach().clone().requires_grad_()
        g = sde.diffusion(u, t, z.clone() if z.is_inference() else z)
        if not g.requires_grad:
            return torch.zeros_like(x)
        (rate,) = torch.autograd.grad(g.sum(), u, create_graph=keep, allow_unused=True)
    return torch.zeros_like(x) if rate is None else rate


def _require_diagonal(sde: SDE, x: Tensor, t: float) -> None:
    """Raise unless G v = g v and the gradient of sum(v g) is v g', both elementwise, for a v of unlike entries."""
    v = 1.5 + torch.arange(x.numel()).to(x).cos().reshape(x.shape)
    one = torch.ones_like(x)
    with torch.no_grad():
        pairs = [
            (sde.diffusion(x, t, v), v * sde.diffusion(x, t, one)),
            (_noise_gradient(sde, x, t, v), v * _noise_gradient(sde, x, t, one)),
        ]
    if not all(torch.allclose(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max())) for a, b in pairs):
        raise ValueError(
            f"Milstein needs diagonal noise, where coordinate i of G(x, t) z depends on x_i and z_i alone, and that of "
            f"{type(sde).__name__} does not: use Euler"
        )


class _Additive(Solver):
    """A rule for noise that does not depend on the state."""

    endpoint = True
    eta = 1.0

    def check(self, sde: SDE) -> None:
        if sde.noisy and not sde.additive:
            raise ValueError(
                f"{type(self).__name__} is made for noise that does not depend on the state, and that of "
                f"{type(sde).__name__} does: use Milstein, or Euler"
            )


class SRA1(_Additive):
    """Stochastic Runge–Kutta for additive noise, two stages: strong order 1.5, order 2 on an ODE.

    With U = I / h, k1 = f(x, t) and k2 = f(x + 3/4 h k1 + 3/2 G_s U, t + 3/4 h),

        x_s = x + h (k1 + 2 k2) / 3 + G_s (dW - U) + G_t U

    References:
        Rößler (2010), SIAM J. Numer. Anal. 48, 922, scheme SRA1.

    Example:
        >>> import torch, sde
        >>> model = sde.ExactScore(sde.Gaussian([0.0], 1.0), sde.VP())
        >>> sde.sample(model, (8, 1), steps=10, solver=SRA1()).shape
        torch.Size([8, 1])
    """

    order, strong, weak, calls = 2.0, 1.5, 2.0, 2
    fractions = (0.75,)

    def step(self, sde: SDE, x: Tensor, t: float, s: float, noise: Noise) -> Tensor:  # noqa: D102
        h, m = float(s) - float(t), self.stage(sde, t, s, 0)
        k1 = sde.drift(x, t)
        y = add(x, k1, alpha=0.75 * h)
        if not sde.noisy:
            return add(x, k1 + 2 * sde.drift(y, m), alpha=h / 3)
        w, area = noise.increment_and_area(x, t, s)
        u = area / h
        g = sde.diffusion(x, s, u)
        k2 = sde.drift(add(y, g, alpha=1.5), m)
        return add(x, k1 + 2 * k2, alpha=h / 3) + (sde.diffusion(x, s, w) - g + sde.diffusion(x, t, u))


class SRA3(_Additive):
    """Stochastic Runge–Kutta for additive noise, three stages: strong order 1.5, order 3 on an ODE.

    With U = I / h, k1 = f(x, t), k2 = f(x + h k1, s) and k3 = f(x + h (k1 + k2) / 4 + (G_s + G_t / 2) U, t + h / 2),

        x_s = x + h (k1 + k2 + 4 k3) / 6 + G_s (dW - U) + G_t U

    References:
        Rößler (2010), SIAM J. Numer. Anal. 48, 922, scheme SRA3; without noise the rule of Shu & Osher (1988), J.
        Comput. Phys. 77, 439.

    Example:
        >>> import torch, sde
        >>> model = sde.ExactScore(sde.Gaussian([0.0], 1.0), sde.VP())
        >>> sde.sample(model, (8, 1), steps=10, solver=SRA3()).shape
        torch.Size([8, 1])
    """

    order, strong, weak, calls = 3.0, 1.5, 2.0, 3
    fractions = (0.5,)

    def step(self, sde: SDE, x: Tensor, t: float, s: float, noise: Noise) -> Tensor:  # noqa: D102
        h, m = float(s) - float(t), self.stage(sde, t, s, 0)
        k1 = sde.drift(x, t)
        k2 = sde.drift(add(x, k1, alpha=h), s)
        y = add(x, k1 + k2, alpha=h / 4)
        if not sde.noisy:
            return add(x, k1 + k2 + 4 * sde.drift(y, m), alpha=h / 6)
        w, area = noise.increment_and_area(x, t, s)
        u = area / h
        g_t, g_s = sde.diffusion(x, t, u), sde.diffusion(x, s, u)
        k3 = sde.drift(y + add(g_s, g_t, alpha=0.5), m)
        return add(x, k1 + k2 + 4 * k3, alpha=h / 6) + (sde.diffusion(x, s, w) - g_s + g_t)
