r"""Stochastic samplers by sliced W2: ours beside the peers' on an exact score, and correctors where the score is wrong.

The error of a sampler is the sliced Wasserstein distance between its samples and the exact marginal at t_min, in units
of the data's scale: over fixed directions, the root mean square between the sorted projections of n samples and the
exact quantiles (means of blocks of `FINER` n exact draws). Samples of n exact draws have a distance too, the floor;
what lies within three standard deviations of it is called a tie, as nothing can be told apart there.

Three scores are wrong in three ways: a smooth random field is added to eps (what an imperfect network does, without a
law of its own), the exact score of another mixture is taken (a perfect network of wrong data: the law is wrong, and no
sampler can know), and a network is trained for too short a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import sde
from benchmarks import harness
from benchmarks.accuracy_field import Field, Quick
from benchmarks.accuracy_peers import Rule
from benchmarks.accuracy_targets import Problem, problem, standard
from benchmarks.peers import collect, quiet

TARGETS = ("ring", "spiral", "sixteen")
KINDS = ("VP", "EDM")
BUDGETS = (10, 20, 50)
FINER = 5
FLOW = "sample's default, a flow"
"""What is not stochastic, for comparison."""


class Ruler:
    """Sliced W2 to a law, for samples of n.

    Attributes:
        floor: Mean distance of n exact draws.
        tie: Distance up to which a sampler cannot be told from an exact one.
    """

    def __init__(self, law: sde.Mixture, noise: float, n: int, seed: int = 0, directions: int = 32) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        d = law.event[0]
        if d == 2:
            angle = torch.arange(directions, dtype=torch.float64) * (math.pi / directions)
            self.directions = torch.stack([angle.cos(), angle.sin()])
        else:
            z = torch.randn(-(-directions // d), d, d, generator=self.generator, dtype=torch.float64)
            self.directions = torch.linalg.qr(z).Q.mT.reshape(-1, d)[: max(d, directions)].T.contiguous()
        self.law, self.noise, self.n = law, noise, n
        exact = self.exact(FINER * n)
        columns = [(exact @ u).sort().values.unflatten(0, (n, FINER)).mean(1) for u in self.directions.T]
        self.quantiles = torch.stack(columns, 1)
        draws = torch.tensor([self(self.exact(n)) for _ in range(20)])
        self.floor, self.tie = float(draws.mean()), float(draws.mean() + 3 * draws.std())

    def exact(self, n: int) -> Tensor:
        """Draws from the law with its noise."""
        x = self.law.sample(n, self.generator)
        return x + self.noise * torch.randn(x.shape, generator=self.generator, dtype=x.dtype)

    def __call__(self, x: Tensor) -> float:
        if not bool(torch.isfinite(x).all()):
            return math.inf
        return float(((x.double() @ self.directions).sort(0).values - self.quantiles).square().mean().sqrt())


@dataclass(frozen=True)
class Ours:
    """A solver of this package.

    Attributes:
        label: What the tables call it.
        name: Of its class; none for `sample`'s default.
        options: Arguments of its class; of a corrected one, the names of predictor and corrector.
        eta: Where it is not the solver's own.
    """

    label: str
    name: str
    options: dict[str, Any] = field(default_factory=dict)
    eta: float | None = None

    def plan(self, forward: sde.ScalarSDE, budget: int) -> tuple[sde.Solver | None, int]:
        """The solver and its steps for a budget of evaluations."""
        if not self.name:
            return None, budget
        kind, given = getattr(sde, self.name), self.options
        if self.name == "PredictorCorrector":
            corrector = getattr(sde, given["corrector"])(snr=given["snr"])
            solver = kind(getattr(sde, given["predictor"])(), corrector)
        elif self.name == "Restart":  # a fifth of the evaluations to go up from sigma / alpha = .1 to 1 and down again
            low, high = forward.time_at(-2 * torch.log(torch.tensor([0.1, 1.0], dtype=torch.float64))).tolist()
            steps = max(2, budget // 5)
            again = sde.Interval(low, high, steps=steps, repeats=given["repeats"])
            return kind(sde.Adams(3), [again]), budget - steps * given["repeats"]
        else:
            solver = kind(**given)
        return solver, int(budget / solver.calls)


def corrected(predictor: str, corrector: str, snr: float) -> Ours:
    label = f"{predictor} + {corrector} {snr:g}"
    return Ours(label, "PredictorCorrector", {"predictor": predictor, "corrector": corrector, "snr": snr})


SOLVERS = (
    Ours(FLOW, ""),
    Ours("EulerMaruyama", "EulerMaruyama"),
    Ours("ReverseDiffusion", "ReverseDiffusion"),
    Ours("Ancestral", "Ancestral"),
    Ours("DDIM eta .5", "DDIM", eta=0.5),
    Ours("DPM++ 2M SDE", "DPMSolverPP", {"order": 2}, 1.0),
    Ours("DPM++ 2M SDE heun", "DPMSolverPP", {"order": 2, "solver_type": "heun"}, 1.0),
    Ours("DPM++ 2M SDE eta .5", "DPMSolverPP", {"order": 2}, 0.5),
    Ours("DPM++ 3M SDE", "DPMSolverPP", {"order": 3, "solver_type": "heun"}, 1.0),
    Ours("DPM++ 3M SDE eta .5", "DPMSolverPP", {"order": 3, "solver_type": "heun"}, 0.5),
    Ours("DPM++ SDE", "DPMSolverPP", {"order": 2, "multistep": False}, 1.0),
    Ours("SEEDS 2", "SEEDS", {"order": 2}),
    Ours("SEEDS 3", "SEEDS", {"order": 3}),
    Ours("SA-Solver 2, 2", "SASolver", {"predictor_order": 2, "corrector_order": 2}),
    Ours("SA-Solver 3, 4", "SASolver", {"predictor_order": 3, "corrector_order": 4}),
    Ours("SA-Solver 3, 4 eta .5", "SASolver", {"predictor_order": 3, "corrector_order": 4}, 0.5),
    Ours("SRA1", "SRA1"),
    Ours("SRA3", "SRA3"),
    *(Ours(f"Churn {churn:g}", "Churn", {"s_churn": churn, "s_min": 0.0}) for churn in (2.0, 10.0, 40.0)),
    Ours("Restart", "Restart", {"repeats": 1}),
    Ours("Restart twice", "Restart", {"repeats": 2}),
    corrected("DDIM", "AnnealedLangevin", 0.1),
    corrected("EulerMaruyama", "AnnealedLangevin", 0.16),
    corrected("EulerMaruyama", "Langevin", 0.16),
)


GRIDS: dict[str, Callable[[sde.ScalarSDE, int], Tensor] | None] = {
    "data_scaled": None,  # what `sample` takes by itself
    "karras": sde.grids.karras,
    "quadratic": sde.grids.quadratic,
    "log_snr": sde.grids.log_snr,
}


def run(model: sde.Model, x: Tensor, one: Ours, budget: int, grid: str = "data_scaled", seed: int = 0) -> Tensor | None:
    """Samples by a solver with at most so many evaluations; None where they do not suffice for one step."""
    assert isinstance(model.sde, sde.ScalarSDE)
    solver, steps = one.plan(model.sde, budget)
    if steps < 1:
        return None
    make = GRIDS[grid]
    times = make(model.sde, steps) if make else None
    generator = torch.Generator().manual_seed(seed)
    return sde.sample(
        model, x=x, steps=steps, solver=solver, times=times, eta=one.eta, generator=generator, progress=False
    )


@dataclass(frozen=True)
class Score:
    """A sampler's distance in one cell; `library` is sde for ours."""

    target: str
    kind: str
    budget: int
    library: str
    name: str
    grid: str
    distance: float


