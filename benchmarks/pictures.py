"""The pictures: ratios on a logarithmic axis, ours in orange, peers in blue, the floor as a line."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from benchmarks import accuracy, overhead, stochastic, training
from benchmarks.training_report import is_ours, is_peer

# Okabe and Ito (2008).
ORANGE, BLUE, GREY = "#E69F00", "#0072B2", "#8A8A8A"
LINES = ("#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#000000")


def loops(result: overhead.Result, path: Path) -> None:
    """Overhead relative to the bare loop: a panel for each rule that has a floor, at the longest runs."""
    plt = _pyplot()
    size = result.sizes[-1]
    members = {g: result.of(size, group=g) for g in overhead.GROUPS if result.of(size, group=g, library=overhead.BARE)}
    worst = max(pairs[-1][0] / _floor(pairs) for pairs in members.values())
    columns = [list(members)[:2], list(members)[2:]]
    figure = plt.figure(
        figsize=(13, 0.19 * max(sum(len(members[g]) + 3 for g in c) for c in columns) + 0.6), layout="constrained"
    )
    for part, groups in zip(figure.subfigures(1, 2), columns, strict=True):
        axes = part.subplots(len(groups), 1, height_ratios=[len(members[g]) for g in groups], squeeze=False)[:, 0]
        for ax, group in zip(axes, groups, strict=True):
            _bars(ax, members[group], worst)
            ax.set_title(f"{group} (bare loop {_floor(members[group]):.1f} µs)", fontsize=9, loc="left")
        axes[-1].set_xlabel("CPU time per evaluation ÷ bare loop", fontsize=9)
        _legend(axes[0])
    figure.suptitle(f"Overhead of the loop, {size} evaluations of a network that costs nothing", fontsize=11)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _floor(pairs: list[tuple[float, overhead.Candidate]]) -> float:
    return next(t for t, c in pairs if c.library == overhead.BARE)


def _bars(ax: Any, pairs: list[tuple[float, overhead.Candidate]], worst: float) -> None:
    shown = [(t / _floor(pairs), c) for t, c in pairs if c.library != overhead.BARE]
    colours = [ORANGE if c.library == overhead.OURS else BLUE for _, c in shown]
    ax.barh(range(len(shown)), [ratio for ratio, _ in shown], color=colours, height=0.72)
    for i, (ratio, _) in enumerate(shown):
        ax.text(ratio * 1.03, i, f"{ratio:.1f}", va="center", fontsize=7)
    ax.axvline(1, color=GREY, linewidth=1)
    ax.set_yticks(range(len(shown)), [f"{c.library}: {c.what}" for _, c in shown], fontsize=7)
    ax.invert_yaxis()
    ax.set_xscale("log")
    ticks = [t for t in (1, 2, 5, 10, 20, 50, 100, 200) if t <= worst]
    ax.set_xlim(0.9, 1.6 * worst)
    ax.set_xticks(ticks, [str(t) for t in ticks], fontsize=8)
    ax.set_xticks([], minor=True)


def fits(result: training.Result, path: Path) -> None:
    """Left: steps a second relative to the bare fused loop. Right: sliced W2 against CPU seconds."""
    plt = _pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.2), layout="constrained", width_ratios=[1, 1.25])
    order = sorted(result.rates, key=result.rates.get)
    ratios = [result.rates[name] / result.rates[training.FUSED] for name in order]
    shades = [ORANGE if is_ours(n) else BLUE if is_peer(n) else GREY for n in order]
    left.barh(range(len(order)), ratios, color=shades, height=0.72)
    for i, ratio in enumerate(ratios):
        left.text(ratio + 0.01, i, f"{ratio:.2f}", va="center", fontsize=8)
    left.axvline(0.95, color=GREY, linewidth=1, linestyle="--")
    left.set_yticks(range(len(order)), order, fontsize=8)
    left.set_xlabel("steps a CPU second ÷ bare fused loop (dashed: .95)")
    left.set_xlim(0, 1.15 * max(ratios))
    left.set_title("Speed of training", fontsize=10)
    colours = iter(LINES * 3)
    for name, rungs in result.errors.items():
        seconds = [budget / result.rates[name] for budget in result.ladder[: len(rungs)]]
        mine = is_ours(name)
        style = (
            {"color": ORANGE, "linewidth": 2, "zorder": 3}
            if mine
            else {"color": next(colours) if is_peer(name) else GREY, "linewidth": 1.2}
        )
        alike = [n for n in result.errors if (is_ours(n), is_peer(n)) == (mine, is_peer(name))]
        dash = "-" if is_peer(name) else ["-", "--", ":"][alike.index(name) % 3]
        medians = [statistics.median(rung) for rung in rungs]
        right.plot(seconds, medians, dash, label=name, marker="o", markersize=2.5, **style)
    for goal in result.goals:
        right.axhline(goal, color=GREY, linewidth=0.8, linestyle="--")
    right.set_xscale("log")
    right.set_yscale("log")
    right.set_xlabel("CPU seconds of training")
    right.set_ylabel("sliced W2 to the data")
    right.set_yticks([0.05, 0.1, 0.2, 0.5], [".05", ".1", ".2", ".5"])
    right.set_yticks([], minor=True)
    right.xaxis.set_major_formatter("{x:g}")
    right.set_title(f"Quality against time (two draws of the data: {result.floor})", fontsize=10)
    right.legend(fontsize=7, frameon=False)
    figure.suptitle("Training a network 3 → 128 × 3 → 2 on eight modes, batch 256, one thread", fontsize=11)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def accuracies(result: accuracy.Result, path: Path) -> None:
    """Above: error against evaluations, ours and every library's best. Below: best peer ÷ ours, a dot for each cell."""
    plt = _pyplot()
    figure, axes = plt.subplots(2, 2, figsize=(10.5, 8), layout="constrained", sharex=True, sharey="row")
    budgets = sorted({cell.budget for cell in result.seen.cells})
    for (above, below), kind in zip(axes.T, accuracy.KINDS, strict=True):
        _curves(above, result, kind, budgets)
        _dots(below, result, kind, budgets)
        above.set_title(kind, fontsize=10)
    axes[0, 0].set_ylabel("end-point error, in units of the data's scale\n(geometric mean over the targets)")
    axes[1, 0].set_ylabel("error of the best peer ÷ ours\n(above 1, ours is ahead)")
    axes[0, 1].legend(fontsize=7, frameon=False, loc="lower left")
    axes[1, 1].legend(fontsize=7, frameon=False, loc="upper left")
    figure.suptitle("Deterministic samplers on exact mixtures: ours by default, peers at their best", fontsize=11)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _curves(ax: Any, result: accuracy.Result, kind: str, budgets: list[int]) -> None:
    marks = iter(("o", "s", "^", "v", "D", "P", "X", "*"))
    colours = iter((*LINES, "#D55E00", "#999933", "#882255"))
    for library in sorted({name for name, _, _ in result.libraries}):
        errors = [result.libraries[library, kind, budget] for budget in budgets]
        ax.plot(budgets, errors, marker=next(marks), color=next(colours), markersize=4, linewidth=1, label=library)
    one = [result.single[kind, budget][0] for budget in budgets]
    ax.plot(budgets, one, ":", color="black", linewidth=1.5, label="best single configuration of a peer")
    for name, style, label in (("peer", "k--", "best peer of each cell"), ("error", "-", "sde, by default")):
        errors = [accuracy.geometric(getattr(c, name) for c in result.seen.of(kind=kind, budget=b)) for b in budgets]
        thick = {"color": ORANGE, "linewidth": 2.5, "zorder": 4} if name == "error" else {"linewidth": 1.5}
        ax.plot(budgets, errors, style, label=label, **thick)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xticks(budgets, list(map(str, budgets)))
    ax.set_xticks([], minor=True)


