r"""Methods that put the observation into x0 itself, without a gradient through the model: DDNM and DiffPIR.

Of the singular value decomposition of A each direction is pulled to what was observed in it by a factor of its own,

    x0 <- x0 + V f(s) V' A' (y - A x0),        c = noise alpha / sigma,

    DDNM       f = 1 / (s max(s, c))           whole for s >= c, so that the observation brings no more noise than x has
    DiffPIR    f = 1 / (s^2 + lambda c^2)      nearest to x0 and to y, each by its weight

and f = 0 where s = 0. Without noise both are x0 + A^+ (y - A x0), the nearest point that was observed as y.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from sde.forward import SDE
from sde.inverse.guided import Guided, each, ratios
from sde.inverse.observation import Observation
from sde.inverse.operator import RANK
from sde.random import Noise
from sde.score import Model
from sde.solvers import Solver
from sde.solvers.solver import needs_model


class _Projected(Guided):
    """x0 + V f(s) V' A' (y - A x0)."""

    def __init__(self, model: Model, observation: Observation) -> None:
        super().__init__(model, observation)
        self.operator = observation.check_linear(type(self).__name__)
        self.latest = self.sde.t_max  # no Jacobian is asked for

    @abstractmethod
    def factor(self, s: Tensor, c: float) -> Tensor:
        """f at singular values s > 0."""

    def moved(self, x: Tensor, t: float | Tensor, **cond: Any) -> Tensor:
        x0, low = self.model(x, t, **cond).x0, RANK * self.operator.norm
        pull = self.operator.adjoint(self.observation.residual(x0))
        noise = self.observation.noise

        def filtered(ratio: float, r: Tensor) -> Tensor:
            f = lambda s: torch.where(s > low, self.factor(s.clamp_min(low), noise / ratio), 0.0)  # noqa: E731
            return self.operator.filter(r, f)

        return x0 + each(ratios(self.sde, x, t) if noise else [math.inf], filtered, pull)


class DDNM(_Projected):
    r"""Denoising diffusion null-space model: what A sees of x0 is replaced by what was observed of it.

    x0 <- x0 + A^+ (y - A x0); with noise (DDNM+) a direction of singular value s is replaced by the part
    min(1, s sigma / (alpha noise)) of it. The paper then takes the observation's share out of the noise that a step
    adds; a model does not know its solver's steps, and leaves that. It samples no posterior: the null space is as the
    prior has it for such an x0, and the measured part is y itself.

    Args:
        model: Score model.
        observation: Of a linear operator, with noise or without.

    Raises:
        ValueError: If the operator is not linear, or the model was trained with a coupling.

    References:
        Wang, Yu & Zhang (2022), 2212.00490, algorithm 1; DDNM+ for noise.

    Example:
        >>> import torch, sde
        >>> model = sde.ExactScore(sde.Gaussian([0.0, 0.0], [[1.0, 0.9], [0.9, 1.0]]), sde.VP())
        >>> seen = sde.inverse.Observation(sde.inverse.Mask(torch.tensor([True, False])), torch.tensor([[1.0, 0.0]]))
        >>> x = sde.sample(sde.inverse.DDNM(model, seen), (4, 2), steps=20, generator=torch.Generator().manual_seed(0))
        >>> x[:, 0].round(decimals=1).tolist()
        [1.0, 1.0, 1.0, 1.0]
    """

    def factor(self, s: Tensor, c: float) -> Tensor:  # noqa: D102
        return 1 / (s * s.clamp_min(c))


class DiffPIR(_Projected):
    r"""Plug-and-play restoration by diffusion: x0 that is near to the model's and agrees with y, each by its weight.

    argmin_x |y - A x|^2 / (2 noise^2) + weight alpha^2 / (2 sigma^2) |x - x0|^2.

    For weight = 1 and noise it is E[x0 | x, y] as if Cov[x0 | x] were (sigma / alpha)^2 I. The paper draws a part zeta
    of eps anew in each step, which is the solver's: `DiffPIRSolver`, or any with eta > 0.

    Args:
        model: Score model.
        observation: Of a linear operator, with noise or without.
        weight: Of the prior, lambda.

    Raises:
        ValueError: If the operator is not linear, weight is not positive, or the model was trained with a coupling.

    References:
        Zhu, Zhang, Liang, Cao, Wen, Timofte & Van Gool (2023), 2305.08995, algorithm 1.

    Example:
        >>> import torch, sde
        >>> model = sde.ExactScore(sde.Gaussian([0.0, 0.0], [[1.0, 0.9], [0.9, 1.0]]), sde.VP())
        >>> seen = sde.inverse.Mask(torch.tensor([True, False]))
        >>> observation = sde.inverse.Observation(seen, torch.tensor([[1.0, 0.0]]), noise=0.1)
        >>> sde.sample(sde.inverse.DiffPIR(model, observation), (4, 2), steps=20).shape
        torch.Size([4, 2])
    """

    def __init__(self, model: Model, observation: Observation, weight: float = 1.0) -> None:
        super().__init__(model, observation)
        if not (math.isfinite(weight) and weight > 0):
            raise ValueError(f"weight must be positive and finite, got {weight}: 1 is what Bayes' rule gives the prior")
        self.weight = weight

    def factor(self, s: Tensor, c: float) -> Tensor:  # noqa: D102
        return 1 / (s**2 + self.weight * c**2)


class DiffPIRSolver(Solver):
    r"""Plug-and-play restoration by the paper's algorithm: `DiffPIR`, and a part of the noise anew in each step.

    x_s <- alpha_s x0 + sigma_s (sqrt(1 - zeta) eps + sqrt(zeta) z) with the endpoints of `DiffPIR` at x_t, one
    evaluation. What is drawn anew does not shrink with the step, so that samples go with the number of steps: on the
    law of the paper's own chain, and not on a posterior.

    Args:
        observation: Of a linear operator, with noise or without.
        weight: Of the prior, lambda.
        zeta: Part of the noise's variance that is drawn anew, in [0, 1].

    Raises:
        ValueError: If zeta is not in [0, 1]; from a run, as `DiffPIR`, or if times go up.

    References:
        Zhu, Zhang, Liang, Cao, Wen, Timofte & Van Gool (2023), 2305.08995, algorithm 1, lines 7 and 8.

    Example:
        >>> import torch, sde
        >>> model = sde.ExactScore(sde.Gaussian([0.0, 0.0], [[1.0, 0.9], [0.9, 1.0]]), sde.VP())
        >>> seen = sde.inverse.Observation(sde.inverse.Mask(torch.tensor([True, False])), torch.tensor([[1.0, 0.0]]))
        >>> x = sde.sample(model, (4, 2), times=[1.0, 0.7, 0.4, 0.1, 0.0], solver=sde.inverse.DiffPIRSolver(seen))
        >>> x[:, 0].tolist()
        [1.0, 1.0, 1.0, 1.0]
    """

    order = 0.0
    ends = True

    def __init__(self, observation: Observation, weight: float = 1.0, zeta: float = 0.3) -> None:
        if not 0 <= zeta <= 1:
            raise ValueError(f"zeta must be in [0, 1], got {zeta}: .3 and 1 are the paper's")
        self.observation, self.weight, self.zeta = observation, weight, float(zeta)
        self.restored: DiffPIR | None = None

    def check(self, sde: SDE) -> None:  # noqa: D102
        DiffPIR(needs_model(self, sde).model, self.observation, self.weight)  # refuses what does not fit

    def start(self, sde: SDE, times: Tensor) -> Solver:  # noqa: D102
        if times[-1] > times[0]:
            raise ValueError(
                f"DiffPIRSolver goes down in time, got times up to {float(times[-1]):g}: use times.flip(0)"
            )
        fresh = DiffPIRSolver(self.observation, self.weight, self.zeta)
        fresh.restored = DiffPIR(needs_model(self, sde).model, self.observation, self.weight)
        return fresh

    def step(self, sde: SDE, x: Tensor, t: float, s: float, noise: Noise) -> Tensor:  # noqa: D102
        model = needs_model(self, sde).model
        point = (self.restored or DiffPIR(model, self.observation, self.weight))(x, t)
        eps = math.sqrt(1 - self.zeta) * point.eps + math.sqrt(self.zeta) * noise.normal(x, t, s)
        return model.sde.mean(point.x0, s) + model.sde.color(eps, s)
