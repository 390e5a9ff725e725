"""Inverse problems: what x0 was, given y = A(x0) + noise, by a score model's knowledge of x0."""

from sde.inverse.ddrm import DDRM
from sde.inverse.denoising import denoise, estimate_noise, noise_range, posterior_samples, time_of_noise, times_below
from sde.inverse.dps import DPS, MCG, DPSSolver
from sde.inverse.exact import exact_posterior
from sde.inverse.observation import Observation, observe
from sde.inverse.operator import LinearOperator, Operator
from sde.inverse.operators import Mask
from sde.inverse.pigdm import PiGDM
from sde.inverse.projection import DDNM, DiffPIR
from sde.inverse.repaint import RePaint
from sde.inverse.replacement import Replacement
from sde.inverse.tweedie import MMPS, TMPD

__all__ = [
    "Operator", "LinearOperator", "Mask",
    "Observation", "observe", "exact_posterior",
    "DPS", "DPSSolver", "MCG", "PiGDM", "MMPS", "TMPD", "DDNM", "DiffPIR",
    "Replacement",
    "RePaint",
    "denoise", "posterior_samples", "estimate_noise", "noise_range", "time_of_noise", "times_below",
    "DDRM",
]  # fmt: skip
