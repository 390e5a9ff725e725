r"""Orders of convergence: what every solver declares, beside what is fitted under VP, EDM and Flow.

Nothing here is compared with a peer. The fits are those of `sde.checks`, which the tests hold each solver to:

    flow     paths of a mixture's probability flow against a fine solve: `order`, or up to `nominal` where its first
             or last steps cap it
    weak     mean and covariance of a Gaussian, carried without samples
    strong   paths of a mixture's reverse SDE along one Brownian path, against a fine solve on that path

An embedded pair is fitted on equal steps, as its rule has an order and its step-size control has none; the adaptive
reverse SDE against the evaluations that it takes as its tolerance falls. Matrix SDEs have solvers of their own, on CLD,
and noise that depends on the state has Milstein's, on geometric Brownian motion, whose solution is known.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

import sde
from sde.checks import Order, ode_order, strong_order, weak_order
from sde.checks.convergence import FINE, fitted, gaussian, marginal, mixture, modes, window
from sde.checks.propagation import affine
from sde.solvers.adaptive.coordinate import coordinate
from sde.solvers.adaptive.embedded import EmbeddedPair

KINDS = ("VP", "EDM", "Flow")
WHATS = ("flow", "weak", "strong")
WITHIN = 0.2

Fit = Callable[[sde.ForwardSDE], Order]


@dataclass(frozen=True)
class Rule:
    """A solver with its name as one writes it, and how its orders are fitted where that is not as usual.

    Args:
        name: As in the tables.
        solver: With what it declares.
        eta: Noise of the weak and the strong fit. 1.5 for rules of strong order 1.5: the noise's own error is seen
            beside that of the drift.
        fits: By what is fitted, a call in place of that of `sde.checks`.
        steps: Whose steps it takes, for one that chooses their length and declares nothing but its rule's order.
        apart: What is not fitted here.
    """

    name: str
    solver: sde.Solver
    eta: float = 1.0
    fits: dict[str, Fit] = field(default_factory=dict)
    steps: sde.Solver | None = None
    apart: tuple[str, ...] = ()

    def declared(self, what: str) -> float | None:
        solver = self.steps or self.solver
        order = solver.nominal if "flow" in self.fits else solver.order
        return {"flow": order or solver.order, "weak": solver.weak, "strong": solver.strong}[what] or None

    def most(self, what: str) -> float:
        """The largest order that what is declared allows; weak ones, and strong ones beyond 1, are lower bounds."""
        declared, nominal = self.declared(what) or 0.0, self.solver.nominal or 0.0
        if what == "flow":
            return max(declared, nominal)
        return math.inf if what == "weak" or max(declared, nominal) > 1 else declared

    def takes(self, forward: sde.ForwardSDE, eta: float) -> bool:
        try:
            self.solver.check(sde.ReverseSDE(sde.ExactScore(mixture(), forward), eta))
        except ValueError:
            return False
        return True


@dataclass
class Fitted:
    """One fit, of what on which SDE."""

    rule: Rule
    what: str
    kind: str
    order: Order
    expected: float

    @property
    def kept(self) -> bool:
        most = max(self.expected, self.rule.most(self.what)) if self.kind != "GBM" else self.expected
        return self.expected - WITHIN <= self.order.value <= most + WITHIN


@dataclass
class Result:
    fits: list[Fitted]
    seconds: float

    def of(self, rule: Rule, what: str, kind: str) -> Fitted | None:
        return next((f for f in self.fits if (f.rule.name, f.what, f.kind) == (rule.name, what, kind)), None)


# Fits of solvers that choose their own steps, and of the two that need a closed form of their own.


def _paths(target: sde.Mixture, forward: sde.ForwardSDE, count: int) -> tuple[sde.ExactScore, Tensor]:
    """The target's score, and states at the window's start."""
    generator = torch.Generator().manual_seed(0)
    x = forward.perturb(target.sample(count, generator), window(forward, 1)[0], generator).x
    return sde.ExactScore(target, forward), x


def _apart(x: Tensor, exact: Tensor) -> float:
    return float((x - exact).norm() / exact.norm())


def _slope(runs: Sequence[tuple[int, float]]) -> Order:
    """The order by least squares: error ~ evaluations^-order."""
    calls, errors = zip(*runs, strict=True)
    u, v = (torch.tensor(c, dtype=torch.float64).log() for c in (calls, errors))
    u = u - u.mean()
    return Order(float(-(u * v).sum() / u.square().sum()), calls, errors)


def of_pair(pair: EmbeddedPair, forward: sde.ForwardSDE) -> Order:
    """The higher rule of an embedded pair, in equal steps of its own time."""
    model, x = _paths(modes(), forward, 32)
    flow, ends = sde.ReverseSDE(model), window(forward, 1)
    exact = sde.integrate(flow, x, window(forward, FINE), sde.RK4())
    line, nodes = coordinate(None, flow, ends, x), torch.tensor(pair.c, dtype=torch.float64)

    def error(steps: int) -> float:
        u = torch.linspace(*line.of(ends).tolist(), steps + 1, dtype=torch.float64)
        y, h = line.enter(x, ends[0]), u[1] - u[0]
        slope = line.fields(u[:1], x)[0](y)
        for start in u[:-1]:
            step = pair.take(line.fields(start + h * nodes, x), y, slope, h)
            y, slope = step.end, step.slopes[-1]
        return _apart(line.leave(y, ends[1]), exact)

    return fitted(error)


def by_tolerance(forward: sde.ForwardSDE) -> Order:
    """The adaptive solver of SDEs on the flow, as its tolerance falls."""
    model, x = _paths(mixture(), forward, 32)
    flow, ends = sde.ReverseSDE(model), window(forward, 1)
    exact = sde.integrate(flow, x, window(forward, FINE), sde.RK4())
    runs = []
    for tolerance in (10.0 ** -(k / 2) for k in range(4, 11)):
        *_, last = sde.trajectory(flow, x, ends, sde.AdaptiveHeun(tolerance, tolerance / 3))
        runs.append((last.calls, _apart(last.x, exact)))
    return _slope(runs)


def along_paths(forward: sde.ForwardSDE, count: int = 24) -> Order:
    """The same on the reverse SDE, each path alone, as it has its own clock."""
    model, x = _paths(mixture(), forward, count)
    reverse, ends = sde.ReverseSDE(model, 1.0), window(forward, 1)
    paths = [(x[k : k + 1], sde.BrownianPath(torch.Generator().manual_seed(k))) for k in range(count)]
    exact = torch.cat([sde.integrate(reverse, y, window(forward, FINE), sde.SRA3(), noise=path) for y, path in paths])
    runs = []
    for tolerance in (0.3, 0.1, 0.03, 0.01):
        solver = sde.AdaptiveHeun(tolerance, tolerance / 3)
        last = [list(sde.trajectory(reverse, y, ends, solver, noise=path))[-1] for y, path in paths]
        runs.append((sum(state.calls for state in last) // count, _apart(torch.cat([s.x for s in last]), exact)))
    return _slope(runs)


def restarted(forward: sde.ForwardSDE) -> Order:
    """Heun's method with one interval of restarts in distribution: its way down is refined with the grid."""
    target, ends = gaussian(), window(forward, 1)
    reverse = sde.ReverseSDE(sde.ExactScore(target, forward))
    start, (mean, cov) = marginal(target, forward, ends[0]), marginal(target, forward, ends[1])
    low, high = (float(t) for t in window(forward, 3)[[2, 1]])

    def error(steps: int) -> float:
        restart = sde.Restart(sde.Heun(), [sde.Interval(low, high, steps, 2)])
        got_mean, got_cov = affine(reverse, (2,), window(forward, steps), restart).moments(*start)
        return math.sqrt(float((got_mean - mean).square().sum() + (got_cov - cov).square().sum()))

    return fitted(error, last=64)


