r"""SA-Solver: stochastic Adams rules with a corrector, on the reverse SDE of any eta.

With lambda = log(alpha / sigma) and tau = eta, the reverse SDE has the exact solution over a step of length h

    x_s = c x_t + int K x0 dlambda + sigma_s sqrt(1 - e^{-2 tau^2 h}) z,          c = (sigma_s / sigma_t) e^{-tau^2 h}
    K   = (1 + tau^2) alpha_s e^{-(1 + tau^2) (lambda_s - lambda)},               z ~ N(0, 1)

As in `adams`, the predictor puts the polynomial through the last values of x0 into the integral, and the
corrector one through the new value as well, with the same z: what it changes is a combination of values. At tau = 0 it
is `Adams` on x0 in lambda. The polynomial cannot foresee the noise, which leaves an error of O(tau h) along a path,
beside the rule's own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sde.forward import SDE, ScalarSDE
from sde.random import Noise
from sde.score import Model
from sde.solvers.exponential.adams import Adams
from sde.solvers.exponential.base import Along
from sde.solvers.exponential.unipc import step_weights
from sde.solvers.solver import needs_model


class _NoisyAlong(Along):
    """The linear part of steps with noise tau (n,), and integrals of polynomials in lambda through x0."""

    def __init__(self, forward: ScalarSDE, scale: float, times: Tensor, tau: Tensor) -> None:
        super().__init__(forward, scale, times, "x0", "log_snr")
        self.square = tau**2
        rho = self.sigma / self.alpha
        shrink = torch.where(tau > 0, rho[1:] / rho[:-1], 1.0)  # e^-h, 0 from alpha = 0 and to sigma = 0
        fade = shrink**self.square
        self.c = self.c * fade
        self.first = torch.where(tau > 0, self.alpha[1:] * (1 - shrink * fade), self.first)
        self.shift = torch.where(tau > 0, self.first, self.shift)
        self.level = self.sigma[1:] * torch.sqrt(1 - fade**2)

    def _density(self, u: Tensor, to: Tensor) -> Tensor:
        square = self.square[to - 1, None]
        rest = self.u[to, None] - u
        return (1 + square) * self.alpha[to, None] * torch.exp(-(1 + square) * rest)


class SASolver(Adams):
    """SA-Solver: stochastic Adams predictor and corrector in x0, one evaluation a step.

    The rule's own order is min(corrector_order, predictor_order + 1), or predictor_order without a corrector. The first
    steps and lower_order_final cap it at eta = 0 as in `UniPC`. With noise the order in distribution is 2, or 1 if that
    is the rule's own; along a path it is 1, by an error that falls with eta.

    Args:
        predictor_order: Values that the predictor's polynomial goes through, from 1 to 8.
        corrector_order: Values that the corrector's goes through, the new one among them, from 1 to 9; 0: no corrector.
            (The authors' code counts in this way; the paper's s-step corrector has s + 1. They take 3 and 4, and 2 and
            2 with guidance; the more noise in a step, the less is gained beyond 2.)
        interval: Ratios sigma / alpha between which there is noise: a step that begins outside is one with eta = 0.
            The authors' choice on a table of 1000, entries 200 to 800, is (0.72, 26) on `Tabulated.linear`. Default:
            noise everywhere.
        rescaled: For polynomials through two values, the moment h^2 / 2 in place of the integral: the authors' few-step
            variant, and at eta = 0 UniPC's B1.
        lower_order_final: Whether the last steps are of lower order, as in the authors' code.

    References:
        Xue et al. (2023), 2309.05019; the rescaling: appendix D.

    Example:
        >>> import torch, sde
        >>> model = sde.ExactScore(sde.Gaussian([3.0], 0.25), sde.VP())
        >>> sde.sample(model, (8, 1), steps=20, solver=SASolver()).shape
        torch.Size([8, 1])
    """

    eta = 1.0
    strong = 1.0
    noise_levels = (0.0, math.inf)

    def __init__(
        self,
        predictor_order: int = 2,
        corrector_order: int = 2,
        interval: tuple[float, float] | None = None,
        rescaled: bool = False,
        lower_order_final: bool = True,
    ) -> None:
        _whole("predictor_order", predictor_order, 1, 8)
        _whole("corrector_order", corrector_order, 0, 9)
        if interval is not None and not 0 <= interval[0] < interval[1]:
            raise ValueError(f"interval must be (low, high) with 0 <= low < high, got {interval}: (0.05, 1.0), say")
        super().__init__(predictor_order, "x0", "log_snr", bool(corrector_order))
        self.corrector_order, self.interval = corrector_order, interval
        self.rescaled, self.lower_order_final = bool(rescaled), bool(lower_order_final)

    @property
    def nominal(self) -> float:
        """Of the rule itself, at eta = 0."""
        return float(min(self.corrector_order, self.k + 1) if self.corrector_order else self.k)

    @property
    def order(self) -> float:
        """Observed on ever finer grids at eta = 0: that of the rule, of its first steps or of its last."""
        mended = self.corrector_order > 1 and not self.lower_order_final
        return min(self.nominal, 3.0 if mended else 2.0)

    @property
    def weak(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """In distribution."""
        return min(self.nominal, 2.0)

    def columns(self, model: Model, eta: float, times: Tensor) -> Sequence[Tensor]:  # noqa: D102
        forward = model.sde
        assert isinstance(forward, ScalarSDE)
        alpha, sigma = forward.levels(times[:-1])
        low, high = self.interval or (0.0, math.inf)
        rho = sigma / alpha
        tau = torch.where((rho >= low) & (rho <= high), eta, 0.0).double()
        along = _NoisyAlong(forward, model.data_scale(), times, tau)
        moment = (1 + tau**2) * along.alpha[1:] * along.u.diff() ** 2 / 2 if self.rescaled else None
        w = step_weights(along, self.k, self.corrector_order, self.lower_order_final, moment)
        return along.p[:-1], along.q[:-1], along.c, along.shift, along.level, w

    def step(self, sde: SDE, x: Tensor, t: float, s: float, noise: Noise) -> Tensor:  # noqa: D102
        model = needs_model(self, sde).model
        *row, level, w = self.row(sde, t, s)
        row = (*row, w)
        self.memory = [self._value(model, x, t, row), *self.memory[: len(w) - 1]]
        y = self._advance(model, x, row, self.memory)
        return torch.add(y, noise.normal(x, t, s), alpha=level) if level else y


def _whole(name: str, value: int, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{name} must be a whole number from {low} to {high}, got {value!r}")
