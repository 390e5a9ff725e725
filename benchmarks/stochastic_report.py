"""The page of the stochastic samplers: finals on exact scores, every sampler at its best, and the wrong scores."""

from __future__ import annotations

from benchmarks import harness
from benchmarks.accuracy import geometric
from benchmarks.harness import number, table
from benchmarks.peers import PACKAGES
from benchmarks.stochastic import FLOW, KINDS, Result, Score


def verdict(ours: float, peer: float, tie: float) -> str:
    """Who is nearer to the exact law, where that can be told."""
    if ours <= tie and peer <= tie:
        return "tie"
    return "ahead" if ours <= peer else "**behind**"


def finals(result: Result) -> str:
    """The best of ours and of the peers in each cell, and the flow."""
    rows = []
    for target, kind in result.rulers:
        floor, tie = result.rulers[target, kind]
        for budget in sorted({s.budget for s in result.finals}):
            mine, peer = (result.best(target, kind, budget, ours) for ours in (True, False))
            rows.append([
                target, kind, budget, f"{peer.library} {peer.name}, {peer.grid}", f"{mine.name}, {mine.grid}",
                number(peer.distance), number(mine.distance), verdict(mine.distance, peer.distance, tie),
                number(result.flow(target, kind, budget)), number(floor), number(tie),
            ])  # fmt: skip
    header = ["target", "SDE", "evaluations", "best peer", "best of ours", "peer", "ours", "", "flow", "floor", "tie"]
    return table(header, rows, left=5)


def everyone(result: Result) -> str:
    """Each sampler's own best grid, in the geometric mean over the problems."""
    budgets = sorted({s.budget for s in result.scores})
    problems = list(result.rulers)
    means: dict[tuple[str, str], list[float]] = {}
    for key in dict.fromkeys((s.library, s.name) for s in result.scores):
        here = [s for s in result.scores if (s.library, s.name) == key]
        row = []
        for budget in budgets:
            best = [
                min((s.distance for s in here if (s.target, s.kind, s.budget) == (*p, budget)), default=float("inf"))
                for p in problems
            ]
            row.append(geometric(best))
        means[key] = row
    ordered = sorted(means.items(), key=lambda pair: geometric(pair[1]))
    rows = [
        [f"**{library}**" if library == "sde" else library, name, *map(number, row)] for (library, name), row in ordered
    ]
    return table(["library", "sampler", *map(str, budgets)], rows, left=2)


def wrong(result: Result) -> str:
    """For each wrong score: every solver at equal numbers of evaluations, the best of a column in bold."""
    parts = []
    for target in dict.fromkeys(s.target for s in result.wrong):
        floor, tie = result.wrong_rulers[target, "VP"]
        for score in dict.fromkeys(s.kind for s in result.wrong):
            here = [s for s in result.wrong if (s.target, s.kind) == (target, score)]
            parts.append(f"### {target}: {score}\n\n{_solvers(here)}")
        parts.append(f"Floor of {target} {number(floor)}, tie {number(tie)}.")
    return "\n\n".join(parts)


def _solvers(here: list[Score]) -> str:
    budgets = sorted({s.budget for s in here})
    least = {n: min(s.distance for s in here if s.budget == n) for n in budgets}
    rows = []
    for name in dict.fromkeys(s.name for s in here):
        row: list[str] = []
        for n in budgets:
            found = [s.distance for s in here if (s.name, s.budget) == (name, n)]
            mark = "**" if found and found[0] == least[n] else ""
            row.append(f"{mark}{number(found[0])}{mark}" if found else "–")
        rows.append([name, *row])
    return table(["solver", *map(str, budgets)], rows)


def gains(result: Result) -> str:
    """What a corrector, or noise, gains over the flow and over its predictor at an equal number of evaluations."""
    rows = []
    for score in dict.fromkeys(s.kind for s in result.wrong):
        for budget in sorted({s.budget for s in result.wrong}):
            here = [s for s in result.wrong if (s.kind, s.budget) == (score, budget)]
            kinds = {
                "flow": [s for s in here if s.name == FLOW],
                "noise": [s for s in here if " + " not in s.name and s.name not in (FLOW, "DDIM")],
                "corrector": [s for s in here if " + " in s.name],
            }
            means, names = {}, {}
            for kind, found in kinds.items():
                by_name = {
                    name: geometric(s.distance for s in found if s.name == name) for name in {s.name for s in found}
                }
                names[kind] = min(by_name, key=lambda n: by_name[n])
                means[kind] = by_name[names[kind]]
            rows.append([
                score, budget, number(means["flow"]), number(means["noise"]), number(means["corrector"]),
                names["noise"], names["corrector"], number(means["noise"] / means["corrector"]),
            ])  # fmt: skip
    header = ["score", "evaluations", "flow", "with noise", "with a corrector", "the best noise", "the best corrector"]
    return table([*header, "noise ÷ corrector"], rows)


def report(result: Result) -> str:
    """The Markdown page."""
    cells = [
        verdict(result.best(t, k, n, True).distance, result.best(t, k, n, False).distance, result.rulers[t, k][1])
        for t, k in result.rulers
        for n in sorted({s.budget for s in result.finals})
    ]
    return "\n\n".join([
        "# Stochastic samplers: sliced W2 against evaluations",
        f"{harness.machine()}. Peers: {harness.versions(PACKAGES)}; score_sde and EDM by their formulas.",
        "Sliced Wasserstein distance between samples and the exact marginal at t_min, in units of the data's scale, "
        f"under {' and '.join(KINDS)}. Every sampler runs on several grids with {result.samples} samples; the three "
        "best of ours and of the peers at each budget, each on its best grid, run again with "
        f"{result.final_samples} (a quarter of that in more than four dimensions). The floor is the distance of as "
        "many exact draws, and what lies within three standard deviations of it is a tie. `flow` is `sde.sample` as it "
        "is by default, which adds no noise.",
        "## Finals on the exact score",
        f"Ahead in {cells.count('ahead')} cells, tied in {cells.count('tie')}, behind in {cells.count('**behind**')}.",
        finals(result),
        "![Sliced W2 against evaluations](stochastic.png)",
        "## A wrong score",
        "A smooth error field on what the network puts out, the exact score of another mixture, and networks trained "
        "for too short a time; VP, `sample`'s own grid, equal numbers of evaluations. Geometric means over the targets "
        "of the best solver of each kind:",
        gains(result),
        wrong(result),
        "## Every sampler at its best",
        f"On the exact score, geometric mean over the problems of the best grid's distance; {result.samples} samples.",
        everyone(result),
        "## Not measured",
        "\n".join(f"- {line}" for line in result.skipped) or "Nothing was skipped.",
    ]) + "\n"  # fmt: skip
