r"""Error against evaluations: end-point errors of samplers on exact targets, beside the best of every peer.

A cell is a target, an SDE and a number of evaluations N. Its error is the root mean square (and, beside it, the median)
over trajectories of the distance at t_min between a run and the probability flow from the same start, in units of the
data's scale; what it is compared with is the least error of any configuration of any peer with at most N evaluations.
Errors below `FLOOR` count as equal to it: there the reference's own error and rounding show.

Peers do not depend on this package, so that their errors are kept in `CACHE`, beside a fingerprint of the problem; the
committed page is written by one run that measures everything anew. To try a sampler against the kept errors:

    from benchmarks import accuracy
    table = accuracy.errors(lambda model, x, nfe: sde.sample(model, x=x, steps=nfe))
    print(table)
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sde
from benchmarks import harness
from benchmarks.accuracy_field import Field, Quick, SpentError, truth
from benchmarks.accuracy_peers import TOLERANCES, Adaptive, Rule
from benchmarks.accuracy_targets import SEEDS, TARGETS, Problem, problem
from benchmarks.peers import collect, quiet

BUDGETS = (5, 10, 20, 50, 100)
KINDS = ("VP", "EDM")
CACHE = Path("out/accuracy")
FLOOR = 1e-9
"""The least error that is told apart from 0."""
BEHIND = 10.0
"""A configuration that is this many times behind the best at 20 (50) evaluations is not run with 50 (100)."""
UNSEEN = tuple(f"unseen {seed}" for seed in SEEDS["unseen"])

OFFERED = {
    "azula": ("time", "log", "cosine", "flow"),
    "k-diffusion": ("time", "log", "karras 7", "karras 5", "karras 3"),
    "diffusers": ("time", "log", "karras 7", "beta", "flow"),
    "dpm-solver": ("time", "quadratic", "log"),
    "EDM": ("time", "log", "karras 7", "karras 5", "karras 3"),
    "smalldiffusion": ("time", "log"),
    "torchdiffeq": ("log", "flow"),
}
"""Grids that a library's own schedules or helpers make; its samplers would take any."""

Sampler = Callable[[sde.ExactScore, Tensor, int], Tensor]
Runs = dict[str, list[tuple[int, float, float]]]
"""Of each configuration, `library | rule | grid`: evaluations, root mean square, median of its runs."""


def distances(ends: Tensor, true: Tensor) -> tuple[float, float]:
    """Root mean square and median over trajectories of the distance to the truth; infinite where a run failed."""
    squares = (ends - true).square().sum(1)
    if not bool(torch.isfinite(squares).all()):
        return math.inf, math.inf
    return float(squares.mean().sqrt()), float(squares.median().sqrt())


