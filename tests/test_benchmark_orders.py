"""The benchmark of orders: no solver is forgotten, and its page and verdicts are right."""

import inspect
import sys
from pathlib import Path

import pytest
import torch

import sde
from sde.checks import Order

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import orders, orders_report  # noqa: E402

WITHOUT = {"Solver", "SelfPaced", "Langevin", "AnnealedLangevin", "PredictorCorrector"}
"""No solver, or one without an order."""
OTHERS = {"ScipySolver", "TorchdiffeqSolver"}
"""Other people's methods."""

VP = sde.VP()
RULES = {rule.name: rule for rules in orders.RULES.values() for rule in rules}


def test_every_solver_is_fitted_under_its_own_name() -> None:
    shipped = {n for n in sde.__all__ if inspect.isclass(c := getattr(sde, n)) and issubclass(c, sde.Solver)}
    assert {type(rule.solver).__name__ for rule in RULES.values()} == shipped - WITHOUT - OTHERS
    for name, rule in RULES.items():
        assert name.startswith(f"{type(rule.solver).__name__}("), name
        if "..." not in name:
            made = eval(name, vars(sde))
            assert (made.order, made.weak, made.strong) == (rule.solver.order, rule.solver.weak, rule.solver.strong)


@pytest.fixture(scope="module")
def some() -> orders.Result:
    """A solver on a grid, and a pair that chooses its own steps."""
    names = ("Adams(3)", "DormandPrince()")
    with torch.no_grad():
        return orders.Result([fit for name in names for fit in orders.fits_of(RULES[name], "VP", VP)], 1.0)


def test_what_is_declared_is_found(some: orders.Result) -> None:
    assert [(f.rule.name, f.what, f.expected) for f in some.fits] == [
        ("Adams(3)", "flow", 3.0), ("DormandPrince()", "flow", 5.0),
    ]  # fmt: skip
    assert all(fit.kept for fit in some.fits)


def test_what_a_rule_does_not_take_is_not_fitted() -> None:
    rule = orders.Rule("Churn()", sde.Churn(s_churn=1.0), eta=1.0)
    assert list(orders.fits_of(rule, "VP", VP)) == []


def test_euler_has_half_an_order_where_noise_depends_on_the_state() -> None:
    assert orders.with_state(sde.Euler()).value == pytest.approx(0.5, abs=0.2)
    assert orders.with_state(sde.Milstein()).value == pytest.approx(1.0, abs=0.2)


def test_the_page_and_the_picture(some: orders.Result, tmp_path: Path) -> None:
    page = orders_report.report(some)
    assert "2 fits. All agree" in page
    assert "| `Adams(3)` | 1 | 3 … 4 | 3.79 |" in page
    orders_report.picture(some, tmp_path / "orders.png")
    assert (tmp_path / "orders.png").stat().st_size > 10_000


def test_a_fit_that_differs_is_named() -> None:
    fit = orders.Fitted(RULES["DDIM()"], "flow", "VP", Order(0.7, (4, 8), (0.1, 0.06)), 1.0)
    assert not fit.kept
    assert "1 differ from what is declared: DDIM() on VP (flow, 0.70" in orders_report.report(orders.Result([fit], 1.0))
    low = orders.Fitted(RULES["DPMSolverPP(2)"], "strong", "VP", Order(1.3, (4, 8), (0.1, 0.06)), 1.0)
    assert low.kept, "a strong order of a rule whose own is higher is a lower bound"
