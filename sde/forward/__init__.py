"""Forward SDEs: how data become noise. One class to a schedule; `base` says what a solver may ask of it."""

from sde.forward.base import SDE, ForwardSDE
from sde.forward.coefficients import FromCoefficients
from sde.forward.examples import BrownianMotion, DoubleWell, GeometricBrownianMotion
from sde.forward.langevin import CLD, ThirdOrderLangevin
from sde.forward.matrix import MatrixSDE
from sde.forward.point import Point
from sde.forward.scalar import ScalarSDE
from sde.forward.table import Tabulated
from sde.forward.vp import VP, SubVP
from sde.forward.zoo import EDM, VE, Cosine, Flow, OrnsteinUhlenbeck

__all__ = [
    "SDE", "ForwardSDE", "ScalarSDE", "MatrixSDE", "Point",
    "VP", "SubVP", "VE", "EDM", "Cosine", "Flow", "OrnsteinUhlenbeck", "Tabulated", "FromCoefficients",
    "CLD", "ThirdOrderLangevin",
    "BrownianMotion", "GeometricBrownianMotion", "DoubleWell",
]  # fmt: skip
