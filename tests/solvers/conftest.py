"""Solvers and SDEs of the full product, and noise that is given."""

import math

import pytest
import torch

import sde
from sde.random import Noise

SOLVERS = {
    "Euler": sde.Euler,
    "EulerMaruyama": sde.EulerMaruyama,
    "Heun": sde.Heun,
    "RK4": sde.RK4,
    "ReverseDiffusion": sde.ReverseDiffusion,
    "Ancestral": sde.Ancestral,
    "DDIM": sde.DDIM,
    "Adams": sde.Adams,
    "DPMSolver": sde.DPMSolver,
    "DPMSolverPP": sde.DPMSolverPP,
    "SEEDS": sde.SEEDS,
    "UniPC": sde.UniPC,
    "DEIS": sde.DEIS,
    "PNDM": sde.PNDM,
    "SASolver": sde.SASolver,
    "SRA3": sde.SRA3,
    "DormandPrince": lambda: sde.DormandPrince(rtol=1e-3),
    "Picard": sde.Picard,
    "Langevin": lambda: sde.PredictorCorrector(sde.EulerMaruyama(), sde.Langevin()),
    "AnnealedLangevin": lambda: sde.PredictorCorrector(sde.ReverseDiffusion(), sde.AnnealedLangevin(), steps=2),
}


@pytest.fixture(params=SOLVERS)
def any_solver(request):
    """Each solver in turn, correctors behind a predictor."""
    return SOLVERS[request.param]()


class GivenNoise(Noise):
    """Normal numbers that a test chooses, one tensor for each draw."""

    def __init__(self, *draws):
        super().__init__(None)
        self.draws = list(draws)

    def normal(self, x, t, s):
        return self.draws.pop(0).to(x)

    def increment(self, x, t, s):
        return self.normal(x, t, s) * math.sqrt(abs(float(s) - float(t)))

    def fresh(self, x):
        return self.normal(x, 0.0, 1.0)


@pytest.fixture
def given_noise():
    """The class of noise that is given."""
    return GivenNoise


@pytest.fixture
def two_modes():
    """A mixture in the plane with unlike modes, off the origin."""
    return sde.Mixture(
        [0.3, 0.7], [[-1.0, 0.3], [0.8, -0.5]], [[[0.2, 0.1], [0.1, 0.25]], [[0.1, -0.05], [-0.05, 0.06]]]
    )


@pytest.fixture(autouse=True)
def _no_gradients():
    """Solves need no graph; what asks for one enables it."""
    with torch.no_grad():
        yield
