"""Score models: what is known, or learned, of the way back. `model` is trained, `exact` the truth, the rest wraps."""

from sde.score.exact import Empirical, ExactScore, Gaussian, Mixture, Target
from sde.score.guidance import CFG
from sde.score.model import Levels, Model, ScoreModel, Wrapper
from sde.score.reschedule import Reschedule

__all__ = [
    "Model",
    "Levels",
    "ScoreModel",
    "Wrapper",
    "ExactScore",
    "Target",
    "Gaussian",
    "Mixture",
    "Empirical",
    "Reschedule",
    "CFG",
]
