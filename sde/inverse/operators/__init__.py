"""Operators of the field, each with its adjoint and its singular values in the cheapest form."""

from sde.inverse.operators.blur import Blur
from sde.inverse.operators.function import Function, compose
from sde.inverse.operators.mask import Identity, Mask
from sde.inverse.operators.matrix import Matrix
from sde.inverse.operators.separable import Bicubic, Separable
from sde.inverse.operators.tight import AveragePool, Grey, Tight

__all__ = [
    "Mask", "Identity", "Tight", "AveragePool", "Grey", "Separable", "Bicubic", "Blur", "Matrix", "Function", "compose",
]  # fmt: skip