def worst_share(ends: Tensor, true: Tensor) -> float:
    """Share of the mean square that comes from the worst 1 % of the trajectories."""
    squares = (ends - true).square().sum(1).sort().values
    return float(squares[-max(1, len(squares) // 100) :].sum() / squares.sum())


@dataclass
class Measured:
    """A problem's truth, and the runs of all peers on it."""

    problem: Problem
    truth: Tensor
    runs: Runs
    skipped: list[str] = field(default_factory=list)
    truth_error: float = math.nan

    def best(self, budget: int, which: int = 1, library: str = "", offered: bool = False) -> tuple[float, str]:
        """The least error within a budget, and whose.

        Args:
            budget: Evaluations.
            which: 1 for root mean square, 2 for median.
            library: Of this one alone.
            offered: Only on grids that the library itself offers.
        """
        found = [
            (max(run[which], FLOOR), name)
            for name, runs in self.runs.items()
            if name.startswith(f"{library} |" if library else "") and (not offered or is_offered(name))
            for run in runs
            if run[0] <= budget
        ]
        return min(found, default=(math.inf, "none"))


def is_offered(name: str) -> bool:
    """Whether a configuration, `library | rule | grid`, is on a grid that its library offers."""
    library, *_, grid = name.split(" | ")
    return name.count(" | ") < 2 or grid in OFFERED.get(library, ())


def rivals(skipped: list[str]) -> list[Rule | Adaptive]:
    """Every rule of every peer that is installed."""
    from benchmarks.accuracy_diffusers import diffusers
    from benchmarks.accuracy_formulas import FORMULAS
    from benchmarks.accuracy_peers import PEERS

    return collect({**PEERS, "diffusers": diffusers, **FORMULAS}, skipped)


def compete(
    problem: Problem, true: Tensor, rules: Iterable[Rule | Adaptive], budgets: Sequence[int], batch: int | None = None
) -> tuple[Runs, list[str]]:
    """Run every rule on its grids at every budget, or along its ladder of tolerances."""
    view, runs, failed = Field(problem, batch), {}, []
    true = true[:batch] / view.shrink

    def attempt(name: str, run: Callable[[], Tensor], limit: int) -> bool:
        view.begin(limit)
        try:
            ends = run()
        except SpentError:
            return False
        except Exception as error:  # a peer that fails on one grid is not out of the race
            failed.append(f"{problem.name}: {name}: {type(error).__name__}: {error}")
            return False
        rms, median = distances(ends, true)
        if math.isfinite(rms):
            runs.setdefault(name, []).append((view.calls, view.shrink * rms, view.shrink * median))
        return True

    fixed = {f"{r.library} | {r.name} | {grid}": (r, grid) for r in rules if isinstance(r, Rule) for grid in r.grids}
    with torch.no_grad(), quiet():
        for rule in rules:
            if isinstance(rule, Adaptive):
                for tolerance in TOLERANCES:
                    name, last = f"{rule.library} | {rule.name}", max(budgets)
                    if not attempt(name, lambda r=rule, tol=tolerance: r.run(view, tol), last):
                        break  # a smaller tolerance would take more
        for before, budget in zip((0, *budgets), budgets, strict=False):
            for name in near(runs, fixed, before) if before >= 20 else list(fixed):
                rule, grid = fixed[name]
                steps = rule.steps(budget)
                if steps:
                    levels = view.grid(grid, steps)
                    attempt(name, lambda r=rule, s=levels: r.run(view, s), budget)
    return runs, failed


def near(runs: Runs, names: Iterable[str], budget: int) -> list[str]:
    """Those worth more evaluations: within `BEHIND` of the best with at most so many, or of a library's own best."""
    least = {name: min((run[1] for run in runs.get(name, []) if run[0] <= budget), default=math.inf) for name in names}
    own: dict[str, float] = {}
    for name, error in least.items():
        own[name.split(" | ")[0]] = min(error, own.get(name.split(" | ")[0], math.inf))
    best = min(least.values(), default=math.inf)
    return [name for name, e in least.items() if e <= BEHIND * best or e <= 1.5 * own[name.split(" | ")[0]]]


def fingerprint(problem: Problem) -> str:
    """Of the target and the starts, but for the last digits, in which processors differ."""
    told = hashlib.sha256()
    for part in (problem.truth.weights, problem.truth.means, problem.truth.covs, problem.x):
        told.update((part.numpy().round(6) + 0.0).tobytes())
    return told.hexdigest()[:16]


def measured(
    target: str,
    kind: str,
    fresh: bool = False,
    budgets: Sequence[int] = BUDGETS,
    batch: int | None = None,
    rules: list[Rule | Adaptive] | None = None,
    cache: Path | None = CACHE,
) -> Measured:
    """A problem with its truth and its peers, from the cache where it is there and fits, unless `fresh`."""
    given = problem(target, kind, batch)
    kept = cache / f"{given.name.replace(' / ', '-').replace(' ', '-')}.json" if cache else None
    mark = f"{fingerprint(given)} {list(budgets)}"
    if kept and kept.exists() and not fresh:
        data = json.loads(kept.read_text(encoding="utf-8"))
        if data["mark"] == mark:
            runs = {name: [tuple(run) for run in runs] for name, runs in data["runs"].items()}
            true = torch.tensor(data["truth"], dtype=torch.float64)
            return Measured(given, true, runs, data["skipped"], data.get("truth_error", math.nan))
    true, skipped = truth(given), []
    rules = rivals(skipped) if rules is None else rules
    runs, failed = compete(given, true, rules, budgets)
    off = distances(true, truth(given, 1e-13))[0]
    found = Measured(given, true, runs, skipped + failed, off)
    if kept and {rule.library for rule in rules} >= set(OFFERED):  # what is measured without a peer is not kept
        rounded = {name: [(n, float(f"{a:.4g}"), float(f"{b:.4g}")) for n, a, b in each] for name, each in runs.items()}
        data: dict[str, Any] = {"mark": mark, "runs": rounded, "skipped": found.skipped, "truth_error": off}
        data["truth"] = true.tolist()
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(data), encoding="utf-8")
    return found


class Counted(sde.ExactScore):
    """An exact model that counts its evaluations."""

    calls = 0

    def forward(self, x: Tensor, t: float | Tensor, **cond: Any) -> sde.Point:
        self.calls += 1
        return super().forward(x, t, **cond)


@dataclass(frozen=True)
class Cell:
    """One target, SDE and budget: a sampler beside the best peer.

    `error` and `peer` are root mean squares, `median` and `peer_median` medians. `best` says which configuration the
    peer's is, `offered` error and name of the best on the grids that libraries offer themselves; `worst` is the share
    of the worst 1 % of trajectories in the sampler's mean square, `raw` its error on the target before standardisation.
    """

    target: str
    kind: str
    budget: int
    error: float
    median: float
    calls: int
    peer: float
    peer_median: float
    best: str
    offered: tuple[float, str] = (math.inf, "none")
    worst: float = 0.0
    raw: float = math.nan

    @property
    def ratio(self) -> float:
        """Best peer ÷ ours: above 1, ours is ahead."""
        return self.peer / max(self.error, FLOOR)

    @property
    def offered_ratio(self) -> float:
        """The same against peers on the grids they offer themselves."""
        return self.offered[0] / max(self.error, FLOOR)

    @property
    def median_ratio(self) -> float:
        return self.peer_median / max(self.median, FLOOR)


def geometric(values: Iterable[float]) -> float:
    """Geometric mean; nan of none."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def mean_ratio(cells: Iterable[Cell], which: str = "ratio") -> float:
    """Geometric mean of the cells' ratios."""
    return geometric(getattr(cell, which) for cell in cells)


@dataclass
class Table:
    """The cells of a sampler."""

    cells: list[Cell]

    def of(self, **wanted: Any) -> list[Cell]:
        return [c for c in self.cells if all(getattr(c, name) == value for name, value in wanted.items())]

    @property
    def lost(self) -> list[Cell]:
        """Cells in which some peer's error is the smaller, the worst first."""
        return sorted((c for c in self.cells if c.ratio < 1), key=lambda c: c.ratio)

    @property
    def ahead(self) -> float:
        """Fraction of cells that are not lost."""
        return 1 - len(self.lost) / max(1, len(self.cells))

    def __str__(self) -> str:
        names = list(dict.fromkeys((c.target, c.kind) for c in self.cells))
        budgets = sorted({c.budget for c in self.cells})
        lines = [f"{'error (best peer ÷ ours)':<18}" + "".join(f"{n:>20}" for n in budgets)]
        for target, kind in names:
            row = {c.budget: c for c in self.of(target=target, kind=kind)}
            cells = "".join(f"{f'{row[n].error:.2e} ({row[n].ratio:.2f})':>20}" for n in budgets)
            lines.append(f"{target + ' ' + kind:<24}" + cells)
        for kind in dict.fromkeys(c.kind for c in self.cells):
            means = "".join(f"{f'{mean_ratio(self.of(kind=kind, budget=n)):.2f}':>20}" for n in budgets)
            lines.append(f"{'geometric mean ' + kind:<24}" + means)
        lines.append(
            f"all: geometric mean {mean_ratio(self.cells):.3f} (on grids that peers offer themselves "
            f"{mean_ratio(self.cells, 'offered_ratio'):.3f}, of medians {mean_ratio(self.cells, 'median_ratio'):.3f})"
            f", ahead in {100 * self.ahead:.0f} % of {len(self.cells)}; lost:"
        )
        lines += [f"  {c.target} {c.kind} {c.budget}: {c.ratio:.2f}, {c.peer:.2e} {c.best}" for c in self.lost]
        over = [c for c in self.cells if c.calls > c.budget]
        lines += [f"  MORE THAN ALLOWED: {c.target} {c.kind} {c.budget}: {c.calls} evaluations" for c in over]
        return "\n".join(lines)


def default(model: sde.ExactScore, x: Tensor, nfe: int) -> Tensor:
    """Ours: `sample` with its defaults."""
    return sde.sample(model, x=x, steps=nfe, progress=False)


def cells(given: Measured, sampler: Sampler, budgets: Sequence[int], raw: bool = False) -> list[Cell]:
    """The cells of one problem."""
    found, here = [], given.problem
    target = Quick(here.model.target)
    for budget in budgets:
        model = Counted(target, here.forward)
        with torch.no_grad():
            ends = sampler(model, here.x, budget)
            rms, median = distances(ends, given.truth)
            beside = math.nan
            if raw:
                other, start = here.raw()
                other = sde.ExactScore(Quick(here.truth), other.sde)
                beside = distances(sampler(other, start, budget), here.end(given.truth))[0] / here.truth.scale
        peer, name = given.best(budget)
        known: dict[str, Any] = {"worst": worst_share(ends, given.truth)}
        known |= {"peer": peer, "best": name, "peer_median": given.best(budget, 2)[0], "raw": beside}
        known["offered"] = given.best(budget, offered=True)
        found.append(Cell(here.target, here.kind, budget, rms, median, model.calls, **known))
    return found


def errors(
    sampler: Sampler = default,
    targets: Iterable[str] = tuple(TARGETS),
    budgets: Sequence[int] = BUDGETS,
    kinds: Sequence[str] = KINDS,
) -> Table:
    """A sampler's cells against the kept errors of the peers; a problem that is not kept is measured first.

    Args:
        sampler: From an exact model, starts at t_max and a number of evaluations to states at t_min.
        targets: Names in `TARGETS`, or `unseen SEED`; `accuracy.UNSEEN` are the committed ones.
        budgets: Numbers of evaluations, of `BUDGETS`.
        kinds: VP, EDM.
    """
    found = [measured(target, kind) for target in targets for kind in kinds]
    return Table([cell for given in found for cell in cells(given, sampler, budgets)])


@dataclass
class Result:
    """What the page tells: the committed targets, the unseen ones, and every library's own best.

    `libraries` is keyed by library, SDE and budget, and holds geometric means over the committed targets; `single`, by
    SDE and budget, the least such mean of any one configuration of a peer, and whose.
    """

    seen: Table
    unseen: Table
    libraries: dict[tuple[str, str, int], float]
    single: dict[tuple[str, int], tuple[float, str]]
    configurations: int
    truth_error: float
    skipped: list[str]


def measure(
    targets: Sequence[str] = tuple(TARGETS),
    unseen: Sequence[str] = UNSEEN,
    budgets: Sequence[int] = BUDGETS,
    batch: int | None = None,
    fresh: bool = True,
    cache: Path | None = CACHE,
    sampler: Sampler = default,
    jobs: int = 1,
) -> Result:
    """Ours and every peer on every problem, `jobs` problems at once."""
    skipped: list[str] = []
    tables, kept = {"seen": Table([]), "unseen": Table([])}, []
    names = {rule.library for rule in rivals(skipped)}
    names_of_all = (*targets, *unseen)
    asked = [(target, kind, fresh, budgets, batch, None, cache) for target in names_of_all for kind in KINDS]
    asked.sort(key=lambda each: -problem(*each[:2], 1).truth.means.numel())  # the longest first
    found = {}
    for given in harness.spread(measured, asked, jobs):
        found[given.problem.target, given.problem.kind] = given
        print(f"  {given.problem.name}: {len(given.runs)} configurations of peers", flush=True)
    for given in (found[target, kind] for target in names_of_all for kind in KINDS):
        which = "seen" if given.problem.target in targets else "unseen"
        tables[which].cells += cells(given, sampler, budgets, raw=which == "seen")
        skipped += given.skipped
        if which == "seen":
            kept.append(given)
    libraries = {
        (library, kind, budget): geometric(g.best(budget, 1, library)[0] for g in kept if g.problem.kind == kind)
        for library in sorted(names)
        for kind in KINDS
        for budget in budgets
    }
    return Result(
        tables["seen"],
        tables["unseen"],
        libraries,
        {(kind, n): single([g for g in kept if g.problem.kind == kind], n) for kind in KINDS for n in budgets},
        max(len(given.runs) for given in kept),
        max((given.truth_error for given in kept if math.isfinite(given.truth_error)), default=math.nan),
        list(dict.fromkeys(skipped)),
    )


def single(kept: list[Measured], budget: int) -> tuple[float, str]:
    """The configuration of a peer whose geometric mean over all problems is least: chosen once, with hindsight."""
    names = set.intersection(*(set(given.runs) for given in kept))
    means = []
    for name in names:
        errors = [min((max(r[1], FLOOR) for r in g.runs[name] if r[0] <= budget), default=math.inf) for g in kept]
        means.append((geometric(errors), name))
    return min(means, default=(math.inf, "none"))
