"""The page of the accuracy benchmark: a summary for each SDE and budget, what is lost and why, every cell."""

from __future__ import annotations

import math
from collections.abc import Iterable

from benchmarks import harness
from benchmarks.accuracy import BEHIND, FLOOR, KINDS, Cell, Result, Table, geometric, mean_ratio
from benchmarks.accuracy_field import GRIDS
from benchmarks.accuracy_targets import SEEDS
from benchmarks.harness import number, table
from benchmarks.peers import PACKAGES

REASONS: dict[str, str] = {}
"""What is known of a lost cell, `target SDE budget`, beyond what the numbers say."""


def error(value: float) -> str:
    """An error in two digits, with an exponent where it is small."""
    if not math.isfinite(value):
        return "–"
    return f"{value:.2g}" if value >= 1e-2 else f"{value:.1e}".replace("e-0", "e-")


def reason(cell: Cell) -> str:
    """Why a cell is lost, as far as its numbers tell."""
    known = REASONS.get(f"{cell.target} {cell.kind} {cell.budget}")
    said = [known] if known else []
    if cell.worst > 0.9:
        said.append(f"{cell.worst:.0%} of the mean square is that of the worst 1 % of trajectories: another mode")
    if cell.median_ratio >= 1:
        said.append(f"ours is ahead by the median ({number(cell.median_ratio, 2)}×)")
    if cell.offered_ratio >= 1:
        said.append("the peer is on a grid that it does not offer itself")
    if cell.budget <= 10:
        said.append("few evaluations: neither is near its asymptotic order")
    return "; ".join(said) or "the peer's rule and grid fit this target better"


def summary(result: Result) -> str:
    """One row for each SDE and budget; unseen targets beside."""
    header = ["SDE", "evaluations", "ours", "best peer", "ratio", "of medians", "peers on their own grids", "ahead"]
    header += ["unseen: ratio", "of medians", "ahead"] if result.unseen.cells else []
    rows = []
    for kind, budget in [(kind, n) for kind in KINDS for n in _budgets(result.seen)]:
        here = result.seen.of(kind=kind, budget=budget)
        row = [kind, budget, *_means(here), *_ratios(here), number(mean_ratio(here, "offered_ratio")), _ahead(here)]
        other = result.unseen.of(kind=kind, budget=budget)
        rows.append(row + ([*_ratios(other), _ahead(other)] if other else []))
    here, other = result.seen.cells, result.unseen.cells
    row = ["**all**", "", "", "", *_ratios(here), number(mean_ratio(here, "offered_ratio")), _ahead(here)]
    rows.append(row + ([*_ratios(other), _ahead(other)] if other else []))
    return table(header, rows)


def _means(cells: list[Cell]) -> list[str]:
    """Geometric means of the errors, ours and the best peers'."""
    return [error(geometric(max(getattr(c, name), FLOOR) for c in cells)) for name in ("error", "peer")]


def _ratios(cells: list[Cell]) -> list[str]:
    return [number(mean_ratio(cells)), number(mean_ratio(cells, "median_ratio"))]


def _ahead(cells: list[Cell]) -> str:
    return f"{len(cells) - len(Table(cells).lost)} of {len(cells)}"


def _budgets(whole: Table) -> list[int]:
    return sorted({cell.budget for cell in whole.cells})


def every(cells: Iterable[Cell]) -> str:
    """One row for each cell."""
    header = ["target", "SDE", "evaluations", "best peer", "its error", "ours", "ratio", "of medians"]
    header += ["best on its own grids", "ratio"]
    rows = [
        [
            c.target, c.kind, c.budget, _named(c.best), error(c.peer), error(c.error),
            f"{'**' if c.ratio < 1 else ''}{number(c.ratio)}{'**' if c.ratio < 1 else ''}", number(c.median_ratio),
            _named(c.offered[1]), number(c.offered_ratio),
        ]
        for c in cells
    ]  # fmt: skip
    return table(header, rows)


def _named(configuration: str) -> str:
    return ", ".join(configuration.split(" | "))


def lost(whole: Table) -> str:
    """Every lost cell with its reason."""
    rows = [
        [c.target, c.kind, c.budget, number(c.ratio), _named(c.best), number(c.median_ratio), reason(c)]
        for c in whole.lost
    ]
    if not rows:
        return "None."
    return table(["target", "SDE", "evaluations", "ratio", "best peer", "of medians", "reason"], rows)


