"""Solvers: how the way back is walked. `integrate` holds the one loop, the others the rules of a step."""

from sde.solvers import grids
from sde.solvers.adams import Adams
from sde.solvers.corrector import AnnealedLangevin, Langevin, PredictorCorrector
from sde.solvers.integrate import (
    Trajectory,
    default_solver,
    default_times,
    integrate,
    record,
    trajectory,
)
from sde.solvers.likelihood import divergence, log_prob
from sde.solvers.onestep import DDIM, RK4, Ancestral, Euler, EulerMaruyama, Heun, ReverseDiffusion
from sde.solvers.reverse import ReverseSDE
from sde.solvers.sampling import sample
from sde.solvers.solver import SelfPaced, Solver, State

__all__ = [
    "Solver", "SelfPaced", "ReverseSDE", "trajectory", "integrate", "record", "sample", "State", "Trajectory",
    "grids", "default_solver", "default_times",
    "Adams", "Euler", "EulerMaruyama", "Heun", "RK4", "ReverseDiffusion", "Ancestral", "DDIM",
    "Langevin", "AnnealedLangevin", "PredictorCorrector", "log_prob", "divergence",
]  # fmt: skip
