"""Inverse problems: what x0 was, given y = A(x0) + noise, by a score model's knowledge of x0."""

from sde.inverse.blind import estimate_noise
from sde.inverse.codes import CodeAgreement, compare_codes
from sde.inverse.ddrm import DDRM
from sde.inverse.denoising import denoise, noise_range, posterior_samples, time_of_noise, times_below
from sde.inverse.dps import DPS, MCG, DPSSolver
from sde.inverse.edit import decode, encode, interpolate, sdedit, slerp, time_of_strength
from sde.inverse.exact import exact_posterior
from sde.inverse.gibbs import SplitGibbs
from sde.inverse.observation import Observation, observe
from sde.inverse.operator import LinearOperator, Operator
from sde.inverse.operators.blur import Blur
from sde.inverse.operators.function import Function, compose
from sde.inverse.operators.mask import Identity, Mask
from sde.inverse.operators.matrix import Matrix
from sde.inverse.operators.separable import Bicubic, Separable
from sde.inverse.operators.tight import AveragePool, Grey, Tight
from sde.inverse.pigdm import PiGDM, PiGDMSolver
from sde.inverse.projection import DDNM, DiffPIR, DiffPIRSolver
from sde.inverse.repaint import RePaint
from sde.inverse.replacement import Replacement
from sde.inverse.smc import TDS, Particles
from sde.inverse.tweedie import MMPS, TMPD

__all__ = [
    "Operator", "LinearOperator",
    "Mask", "Identity", "AveragePool", "Grey", "Bicubic", "Blur", "Matrix", "Function", "compose", "Separable", "Tight",
    "Observation", "observe", "exact_posterior",
    "DPS", "DPSSolver", "MCG", "PiGDM", "PiGDMSolver", "MMPS", "TMPD", "DDNM", "DiffPIR", "DiffPIRSolver",
    "Replacement", "RePaint", "DDRM", "SplitGibbs", "TDS", "Particles",
    "denoise", "posterior_samples", "estimate_noise", "noise_range", "time_of_noise", "times_below",
    "sdedit", "encode", "decode", "slerp", "interpolate", "time_of_strength", "compare_codes", "CodeAgreement",
]  # fmt: skip
