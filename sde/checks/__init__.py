"""The laws as functions: run them on your own SDE, model or solver, as scikit-learn's `check_estimator` does."""

from sde.checks.violation import LawViolation

__all__ = ["LawViolation"]
