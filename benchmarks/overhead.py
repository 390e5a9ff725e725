r"""What a loop adds to the network: CPU microseconds per evaluation, state 1000 × 2, a network that returns its input.

A run of n evaluations includes all that one call of the library includes (its tables, its checks), so that short runs
(20 evaluations, what samplers are used with) show the cost of starting and long ones (200) the cost of a step. The
floor is a bare Python loop with coefficients as Python numbers.

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
from benchmarks.peers import collect
from benchmarks.problems import EDM, FLOW, VP, Problem, Step

OURS, BARE = "sde", "bare loop"
KINDS = ("net", "model")
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


def bare(x: Tensor) -> list[Candidate]:
    """The floor: as few operations as the rule allows, its coefficients ready before it starts."""
    net = Identity()

    def euler(n: int) -> Callable[[], Tensor]:
        times = torch.linspace(1, 0, n + 1).tolist()

        def run() -> Tensor:
            y = x
            for t, s in pairwise(times):
                y = torch.add(y, net(y, t), alpha=s - t)
            return y

        return run

    def heun(n: int) -> Callable[[], Tensor]:
        times = torch.linspace(1, 0, n + 1).tolist()

        def run() -> Tensor:
            y = x
            for t, s in pairwise(times):
                d = net(y, t)
                y = torch.add(y, d + net(torch.add(y, d, alpha=s - t), s), alpha=(s - t) / 2)
            return y

        return run

    def combination(rule: str) -> Callable[[int], Callable[[], Tensor]]:
        # x_s = c x + e f(x) + b z, the shape of every first-order sampler's step.
        def steps(n: int) -> Callable[[], Tensor]:
            times = torch.linspace(1, 1e-3, n + 1).tolist()
            rows = [(t, *getattr(VP, rule)(t, s), VP.levels(s)[1]) for t, s in pairwise(times)]

            def run() -> Tensor:
                y = x
                for t, a, b, e in rows:
                    y = torch.add(y * (a - e), net(y, t), alpha=e)
                    if b:
                        y = torch.add(y, torch.randn_like(y), alpha=b)
                return y

            return run

        return steps

    def end(rule: str, problem: Problem, last: float) -> Callable[[int], Step]:
        return lambda n: problem.run(rule, torch.linspace(1, last, n + 1).tolist())

    what = "c x + e f(x)"
    return [
        Candidate("Euler", "net", BARE, "x + h f(x)", euler, truth=end("euler", FLOW, 0.0)),
        Candidate("Heun", "net", BARE, "x + h (f + f') / 2", heun, 2, end("heun", FLOW, 0.0)),
        Candidate("DDIM", "net", BARE, what, combination("ddim"), 1, end("ddim", VP, 1e-3)),
        Candidate("Euler–Maruyama", "net", BARE, what + " + b z", combination("euler_maruyama"), 1,
                  end("euler_maruyama", VP, 1e-3)),
        Candidate("Ancestral", "net", BARE, what + " + b z", combination("ancestral"), 1, end("ancestral", VP, 1e-3)),
    ]  # fmt: skip


def ours(x: Tensor) -> list[Candidate]:
    """`sde.integrate` on three problems, and `sde.sample` with the grid it takes by default."""
    rules = [
        ("Euler", sde.Euler(), "euler"),
        ("Heun", sde.Heun(), "heun"),
        ("DDIM", sde.DDIM(), "ddim"),
        ("Euler–Maruyama", sde.EulerMaruyama(), "euler_maruyama"),
        ("Ancestral", sde.Ancestral(), "ancestral"),
        ("DDIM + Langevin", sde.PredictorCorrector(sde.DDIM(), sde.AnnealedLangevin()), ""),
        ("Euler–Maruyama + Langevin", sde.PredictorCorrector(sde.EulerMaruyama(), sde.Langevin()), ""),
        ("Multistep", sde.Adams(), ""),
    ]
    net, found = Identity(), []
    settings = [(FLOW, sde.Flow(), "velocity"), (VP, sde.VP(), "eps"), (EDM, sde.EDM(), "edm")]
    for problem, forward, param in settings:
        model = sde.ScoreModel(net, forward, param)
        kind = "net" if problem is FLOW else "model"
        for group, solver, rule in rules:
            found += _both((group, kind), x, model, solver, problem, rule)
    return found


def _both(
    place: tuple[str, str], x: Tensor, model: sde.ScoreModel, solver: sde.Solver, problem: Problem, rule: str
) -> list[Candidate]:
    reverse = sde.ReverseSDE(model, solver.eta)

    def grid(n: int) -> Tensor:
        if problem is EDM:
            return sde.grids.karras(model.sde, n)
        # The drift of VP's eps grows as 1 / t near the data: a uniform grid stops where it is still resolved.
        return torch.linspace(1.0, 0.05, n + 1, dtype=torch.float64)

    def integrated(n: int) -> Callable[[], Tensor]:
        times = grid(n)
        return lambda: sde.integrate(reverse, x, times, solver)

    def sampled(n: int) -> Callable[[], Tensor]:
        return lambda: sde.sample(model, x=x, steps=n, solver=solver)

    def truth(n: int) -> Step:
        return problem.run(rule, grid(n).tolist())

    return [
        Candidate(*place, OURS, f"integrate, {problem.name}", integrated, solver.calls, truth if rule else None),
        Candidate(*place, OURS, f"sample, {problem.name}", sampled, solver.calls),
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
        return [pair for pair in self.of(size, **wanted) if pair[1].library not in (OURS, BARE)]


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
        if candidate.library in (OURS, BARE):
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
