r"""What a loop adds to the network: CPU microseconds per evaluation, state 1000 × 2, a network that returns its input.

A run of n evaluations includes all that one call of the library includes (its tables, its checks), so that short runs
(20 evaluations, what samplers are used with) show the cost of starting and long ones (200) the cost of a step. The
floor is the same rule on the same problem as one writes it by hand (`benchmarks.overhead_bare`).

Libraries do more or less around a network. `net`: its output is used as it is, as velocity, x0 or eps. `model`: a
schedule's conversions, or input scaling, clock and output combination around it. Ours are measured both ways, and so
are the peers that have both; a loop is compared with the quickest peer of its own kind, and with the quickest of all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

import sde
from benchmarks import harness, problems
from benchmarks import overhead_bare as hand
from benchmarks.overhead_bare import Run
from benchmarks.peers import collect
from benchmarks.problems import EDM, FLOW, VP, Problem, Step

OURS, BARE, TEXTBOOK = "sde", "bare loop", "textbook loop"
GROUPS = (
    "Euler", "Heun", "DDIM", "Euler–Maruyama", "Ancestral", "DDIM + Langevin", "Euler–Maruyama + Langevin", "Multistep"
)  # fmt: skip


class Identity(nn.Module):
    def forward(self, x: Tensor, t: object) -> Tensor:
        return x


@dataclass(frozen=True)
class Candidate:
    """One loop.

    Attributes:
        group: The rule it runs; candidates of a group are compared.
        kind: What it does around the network: `net` or `model`.
        library: Whose it is.
        what: Which of its functions, on which problem.
        make: From a number of steps to a call that runs them.
        calls: Evaluations a step.
        truth: From a number of steps to the end state it must reach, where a textbook says so.
        spared: Evaluations a run spares at its end.
    """

    group: str
    kind: str
    library: str
    what: str
    make: Callable[[int], Callable[[], Tensor]]
    calls: int = 1
    truth: Callable[[int], Step] | None = None
    spared: int = 0

    @property
    def name(self) -> str:
        return f"{self.group} / {self.library} / {self.what}"


SETTINGS: tuple[tuple[Problem, Callable[[], sde.ScalarSDE], str], ...] = (
    (FLOW, sde.Flow, "velocity"),
    (VP, sde.VP, "eps"),
    (EDM, sde.EDM, "edm"),
)
RULES = (
    ("Euler", sde.Euler, "euler"),
    ("Heun", sde.Heun, "heun"),
    ("DDIM", sde.DDIM, "ddim"),
    ("Euler–Maruyama", sde.EulerMaruyama, "euler_maruyama"),
    ("Ancestral", sde.Ancestral, "ancestral"),
    ("DDIM + Langevin", lambda: sde.PredictorCorrector(sde.DDIM(), sde.AnnealedLangevin()), ""),
    ("Euler–Maruyama + Langevin", lambda: sde.PredictorCorrector(sde.EulerMaruyama(), sde.Langevin()), ""),
    ("Multistep", lambda: None, ""),  # what `sample` takes by default
)


def grid(problem: Problem, n: int) -> Tensor:
    """Times of n steps."""
    if problem is EDM:
        return sde.grids.karras(sde.EDM(), n)
    # The drift of VP's eps grows as 1 / t near the data: a uniform grid stops where it is still resolved.
    return torch.linspace(1.0, 0.05, n + 1, dtype=torch.float64)


def kind_of(problem: Problem) -> str:
    return "net" if problem is FLOW else "model"


def bare(x: Tensor) -> list[Candidate]:
    """The floor: see `benchmarks.overhead_bare`."""
    net, found = Identity(), []
    for problem, forward, param in SETTINGS:
        model = sde.ScoreModel(net, forward(), param)
        for group, _, rule in RULES:

            def make(n: int, problem: Problem = problem, rule: str = rule, model: sde.ScoreModel = model) -> Run:
                times = grid(problem, n)
                if not rule:
                    return hand.multistep(net, x, times, sde.solvers.default_solver(model, steps=n), model)
                numbers = times.tolist()
                if rule == "heun":
                    return hand.heun(net, x, numbers, problem)
                return hand.one_step(
                    net, x, numbers, [hand.row(problem, rule, t, s) for t, s in pairwise(numbers)]
                )  # fmt: skip

            if rule or group == "Multistep":
                calls, truth = (2 if rule == "heun" else 1), _truth(problem, rule)
                found.append(Candidate(group, kind_of(problem), BARE, problem.name, make, calls, truth))

    def textbook(n: int) -> Run:
        return hand.textbook(net, x, grid(FLOW, n).tolist())

    found.append(Candidate("Euler", "net", TEXTBOOK, FLOW.name, textbook, truth=_truth(FLOW, "euler")))
    return found


def _truth(problem: Problem, rule: str) -> Callable[[int], Step] | None:
    return (lambda n: problem.run(rule, grid(problem, n).tolist())) if rule else None


def ours(x: Tensor) -> list[Candidate]:
    """`sde.integrate` on three problems, and `sde.sample` with the grid it takes by default."""
    net, found = Identity(), []
    for problem, forward, param in SETTINGS:
        model = sde.ScoreModel(net, forward(), param)
        for group, solver, rule in RULES:
            found += _both(group, x, model, solver(), problem, rule)
    return found


def _both(
    group: str, x: Tensor, model: sde.ScoreModel, solver: sde.Solver | None, problem: Problem, rule: str
) -> list[Candidate]:
    def integrated(n: int) -> Run:
        times, chosen = grid(problem, n), solver or sde.solvers.default_solver(model, steps=n)
        reverse = sde.ReverseSDE(model, chosen.eta)
        return lambda: sde.integrate(reverse, x, times, chosen)

    def sampled(n: int) -> Run:
        return lambda: sde.sample(model, x=x, steps=n, solver=solver)

    kind, calls = kind_of(problem), solver.calls if solver else 1
    return [
        Candidate(group, kind, OURS, f"integrate, {problem.name}", integrated, calls, _truth(problem, rule)),
        Candidate(group, kind, OURS, f"sample, {problem.name}", sampled, calls),
    ]


@dataclass
class Result:
    """Microseconds per evaluation, by candidate and by evaluations in a run."""

    candidates: list[Candidate]
    sizes: tuple[int, ...]
    micros: dict[tuple[str, int], float]
    misfits: dict[str, float]
    skipped: list[str]
    spread: float

    def of(self, size: int, **wanted: str) -> list[tuple[float, Candidate]]:
        """Times and candidates with the given attributes, the quickest first; `what` is a beginning."""
        start = wanted.pop("what", "")
        chosen = [c for c in self.candidates if all(getattr(c, k) == v for k, v in wanted.items())]
        timed = [(self.micros[c.name, size], c) for c in chosen if c.what.startswith(start)]
        return sorted(timed, key=lambda pair: pair[0])

    def rivals(self, size: int, **wanted: str) -> list[tuple[float, Candidate]]:
        return [pair for pair in self.of(size, **wanted) if pair[1].library not in (OURS, BARE, TEXTBOOK)]


def measure(sizes: tuple[int, ...] = (20, 200), rounds: int = 25, batch: int = 1000, at_least: float = 4e-3) -> Result:
    """Run everything in turns; a peer that is not there, or fails, is skipped with a line."""
    from benchmarks.overhead_peers import PEERS

    x, skipped = problems.start(batch), []
    candidates = bare(x) + ours(x) + collect({name: lambda make=make: make(x) for name, make in PEERS.items()}, skipped)
    micros: dict[tuple[str, int], float] = {}
    misfits: dict[str, float] = {}
    spreads: list[float] = []
    with torch.no_grad():
        candidates = [c for c in candidates if _arrives(c, x, misfits, skipped)]
        for size in sizes:
            runs = {c.name: c.make(size // c.calls) for c in candidates}
            turns = harness.interleave(runs, rounds, at_least, longest=0.1)
            for c in candidates:
                micros[c.name, size] = 1e6 * turns[c.name].least / (size // c.calls * c.calls - c.spared)
            spreads += [turn.spread for turn in turns.values()]
    return Result(candidates, sizes, micros, misfits, skipped, sorted(spreads)[len(spreads) // 2])


def _arrives(candidate: Candidate, x: Tensor, misfits: dict[str, float], skipped: list[str], n: int = 10) -> bool:
    """Whether a candidate runs, and ends where its rule must end."""
    try:
        end = candidate.make(n)()
    except Exception as error:
        if candidate.library in (OURS, BARE, TEXTBOOK):
            raise
        skipped.append(f"{candidate.name}: failed with {type(error).__name__}: {error}")
        return False
    if candidate.truth is not None:
        off = misfits[candidate.name] = problems.misfit(end, x, candidate.truth(n))
        # Noise is known by its standard deviation, from as many numbers as the state has: five standard errors.
        allowed = 5 / math.sqrt(2 * end.numel()) if candidate.truth(n)[1] else 1e-4
        if not off <= allowed:
            raise AssertionError(f"{candidate.name} solves another problem: off by {off:.2g}, allowed {allowed:.2g}")
    return True
