r"""One-step solvers: each step body beside its paper's formula.

A step goes from t to s, h = s - t (negative in reverse). `Euler`, `Heun` and `RK4` see drift and diffusion only and
solve any SDE; `ReverseDiffusion`, `DDIM` and `Ancestral` use the endpoints of a score model and need a `ReverseSDE`.
"""

from __future__ import annotations

import math

from torch import Tensor, add, lerp

from sde.forward import SDE, ForwardSDE, MatrixSDE
from sde.forward.scalar import root
from sde.random import Noise
from sde.shape import plus
from sde.solvers.solver import Solver, needs_model


class Euler(Solver):
    """Euler's method; Euler–Maruyama when there is noise: x_s = x + f h + G dW.

    Strong order 1 for additive noise, 1/2 where G depends on x.

    References:
        Maruyama (1955), Rend. Circ. Mat. Palermo 4, 48.

    Example:
        >>> import torch, sde
        >>> x = sde.integrate(
        ...     sde.BrownianMotion(mu=1.0, s=0.0), torch.zeros(1, 1), torch.linspace(0, 1, 5), sde.Euler()
        ... )
        >>> x.item()
        1.0
    """

    order, strong, weak = 1.0, 1.0, 1.0

    def step(self, sde: SDE, x: Tensor, t: float, s: float, noise: Noise) -> Tensor:  # noqa: D102
        h = float(s - t)
        y = sde.advance(x, t, h)
        return sde.kick(y, math.sqrt(abs(h)), x, t, noise.normal(x, t, s)) if sde.noisy else y


class EulerMaruyama(Euler):
    """`Euler` on the reverse SDE: the same step, eta = 1 by default in `sample`.

    Example:
        >>> import sde
        >>> sde.EulerMaruyama().eta
        1.0
    """

    eta = 1.0


class _Smooth(Solver):
    """A rule for smooth paths: refuses noise that depends on the state."""

    endpoint = True

    def check(self, sde: SDE) -> None:
        if sde.noisy and not sde.additive:
            raise ValueError(
                f"{type(self).__name__} on {type(sde).__name__} would converge to the Stratonovich solution, "
                "as its noise depends on the state: use Euler"
            )


class Heun(_Smooth):
    """Heun's method, the trapezoidal rule with an Euler predictor; with noise, the same on the increment of one step.

    References:
        Heun (1900); Karras et al. (2022), 2206.00364, algorithm 1; with noise Kloeden & Platen (1992), section 15.1.

    Example:
        >>> import torch, sde
        >>> model = sde.ExactScore(sde.Gaussian([0.0], 1.0), sde.EDM())
        >>> sde.sample(model, (8, 1), steps=10, solver=sde.Heun()).shape
        torch.Size([8, 1])
    """

    order, strong, weak, calls = 2.0, 1.0, 2.0, 2

    def step(self, sde: SDE, x: Tensor, t: float, s: float, noise: Noise) -> Tensor:  # noqa: D102
        # Two Euler steps of length h with the same noise end at x plus twice the rule's increment: half of the way.
        h = float(s - t)
        w = noise.increment(x, t, s) if sde.noisy else None
        y = sde.advance(x, t, h)
        if w is not None:
            y = sde.kick(y, 1.0, x, t, w)
        y = sde.advance(y, s, h)
        return lerp(x, y if w is None else sde.kick(y, 1.0, x, s, w), 0.5)


class RK4(_Smooth):
    """The classical Runge–Kutta method; with noise, the last two of its four slopes see the step's increment.

    Weights b = (1, 2, 2, 1)/6 on slopes that see the parts c = (0, 0, 1, 1) of it: weak order 2 needs sum b c = 1/2,
    the mean of W along the step, and sum b c^2 = 1/2, that of W^2. (With W spread evenly over the step the latter is
    1/3, and the weak order 1.)

    References:
        Kutta (1901), Z. Math. Phys. 46, 435.

    Example:
        >>> import torch, sde
        >>> model = sde.ExactScore(sde.Gaussian([0.0], 1.0), sde.VP())
        >>> sde.sample(model, (8, 1), steps=5, solver=sde.RK4()).shape
        torch.Size([8, 1])
    """

    order, strong, weak, calls = 4.0, 1.0, 2.0, 4
    fractions = (0.5,)

    def step(self, sde: SDE, x: Tensor, t: float, s: float, noise: Noise) -> Tensor:  # noqa: D102
        h, m = float(s) - float(t), self.stage(sde, t, s, 0)
        y = x + sde.diffusion(x, m, noise.increment(x, t, s)) if sde.noisy else x
        k1 = sde.drift(x, t)
        k2 = sde.drift(add(x, k1, alpha=h / 2), m)
        k3 = sde.drift(add(y, k2, alpha=h / 2), m)
        k4 = sde.drift(add(y, k3, alpha=h), s)
        return add(y, k1 + 2 * (k2 + k3) + k4, alpha=h / 6)


