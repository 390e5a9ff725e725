r"""From a score model back to an SDE that makes data.

For every eta >= 0 the SDE

    dx = (velocity - eta^2 / 2 G G' score) dt + eta G dW,        t decreasing,

has the marginals p_t of the forward SDE: eta = 0 is the probability-flow ODE, eta = 1 Anderson's reverse SDE, in
between and beyond lie more or less noise on the same marginals.
"""

from __future__ import annotations

import math

from torch import Tensor

from sde.forward import SDE, ScalarSDE
from sde.score import Model


class ReverseSDE(SDE):
    """The reverse SDE of a score model, eta = 0 for its probability flow.

    Args:
        model: Score model.
        eta: Noise; with eta > 0 it runs down in time only.

    Raises:
        ValueError: If eta is negative, or positive for a model that has no score.

    References:
        Anderson (1982), Stoch. Proc. Appl. 12, 313; Song et al. (2021), 2011.13456, eq. 6 and 13; for general eta
        Huang, Lim & Courville (2021), 2106.02808, and Karras et al. (2022), 2206.00364, eq. 6.

    Example:
        >>> import torch, sde
        >>> model = sde.ExactScore(sde.Gaussian([0.0], 1.0), sde.VP())
        >>> bool(
        ...     (sde.ReverseSDE(model, eta=0).drift(torch.ones(1, 1), 0.5).abs() < 1e-6).all()
        ... )  # N(0, 1) stays N(0, 1)
        True
    """

    def __init__(self, model: Model, eta: float = 0.0) -> None:
        if not (math.isfinite(eta) and eta >= 0):
            raise ValueError(f"eta must be 0 or more, got {eta}: 0 is the probability flow, 1 the reverse SDE")
        if eta > 0 and model.coupled:
            raise ValueError(
                f"eta={eta} needs a score, and this model was trained with a coupling that ties eps to x0: "
                "use eta=0, or train with coupling=None"
            )
        self.model, self.eta = model, eta
        self.scalar = model.sde if isinstance(model.sde, ScalarSDE) else None
        self.noisy, self.direction, self.tabulates = eta > 0, -1 if eta > 0 else 0, model.tabulates

    def drift(self, x: Tensor, t: float | Tensor) -> Tensor:  # noqa: D102
        return self.model.sde.reverse_drift(self.model(x, t), self.eta)

    def diffusion(self, x: Tensor, t: float | Tensor, z: Tensor) -> Tensor:  # noqa: D102
        return self.model.sde.diffusion(x, t, z if self.eta == 1.0 else self.eta * z)

    def advance(self, x: Tensor, t: float | Tensor, h: float) -> Tensor:  # noqa: D102
        if self.scalar is None:
            return super().advance(x, t, h)
        c0, c1 = self.scalar.reverse_rates(x, t, self.eta)
        return self.model.move(x, t, 1.0, h * c0, h * c1)

    def kick(self, y: Tensor, c: float, x: Tensor, t: float | Tensor, z: Tensor) -> Tensor:  # noqa: D102
        return self.model.sde.kick(y, c * self.eta, x, t, z)

    def singular(self, t: float | Tensor) -> bool:
        """True where the drift is infinite and a step goes by the endpoints: alpha = 0 with noise, or sigma = 0."""
        forward = self.model.sde
        return forward.singular(t) if self.noisy else forward.velocity_singular(t)
