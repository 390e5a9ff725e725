r"""Posterior samplers by sliced W2 to the exact posterior: ours beside azula's and deepinv's own, on exact scores.

A mixture seen through y = A x0 + noise has a posterior in closed form, so that a method's error is a number: the sliced
Wasserstein distance between its samples and the exact law, in units of the data's scale, as a root mean square over
four observations y of each problem. As many exact draws have a distance too, the floor; what lies within three standard
deviations of it is a tie, and where a method stands above that at a thousand evaluations, it is biased, by that much.

All run under the same VP schedule from t = 1 to 1e-3 on the same denoiser, which counts. An evaluation is one pass of
one particle through it, forward or backward: a gradient of a likelihood costs two, and so does each step of DPS.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

import sde
from benchmarks import harness
from benchmarks.accuracy_field import Quick
from benchmarks.accuracy_targets import ring, sixteen, standard
from benchmarks.peers import collect, quiet
from benchmarks.stochastic import Ruler
from sde import inverse

BUDGETS = (50, 200, 1000)
OBSERVATIONS = 4
FORWARD = sde.VP(0.1, 20.0, 1e-3, 1.0)
FINALISTS = 1
"""Settings of a method that run with the most evaluations."""


class _Tick(torch.autograd.Function):
    """The identity, whose backward pass counts."""

    @staticmethod
    def forward(x0: Tensor, counter: Counted) -> Tensor:
        return x0.view_as(x0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Counted], output: Tensor) -> None:
        ctx.counter, ctx.rows = inputs[1], len(output)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.counter.passes += ctx.rows
        return g, None


class Counted(Quick):
    """A mixture that counts the states that are passed through its denoiser, forward and backward."""

    passes = 0

    def denoise(self, y: Tensor, alpha: Any, sigma: Any) -> Tensor:
        self.passes += len(y)
        return _Tick.apply(super().denoise(y, alpha, sigma), self)


@dataclass(frozen=True)
class Problem:
    """A linear inverse problem with its observations and their exact posteriors.

    Attributes:
        target: Law of x0.
        operator: A.
        noise: Of y.
        y: (OBSERVATIONS, m).
        laws: Posterior of each.
        samples: Of each posterior.
    """

    name: str
    target: Counted
    operator: inverse.LinearOperator
    noise: float
    y: Tensor
    laws: list[sde.Mixture]
    samples: int

    @property
    def repeated(self) -> inverse.Observation:
        """Each y for as many particles, one after the other."""
        return inverse.Observation(self.operator, self.y.repeat_interleave(self.samples, 0), self.noise)

    @property
    def shape(self) -> tuple[int, int]:
        """All particles."""
        return self.samples * len(self.y), self.target.means.shape[1]


def operators() -> dict[str, tuple[Callable[[], sde.Mixture], Callable[[], inverse.LinearOperator], float]]:
    """Target, operator and noise of each problem; sixteen coordinates are a picture of 4 by 4."""
    generator = torch.Generator().manual_seed(7)
    wide = torch.randn(8, 4, generator=generator).double() @ torch.randn(4, 16, generator=generator).double() / 4
    box = torch.ones(4, 4, dtype=torch.bool)
    box[1:, 1:] = False
    blocks = torch.zeros(4, 16).double()
    for i in range(16):
        blocks[2 * (i // 8) + i % 4 // 2, i] = 0.25
    return {
        "one of 2 coordinates": (ring, lambda: inverse.Mask(torch.tensor([True, False])), 0.1),
        "sum of 2 coordinates": (ring, lambda: inverse.Matrix(torch.ones(1, 2).double()), 0.3),
        "projection of 16, rank 4": (sixteen, lambda: inverse.Matrix(wide), 0.1),
        "box of 9 of 16 hidden": (sixteen, lambda: inverse.Mask(box.flatten()), 0.05),
        "means of 4 of 16": (sixteen, lambda: inverse.Matrix(blocks), 0.1),
        "denoising of 16": (sixteen, lambda: inverse.Identity((16,)), 0.5),
    }


PROBLEMS = tuple(operators())


def problem(name: str, samples: int) -> Problem:
    make, operator, noise = operators()[name]
    target, seen = Counted(standard(make())), operator()
    generator = torch.Generator().manual_seed(20270 + PROBLEMS.index(name))
    y = inverse.observe(seen, target.sample(OBSERVATIONS, generator), noise, generator).y
    laws = [target.posterior(seen.matrix(), one, noise) for one in y]
    return Problem(name, target, seen, noise, y, laws, samples)


class Judge:
    """Root mean square over the observations of the sliced W2 to each posterior.

    Attributes:
        floor: Mean distance of as many exact draws.
        tie: Distance up to which a method cannot be told from exact draws.
    """

    def __init__(self, given: Problem) -> None:
        self.rulers = [Ruler(law, 0.0, given.samples, seed=i) for i, law in enumerate(given.laws)]
        draws = torch.tensor([self(self.exact()) for _ in range(20)])
        self.floor, self.tie = float(draws.mean()), float(draws.mean() + 3 * draws.std())

    def exact(self) -> Tensor:
        return torch.cat([ruler.exact(ruler.n) for ruler in self.rulers])

    def __call__(self, x: Tensor) -> float:
        parts = x.chunk(len(self.rulers))
        return math.sqrt(sum(ruler(part) ** 2 for ruler, part in zip(self.rulers, parts, strict=True)) / len(parts))


@dataclass(frozen=True)
class Rule:
    """A posterior sampler with its settings.

    Attributes:
        library: sde for ours.
        method: What it is called in the papers.
        setting: Which of its settings, for the tables.
        run: From a problem, a number of steps and a generator to samples, in the order of `Problem.repeated`.
        cost: Evaluations of a step, for each particle.
        only: What a problem must have for it to apply.
    """

    library: str
    method: str
    setting: str
    run: Callable[[Problem, int, torch.Generator], Tensor]
    cost: float
    only: Callable[[Problem], bool] = field(default=lambda given: True)


Guide = Callable[[sde.Model, inverse.Observation], sde.Model]
Step = Callable[[inverse.Observation], sde.Solver]
SOLVERS: dict[str, Callable[[], sde.Solver | None]] = {
    "flow": lambda: None,  # what `sample` takes by itself
    "Ancestral": sde.Ancestral,
    "Ancestral, uniform": sde.Ancestral,
    "Ancestral, quadratic": sde.Ancestral,
}

GRIDS = {"uniform": sde.grids.uniform, "quadratic": sde.grids.quadratic}
"""Beside `sample`'s own."""