@dataclass
class Result:
    """Distances of all samplers, and of the best with more samples; floor and tie of each problem; wrong scores."""

    scores: list[Score]
    finals: list[Score]
    rulers: dict[tuple[str, str], tuple[float, float]]
    wrong: list[Score]
    wrong_rulers: dict[tuple[str, str], tuple[float, float]]
    samples: int
    final_samples: int
    skipped: list[str]

    def best(self, target: str, kind: str, budget: int, ours: bool) -> Score:
        """The least distance, of ours (stochastic ones) or of the peers."""
        return min(
            (
                s
                for s in self.finals
                if (s.target, s.kind, s.budget) == (target, kind, budget)
                and (s.library == "sde") == ours
                and s.name != FLOW
            ),
            key=lambda s: s.distance,
        )

    def flow(self, target: str, kind: str, budget: int) -> float:
        """The distance of `sample`'s default."""
        cell = (target, kind, budget, FLOW)
        return next(s.distance for s in self.finals if (s.target, s.kind, s.budget, s.name) == cell)


def race(
    given: Problem, ruler: Ruler, budgets: Sequence[int], rules: list[Rule], skipped: list[str], only: Any = None
) -> list[Score]:
    """Every sampler of ours and of the peers on one problem, or those of (budget, library, name, grid) in `only`."""
    scores, view = [], Field(given)
    model = sde.ExactScore(Quick(standard(given.truth)), given.forward)

    def attempt(budget: int, library: str, name: str, grid: str, make: Callable[[], Tensor | None]) -> None:
        if only is not None and (budget, library, name, grid) not in only:
            return
        try:
            ends = make()
        except Exception as error:
            skipped.append(f"{given.name}: {library} {name} on {grid}: {type(error).__name__}: {error}")
            return
        if ends is not None:
            scores.append(Score(given.target, given.kind, budget, library, name, grid, ruler(ends)))

    def peer(rule: Rule, grid: str, steps: int) -> Tensor:
        torch.manual_seed(0)
        view.begin()
        return view.shrink * rule.run(view, view.grid(grid, steps))

    with torch.no_grad(), quiet():
        for budget in budgets:
            for one in SOLVERS:
                for grid in GRIDS:
                    attempt(
                        budget, "sde", one.label, grid, lambda o=one, g=grid, n=budget: run(model, given.x, o, n, g)
                    )
            for rule in rules:
                for grid in rule.grids:
                    steps = rule.steps(budget)
                    if steps:
                        attempt(budget, rule.library, rule.name, grid, lambda r=rule, g=grid, n=steps: peer(r, g, n))
    return scores


