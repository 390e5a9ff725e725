r"""Moment matching: the likelihood of x as if x0 | x were Gaussian, with the covariance that the model itself says.

    p(y | x) = N(A x0, A C A' + noise^2 I),        C = Cov[x0 | x] by Tweedie's second formula,

    x0 <- x0 + C A' (A C A' + noise^2 I)^-1 (y - A x0).

For a Gaussian law of x0 this is E[x0 | x, y], whatever A. C is never made: C v is a backward pass through the model
(`Estimate.covariance`). `MMPS` solves the system by conjugate gradients, each sample by itself and always the same
number of times, so that nothing waits for a GPU; `TMPD` takes the sums of the rows of A C A' for the whole matrix.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sde.inverse.guided import Estimate, Guided
from sde.inverse.observation import Observation
from sde.score import Model
from sde.shape import expand, sum_event


def quotient(a: Tensor, b: Tensor) -> Tensor:
    """a / b for each sample where b > 0, else 0: a solve that has arrived stays where it is.

    Example:
        >>> quotient(torch.tensor([1.0, 0.0]), torch.tensor([2.0, 0.0]))
        tensor([0.5000, 0.0000])
    """
    return torch.where(b > 0, a / torch.where(b > 0, b, 1.0), 0.0)


class MMPS(Guided):
    r"""Moment matching posterior sampling: x0 moved as if x0 | x were Gaussian with the covariance C of the model.

    x0 <- x0 + C A' (A C A' + noise^2 I)^-1 (y - A x0), solved by conjugate gradients from 0.

    Each iteration takes one backward pass through the model, and what x0 moves by is added up on the way. As many
    iterations as A has singular values are exact; few are enough where they cluster. On a Gaussian target it is the
    exact posterior's own model.

    Args:
        model: Score model.
        observation: Of a linear operator, of which only A and A' are used; with noise or without.
        iterations: Of conjugate gradients.

    Raises:
        ValueError: If the operator is not linear, iterations is below 1, or the model was trained with a coupling.

    References:
        Rozet, Andry, Lanusse & Louppe (2024), 2405.13712; Boys et al. (2023), 2310.06721, for the
        covariance.

    Example:
        >>> import torch, sde
        >>> model = sde.ExactScore(sde.Gaussian([0.0, 0.0], [[1.0, 0.9], [0.9, 1.0]]), sde.VP())
        >>> seen = sde.inverse.Mask(torch.tensor([True, False]))
        >>> observation = sde.inverse.Observation(seen, torch.tensor([[1.0, 0.0]]), noise=0.6)
        >>> x = sde.sample(sde.inverse.MMPS(model, observation), (9999, 2), generator=torch.Generator().manual_seed(0))
        >>> [round(v, 1) for v in x.var(0).tolist()]  # 1 - 1 / 1.36 and 1 - .81 / 1.36
        [0.3, 0.4]
    """

    def __init__(self, model: Model, observation: Observation, iterations: int = 3) -> None:
        super().__init__(model, observation)
        if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1:
            raise ValueError(f"iterations must be a whole number of at least 1, got {iterations!r}: 3 serve for most")
        self.operator, self.iterations = observation.check_linear("MMPS"), iterations

    def moved(self, x: Tensor, t: float | Tensor, **cond: Any) -> Tensor:  # noqa: D102
        here, variance = Estimate(self.model, x, t, **cond), self.observation.noise**2
        x0, r = here.x0, self.observation.residual(here.x0)
        p, rr = r, sum_event(r * r)
        for _ in range(self.iterations):
            shift = here.covariance(self.operator.adjoint(p))  # C A' p
            made = self.operator(shift) + variance * p
            step = quotient(rr, sum_event(p * made))
            x0 = x0 + expand(step, shift) * shift
            r = r - expand(step, r) * made
            rr, before = sum_event(r * r), rr
            p = r + expand(quotient(rr, before), p) * p
        return x0


class TMPD(Guided):
    r"""Tweedie moment projected diffusion: as `MMPS`, with the sums of the rows of A C A' for the matrix.

    x0 <- x0 + C A' (y - A x0) / (A C A' 1 + noise^2), entry by entry: two backward passes. Exact for a Gaussian target
    where A C A' is diagonal. A row whose sum is below 0 counts as 0.

    Args:
        model: Score model.
        observation: Of a linear operator, of which only A and A' are used; with noise.

    Raises:
        ValueError: If the operator is not linear, the observation has no noise, or the model was trained with a
            coupling.

    References:
        Boys, Girolami, Pidstrigach, Reich, Mosca & Akyildiz (2023), 2310.06721.

    Example:
        >>> import torch, sde
        >>> model = sde.ExactScore(sde.Gaussian([0.0, 0.0], [[1.0, 0.9], [0.9, 1.0]]), sde.VP())
        >>> seen = sde.inverse.Mask(torch.tensor([True, False]))
        >>> observation = sde.inverse.Observation(seen, torch.tensor([[1.0, 0.0]]), noise=0.5)
        >>> sde.sample(sde.inverse.TMPD(model, observation), (4, 2), steps=20).shape
        torch.Size([4, 2])
    """

    def __init__(self, model: Model, observation: Observation) -> None:
        super().__init__(model, observation)
        self.operator = observation.check_linear("TMPD")
        observation.check_noisy("TMPD")

    def moved(self, x: Tensor, t: float | Tensor, **cond: Any) -> Tensor:  # noqa: D102
        here = Estimate(self.model, x, t, **cond)
        r = self.observation.residual(here.x0)
        rows = self.operator(here.covariance(self.operator.adjoint(torch.ones_like(r))))
        r = r / (rows.clamp_min(0) + self.observation.noise**2)
        return here.x0 + here.covariance(self.operator.adjoint(r))
