r"""Every law of a solver in one call: what third parties run on their own.

    sde.checks.solver(MySolver(), sde.VP())        laws 4, 6b and 10

For each eta that the solver takes, its fitted orders must agree with those that it declares within .2; see
`sde.checks.convergence`. On a matrix SDE, too: a rule that carries eps along another factor of the covariance than
gDDIM's has the flow's marginals and not its paths, and is found out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sde.checks.agree import violated
from sde.checks.convergence import Order, gaussian, mixture, ode_order, strong_order, weak_order, window
from sde.checks.laws_random import reproducible
from sde.forward import ForwardSDE, Point, Tabulated
from sde.score import ExactScore, Gaussian, Model, Wrapper
from sde.solvers import ReverseSDE, Solver, default_times, integrate, sample, trajectory

WITHIN = 0.2


def solver(solver: Solver, sde: ForwardSDE, etas: Sequence[float] = (0.5, 1.0)) -> dict[str, Order]:
    """All laws of a solver on a forward SDE.

    Args:
        solver: Yours.
        sde: Forward SDE, shipped or yours.
        etas: Noise levels to try, beside 0; one that the solver refuses is left out.

    Returns:
        The fitted orders by name: "order", "weak order at eta=1", ...; none for a solver that declares order 0.

    Raises:
        TypeError: If it is not a `Solver`.
        ValueError: If the solver refuses this SDE at its own eta.
        LawViolation: If it breaks a law; the message says which, where and by how much.

    Example:
        >>> import sde
        >>> class Midpoint(sde.Solver):
        ...     order, calls = 2.0, 2
        ...
        ...     def check(self, sde):
        ...         if sde.noisy:
        ...             raise ValueError("Midpoint takes no noise: use eta=0")
        ...
        ...     def step(self, sde, x, t, s, noise):
        ...         h = float(s) - float(t)
        ...         return x + h * sde.drift(x + h / 2 * sde.drift(x, t), t + (s - t) / 2)
        >>> print(round(sde.checks.solver(Midpoint(), sde.Flow())["order"].value, 1))
        2.0
    """
    if not isinstance(solver, Solver):
        what = f"the class {solver.__name__}" if isinstance(solver, type) else f"a {type(solver).__name__}"
        raise TypeError(f"solver must be a Solver object, got {what}: pass MySolver(), derived from sde.Solver")
    solver.check(ReverseSDE(ExactScore(mixture(), sde), solver.eta))
    calls(solver, sde)
    finite_samples(solver, sde)
    model = ExactScore(mixture(), sde)
    reproducible(lambda n, g: sample(model, (n, 2), 5, solver, generator=g, progress=False), _pair(solver, sde))
    return orders(solver, sde, etas) if solver.order > 0 else {}


def orders(solver: Solver, sde: ForwardSDE, etas: Sequence[float] = (0.5, 1.0)) -> dict[str, Order]:
    """Law 6b: the fitted orders of a solver, within .2 of what it declares; weak and strong beyond 1 at least that.

    Args:
        solver: Of positive order, affine on a Gaussian target.
        sde: Forward SDE.
        etas: Noise levels to try, beside 0.

    Example:
        >>> import sde
        >>> {name: round(fit.value, 1) for name, fit in orders(sde.DDIM(), sde.VP(), etas=()).items()}
        {'order': 1.0, 'order in distribution': 1.0}
    """
    found: dict[str, Order] = {}

    def judge(name: str, fit: Order, declared: float | None, bound: bool = False) -> None:
        found[name] = fit
        if declared is None:
            what = f"it takes noise and declares no {name}: state it, or refuse eta > 0 in `check`"
            raise violated("6b", _pair(solver, sde), what)
        most = max(declared, solver.nominal or 0.0) if name == "order" else declared
        low, high = fit.value < declared - WITHIN, fit.value > most + WITHIN
        if low or (high and not bound and not math.isinf(fit.value)):
            hint = "a coefficient is wrong, or a lower order is to be declared" if low else "declare the higher one"
            raise violated("6b", _pair(solver, sde), f"{name} {declared:g} is declared, {fit} is found", hint=hint)

    if _takes(solver, sde, 0.0):
        # On a table a rule of high order meets the knots before its order has come down to what it is.
        knots = isinstance(sde, Tabulated) and solver.order > 2
        judge("order", ode_order(solver, sde), solver.order, bound=knots)
        judge("order in distribution", weak_order(solver, sde, 0.0), solver.order, bound=True)
    for eta in etas:
        if _takes(solver, sde, eta):
            judge(f"weak order at eta={eta:g}", weak_order(solver, sde, eta), solver.weak, bound=True)
            # A rule of higher order than its noise leaves it nears that one from above, as its own errors fade first.
            beyond = max(solver.strong or 0.0, solver.nominal or 0.0) > 1
            judge(f"strong order at eta={eta:g}", strong_order(solver, sde, eta), solver.strong, bound=beyond)
    return found


def calls(solver: Solver, sde: ForwardSDE) -> None:
    """Law 6b for `calls`: a step makes as many model evaluations as the solver declares.

    Example:
        >>> import sde
        >>> calls(sde.Heun(), sde.VP())
    """
    model = _Counting(ExactScore(gaussian(), sde))
    x = sde.state(torch.zeros(1, 2, dtype=torch.float64))
    generator = torch.Generator().manual_seed(0)
    *_, last = trajectory(ReverseSDE(model, solver.eta), x, window(sde, 4), solver, generator)
    if model.count != last.calls:
        what = f"calls={solver.calls} is declared, {model.count} evaluations were made in 4 steps"
        raise violated("6b", _pair(solver, sde), what)


def finite_samples(solver: Solver, sde: ForwardSDE) -> None:
    """Law 4 for a solver: from t_max to t_min all is finite and keeps shape and dtype, in 1, 2 and 7 steps.

    Example:
        >>> import sde
        >>> finite_samples(sde.EulerMaruyama(), sde.Flow())
    """
    for event in ((1,), (3, 2, 2)):
        d = torch.Size(event).numel()
        model = ExactScore(Gaussian(torch.full(event, 0.5), torch.full((d,), 0.25)), sde)
        for dtype in (torch.float32, torch.float64):
            x = model.prior(torch.zeros(2, *event, dtype=dtype), torch.Generator().manual_seed(0))
            for steps in (1, 2, 7):
                reverse, generator = ReverseSDE(model, solver.eta), torch.Generator().manual_seed(1)
                y = integrate(reverse, x, default_times(model, steps), solver, generator)
                where = f"{steps} step{'s' * (steps > 1)} of shape {tuple(x.shape)} in {dtype}"
                if y.shape != x.shape or y.dtype != x.dtype:
                    raise violated("4", _pair(solver, sde), f"{where} gave {tuple(y.shape)} in {y.dtype}")
                if not bool(torch.isfinite(y).all()):
                    raise violated("4", _pair(solver, sde), f"{where} gave values that are not finite")


class _Counting(Wrapper):
    """A model that counts the states it is evaluated at."""

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self.count, self.tabulates = 0, model.tabulates

    def forward(self, x: Tensor, t: float | Tensor, **cond: Any) -> Point:
        self.count += len(x)
        return self.model(x, t, **cond)


def _pair(solver: Solver, sde: ForwardSDE) -> str:
    return f"{type(solver).__name__} on {type(sde).__name__}"


def _takes(solver: Solver, sde: ForwardSDE, eta: float) -> bool:
    try:
        solver.check(ReverseSDE(ExactScore(gaussian(), sde), eta))
    except ValueError:
        return False
    return True
