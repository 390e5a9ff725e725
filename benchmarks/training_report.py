"""The page of the training benchmark."""

from __future__ import annotations

import statistics

from benchmarks import harness
from benchmarks.harness import number
from benchmarks.peers import PACKAGES
from benchmarks.training import BATCH, FUSED, OURS, POINTS, Result


def is_ours(name: str) -> bool:
    return name.startswith(OURS)


def is_peer(name: str) -> bool:
    return not is_ours(name) and not name.startswith("bare loop")


def best_peer(result: Result, goal: float) -> tuple[float, str] | None:
    """The peer that is first at a goal: seconds and name."""
    times = [(t, name) for name in result.errors if is_peer(name)
             and (t := result.seconds_to(name, goal))]  # fmt: skip
    return min(times) if times else None


def report(result: Result) -> str:
    """The Markdown page."""
    rivals = [name for name in result.rates if is_peer(name)]
    header = ["way", "steps / s", "÷ bare fused"]
    for goal in result.goals:
        header += [f"steps to {goal:g}", f"s to {goal:g}", "best peer ÷ this"]
    fastest = max((result.rates[name] for name in rivals), default=None)
    return "\n\n".join([
        "# Training an equal network: 3 → 128 × 3 → 2, eight modes",
        f"{harness.machine()}. Peers: {harness.versions(PACKAGES)}.",
        f"Batch {BATCH}, {POINTS:,} points. Steps a CPU second: best of interleaved turns, the median turn lay "
        f"{result.spread:.0%} above. Quality: sliced W2, median of {_seeds(result)} seeds; two draws of the truth lie "
        f"{result.floor} apart. A bare loop is flow matching in plain torch.",
        harness.table(header, [_row(result, name) for name in sorted(result.rates, key=lambda n: -result.rates[n])]),
        "![Steps a second, and seconds to a quality](training.png)",
        f"The fastest peer makes {number(fastest)} steps a second." if fastest else "No peer is installed.",
        "## Sliced W2 by budget",
        _errors(result),
        "## Not measured",
        "\n".join(f"- {line}" for line in result.skipped) or "Nothing was skipped.",
    ]) + "\n"  # fmt: skip


def _seeds(result: Result) -> int:
    return max((len(rung) for rungs in result.errors.values() for rung in rungs), default=0)


def _row(result: Result, name: str) -> list:
    rate = result.rates[name]
    row = [f"**{name}**" if is_ours(name) else name, number(rate), number(rate / result.rates[FUSED])]
    for goal in result.goals:
        steps, seconds, best = result.steps_to(name, goal), result.seconds_to(name, goal), best_peer(result, goal)
        row += [steps or "–", number(seconds), number(best[0] / seconds) if best and seconds else "–"]
    return row


def _errors(result: Result) -> str:
    """Medians by way and budget; a dash where climbing had stopped."""
    rows = []
    for name, rungs in result.errors.items():
        medians = [number(statistics.median(rung), 2) for rung in rungs]
        rows.append([f"**{name}**" if is_ours(name) else name, *medians, *["–"] * (len(result.ladder) - len(medians))])
    return harness.table(["way", *result.ladder], rows)
