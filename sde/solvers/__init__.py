"""Solvers: how the way back is walked.

What is where:

    the loop      solver (what a solver is)  integrate (the one loop, records)  sampling (`sample`)  defaults  capture
                  reverse (from a model to an SDE)  grids  grid_fit  likelihood  bits  progress
    one step      onestep (Euler, Heun, RK4, DDIM, Ancestral, ...)  churn  stochastic (Milstein, SRA)  seeds
    endpoints     exponential (coefficients of a whole grid)  adams  deis  pndm  unipc  sa
                  logsnr (rules in half log-SNR)  dpm
    own steps     adaptive, adaptive_sde (with pace, coordinate, ratio, brownian)  backends  restart
                  parallel (with rounds)
    matrix SDEs   matrix (GDDIM, MatrixAdams)  splitting (SSCS)
    correctors    corrector
"""

from sde.solvers import grids
from sde.solvers.adams import Adams
from sde.solvers.adaptive import BogackiShampine, DormandPrince
from sde.solvers.adaptive_sde import AdaptiveHeun
from sde.solvers.backends import ScipySolver, TorchdiffeqSolver
from sde.solvers.bits import BitsPerDim, bits_per_dim
from sde.solvers.churn import Churn
from sde.solvers.corrector import AnnealedLangevin, Langevin, PredictorCorrector
from sde.solvers.defaults import default_solver, default_times
from sde.solvers.deis import DEIS, RhoRK
from sde.solvers.dpm import DPMSolver, DPMSolverPP
from sde.solvers.exponential import Exponential
from sde.solvers.grid_fit import fitted_times
from sde.solvers.integrate import Trajectory, integrate, record, trajectory
from sde.solvers.likelihood import divergence, hutchinson, log_prob
from sde.solvers.matrix import GDDIM, MatrixAdams
from sde.solvers.onestep import DDIM, RK4, Ancestral, Euler, EulerMaruyama, Heun, ReverseDiffusion
from sde.solvers.parallel import Picard
from sde.solvers.pndm import IPNDM, PNDM
from sde.solvers.restart import Interval, Restart
from sde.solvers.reverse import ReverseSDE
from sde.solvers.sa import SASolver
from sde.solvers.sampling import sample
from sde.solvers.seeds import SEEDS
from sde.solvers.solver import SelfPaced, Solver, State
from sde.solvers.splitting import SSCS
from sde.solvers.stochastic import SRA1, SRA3, Milstein
from sde.solvers.unipc import UniPC

__all__ = [
    "Solver", "SelfPaced", "Exponential", "ReverseSDE", "trajectory", "integrate", "record", "sample", "State",
    "Trajectory", "grids", "fitted_times", "default_solver", "default_times",
    "Adams", "AdaptiveHeun", "Ancestral", "AnnealedLangevin", "BogackiShampine", "Churn", "DDIM", "DEIS", "DPMSolver",
    "DPMSolverPP", "DormandPrince", "Euler", "EulerMaruyama", "GDDIM", "Heun", "IPNDM", "Interval", "Langevin",
    "MatrixAdams", "Milstein", "PNDM", "Picard", "PredictorCorrector", "RK4", "Restart", "ReverseDiffusion", "RhoRK",
    "SASolver", "SEEDS", "SRA1", "SRA3", "SSCS", "ScipySolver", "TorchdiffeqSolver", "UniPC",
    "log_prob", "bits_per_dim", "BitsPerDim", "divergence", "hutchinson",
]  # fmt: skip
