r"""The truth beside every approximation: the score model of a target whose diffusion is known in closed form.

A forward SDE shows of x0 the statistic y = alpha x0 + sigma n, a pair of numbers at each time. A target knows the
density of y and E[x0 | y] (`Gaussian`, `Mixture`, `Empirical`), so `ExactScore(target, sde)` has the interface of a
trained model, and the exact marginal log-density at any t besides. The part of a matrix SDE's state beyond y does not
depend on x0, so that the same two formulas serve it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sde.forward import ForwardSDE, Point, ScalarSDE
from sde.nodes import Node
from sde.random import Generator
from sde.score.model import Model
from sde.score.target import Target


class ExactScore(Model):
    """The exact score model of a target under a forward SDE, scalar or matrix.

    Args:
        target: `Gaussian`, `Mixture` or `Empirical`.
        sde: Forward SDE.

    Example:
        >>> import torch, sde
        >>> model = sde.ExactScore(sde.Gaussian([0.0, 0.0], 1.0), sde.VP())
        >>> torch.allclose(model(torch.ones(1, 2), 0.3).score, -torch.ones(1, 2))
        True
    """

    tabulates = True

    def __init__(self, target: Target, sde: ForwardSDE) -> None:
        super().__init__()
        self.target, self.sde = target, sde

    def data_scale(self) -> float:  # noqa: D102
        return self.target.scale

    def data_mean(self) -> Tensor | None:  # noqa: D102
        return self.target.mean

    def forward(self, x: Tensor, t: float | Tensor, **cond: Any) -> Point:  # noqa: D102
        if type(t) is not Node:
            self.sde.check_time(t)
        return Point(self.sde, x, t, self.target.denoise(*self.sde.statistic(x, t)))

    def traced(self, x: Tensor, t: float | Tensor) -> tuple[Point, Tensor, Tensor] | None:
        """Under a scalar SDE, from the target's posterior variance.

        Example:
            >>> import torch, sde
            >>> model = sde.ExactScore(sde.Gaussian([0.0, 0.0], 1.0), sde.EDM())
            >>> model.traced(torch.ones(1, 2), 1.0)[1:]  # x0 = eps = x / 2
            (tensor([1.]), tensor([1.]))
        """
        if not isinstance(self.sde, ScalarSDE):
            return None
        y, alpha, sigma = self.sde.statistic(x, t)
        found = self.target.traced(y, alpha, sigma)
        return None if found is None else (Point(self.sde, x, t, found[0]), *found[1:])

    def log_prob(self, x: Tensor, t: float | Tensor, sde: ForwardSDE | None = None) -> Tensor:
        """Exact log p_t(x): (B,)."""
        sde = sde or self.sde
        return self.target.log_marginal(*sde.statistic(x, t)) + sde.log_residual(x, t)

    def prior(self, x0_like: Tensor, generator: Generator = None, sde: ForwardSDE | None = None) -> Tensor:
        """Draw from the exact marginal at t_max.

        Raises:
            ValueError: If x0_like is not shaped as this target's samples.
        """
        sde, event = sde or self.sde, self.target.event
        if x0_like.shape[1:] != event:
            needed = ", ".join(["B", *map(str, event)])
            raise ValueError(
                f"shape is {tuple(x0_like.shape)}, this target needs ({needed}): its samples have one shape"
            )
        return sde.perturb(self.target.sample(len(x0_like), generator).to(x0_like), sde.t_max, generator).x

    def prior_log_prob(self, x: Tensor, sde: ForwardSDE | None = None) -> Tensor:
        """Exact log-density at t_max: (B,)."""
        return self.log_prob(x, (sde or self.sde).t_max, sde)
