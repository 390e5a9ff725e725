"""Training: how a network learns the score. `fit` runs the loop, `loss` is its page, `checkpoint` keeps the model."""

from sde.train.board import tensorboard
from sde.train.checkpoint import load, save
from sde.train.classification import classify
from sde.train.couple import optimal_transport
from sde.train.dequantise import Dequantiser, fit_dequantiser
from sde.train.ema import Power
from sde.train.fit import fit, fit_steps
from sde.train.loss import constant, denoising, likelihood, min_snr, unit
from sde.train.manifest import CheckpointError, describe, rebuild
from sde.train.objectives import (
    Denoising,
    Implicit,
    Objective,
    Sliced,
    edm_loss,
    flow_matching,
    maximum_likelihood,
    min_snr_loss,
)
from sde.train.pretrained import note, pretrained, shipped
from sde.train.run import History, Step
from sde.train.snapshots import reconstruct
from sde.train.times import Discrete, LikelihoodTimes, LogNormal, Times, Uniform, default_times
from sde.train.variance import Variances, gradient_variance
from sde.train.weights import karras, noise, velocity

__all__ = [
    "fit", "fit_steps", "classify", "History", "Step", "Power", "reconstruct",
    "Objective", "Denoising", "Implicit", "Sliced",
    "maximum_likelihood", "min_snr_loss", "edm_loss", "flow_matching",
    "denoising", "unit", "constant", "likelihood", "min_snr", "noise", "velocity", "karras",
    "Times", "Uniform", "LogNormal", "Discrete", "LikelihoodTimes", "default_times", "optimal_transport", "tensorboard",
    "gradient_variance", "Variances", "Dequantiser", "fit_dequantiser",
    "save", "load", "describe", "rebuild", "CheckpointError", "pretrained", "shipped", "note",
]  # fmt: skip
