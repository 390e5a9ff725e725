r"""Guidance: a model made from models.

Classifier-free guidance extrapolates the endpoints from the unconditional to the conditional estimate,

    x0 = x0_u + w (x0_c - x0_u),

which for w = 1 is the conditional model and for w > 1 sharpens it.
"""

from __future__ import annotations

import math
from dataclasses import is_dataclass
from typing import Any

from torch import Tensor

from sde.forward import Point
from sde.score.model import Model, Wrapper


class CFG(Wrapper):
    """Classifier-free guidance.

    Args:
        conditional: Model with its condition given.
        unconditional: The same model without one, or a weaker model (autoguidance).
        scale: Guidance weight w; 1 is no guidance.

    Raises:
        ValueError: If the two models have different SDEs, or scale is not finite.

    References:
        Ho & Salimans (2022), 2207.12598, whose weight is w - 1; Karras et al. (2024), 2406.02507 for autoguidance.

    Example:
        >>> import torch, sde
        >>> one, all_ = sde.Gaussian([1.0], 0.1), sde.Mixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1])
        >>> guided = sde.CFG(sde.ExactScore(one, sde.VP()), sde.ExactScore(all_, sde.VP()), scale=2.0)
        >>> guided(torch.zeros(1, 1), 0.5).x0.item() > 0
        True
    """

    def __init__(self, conditional: Model, unconditional: Model, scale: float) -> None:
        one, other = conditional.sde, unconditional.sde
        if type(one) is not type(other) or (is_dataclass(one) and one != other):
            raise ValueError(
                f"conditional and unconditional must share their SDE, got {one} and {other}: wrap one in "
                "Reschedule(model, sde)"
            )
        if not math.isfinite(scale):
            raise ValueError(f"scale must be finite, got {scale}: 1 is no guidance")
        super().__init__(conditional)
        self.unconditional, self.guidance = unconditional, scale
        self.coupled = conditional.coupled or unconditional.coupled
        self.tabulates = conditional.tabulates and unconditional.tabulates

    def forward(self, x: Tensor, t: float | Tensor, **cond: Any) -> Point:  # noqa: D102
        return self.unconditional(x, t).lerp(self.model(x, t, **cond), self.guidance)
