"""Inverse problems: what x0 was, given y = A(x0) + noise, by a score model's knowledge of x0."""

from sde.inverse.observation import Observation, observe
from sde.inverse.operator import LinearOperator, Operator
from sde.inverse.operators import Mask

__all__ = [
    "Operator", "LinearOperator", "Mask",
    "Observation", "observe",
]  # fmt: skip
