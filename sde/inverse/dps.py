r"""Diffusion posterior sampling: the likelihood of x as if x0 were what the model estimates, for any operator.

    grad log p(y | x) = -weight grad |y - A(x0(x))|^2 / (2 noise^2),

a backward pass through the operator and the model. As x0 | x is not that narrow, the gradient is far too large while x
is noisy, and explicit steps must be short: by about 1 / (1 + v / noise^2) for data of variance v. `annealed` counts
what the estimate may be off by as noise of y, (sigma / alpha)^2 + noise^2 for noise^2. The paper's algorithm takes
another length, which does not depend on the noise nor on the solver's step: after each step of a solver,

    x_s <- x_s - zeta grad |y - A(x0(x_t))|,

the gradient of the norm, not of its square. It belongs to a step and is a solver here, `DPSSolver`; `MCG` then puts the
observation itself, noised to the time s, into what A sees of x_s.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sde.forward import SDE
from sde.inverse.guided import Estimate, Guided, PulledSolver, each, ratios
from sde.inverse.observation import Observation
from sde.inverse.operator import RANK
from sde.random import Noise
from sde.score import Model
from sde.shape import sum_event
from sde.solvers import Solver
from sde.solvers.solver import needs_model


def _checked(name: str, value: float) -> float:
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be 0 or more and finite, got {value}: 0 is no guidance")
    return value


class DPS(Guided):
    r"""Diffusion posterior sampling in its likelihood form, for any differentiable operator.

    The score plus -weight grad |y - A(x0(x))|^2 / (2 noise^2). It asks for many steps where noise is small (see
    `sde.inverse.dps`), and then `annealed` is the robust choice. `DPSSolver` is the paper's algorithm.

    Args:
        model: Score model.
        observation: Of any operator, with noise unless annealed.
        weight: Of the likelihood.
        annealed: Whether (sigma / alpha)^2 is added to noise^2.

    Raises:
        ValueError: If the observation has no noise and is not annealed, weight is negative, or the model was trained
            with a coupling.

    References:
        Chung, Kim, Mccann, Klasky & Ye (2022), 2209.14687.

    Example:
        >>> import torch, sde
        >>> model = sde.ExactScore(sde.Gaussian([0.0, 0.0], [[1.0, 0.9], [0.9, 1.0]]), sde.VP())
        >>> seen = sde.inverse.Mask(torch.tensor([True, False]))
        >>> observation = sde.inverse.Observation(seen, torch.tensor([[1.0, 0.0]]), noise=0.5)
        >>> sde.sample(sde.inverse.DPS(model, observation), (4, 2), steps=100).shape
        torch.Size([4, 2])
    """

    def __init__(self, model: Model, observation: Observation, weight: float = 1.0, annealed: bool = False) -> None:
        super().__init__(model, observation)
        if not annealed:
            observation.check_noisy("DPS")
        self.weight, self.annealed = _checked("weight", weight), annealed

    def moved(self, x: Tensor, t: float | Tensor, **cond: Any) -> Tensor:  # noqa: D102
        here = Estimate(self.model, x, t, **cond)
        with torch.inference_mode(False), torch.enable_grad():
            x0 = here.x0 if here.graph else here.x0.clone().requires_grad_()
            misfit = sum_event(self.observation.residual(x0) ** 2).sum() / 2
            (v,) = torch.autograd.grad(misfit, x0, create_graph=here.graph)
        spread = ratios(self.sde, x, t) if self.annealed else [0.0]
        noise2 = self.observation.noise**2
        return here.x0 - self.weight * here.covariance(each(spread, lambda ratio, v: v / (noise2 + ratio**2), v))


class DPSSolver(PulledSolver):
    r"""Diffusion posterior sampling by the paper's algorithm: after each step, down the gradient of the residual.

    x_s <- step(x_t) - zeta grad |y - A(x0(x_t))|, with the one evaluation of the step. What the guidance does in a run
    grows with the number of steps: the paper takes 1000 and zeta of .3 to 1. Its samples follow no posterior that zeta
    would make exact.

    Args:
        observation: Of any operator, with noise or without.
        zeta: Length of the step against the residual, in units of the state.
        solver: What steps, of one evaluation a step. Default: `Ancestral`, as in the paper.

    Raises:
        ValueError: If zeta is negative, or the solver evaluates otherwise than once a step.

    References:
        Chung, Kim, Mccann, Klasky & Ye (2022), 2209.14687, algorithm 1; with zeta for twice the paper's zeta', as in
        its authors' code, which takes the norm's gradient.

    Example:
        >>> import torch, sde
        >>> model = sde.ExactScore(sde.Gaussian([0.0, 0.0], [[1.0, 0.9], [0.9, 1.0]]), sde.VP())
        >>> seen = sde.inverse.Observation(sde.inverse.Mask(torch.tensor([True, False])), torch.tensor([[1.0, 0.0]]))
        >>> sde.sample(model, (4, 2), steps=100, solver=sde.inverse.DPSSolver(seen, zeta=0.3)).shape
        torch.Size([4, 2])
    """

    def __init__(self, observation: Observation, zeta: float = 1.0, solver: Solver | None = None) -> None:
        super().__init__(observation, solver)
        self.zeta = _checked("zeta", zeta)

    def pull(self, here: Estimate) -> Tensor:  # noqa: D102
        with torch.inference_mode(False), torch.enable_grad():
            x0 = here.x0.clone().requires_grad_()
            length = torch.linalg.vector_norm(self.observation.residual(x0).flatten(1), dim=1).sum()
            (v,) = torch.autograd.grad(length, x0)
        return -self.zeta * here.pulled(v)


class MCG(DPSSolver):
    r"""Manifold constrained gradient: a step of `DPSSolver`, then the observation itself in what A sees.

    x_s <- x' + A^+ A (x_y - x'),  x' = step(x_t) - zeta grad |y - A(x0(x_t))|,  x_y ~ p(x_s | x0 = A^+ y).

    Without noise, and on a grid that ends at t = 0, what A sees at the end is y itself.

    Args:
        observation: Of a linear operator; its noise is not used.
        zeta: Length of the step against the residual, in units of the state.
        solver: What steps, of one evaluation a step. Default: `Ancestral`.

    Raises:
        ValueError: If the operator is not linear; else as `DPSSolver`.

    References:
        Chung, Sim, Ryu & Ye (2022), 2206.00941, algorithm 1.

    Example:
        >>> import torch, sde
        >>> model = sde.ExactScore(sde.Gaussian([0.0, 0.0], [[1.0, 0.9], [0.9, 1.0]]), sde.VP())
        >>> seen = sde.inverse.Observation(sde.inverse.Mask(torch.tensor([True, False])), torch.tensor([[1.0, 0.0]]))
        >>> x = sde.sample(model, (4, 2), times=[1.0, 0.7, 0.4, 0.1, 0.0], solver=sde.inverse.MCG(seen, zeta=0.3))
        >>> x[:, 0].tolist()
        [1.0, 1.0, 1.0, 1.0]
    """

    def __init__(self, observation: Observation, zeta: float = 1.0, solver: Solver | None = None) -> None:
        super().__init__(observation, zeta, solver)
        self.operator = observation.check_linear("MCG")

    def step(self, sde: SDE, x: Tensor, t: float, s: float, noise: Noise) -> Tensor:  # noqa: D102
        forward = needs_model(self, sde).model.sde
        x = super().step(sde, x, t, s, noise)
        x0 = self.operator.pinv(self.observation.y.to(x))
        known = forward.mean(x0, s) + forward.color(noise.fresh(x), s)
        # A matrix SDE has channels beside the samples, and A sees each of them.
        event = self.operator.event
        shift = self.operator.filter((known - x).reshape(-1, *event), lambda q: (q > RANK * self.operator.norm).to(q))
        return x + shift.reshape(x.shape)
