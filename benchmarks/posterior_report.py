"""The page of the posterior samplers: the best of each side, method by method beside the peers' own, and the biases."""

from __future__ import annotations

import math
from pathlib import Path

from benchmarks import harness
from benchmarks.accuracy import geometric
from benchmarks.harness import number, table
from benchmarks.pictures import BLUE, GREY, ORANGE, _pyplot
from benchmarks.posterior import Result, Score

PACKAGES = ("azula", "deepinv")
SAME = 0.1
"""Relative difference between two distances that is called none: another seed makes one of 5 %."""


def budgets(result: Result) -> list[int]:
    return sorted({s.budget for s in result.scores})


def verdict(mine: float, peer: float, floor: float, tie: float) -> str:
    """Who is nearer to the exact posterior, where that can be told by so many samples."""
    if (mine <= tie and peer <= tie) or abs(mine - peer) <= max(tie - floor, SAME * peer):
        return "tie"
    return "ahead" if mine < peer else "**behind**"


def shown(value: float, prior: float) -> str:
    """A distance; more than twice the prior's is no sample of anything."""
    return number(value) if value <= 2 * prior else "diverges"


def best(result: Result) -> list[list[str]]:
    """The best of ours and of the peers in each cell."""
    rows = []
    for name, (floor, tie, _) in result.rulers.items():
        for budget in budgets(result):
            mine, peer = result.best(name, budget, True), result.best(name, budget, False)
            if mine is None or peer is None:
                continue
            rows.append([
                name, str(budget), f"{peer.library} {peer.method}, {peer.setting}", f"{mine.method}, {mine.setting}",
                number(peer.distance), number(mine.distance), number(mine.distance / peer.distance),
                verdict(mine.distance, peer.distance, floor, tie), number(floor), number(tie),
            ])  # fmt: skip
    return rows


def shared(result: Result) -> list[str]:
    """Methods that both sides have."""
    mine, theirs = ({s.method for s in result.scores if s.ours == ours} for ours in (True, False))
    return [m for m in dict.fromkeys(s.method for s in result.scores) if m in mine & theirs]


def pairs(result: Result) -> dict[tuple[str, str, int], tuple[Score, Score, str]]:
    """Of each shared method in each cell its best of ours, the best of the peers', and the verdict."""
    found = {}
    for method in shared(result):
        for name, (floor, tie, prior) in result.rulers.items():
            for budget in budgets(result):
                mine, peer = (result.best(name, budget, ours, method) for ours in (True, False))
                if mine is None or peer is None:
                    continue
                astray = min(mine.distance, peer.distance) > 2 * prior
                word = "tie" if astray else verdict(mine.distance, peer.distance, floor, tie)
                found[method, name, budget] = mine, peer, word
    return found


def beside(result: Result) -> str:
    """Method by method and problem by problem: ours / the nearer of the peers' own, and the verdict."""
    found, rows = pairs(result), []
    for method in shared(result):
        for name, (_, _, prior) in result.rulers.items():
            row, libraries = [], ""
            for budget in budgets(result):
                if (method, name, budget) not in found:
                    row += ["–", ""]
                    continue
                mine, peer, word = found[method, name, budget]
                libraries = peer.library
                row += [f"{shown(mine.distance, prior)} / {shown(peer.distance, prior)}", word]
            if any(row):
                rows.append([method, name, libraries, *row])
    header = ["method", "problem", "peer", *(w for n in budgets(result) for w in (f"{n}: ours / peer", ""))]
    return table(header, [row for row in rows if row[2]], left=3)


def means(result: Result) -> str:
    """Each shared method's ratio ours / theirs, the geometric mean over the problems."""
    found, rows = pairs(result), []
    for method in shared(result):
        row = [method]
        for budget in budgets(result):
            ratios = [
                max(mine.distance, result.rulers[name][0]) / max(peer.distance, result.rulers[name][0])
                for (m, name, n), (mine, peer, _) in found.items()
                if (m, n) == (method, budget) and math.isfinite(mine.distance) and math.isfinite(peer.distance)
            ]
            words = [word for (m, _, n), (_, _, word) in found.items() if (m, n) == (method, budget)]
            row += [number(geometric(ratios)) if ratios else "–", str(words.count("**behind**"))]
        rows.append(row)
    header = ["method", *(w for n in budgets(result) for w in (f"{n}: ours ÷ peer", "cells behind"))]
    return table(header, rows)


def biases(result: Result) -> str:
    """Distance of each method of ours with the most evaluations; in bold what cannot be told from exact draws."""
    last, names = budgets(result)[-1], list(result.rulers)
    rows = []
    for method in dict.fromkeys(s.method for s in result.scores if s.ours):
        row = []
        for name in names:
            found, (_, tie, prior) = result.best(name, last, True, method), result.rulers[name]
            value = found.distance if found else math.inf
            row.append("–" if found is None else f"**{number(value)}**" if value <= tie else shown(value, prior))
        rows.append([method, *row])
    rows.append(["*as many exact draws*", *(number(result.rulers[name][0]) for name in names)])
    rows.append(["*the prior*", *(number(result.rulers[name][2]) for name in names)])
    return table(["method", *names], rows)


def costs(result: Result) -> str:
    """What a step of each setting takes, as counted."""
    rows, last = [], budgets(result)[0]
    for s in result.scores:
        if s.budget == last and s.problem == next(iter(result.rulers)):
            rows.append((s.library, s.method, number(s.evaluations / s.steps, 2)))
    return table(["library", "method", "evaluations a step"], list(dict.fromkeys(rows)), left=2)


