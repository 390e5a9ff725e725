"""Score-based generative models by stochastic differential equations: forward SDE, score model, solver.

Example:
    >>> import torch, sde
    >>> vp = sde.VP()  # how data become noise
    >>> model = sde.ExactScore(
    ...     sde.Mixture([0.5, 0.5], [[-1.0], [1.0]], [0.01, 0.01]), vp
    ... )  # what is known of the way back
    >>> x = sde.sample(model, (100, 1), steps=20, solver=sde.Heun())  # the way back
    >>> x.shape
    torch.Size([100, 1])
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sde import nets, random, train
from sde.forward import (
    CLD,
    EDM,
    SDE,
    VE,
    VP,
    BrownianMotion,
    Cosine,
    DoubleWell,
    Flow,
    ForwardSDE,
    FromCoefficients,
    GeometricBrownianMotion,
    MatrixSDE,
    OrnsteinUhlenbeck,
    Point,
    ScalarSDE,
    SubVP,
    Tabulated,
    ThirdOrderLangevin,
)  # fmt: skip
from sde.random import BrownianPath, Noise, WhiteNoise
from sde.score import (
    CFG,
    Autoguidance,
    BayesClassifier,
    Blend,
    Classifier,
    ClassifierGuidance,
    Empirical,
    ExactScore,
    Gaussian,
    Mixture,
    Model,
    Product,
    Reschedule,
    ScoreModel,
    Target,
    Temperature,
    Wrapper,
)
from sde.solvers import (
    DDIM,
    DEIS,
    GDDIM,
    IPNDM,
    PNDM,
    RK4,
    SEEDS,
    SRA1,
    SRA3,
    SSCS,
    Adams,
    AdaptiveHeun,
    Ancestral,
    AnnealedLangevin,
    BitsPerDim,
    BogackiShampine,
    Churn,
    DormandPrince,
    DPMSolver,
    DPMSolverPP,
    Euler,
    EulerMaruyama,
    ExactTrace,
    Heun,
    Hutchinson,
    HutchPP,
    Interval,
    Langevin,
    LogLikelihood,
    MatrixAdams,
    Milstein,
    Picard,
    PredictorCorrector,
    Restart,
    ReverseDiffusion,
    ReverseSDE,
    RhoRK,
    SASolver,
    ScipySolver,
    SelfPaced,
    Solver,
    State,
    TorchdiffeqSolver,
    Trajectory,
    UniPC,
    bits_per_dim,
    elbo,
    fitted_times,
    grids,
    integrate,
    log_likelihood,
    log_prob,
    record,
    sample,
    trajectory,
)  # fmt: skip
from sde.train import History, fit, fit_steps, load, pretrained, save

if TYPE_CHECKING:
    from sde import checks, data, distill, inverse, metrics, plot

__version__ = "0.1.0"

__all__ = [
    # forward SDEs
    "SDE", "ForwardSDE", "ScalarSDE", "MatrixSDE", "Point",
    "VP", "SubVP", "VE", "EDM", "Cosine", "Flow", "OrnsteinUhlenbeck", "Tabulated", "FromCoefficients",
    "CLD", "ThirdOrderLangevin", "BrownianMotion", "GeometricBrownianMotion", "DoubleWell",
    # score models
    "Model", "ScoreModel", "Wrapper", "ExactScore", "Target", "Gaussian", "Mixture", "Empirical", "Reschedule",
    # guidance
    "CFG", "Autoguidance", "ClassifierGuidance", "Classifier", "BayesClassifier", "Product", "Blend", "Temperature",
    # solvers
    "Solver", "SelfPaced", "ReverseSDE", "trajectory", "integrate", "record", "sample", "State", "Trajectory", "grids",
    "fitted_times",
    "Adams", "AdaptiveHeun", "Ancestral", "AnnealedLangevin", "BogackiShampine", "Churn", "DDIM", "DEIS", "DPMSolver",
    "DPMSolverPP", "DormandPrince", "Euler", "EulerMaruyama", "GDDIM", "Heun", "IPNDM", "Interval", "Langevin",
    "MatrixAdams", "Milstein", "PNDM", "Picard", "PredictorCorrector", "RK4", "Restart", "ReverseDiffusion", "RhoRK",
    "SASolver", "SEEDS", "SRA1", "SRA3", "SSCS", "ScipySolver", "TorchdiffeqSolver", "UniPC",
    "log_prob", "log_likelihood", "LogLikelihood", "bits_per_dim", "BitsPerDim", "elbo",
    "ExactTrace", "Hutchinson", "HutchPP",
    # training
    "fit", "fit_steps", "History", "save", "load", "pretrained",
    # noise
    "Noise", "WhiteNoise", "BrownianPath",
    # rooms
    "nets", "train", "data", "inverse", "distill", "metrics", "plot", "checks", "random",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """The rooms that `import sde` leaves out to stay quick, imported when they are first used."""
    if name in ("checks", "data", "distill", "inverse", "metrics", "plot"):
        return importlib.import_module(f"sde.{name}")
    raise AttributeError(f"module 'sde' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