def with_state(solver: sde.Solver) -> Order:
    """Along paths of geometric Brownian motion, whose noise depends on the state, against its solution."""
    gbm, path = sde.GeometricBrownianMotion(mu=0.5, s=1.0), sde.BrownianPath(torch.Generator().manual_seed(0))
    x, runs = torch.ones(2000, 1, dtype=torch.float64), []
    exact = gbm.solution(x, 1.0, path.increment(x, 0.0, 1.0))
    for steps in (16, 32, 64, 128):
        end = sde.integrate(gbm, x, torch.linspace(0, 1, steps + 1, dtype=torch.float64), solver, noise=path)
        runs.append((steps, _apart(end, exact)))
    return _slope(runs)


RULES: dict[str, tuple[Rule, ...]] = {
    "one step, by drift and diffusion": (
        Rule("Euler()", sde.Euler()),
        Rule("EulerMaruyama()", sde.EulerMaruyama()),
        Rule("Milstein()", sde.Milstein()),
        Rule("Heun()", sde.Heun()),
        Rule("RK4()", sde.RK4()),
        Rule("SRA1()", sde.SRA1(), eta=1.5),
        Rule("SRA3()", sde.SRA3(), eta=1.5),
    ),
    "one step, by endpoints": (
        Rule("ReverseDiffusion()", sde.ReverseDiffusion()),
        Rule("DDIM()", sde.DDIM()),
        Rule("Ancestral()", sde.Ancestral()),
        Rule("RhoRK('heun2')", sde.RhoRK("heun2")),
        Rule("RhoRK('kutta3')", sde.RhoRK("kutta3")),
        Rule("RhoRK('rk4')", sde.RhoRK("rk4")),
        Rule("DPMSolver(2)", sde.DPMSolver(2)),
        Rule("DPMSolver(3)", sde.DPMSolver(3)),
        Rule("DPMSolverPP(2, multistep=False)", sde.DPMSolverPP(2, multistep=False)),
        Rule("DPMSolverPP(3, multistep=False)", sde.DPMSolverPP(3, multistep=False)),
        Rule("SEEDS(1)", sde.SEEDS(1)),
        Rule("SEEDS(2)", sde.SEEDS(2)),
        Rule("SEEDS(3)", sde.SEEDS(3)),
        Rule("Churn(s_churn=0)", sde.Churn(s_churn=0.0), eta=0.0),
        Rule("Churn(s_churn=1)", sde.Churn(s_churn=1.0), eta=0.0),
    ),
    "several steps": (
        Rule("Adams(3)", sde.Adams(3)),
        Rule("Adams(3, start='full')", sde.Adams(3, start="full")),
        Rule("Adams(5, start='full')", sde.Adams(5, start="full")),
        Rule("DEIS(4)", sde.DEIS(4)),
        Rule("DEIS(4, start='full')", sde.DEIS(4, start="full")),
        Rule("IPNDM()", sde.IPNDM()),
        Rule("PNDM()", sde.PNDM()),
        Rule("DPMSolverPP(2)", sde.DPMSolverPP(2)),
        Rule("DPMSolverPP(3)", sde.DPMSolverPP(3)),
        Rule("DPMSolverPP(3, start='full')", sde.DPMSolverPP(3, start="full")),
        Rule("DPMSolverPP(3, as_published=True)", sde.DPMSolverPP(3, as_published=True)),
        Rule("UniPC(3)", sde.UniPC(3)),
        Rule("UniPC(3, lower_order_final=False)", sde.UniPC(3, lower_order_final=False)),
        Rule("SASolver()", sde.SASolver()),
        Rule("SASolver(3, 3, lower_order_final=False)", sde.SASolver(3, 3, lower_order_final=False)),
    ),
    "their own steps": (
        Rule("BogackiShampine()", sde.BogackiShampine(), fits={"flow": partial(of_pair, sde.BogackiShampine())}),
        Rule("DormandPrince()", sde.DormandPrince(), fits={"flow": partial(of_pair, sde.DormandPrince())}),
        Rule(
            *("AdaptiveHeun()", sde.AdaptiveHeun(), 1.0, {"flow": by_tolerance, "strong": along_paths}),
            steps=sde.Heun(),
            apart=("weak",),
        ),
        Rule("Restart(Heun(), ...)", sde.Restart(sde.Heun(), [sde.Interval(0.1, 0.3)]), 0.0, {"weak": restarted}),
        Rule("Picard(DDIM())", sde.Picard(tolerance=0.0)),
        Rule("Picard(Heun())", sde.Picard(sde.Heun(), tolerance=0.0)),
    ),
    "matrix SDEs": (
        Rule("GDDIM(1)", sde.GDDIM(1)),
        Rule("GDDIM(2)", sde.GDDIM(2)),
        Rule("MatrixAdams(3)", sde.MatrixAdams(3)),
        Rule("SSCS(1)", sde.SSCS(1)),
        Rule("SSCS(2)", sde.SSCS(2)),
    ),
}
STATE = {"Euler()": 0.5, "Milstein()": 1.0}
"""Strong orders where noise depends on the state."""


