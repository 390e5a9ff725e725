"""The page of likelihoods: who reaches the goal at which cost, what priors cost, a picture of all that was tried."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.harness import number, table
from benchmarks.likelihood import BEST, GOAL, OURS, Result, Score
from benchmarks.pictures import GREY, LINES, ORANGE, _pyplot

PACKAGES = ("flow-matching", "zuko", "torchdiffeq", "k-diffusion", "scipy")
COLOURS = {
    "flow_matching": LINES[0], "zuko": LINES[1], "torchdiffeq": LINES[2],
    "score_sde's formula": LINES[4], "k-diffusion": LINES[3],
}  # fmt: skip


def is_ours(score: Score) -> bool:
    return score.rule.library.startswith(OURS)


def best_peer(scores: list[Score]) -> Score | None:
    """The fastest peer that reaches the goal."""
    return max((s for s in scores if s.reached and not is_ours(s)), key=lambda s: s.speed, default=None)


def small(value: float) -> str:
    """An error, in two digits and a power."""
    return f"{value:.1e}"


def winners(result: Result, problem: str) -> str:
    """Each library on one problem, the fastest first; who misses the goal last."""
    scores = [s for s in result.kept if s.problem == problem]
    peer, rows = best_peer(scores), []
    for s in sorted(scores, key=lambda s: (not s.reached, -s.speed)):
        ratio = number(s.speed / peer.speed, 2) + " ×" if peer else "–"
        cells = [small(s.error), small(s.largest), s.evaluations, f"{s.speed:.0f}", ratio if s.reached else "misses"]
        name = f"**{s.rule.library}**" if is_ours(s) else s.rule.library
        rows.append([name, s.rule.settings, *cells])
    header = ["library", "setting", "mean error", "largest", "evaluations", "points/s", "÷ best peer"]
    return table(header, rows, left=2)


def ratios(result: Result) -> str:
    """Ours against the best peer that reaches the goal, problem by problem."""
    rows = []
    for problem in dict.fromkeys(s.problem for s in result.kept):
        scores = [s for s in result.kept if s.problem == problem]
        peer = best_peer(scores)
        if peer is None:
            continue
        row = [problem, f"{peer.rule.library}, {peer.rule.settings}", peer.evaluations, f"{peer.speed:.0f}"]
        for name in (f"{OURS}, by default", BEST, f"{BEST}, backward passes"):
            found = [s for s in scores if s.rule.library == name]
            reached = bool(found) and found[0].reached
            row.append(number(found[0].speed / peer.speed, 2) + " ×" if reached else "–")
        rows.append(row)
    header = [
        "problem", "best peer", "evaluations", "points/s", "ours by default", "fewest steps", "by backward passes",
    ]  # fmt: skip
    return table(header, rows, left=2)


def priors(result: Result) -> str:
    """Nats that each prior costs."""
    rows = [[law, kind, *(small(e) for e in errors)] for law, kind, *errors in result.mismatch]
    return table(["data", "SDE", "N(0, σ² I)", "mean and scale", "mean and covariance"], rows, left=2)


def report(result: Result) -> str:
    """The Markdown page."""
    names = dict.fromkeys(s.problem for s in result.kept)
    return "\n\n".join([
        "# Log-likelihood through the flow: agreement and speed",
        f"{harness.machine()}. Peers: {harness.versions(PACKAGES)}.",
        f"Points drawn from mixtures whose density is known ({result.kept[0].points} of them, float64): eight modes in "
        "the plane, five in ten dimensions, shifted and scaled. The error is against the marginal at `t_min`, with "
        "`Flow` against the data's own density. `network` is an MLP that learnt the eight modes, its truth a fine "
        "solve by RK4; it has no closed-form trace, and everybody takes the exact one by backward passes. All solve "
        "the same flow from the same points and end in the same exact prior; a peer's velocity is one short formula or "
        f"the bare network. The goal is a mean absolute error of {GOAL:.0e} nats. Each library climbs its ladders of "
        "tolerances, steps and orders until it is there; of the settings that reach the goal the one with the fewest "
        "evaluations is timed, in turns with the others, by CPU time on one thread. The median turn was at most "
        f"{result.spread:.0%} above the least. Coefficients of a grid are made at its first run, and kept for those "
        "timed.",
        "![Mean error against points a second](likelihood.png)",
        "## Against the best peer that reaches the goal",
        ratios(result),
        "`by backward passes` is ours without the closed form of an exact model, as for a network. `score_sde's "
        "formula` is its black box written anew, scipy's RK45 on the flattened state; by itself it takes one probe of "
        "random signs, as k-diffusion does, and its row with an exact trace is what that solver could do.",
        *(part for name in names for part in (f"## {name}", winners(result, name))),
        "## What a prior costs",
        "Mean absolute error in nats when the prior at `t_max` is not the exact one:",
        priors(result),
        "A scalar SDE's N(0, σ² I) forgets that the data have a mean and a width. `ScoreModel` keeps their mean and "
        "scale, `log_prob(prior=Gaussian(mean, cov))` their covariance.",
        "## Not measured",
        "\n".join(f"- {line}" for line in result.skipped) or "Nothing was skipped.",
    ]) + "\n"  # fmt: skip


def picture(result: Result, path: Path) -> None:
    """A panel for each problem: mean error against points a second of all that was tried; the winners ringed."""
    plt = _pyplot()
    names = list(dict.fromkeys(s.problem for s in result.kept))
    rows = -(-len(names) // 4)
    figure, axes = plt.subplots(
        rows, min(4, len(names)), figsize=(13, 3.4 * rows + 0.7), layout="constrained", squeeze=False, sharey=True
    )
    for ax, name in zip(axes.flat, names, strict=False):
        ax.axhspan(1e-9, GOAL, color=GREY, alpha=0.15, linewidth=0)
        ax.axhline(GOAL, color=GREY, linewidth=1)
        _points(ax, [s for s in result.tried if s.problem == name], [s for s in result.kept if s.problem == name])
        ax.set(xscale="log", yscale="log", title=name, xlabel="points a second")
        low, high = ax.get_xlim()
        ticks = [m * 10**k for k in range(1, 6) for m in (1, 3) if low <= m * 10**k <= high]
        ax.set_xticks(ticks, [f"{v:,}" for v in ticks])
        ax.set_xticks([], minor=True)
        ax.title.set_fontsize(10)
    axes[0, 0].set_ylim(1e-7, 3)
    for ax in axes[:, 0]:
        ax.set_ylabel("mean absolute error (nats)")
    marks = [plt.Line2D([], [], linestyle="", marker="o", color=ORANGE, label="sde, closed-form trace")]
    marks += [plt.Line2D([], [], linestyle="", marker="s", color=ORANGE, label="sde, backward passes")]
    marks += [plt.Line2D([], [], linestyle="", marker="o", color=c, label=n) for n, c in COLOURS.items()]
    rest = list(axes.flat)[len(names) :]
    for ax in rest:
        ax.axis("off")
    place = rest[0] if rest else figure
    place.legend(handles=marks, loc="center" if rest else "outside lower center", frameon=False, fontsize=9)
    figure.suptitle(f"Log-likelihood: error against speed; shaded: the goal of {GOAL:.0e} nats; ringed: timed in turns")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _points(ax: Any, tried: list[Score], kept: list[Score]) -> None:
    for s in tried:
        colour = ORANGE if is_ours(s) else COLOURS[s.rule.library.removesuffix(" with an exact trace")]
        mark = "s" if "backward" in s.rule.library or (is_ours(s) and s.problem.startswith("network")) else "o"
        again = [k for k in kept if k.rule is s.rule]
        speed = again[0].speed if again else s.speed
        shown = max(min(s.error, 2.0), 1.5e-7)
        ax.plot(speed, shown, mark, color=colour, markersize=7 if again else 4, alpha=1 if again else 0.45,
                markeredgecolor="black" if again else "none")  # fmt: skip
