"""What a command line may call by name: the only tables from names to classes.

A new SDE, solver, data set or network is one line here. Arguments are read off the callable's own signature, so that
`sde.sigma_max=10` is checked and passed on without another word.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sde
from sde import data, inverse, nets, train
from sde.solvers import grids

Table = dict[str, Callable[..., Any]]

SDES: Table = {
    "VP": sde.VP,
    "SubVP": sde.SubVP,
    "VE": sde.VE,
    "EDM": sde.EDM,
    "Cosine": sde.Cosine,
    "Flow": sde.Flow,
    "OrnsteinUhlenbeck": sde.OrnsteinUhlenbeck,
    "Tabulated.linear": sde.Tabulated.linear,
    "Tabulated.cosine": sde.Tabulated.cosine,
    "CLD": sde.CLD,
    "ThirdOrderLangevin": sde.ThirdOrderLangevin,
}

SOLVERS: Table = {
    "Adams": sde.Adams,
    "Heun": sde.Heun,
    "RK4": sde.RK4,
    "Euler": sde.Euler,
    "EulerMaruyama": sde.EulerMaruyama,
    "ReverseDiffusion": sde.ReverseDiffusion,
    "Ancestral": sde.Ancestral,
    "DDIM": sde.DDIM,
    "PredictorCorrector": sde.PredictorCorrector,
    "Langevin": sde.Langevin,
    "AnnealedLangevin": sde.AnnealedLangevin,
    "DPMSolver": sde.DPMSolver,
    "DPMSolverPP": sde.DPMSolverPP,
    "SEEDS": sde.SEEDS,
    "UniPC": sde.UniPC,
    "DEIS": sde.DEIS,
    "RhoRK": sde.RhoRK,
    "IPNDM": sde.IPNDM,
    "PNDM": sde.PNDM,
    "SASolver": sde.SASolver,
    "SRA1": sde.SRA1,
    "SRA3": sde.SRA3,
    "SSCS": sde.SSCS,
    "Milstein": sde.Milstein,
    "Churn": sde.Churn,
    "GDDIM": sde.GDDIM,
    "MatrixAdams": sde.MatrixAdams,
    "BogackiShampine": sde.BogackiShampine,
    "DormandPrince": sde.DormandPrince,
    "AdaptiveHeun": sde.AdaptiveHeun,
    "ScipySolver": sde.ScipySolver,
    "TorchdiffeqSolver": sde.TorchdiffeqSolver,
    "Picard": sde.Picard,
}

DATA: Table = {
    "moons": data.moons,
    "circles": data.circles,
    "swiss_roll": data.swiss_roll,
    "checkerboard": data.checkerboard,
    "pinwheel": data.pinwheel,
    "eight_gaussians": data.eight_gaussians,
    "spirals": data.spirals,
    "s_curve": data.s_curve,
    "picture": data.from_picture,
    "digits": data.digits,
    "mnist": data.mnist,
    "fashion_mnist": data.fashion_mnist,
    "cifar10": data.cifar10,
    "image_folder": data.image_folder,
}

NETS: Table = {"MLP": nets.MLP, "UNet": nets.UNet, "DiT": nets.DiT}

LOSSES: Table = {
    "denoising": train.Denoising,
    "implicit": train.Implicit,
    "sliced": train.Sliced,
    "maximum_likelihood": train.maximum_likelihood,
    "min_snr": train.min_snr_loss,
    "edm": train.edm_loss,
    "flow_matching": train.flow_matching,
}

WEIGHTS: Table = {
    "unit": lambda: train.unit,
    "constant": lambda: train.constant,
    "noise": lambda: train.noise,
    "likelihood": lambda: train.likelihood,
    "min_snr": train.min_snr,
}

TIMES: Table = {
    "Uniform": train.Uniform,
    "LogNormal": train.LogNormal,
    "Discrete": train.Discrete,
    "LikelihoodTimes": train.LikelihoodTimes,
}

COUPLINGS: Table = {"optimal_transport": lambda: train.optimal_transport}

GRIDS: Table = {
    "data_scaled": grids.data_scaled,
    "karras": grids.karras,
    "log_snr": grids.log_snr,
    "uniform": grids.uniform,
    "quadratic": grids.quadratic,
}

METHODS: Table = {
    "MMPS": inverse.MMPS,
    "TMPD": inverse.TMPD,
    "PiGDM": inverse.PiGDM,
    "DPS": inverse.DPS,
    "DDNM": inverse.DDNM,
    "DiffPIR": inverse.DiffPIR,
    "DDRM": inverse.DDRM,
    "Replacement": inverse.Replacement,
    "RePaint": inverse.RePaint,
    "DiffPIRSolver": inverse.DiffPIRSolver,
    "PiGDMSolver": inverse.PiGDMSolver,
    "DPSSolver": inverse.DPSSolver,
    "MCG": inverse.MCG,
    "SplitGibbs": inverse.SplitGibbs,
}

TABLES: dict[str, Table] = {
    "sde": SDES,
    "solver": SOLVERS,
    "data": DATA,
    "net": NETS,
    "loss": LOSSES,
    "weight": WEIGHTS,
    "times": TIMES,
    "coupling": COUPLINGS,
    "grid": GRIDS,
    "method": METHODS,
}
"""Kind of thing to its table; what an error calls the kind."""