def _shrunk(x: Tensor) -> Tensor:
    """The last state on the scale of the data."""
    return x / float(FORWARD.levels(FORWARD.t_min)[0])


def _sampled(
    model: sde.Model, given: Problem, steps: int, solver: sde.Solver | None, g: torch.Generator, setting: str
) -> Tensor:
    times = next((make(FORWARD, steps) for grid, make in GRIDS.items() if grid in setting), None)
    return _shrunk(sde.sample(model, given.shape, steps, solver, times, generator=g, progress=False))


def guided(method: str, setting: str, guide: Guide, solver: str, cost: float) -> Rule:
    """A method that is a model, with a solver."""

    def run(given: Problem, steps: int, g: torch.Generator) -> Tensor:
        model = guide(sde.ExactScore(given.target, FORWARD), given.repeated)
        return _sampled(model, given, steps, SOLVERS[solver](), g, solver)

    return Rule("sde", method, ", ".join(filter(None, [setting, solver])), run, cost)


def stepped(method: str, setting: str, make: Step, cost: float) -> list[Rule]:
    """A method that is a solver, on two grids."""

    def rule(grid: str) -> Rule:
        def run(given: Problem, steps: int, g: torch.Generator) -> Tensor:
            model = sde.ExactScore(given.target, FORWARD)
            return _sampled(model, given, steps, make(given.repeated), g, grid)

        return Rule("sde", method, ", ".join(filter(None, [setting, grid])), run, cost)

    return [rule(""), rule("uniform")]


