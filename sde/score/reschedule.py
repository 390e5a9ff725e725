r"""Change of schedule after training.

What a scalar SDE shows of x0 depends on the ratio sigma / alpha alone. A model trained under one SDE therefore serves
any other: at the time t' of the same ratio the two states differ by a factor, x' = x h(alpha', sigma') / h(alpha,
sigma) with h = hypot, and they share x0. So a DDPM table is sampled on EDM's noise levels, or a flow model by ancestral
steps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sde.forward import ForwardSDE, Point, ScalarSDE
from sde.score.model import Model, Wrapper
from sde.shape import as_time, expand, scaled


class Reschedule(Wrapper):
    """A trained model under another forward SDE.

    Args:
        model: Trained under a scalar SDE.
        sde: The SDE to sample with, scalar or matrix. Noise levels beyond those of training are answered at the
            nearest trained one.

    Raises:
        ValueError: If the model's own SDE is not scalar.

    References:
        Karras et al. (2022), 2206.00364, section 3 and appendix C; Kingma et al. (2021), 2107.00630, section 5.1.

    Example:
        >>> import torch, sde
        >>> target = sde.Gaussian([0.0], 0.25)
        >>> model = sde.Reschedule(sde.ExactScore(target, sde.VP()), sde.EDM())
        >>> x = torch.ones(1, 1)
        >>> torch.allclose(model(x, 2.0).x0, sde.ExactScore(target, sde.EDM())(x, 2.0).x0, atol=1e-5)
        True
    """

    def __init__(self, model: Model, sde: ForwardSDE) -> None:
        super().__init__(model)
        if not isinstance(model.sde, ScalarSDE):
            raise ValueError(f"model was trained under {type(model.sde).__name__}: only scalar SDEs can be rescheduled")
        self.sde = sde

    def forward(self, x: Tensor, t: float | Tensor, **cond: Any) -> Point:  # noqa: D102
        own = self.model.sde
        assert isinstance(own, ScalarSDE)
        y, alpha, sigma = self.sde.statistic(x, t)
        alpha, sigma = as_time(alpha), as_time(sigma)
        times = own.time_at(2 * (torch.log(alpha) - torch.log(sigma)).reshape(-1))
        alpha1, sigma1 = map(as_time, own.levels(times))
        factor = torch.hypot(alpha1, sigma1) / torch.hypot(alpha, sigma).reshape(-1)
        point = self.model(scaled(expand(factor, y), y), times.expand(len(y)), **cond)
        return Point(self.sde, x, t, point.x0, coupled=self.coupled)