def finalists(scores: list[Score], each: int = 3) -> set[tuple[int, str, str, str]]:
    """The best samplers of ours and of the peers at each budget, each on its best grid; and the flow as it is."""
    found = {(s.budget, s.library, s.name, s.grid) for s in scores if s.name == FLOW and s.grid == "data_scaled"}
    for budget in {s.budget for s in scores}:
        for ours in (True, False):
            best: dict[tuple[str, str], Score] = {}
            for s in scores:
                if s.budget == budget and (s.library == "sde") == ours and s.name != FLOW:
                    known = best.get((s.library, s.name))
                    best[s.library, s.name] = s if known is None or s.distance < known.distance else known
            ordered = sorted(best.values(), key=lambda s: s.distance)
            found |= {(s.budget, s.library, s.name, s.grid) for s in ordered[:each]}
    return found


def measured_by(given: Problem, samples: int) -> Ruler:
    """The ruler of a problem: to its exact marginal at t_min."""
    alpha, sigma = map(float, given.forward.levels(given.forward.t_min))
    law = standard(given.truth)
    return Ruler(sde.Mixture(law.weights, alpha * law.means, alpha**2 * law.covs), sigma, samples)


def cells(
    target: str, kind: str, budgets: Sequence[int], samples: int, final_samples: int
) -> tuple[list[Score], list[Score], tuple[float, float], list[str]]:
    """The race on one exact score, its finals, floor and tie of the finals, and what was skipped."""
    from benchmarks.stochastic_peers import PEERS

    skipped: list[str] = []
    rules = collect(PEERS, skipped)
    given = problem(target, kind, samples)
    scores = race(given, measured_by(given, samples), budgets, rules, skipped)
    many = final_samples if given.x.shape[1] <= 4 else final_samples // 4
    given = problem(target, kind, many)
    ruler = measured_by(given, many)
    finals = race(given, ruler, budgets, rules, skipped, finalists(scores))
    return scores, finals, (ruler.floor, ruler.tie), skipped


def measure(
    targets: Sequence[str] = TARGETS,
    budgets: Sequence[int] = BUDGETS,
    samples: int = 5_000,
    final_samples: int = 50_000,
    wrong_samples: int = 20_000,
    wrong_options: dict[str, Any] | None = None,
    jobs: int = 1,
) -> Result:
    """The race on exact scores, the finals of its best with more samples, then the wrong scores; `jobs` at once."""
    from benchmarks.stochastic_wrong import errors

    asked = [(target, kind, budgets, samples, final_samples) for target in targets for kind in KINDS]
    scores, finals, rulers, skipped = [], [], {}, []
    for (target, kind, *_), found in zip(asked, harness.spread(cells, asked, jobs), strict=True):
        scores += found[0]
        finals += found[1]
        rulers[target, kind] = floor, tie = found[2]
        skipped += found[3]
        print(f"  {target}, {kind}: {len(found[0])} runs, floor {floor:.3g}, tie {tie:.3g}", flush=True)
    wrong, wrong_rulers = errors(wrong_samples, jobs=jobs, **(wrong_options or {}))
    once = list(dict.fromkeys(skipped))
    return Result(scores, finals, rulers, wrong, wrong_rulers, samples, final_samples, once)
