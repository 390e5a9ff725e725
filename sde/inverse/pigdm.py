r"""Pseudo-inverse guidance: the likelihood of x as if x0 | x were a round Gaussian."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sde.forward import SDE, ScalarSDE
from sde.inverse.guided import Estimate, Guided, PulledSolver, each, ratios
from sde.inverse.observation import Observation
from sde.score import Model
from sde.solvers import Solver
from sde.solvers.solver import needs_model


class PiGDM(Guided):
    r"""Pseudo-inverse guided diffusion model: x0 moved as if x0 | x were Gaussian with covariance r^2 I.

    x0 <- x0 + C A' (r^2 A A' + noise^2 I)^-1 (y - A x0),        r^2 = v (sigma / alpha)^2 / (v + (sigma / alpha)^2),

    with v the variance of the model's data, for which r^2 is exact on N(0, v I); v = 1 in the paper. C is made of the
    model's Jacobian by one backward pass, and the matrix is solved by the operator's singular values; without noise by
    its pseudo-inverse. This is the paper's likelihood, for any solver; `PiGDMSolver` is its algorithm.

    Args:
        model: Score model.
        observation: Of a linear operator, with noise or without.

    Raises:
        ValueError: If the operator is not linear, or the model was trained with a coupling.

    References:
        Song, Vahdat, Mardani & Kautz (2023), ICLR, https://openreview.net/forum?id=9_gsMA8MRKQ

    Example:
        >>> import torch, sde
        >>> model = sde.ExactScore(sde.Gaussian([0.0, 0.0], [[1.0, 0.9], [0.9, 1.0]]), sde.VP())
        >>> seen = sde.inverse.Observation(sde.inverse.Mask(torch.tensor([True, False])), torch.tensor([[1.0, 0.0]]))
        >>> x = sde.sample(sde.inverse.PiGDM(model, seen), (500, 2), generator=torch.Generator().manual_seed(0))
        >>> [round(m, 1) for m in x.mean(0).tolist()]
        [1.0, 0.9]
    """

    def __init__(self, model: Model, observation: Observation) -> None:
        super().__init__(model, observation)
        self.operator = observation.check_linear("PiGDM")
        self.variance = model.data_scale() ** 2

    def moved(self, x: Tensor, t: float | Tensor, **cond: Any) -> Tensor:  # noqa: D102
        here, noise = Estimate(self.model, x, t, **cond), self.observation.noise

        def solved(ratio: float, r: Tensor) -> Tensor:
            return self.operator.solve(r, self.variance / (1 + self.variance / ratio**2), noise)

        r = each(ratios(self.sde, x, t), solved, self.observation.residual(here.x0))
        return here.x0 + here.covariance(self.operator.adjoint(r))


class PiGDMSolver(PulledSolver):
    r"""Pseudo-inverse guidance by the paper's algorithm: after each step, a whole step along J' A^+ (y - A x0).

    x_s <- step(x_t) + alpha_t J' A' (A A' + noise^2 / r^2 I)^-1 (y - A x0(x_t)), with the one evaluation of the step
    and r^2 as in `PiGDM`. The gradient of the likelihood is weighed by r^2 and added whole in a step of any length, so
    that what the guidance does in a run grows with the number of steps.

    Args:
        observation: Of a linear operator, with noise or without.
        solver: What steps, of one evaluation a step. Default: `Ancestral`, DDIM with eta = 1 as in the paper.

    Raises:
        ValueError: If the operator is not linear, or the solver evaluates otherwise than once a step; from a run, for a
            matrix SDE.

    References:
        Song, Vahdat, Mardani & Kautz (2023), ICLR, algorithm 1.

    Example:
        >>> import torch, sde
        >>> model = sde.ExactScore(sde.Gaussian([0.0, 0.0], [[1.0, 0.9], [0.9, 1.0]]), sde.VP())
        >>> seen = sde.inverse.Observation(sde.inverse.Mask(torch.tensor([True, False])), torch.tensor([[1.0, 0.0]]))
        >>> sde.sample(model, (4, 2), steps=50, solver=sde.inverse.PiGDMSolver(seen)).shape
        torch.Size([4, 2])
    """

    def __init__(self, observation: Observation, solver: Solver | None = None) -> None:
        super().__init__(observation, solver)
        self.operator = observation.check_linear("PiGDMSolver")

    def check(self, sde: SDE) -> None:  # noqa: D102
        super().check(sde)
        if not isinstance(needs_model(self, sde).model.sde, ScalarSDE):
            raise ValueError(
                "PiGDMSolver moves a state by alpha, which a matrix SDE has not: use PiGDM with any solver"
            )

    def pull(self, here: Estimate) -> Tensor:  # noqa: D102
        x0, variance = here.x0, here.model.data_scale() ** 2
        alpha = here.sde.statistic(here.x, here.t)[1]

        def solved(ratio: float, r: Tensor) -> Tensor:  # r^2 times the likelihood's
            spread = variance / (1 + variance / ratio**2)
            return spread * self.operator.solve(r, spread, self.observation.noise)

        r = each(ratios(here.sde, here.x, here.t), solved, self.observation.residual(x0))
        return (alpha * here.pulled(self.operator.adjoint(r))).to(x0.dtype)
