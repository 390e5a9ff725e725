"""Solvers: how the way back is walked.

What is where:

    the loop       solver (what a solver is), integrate (the one loop, records), sampling (`sample`), defaults, capture,
                   reverse (from a model to an SDE), grids, grid_fit, progress
    onestep        Euler, Heun, RK4, Euler–Maruyama, reverse diffusion, ancestral, DDIM
    exponential/   base (coefficients of a whole grid), adams, deis, pndm, unipc, sa; logsnr (half log-SNR), dpm, seeds
    stochastic/    churn, restart, runge_kutta (Milstein, SRA)
    corrector      Langevin, annealed Langevin, predictor–corrector
    adaptive/      embedded (pairs), stochastic; their coordinate, pace and brownian increments; backends
    parallel/      picard, rounds
    matrix/        gddim (with MatrixAdams), splitting
    likelihood/    traces, log_prob, bits, elbo, table_bound, mutual
"""

from sde.solvers import grids
from sde.solvers.adaptive.backends import ScipySolver, TorchdiffeqSolver
from sde.solvers.adaptive.embedded import BogackiShampine, DormandPrince
from sde.solvers.adaptive.stochastic import AdaptiveHeun
from sde.solvers.corrector import AnnealedLangevin, Langevin, PredictorCorrector
from sde.solvers.defaults import default_solver, default_times
from sde.solvers.exponential.adams import Adams
from sde.solvers.exponential.base import Exponential
from sde.solvers.exponential.deis import DEIS, RhoRK
from sde.solvers.exponential.dpm import DPMSolver, DPMSolverPP
from sde.solvers.exponential.pndm import IPNDM, PNDM
from sde.solvers.exponential.sa import SASolver
from sde.solvers.exponential.seeds import SEEDS
from sde.solvers.exponential.unipc import UniPC
from sde.solvers.grid_fit import fitted_times
from sde.solvers.integrate import Trajectory, integrate, record, trajectory
from sde.solvers.likelihood.bits import BitsPerDim, bits_per_dim
from sde.solvers.likelihood.elbo import Elbo, elbo
from sde.solvers.likelihood.log_prob import LogLikelihood, log_likelihood, log_prob
from sde.solvers.likelihood.mutual import (
    ConditionInformation,
    Information,
    condition_information,
    mutual_information,
)
from sde.solvers.likelihood.table_bound import TableBound, table_bound
from sde.solvers.likelihood.traces import ExactTrace, Hutchinson, HutchPP, Trace, divergence, hutchinson, hutchpp
from sde.solvers.matrix.gddim import GDDIM, MatrixAdams
from sde.solvers.matrix.splitting import SSCS
from sde.solvers.onestep import DDIM, RK4, Ancestral, Euler, EulerMaruyama, Heun, ReverseDiffusion
from sde.solvers.parallel.picard import Picard
from sde.solvers.reverse import ReverseSDE
from sde.solvers.sampling import sample
from sde.solvers.solver import SelfPaced, Solver, State
from sde.solvers.stochastic.churn import Churn
from sde.solvers.stochastic.restart import Interval, Restart
from sde.solvers.stochastic.runge_kutta import SRA1, SRA3, Milstein

__all__ = [
    "Solver", "SelfPaced", "Exponential", "ReverseSDE", "trajectory", "integrate", "record", "sample", "State",
    "Trajectory", "grids", "fitted_times", "default_solver", "default_times",
    "Adams", "AdaptiveHeun", "Ancestral", "AnnealedLangevin", "BogackiShampine", "Churn", "DDIM", "DEIS", "DPMSolver",
    "DPMSolverPP", "DormandPrince", "Euler", "EulerMaruyama", "GDDIM", "Heun", "IPNDM", "Interval", "Langevin",
    "MatrixAdams", "Milstein", "PNDM", "Picard", "PredictorCorrector", "RK4", "Restart", "ReverseDiffusion", "RhoRK",
    "SASolver", "SEEDS", "SRA1", "SRA3", "SSCS", "ScipySolver", "TorchdiffeqSolver", "UniPC",
    "log_prob", "log_likelihood", "LogLikelihood", "bits_per_dim", "BitsPerDim",
    "elbo", "Elbo", "table_bound", "TableBound",
    "mutual_information", "Information", "condition_information", "ConditionInformation",
    "Trace", "ExactTrace", "Hutchinson", "HutchPP", "divergence", "hutchinson", "hutchpp",
]  # fmt: skip