def single(result: Result) -> str:
    """Ours, which is one, beside the best one configuration of a peer for each SDE and budget."""
    rows = []
    for kind, budget in [(kind, n) for kind in KINDS for n in _budgets(result.seen)]:
        peer, name = result.single[kind, budget]
        mine = geometric(max(c.error, FLOOR) for c in result.seen.of(kind=kind, budget=budget))
        rows.append([kind, budget, _named(name), error(peer), error(mine), number(peer / mine)])
    return table(["SDE", "evaluations", "configuration", "its error", "ours", "ratio"], rows, left=3)


def libraries(result: Result) -> str:
    """Geometric mean over the targets of each library's own best."""
    names = sorted({library for library, _, _ in result.libraries})
    budgets = _budgets(result.seen)
    rows = [
        [name, kind, *(error(result.libraries[name, kind, budget]) for budget in budgets)]
        for kind in KINDS
        for name in names
    ]
    rows += [
        ["**sde**", kind, *(_means(result.seen.of(kind=kind, budget=budget))[0] for budget in budgets)]
        for kind in KINDS
    ]
    return table(["library", "SDE", *map(str, budgets)], rows, left=2)


def standardised(whole: Table) -> str:
    """By how much our error on a target as it was written differs from that on the standardised one."""
    off = {c: abs(c.raw - c.error) / max(c.error, FLOOR) for c in whole.cells}
    worst = max(off, key=lambda c: off[c])
    return (
        "The same runs on the targets as they were written (means to 43, scales of .019 to 40, of which the sampler is "
        f"not told) have the same error: the largest difference is {off[worst]:.1g} of it "
        f"({worst.target}, {worst.kind}, {worst.budget} evaluations)."
    )


def report(result: Result) -> str:
    """The Markdown page."""
    seen, other = result.seen, result.unseen
    share = f"{seen.ahead:.0%}"
    parts = [
        "# Accuracy: error against evaluations",
        f"{harness.machine()}. Peers: {harness.versions((*PACKAGES, 'scipy'))}; dpm-solver and EDM by their formulas.",
        "End-point error of the probability flow on exact mixtures, in units of the data's scale: root mean square "
        "over 500 to 1000 trajectories of the distance to the flow's own end (by DOP853, whose own error is at most "
        f"{error(result.truth_error)}). Ours is `sde.sample(model, steps=N)` with its defaults, on every target.",
        "The peer of a cell is the best *of all* configurations of all peers with at most N evaluations: up to "
        f"{result.configurations} of them, every deterministic sampler at every order on {len(GRIDS)} grids "
        f"({', '.join(GRIDS)}), and adaptive ones along a ladder of tolerances. (A configuration more than {BEHIND:g} "
        "times behind at 20 or 50 evaluations is not run with 50 or 100.) `peers on their own grids`: only on grids "
        "that a library offers itself.",
        "`ratio` is best peer ÷ ours: above 1, ours is ahead. Means are geometric. Errors below "
        f"{FLOOR:g} count as that.",
        "## Summary",
        summary(result),
        f"Ahead in {share} of {len(seen.cells)} cells, geometric mean of the ratios {number(mean_ratio(seen.cells))}"
        + (
            f"; on {len({c.target for c in other.cells})} unseen targets in {other.ahead:.0%} of {len(other.cells)}, "
            f"{number(mean_ratio(other.cells))}."
            if other.cells
            else "."
        ),
        "![Error against evaluations](accuracy.png)",
        "## Lost cells",
        lost(seen),
        "## Against one configuration",
        "The peer of a cell is chosen anew for each target, with hindsight, among a thousand; ours is one. Here the "
        "peer is one configuration for all targets, the one with the least geometric mean over them.",
        single(result),
        "## Each library at its best",
        "Geometric mean over the targets of the least error of any of a library's configurations.",
        libraries(result),
        "## Every cell",
        every(seen.cells),
    ]
    if other.cells:
        parts += [
            f"## Unseen targets (seeds {', '.join(str(s) for s in SEEDS['unseen'])}, unless others were asked for)",
            every(other.cells),
            "Lost: " + lost(other),
        ]
    parts += ["## Own standardisation", standardised(seen), "## Not measured"]
    parts.append("\n".join(f"- {line}" for line in result.skipped) or "Nothing was skipped.")
    return "\n\n".join(parts) + "\n"
