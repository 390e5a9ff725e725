"""Score models: what is known, or learned, of the way back. `model` is trained, `exact` the truth, the rest wraps."""

from sde.score.classifier import BayesClassifier, Classifier, ClassifierGuidance
from sde.score.compose import Blend, Product
from sde.score.empirical import Empirical
from sde.score.exact import ExactScore
from sde.score.guidance import CFG, Autoguidance
from sde.score.mixture import Gaussian, Mixture
from sde.score.model import Levels, Model, ScoreModel, Wrapper
from sde.score.reschedule import Reschedule
from sde.score.target import Target
from sde.score.temperature import Temperature

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
    "Autoguidance",
    "ClassifierGuidance",
    "Classifier",
    "BayesClassifier",
    "Product",
    "Blend",
    "Temperature",
]