def report(result: Result) -> str:
    """The Markdown page."""
    top, words = best(result), [word for _, _, word in pairs(result).values()]
    closer = sum(float(row[6]) <= 1 / 1.5 or float(row[5]) <= float(row[9]) for row in top)
    return "\n\n".join([
        "# Posterior samplers: sliced W2 to the exact posterior",
        f"{harness.machine()}. Peers: {harness.versions(PACKAGES)}.",
        "Six linear problems on mixtures whose posterior is known: eight modes on a ring in two dimensions, eight "
        "anisotropic modes in sixteen. Sliced Wasserstein distance between samples and the exact posterior, in units "
        f"of the data's scale, a root mean square over four observations with {result.samples} samples each in two "
        f"dimensions and {result.samples // 2} in sixteen; VP, an exact denoiser. The floor is the distance of as many "
        "exact draws; what lies within three standard deviations of it is a tie, and so are two distances that differ "
        "by less than that, or by less than a tenth, as they do with the seed. An evaluation is one pass of one "
        "particle through the denoiser, forward or backward (a backward pass costs as much where only the input asks "
        "for a gradient). Every method runs with the solvers, grids and settings listed at the end, on both sides, and "
        "is shown at its best; with the most evaluations only "
        "the best setting of the budget before runs.",
        "![Sliced W2 by method](posterior.png)",
        "## The best of each side",
        f"Ours is 1.5 times closer or cannot be told from exact draws in {closer} of {len(top)} cells.",
        table(["problem", "evaluations", "best peer", "best of ours", "peer", "ours", "ours ÷ peer", "", "floor",
               "tie"], top, left=4),
        "## Which methods are biased",
        f"Distances with {budgets(result)[-1]} evaluations, of each method's best setting. More evaluations do not "
        "help what stands above the floor: that is the method's own bias. Those in bold cannot be told from exact.",
        biases(result),
        "## Method by method, beside the peers' own",
        f"Of {len(words)} cells ours is ahead in {words.count('ahead')}, tied in {words.count('tie')}, behind in "
        f"{words.count('**behind**')}. Geometric means over the problems, what is below the floor counted as the "
        "floor:",
        means(result),
        beside(result),
        "deepinv's DDRM draws its noise with half the paper's variance (`randn / sqrt(2)`): on some problems that "
        "brings it nearer, on others not; with the whole variance it gives our own distances. TMPD puts the sums of "
        "rows for a matrix: where rows of A C A' cancel, the step is far too long, on both sides. The likelihoods of "
        "DPS, PiGDM, MMPS and TMPD are the same functions in all libraries; what differs is the solver, the grid and "
        "the seed.",
        "## What a step costs",
        costs(result),
        "## Settings",
        "\n".join(
            f"- {library} {method}: " + "; ".join(dict.fromkeys(
                s.setting or "default" for s in result.scores if (s.library, s.method) == (library, method)
            ))
            for library, method in dict.fromkeys((s.library, s.method) for s in result.scores)
        ),
        "## Not measured",
        "\n".join(f"- {line}" for line in result.skipped) or "Nothing was skipped.",
    ]) + "\n"  # fmt: skip


def picture(result: Result, path: Path) -> None:
    """A panel for each problem: methods down, distance with the most evaluations along, ours and the peers' own."""
    plt = _pyplot()
    last, names = budgets(result)[-1], list(result.rulers)
    methods = list(dict.fromkeys(s.method for s in result.scores if s.ours))
    figure, axes = plt.subplots(
        -(-len(names) // 3), min(3, len(names)), figsize=(11, 3.9 * -(-len(names) // 3)), layout="constrained",
        squeeze=False, sharey=True,
    )  # fmt: skip
    for ax, name in zip(axes.flat, names, strict=False):
        floor, tie, prior = result.rulers[name]
        ax.axvspan(floor / 2, tie, color=GREY, alpha=0.25, linewidth=0, label="cannot be told from exact draws")
        ax.axvline(prior, color=GREY, linestyle="--", linewidth=1, label="the prior, y unseen")
        for ours, colour, mark, label in ((False, BLUE, "D", "the peers' own"), (True, ORANGE, "o", "sde")):
            scores = [result.best(name, last, ours, method) for method in methods]
            at = [(s.distance, i) for i, s in enumerate(scores) if s is not None and s.distance <= 2 * prior]
            size = 7 if ours else 5
            ax.plot([d for d, _ in at], [i for _, i in at], mark, color=colour, markersize=size, label=label, alpha=0.9)
        ax.set_xscale("log")
        ax.set_xlim(floor / 2, 2 * prior)
        ticks = [v for v in (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0) if floor / 2 <= v <= 2 * prior]
        ax.set_xticks(ticks, [f"{v:g}" for v in ticks])
        ax.set_xticks([], minor=True)
        ax.grid(axis="y", color=GREY, alpha=0.25, linewidth=0.5)
        ax.set_yticks(range(len(methods)), methods, fontsize=8)
        ax.set_title(name, fontsize=10)
        ax.set_xlabel("sliced W2, in units of the data's scale", fontsize=8)
    for ax in list(axes.flat)[len(names) :]:
        ax.set_visible(False)
    axes[0, 0].invert_yaxis()
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, frameon=False, loc="outside lower center", ncols=4)
    figure.suptitle(f"Distance to the exact posterior with {last} evaluations; none shown: diverges or not there")
    figure.savefig(path, dpi=120)
    plt.close(figure)