class Transition(Solver):
    """The forward SDE's own transition, drawn exactly; `trajectory` takes it from sigma = 0, where g^2 = 0 × infinity.

    Example:
        >>> import torch, sde
        >>> states = sde.trajectory(sde.VP(), torch.zeros(4, 2), torch.linspace(0, 1, 5), sde.Euler())
        >>> bool(list(states)[-1].x.isfinite().all())
        True
    """

    order, strong, weak, calls = 1.0, 1.0, 1.0, 0

    def check(self, sde: SDE) -> None:  # noqa: D102
        if not isinstance(sde, ForwardSDE):
            raise ValueError(f"Transition runs a ForwardSDE up in time, got {type(sde).__name__}: use Euler")

    def step(self, sde: SDE, x: Tensor, t: float, s: float, noise: Noise) -> Tensor:  # noqa: D102
        assert isinstance(sde, ForwardSDE)
        return sde.transition(x, t, s, noise.normal(x, t, s))


class ReverseDiffusion(Solver):
    """Reverse diffusion: the forward SDE's own discrete step, with mean a x and variance q, turned round.

    x_s = x - (a - 1) x + (1 + eta^2) / 2 q score + eta sqrt(q) z, a and q exact for the interval where the authors'
    code takes them to first order in h.

    References:
        Song et al. (2021), 2011.13456, appendix E.

    Example:
        >>> import torch, sde
        >>> model = sde.ExactScore(sde.Gaussian([0.0], 1.0), sde.VP())
        >>> sde.sample(model, (8, 1), steps=10, solver=sde.ReverseDiffusion()).shape
        torch.Size([8, 1])
    """

    order, strong, weak = 1.0, 1.0, 1.0
    eta = 1.0

    def check(self, sde: SDE) -> None:  # noqa: D102
        needs_model(self, sde)

    def step(self, sde: SDE, x: Tensor, t: float, s: float, noise: Noise) -> Tensor:  # noqa: D102
        reverse = needs_model(self, sde)
        model, forward, eta = reverse.model, reverse.model.sde, reverse.eta
        if reverse.scalar is not None:
            forward = reverse.scalar
            a, q = forward.kernel(x, s, t)
            y = model.move(x, t, 2 - a, 0.0, -(1 + eta**2) / 2 * q / forward.levels_on(x, t)[1])
            return plus(y, eta * root(q), noise.normal(x, t, s)) if eta else y
        gain = forward.transition_gain(model(x, t).score, s, t)
        zero = x.new_zeros(()).expand_as(x)
        y = 2 * x - forward.transition(x, s, t, zero) + (1 + eta**2) / 2 * gain
        return y + eta * forward.transition(zero, s, t, noise.normal(x, t, s)) if eta else y


class DDIM(Solver):
    """DDIM: move the endpoints' estimate to the new time; for 0 < eta <= 1 part of eps is drawn anew.

    x_s = alpha_s x0 + sqrt(sigma_s^2 - eta^2 v) eps + eta sqrt(v) z, with v the variance of the bridge x_s | x_t, x0.
    eta = 0 is exponential Euler on the probability flow; eta = 1 is ancestral sampling. On a matrix SDE it is gDDIM:
    the reverse SDE of that eta, solved exactly with x0 held, `MatrixSDE.held`.

    References:
        Song, Meng & Ermon (2021), 2010.02502, eq. 12 and 16; Zhang, Tao & Chen (2022), 2206.05564, for matrix SDEs.

    Example:
        >>> import torch, sde
        >>> model = sde.ExactScore(sde.Gaussian([0.0], 1.0), sde.VP())
        >>> sde.sample(model, (8, 1), steps=10, solver=sde.DDIM()).shape
        torch.Size([8, 1])
    """

    order, strong, weak = 1.0, 1.0, 1.0

    def check(self, sde: SDE) -> None:  # noqa: D102
        reverse = needs_model(self, sde)
        if reverse.eta > 1:
            raise ValueError(
                f"{type(self).__name__} takes eta up to 1, where all of eps is drawn anew that can be, "
                f"got eta={reverse.eta}: use Euler or ReverseDiffusion"
            )

    def step(self, sde: SDE, x: Tensor, t: float, s: float, noise: Noise) -> Tensor:  # noqa: D102
        reverse = needs_model(self, sde)
        model, forward, eta = reverse.model, reverse.scalar, reverse.eta
        if forward is None:
            matrix = model.sde
            assert isinstance(matrix, MatrixSDE)
            return matrix.held(model(x, t).x0, x, t, s, eta, noise.normal(x, t, s) if eta else None)
        alpha, sigma = forward.levels_on(x, s)
        if not eta:
            return model.move(x, t, 0.0, alpha, sigma)
        v = min(eta, 1.0) ** 2 * forward.bridge_pair(x, t, s)[1]
        return plus(model.move(x, t, 0.0, alpha, root(sigma**2 - v)), root(v), noise.normal(x, t, s))


class Ancestral(DDIM):
    """Ancestral sampling: x_s drawn from the bridge x_s | x_t, x0 at the estimated x0; `DDIM` with eta = 1 by default.

    References:
        Ho, Jain & Abbeel (2020), 2006.11239, algorithm 2; Song et al. (2021), 2011.13456, appendix F.

    Example:
        >>> import sde
        >>> sde.Ancestral().eta
        1.0
    """

    eta = 1.0
