"""Inverse problems: what x0 was, given y = A(x0) + noise, by a score model's knowledge of x0."""

from sde.inverse.exact import exact_posterior
from sde.inverse.observation import Observation, observe
from sde.inverse.operator import LinearOperator, Operator
from sde.inverse.operators import Mask
from sde.inverse.replacement import Replacement

__all__ = [
    "Operator", "LinearOperator", "Mask",
    "Observation", "observe", "exact_posterior",
    "Replacement",
]  # fmt: skip