def _dots(ax: Any, result: accuracy.Result, kind: str, budgets: list[int]) -> None:
    shifted = ((result.seen, 0.94, ORANGE, "the committed targets"), (result.unseen, 1.06, BLUE, "unseen targets"))
    for whole, shift, colour, label in shifted:
        cells = whole.of(kind=kind)
        if cells:
            at = [shift * c.budget for c in cells]
            ax.plot(at, [c.ratio for c in cells], "o", color=colour, alpha=0.5, markersize=4, label=label, linewidth=0)
            means = [accuracy.mean_ratio(whole.of(kind=kind, budget=budget)) for budget in budgets]
            ax.plot([shift * n for n in budgets], means, "_", color=colour, markersize=18, markeredgewidth=2.5)
    for level, dash in ((1, "-"), (2, ":")):
        ax.axhline(level, color=GREY, linewidth=1, linestyle=dash, zorder=0)
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    ticks = [t for t in (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50) if low <= t <= high]
    ax.set_yticks(ticks, [f"{t:g}" for t in ticks])
    ax.set_yticks([], minor=True)
    ax.set_xlabel("network evaluations")


def distances(result: stochastic.Result, path: Path) -> None:
    """Above: sliced W2 on the exact score, the best of ours, of the peers, the flow. Below: on a wrong one, by kind."""
    plt = _pyplot()
    scores = list(dict.fromkeys(s.kind for s in result.wrong))
    figure, axes = plt.subplots(2, 3, figsize=(11, 6.6), layout="constrained", squeeze=False)
    for ax, (target, kind) in zip(axes[0], [p for p in result.rulers if p[1] == "VP"], strict=False):
        budgets = sorted({s.budget for s in result.finals})
        for ours, colour, label in ((True, ORANGE, "sde, the best with noise"), (False, BLUE, "the best peer")):
            best = [result.best(target, kind, n, ours).distance for n in budgets]
            ax.plot(budgets, best, "o-", color=colour, label=label)
        flow = [result.flow(target, kind, n) for n in budgets]
        ax.plot(budgets, flow, "s--", color=ORANGE, label="sde, the flow by default", markersize=4)
        ax.axhspan(0, result.rulers[target, kind][1], color=GREY, alpha=0.25, label="cannot be told from exact draws")
        _distance_axes(ax, budgets, f"exact score: {target}, {kind}")
    for ax, score in zip(axes[1], [s for s in scores if s != "exact"][1:4], strict=False):
        here = [s for s in result.wrong if s.kind == score]
        budgets = sorted({s.budget for s in here})
        kinds = {
            "the flow": lambda s: s.name == stochastic.FLOW,
            "noise": lambda s: " + " not in s.name and s.name not in (stochastic.FLOW, "DDIM"),
            "a corrector": lambda s: " + " in s.name,
        }
        for (label, belongs), colour in zip(kinds.items(), (ORANGE, "#009E73", "#CC79A7"), strict=True):
            best = [_least(s for s in here if s.budget == n and belongs(s)) for n in budgets]
            ax.plot(budgets, best, "o-", color=colour, label=f"the best with {label}")
        _distance_axes(ax, budgets, f"wrong score: {score}")
    axes[0, 0].legend(fontsize=7, frameon=False)
    axes[1, 0].legend(fontsize=7, frameon=False, loc="lower left")
    figure.suptitle("Distance of samples from the data's law, by solver", fontsize=11)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _least(scores: Any) -> float:
    """Geometric mean over the targets, of the solver for which it is least."""
    by_name: dict[str, list[float]] = {}
    for s in scores:
        by_name.setdefault(s.name, []).append(s.distance)
    return min(accuracy.geometric(found) for found in by_name.values())


def _distance_axes(ax: Any, budgets: list[int], title: str) -> None:
    ax.set_xscale("log")
    ax.set_xticks(budgets, list(map(str, budgets)))
    ax.set_xticks([], minor=True)
    ax.set_ylim(0, 1.08 * ax.get_ylim()[1])  # linear from 0: curves that differ by little shall look alike
    ax.set_xlabel("network evaluations")
    ax.set_ylabel("sliced W2, in units of the data's scale", fontsize=8)
    ax.set_title(title, fontsize=9)


def _legend(ax: Any) -> None:
    from matplotlib.patches import Patch

    ax.legend(
        handles=[Patch(color=ORANGE, label="sde"), Patch(color=BLUE, label="peers")], fontsize=8, frameon=False,
        loc="upper right",
    )  # fmt: skip


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"axes.spines.right": False, "axes.spines.top": False, "axes.axisbelow": True})
    return plt