def measure(kinds: Sequence[str] = KINDS, every: int = 1) -> Result:
    """All fits.

    Args:
        kinds: SDEs of the scalar solvers.
        every: Take one rule of so many.
    """
    began, fits = time.process_time(), []
    forwards = {"VP": sde.VP(), "EDM": sde.EDM(), "Flow": sde.Flow(), "CLD": sde.CLD()}
    with torch.no_grad():
        for kind in (*kinds, "CLD"):  # one SDE after the other, as `sde.checks` keeps its last fine solves
            for group, rules in RULES.items():
                if (group == "matrix SDEs") == (kind == "CLD"):
                    fits += [fit for rule in rules[::every] for fit in fits_of(rule, kind, forwards[kind])]
        for group in RULES.values():
            fits += [Fitted(r, "strong", "GBM", with_state(r.solver), STATE[r.name]) for r in group if r.name in STATE]
    return Result(fits, time.process_time() - began)


def fits_of(rule: Rule, kind: str, forward: sde.ForwardSDE) -> Iterator[Fitted]:
    """Those of one solver on one SDE."""
    usual: dict[str, Fit] = {
        "flow": lambda f: ode_order(rule.solver, f),
        "weak": lambda f: weak_order(rule.solver, f, rule.eta),
        "strong": lambda f: strong_order(rule.solver, f, rule.eta),
    }
    for what, fit in (usual | rule.fits).items():
        declared, eta = rule.declared(what), 0.0 if what == "flow" else rule.eta
        if declared is not None and what not in rule.apart and rule.takes(forward, eta):
            yield Fitted(rule, what, kind, fit(forward), declared)
