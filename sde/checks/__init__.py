"""The laws as functions: run them on your own SDE, model or solver, as scikit-learn's `check_estimator` does."""

from sde.checks.convergence import Order, ode_order, strong_order, weak_order
from sde.checks.flows import likelihood, round_trip, samples
from sde.checks.laws import forward_sde, model, target
from sde.checks.laws_finite import finite
from sde.checks.laws_forward import actions, rates, velocity
from sde.checks.laws_moments import moments, transitions
from sde.checks.laws_random import randomness, reproducible
from sde.checks.laws_score import coupled, exact, guidance, params
from sde.checks.propagation import Affine, NotAffineError, affine
from sde.checks.solvers import calls, finite_samples, orders, solver
from sde.checks.violation import LawViolation

__all__ = [
    "LawViolation",
    "forward_sde", "target", "model",
    "moments", "actions", "velocity", "rates", "transitions", "finite", "params", "randomness",
    "exact", "guidance", "coupled", "reproducible",
    "solver", "orders", "calls", "finite_samples", "Order", "ode_order", "weak_order", "strong_order",
    "Affine", "affine", "NotAffineError", "samples", "round_trip", "likelihood",
]  # fmt: skip