def twisted(given: Problem, steps: int, g: torch.Generator, uniform: bool) -> Tensor:
    """All particles of a group for each y, drawn by their weights."""
    times = sde.grids.uniform(FORWARD, steps) if uniform else None
    tds = inverse.TDS(inverse.Observation(given.operator, given.y, given.noise), particles=given.samples)
    swarm = tds.particles_of(
        sde.ExactScore(given.target, FORWARD), (len(given.y), given.shape[1]), steps, times, generator=g
    )
    u = (torch.rand(len(given.y), 1, generator=g).double() + torch.arange(given.samples)) / given.samples
    chosen = torch.searchsorted(swarm.log_weights.exp().cumsum(1), u).clamp_max(given.samples - 1)
    return _shrunk(torch.cat([x[i] for x, i in zip(swarm.x, chosen, strict=True)]))


def ours() -> list[Rule]:
    """Every method of `sde.inverse`, by default and with the solvers and settings that suit it."""
    models: list[tuple[str, str, Guide, float]] = [
        ("PiGDM", "", inverse.PiGDM, 2),
        *((("MMPS", f"{k} iterations", lambda m, o, k=k: inverse.MMPS(m, o, k), 1 + k)) for k in (1, 3)),
        ("TMPD", "", inverse.TMPD, 3),
        *(
            (("DPS", w or "likelihood", lambda m, o, w=w: inverse.DPS(m, o, annealed=bool(w)), 2))
            for w in ("", "annealed")
        ),
        *((("DiffPIR", f"weight {w:g}", lambda m, o, w=w: inverse.DiffPIR(m, o, w), 1)) for w in (1.0, 7.0)),
        ("DDNM", "", inverse.DDNM, 1),
    ]
    found = [guided(name, words, guide, solver, cost) for name, words, guide, cost in models for solver in SOLVERS]
    steppers: list[tuple[str, str, Step, float]] = [
        *(("DPS", f"zeta {z:g}", lambda o, z=z: inverse.DPSSolver(o, z), 2) for z in (0.3, 1.0)),
        *(("MCG", f"zeta {z:g}", lambda o, z=z: inverse.MCG(o, z), 2) for z in (0.3, 1.0)),
        ("PiGDM", "algorithm 1", inverse.PiGDMSolver, 2),
        *(
            ("DiffPIR", f"weight {w:g}, zeta {z:g}", lambda o, w=w, z=z: inverse.DiffPIRSolver(o, w, z), 1)
            for w in (1.0, 7.0)
            for z in (0.3, 1.0)
        ),
        ("Replacement", "Ancestral", lambda o: inverse.Replacement(sde.Ancestral(), o), 1),
        ("RePaint", "jump 1, 3 times", lambda o: inverse.RePaint(sde.Ancestral(), o, 1, 3), 3),
        ("RePaint", "jump 10, 10 times", lambda o: inverse.RePaint(sde.Ancestral(), o), 10),
        ("DDRM", "", inverse.DDRM, 1),
        *(("split Gibbs", f"{k} steps a turn", lambda o, k=k: inverse.SplitGibbs(o, steps=k), k) for k in (4, 10)),
    ]
    found += [rule for each in steppers for rule in stepped(*each)]
    for words in ("", ", uniform"):
        found.append(Rule("sde", "TDS", f"a group for each y{words}", partial(twisted, uniform=bool(words)), 2))
    return found


@dataclass(frozen=True)
class Score:
    """A rule's distance on one problem within one budget, and the evaluations that it took."""

    problem: str
    budget: int
    library: str
    method: str
    setting: str
    steps: int
    evaluations: float
    distance: float

    @property
    def ours(self) -> bool:
        return self.library == "sde"


