r"""Pseudo-inverse guidance: the likelihood of x as if x0 | x were a round Gaussian."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sde.inverse.guided import Estimate, Guided, each, ratios
from sde.inverse.observation import Observation
from sde.score import Model


class PiGDM(Guided):
    r"""Pseudo-inverse guided diffusion model: x0 moved as if x0 | x were Gaussian with covariance r^2 I.

    x0 <- x0 + C A' (r^2 A A' + noise^2 I)^-1 (y - A x0),        r^2 = v (sigma / alpha)^2 / (v + (sigma / alpha)^2),

    with v the variance of the model's data, for which r^2 is exact on N(0, v I); v = 1 in the paper. C is made of the
    model's Jacobian by one backward pass, and the matrix is solved by the operator's singular values; without noise by
    its pseudo-inverse. This is the paper's likelihood in every solver; its algorithm for DDIM weighs the gradient by
    r^2 and adds it whole in each step, however short.

    Args:
        model: Score model.
        observation: Of a linear operator, with noise or without.

    Raises:
        ValueError: If the operator is not linear, or the model was trained with a coupling.

    References:
        Song, Vahdat, Mardani & Kautz (2023), ICLR, eq. 7 to 9, https://openreview.net/forum?id=9_gsMA8MRKQ

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
