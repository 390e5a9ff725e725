"""Training: how a network learns the score. `fit` runs the loop, `loss` is its page, `checkpoint` keeps the model."""

from sde.train.board import tensorboard
from sde.train.checkpoint import load, save
from sde.train.classification import classify
from sde.train.couple import optimal_transport
from sde.train.ema import Power
from sde.train.fit import fit, fit_steps
from sde.train.loss import constant, denoising, likelihood, min_snr, unit
from sde.train.manifest import CheckpointError, describe, rebuild
from sde.train.pretrained import note, pretrained, shipped
from sde.train.run import History, Step
from sde.train.snapshots import reconstruct
from sde.train.times import Discrete, LogNormal, Times, Uniform, default_times

__all__ = [
    "fit", "fit_steps", "classify", "History", "Step", "Power", "reconstruct",
    "denoising", "unit", "constant", "likelihood", "min_snr",
    "Times", "Uniform", "LogNormal", "Discrete", "default_times", "optimal_transport", "tensorboard",
    "save", "load", "describe", "rebuild", "CheckpointError", "pretrained", "shipped", "note",
]  # fmt: skip