@dataclass
class Result:
    """Distances of all rules; floor, tie and the prior's distance of each problem."""

    scores: list[Score]
    rulers: dict[str, tuple[float, float, float]]
    samples: int
    skipped: list[str]

    def best(self, name: str, budget: int, ours: bool, method: str | None = None) -> Score | None:
        """The least distance of ours or of the peers, of one method or of all."""
        found = [
            s
            for s in self.scores
            if (s.problem, s.budget, s.ours) == (name, budget, ours) and method in (None, s.method)
        ]
        return min(found, key=lambda s: s.distance, default=None)


class Race:
    """Runs on one problem, and what could not be run."""

    def __init__(self, given: Problem) -> None:
        self.given, self.judge = given, Judge(given)
        self.scores: list[Score] = []
        self.skipped: list[str] = []

    def run(self, rule: Rule, budget: int) -> None:
        """One rule with at most so many evaluations; nothing where they do not suffice for a step."""
        given, steps = self.given, int(budget / rule.cost)
        if steps < 1:
            return
        given.target.passes = 0
        torch.manual_seed(0)
        try:
            with torch.no_grad(), quiet():
                distance = self.judge(rule.run(given, steps, torch.Generator().manual_seed(0)))
        except Exception as error:
            if not (isinstance(error, ValueError) and "finite" in str(error)):
                who = f"{rule.library} {rule.method}, {rule.setting}"
                self.skipped.append(f"{given.name}: {who}: {type(error).__name__}: {error}".splitlines()[0])
                return
            distance = math.inf
        spent = given.target.passes / given.shape[0]
        self.scores.append(Score(given.name, budget, rule.library, rule.method, rule.setting, steps, spent, distance))

    def leaders(self, budget: int, each: int) -> set[tuple[str, str, str]]:
        """The best settings of each library's version of each method."""
        found: set[tuple[str, str, str]] = set()
        for key in {(s.library, s.method) for s in self.scores}:
            here = [s for s in self.scores if (s.library, s.method) == key and s.budget == budget]
            found |= {(*key, s.setting) for s in sorted(here, key=lambda s: s.distance)[:each]}
        return found


def race(name: str, budgets: Sequence[int], samples: int, only: Sequence[str] = ()) -> tuple[Any, ...]:
    """All rules on one problem but for the largest budget, on which only each method's `FINALISTS` settings run."""
    from benchmarks.posterior_peers import PEERS

    skipped: list[str] = []
    rules = [*ours(), *collect(PEERS, skipped)]
    given = problem(name, samples)
    here, last = Race(given), max(budgets)
    rules = [rule for rule in rules if (not only or rule.method in only) and rule.only(given)]
    for budget in sorted(budgets):
        lead = here.leaders(sorted(budgets)[-2], FINALISTS) if budget == last and len(budgets) > 1 else None
        for rule in rules:
            if lead is None or (rule.library, rule.method, rule.setting) in lead:
                here.run(rule, budget)
    prior = here.judge(given.target.sample(given.shape[0], torch.Generator().manual_seed(1)))
    return here.scores, (here.judge.floor, here.judge.tie, prior), skipped + here.skipped


def measure(
    problems: Sequence[str] = PROBLEMS, budgets: Sequence[int] = BUDGETS, samples: int = 500, jobs: int = 1,
    only: Sequence[str] = (),
) -> Result:  # fmt: skip
    """The race on every problem, `jobs` at once; in 16 dimensions with half as many samples of each posterior."""
    asked = [(name, budgets, samples if "2 coord" in name else samples // 2, only) for name in problems]
    scores, rulers, skipped = [], {}, []
    for (name, *_), found in zip(asked, harness.spread(race, asked, jobs), strict=True):
        scores += found[0]
        rulers[name] = found[1]
        skipped += found[2]
        print(f"  {name}: {len(found[0])} runs, floor {found[1][0]:.3g}, tie {found[1][1]:.3g}", flush=True)
    return Result(scores, rulers, samples, list(dict.fromkeys(skipped)))
