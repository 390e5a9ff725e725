"""The page and the picture of the benchmark of objectives."""

from __future__ import annotations

import statistics
from pathlib import Path

from benchmarks import harness
from benchmarks.harness import number
from benchmarks.objectives import OURS, POINTS, RATE, Result
from benchmarks.peers import PACKAGES
from benchmarks.pictures import BLUE, GREY, ORANGE, _pyplot
from benchmarks.training import BATCH


def above(result: Result, name: str, way: str) -> float:
    """Median of the negative log-likelihood, above the entropy: no less than 0 but for the test points' chance."""
    return result.median(name, way) - result.least[name]


def best(result: Result, name: str, mine: bool) -> str:
    """The way of ours, or of the peers, with the least median."""
    return min((w for w in result.nats[name] if w.startswith(OURS) == mine), key=lambda w: result.median(name, w))


def report(result: Result) -> str:
    """The Markdown page."""
    names = list(result.nats)
    seeds = max((len(n) for ways in result.nats.values() for n in ways.values()), default=0)
    header = ["way", "steps", *names]
    rows = []
    for way in result.steps:
        cells = [_cell(result.nats[name][way]) for name in names]
        rows.append([f"**{way}**" if way.startswith(OURS) else way, result.steps[way], *cells])
    rows.append(["entropy of the data", "–", *(f"{result.least[name]:.3f}" for name in names)])
    return "\n\n".join([
        "# Negative log-likelihood by objective, equal networks and equal CPU seconds",
        f"{harness.machine()}. Peers: {harness.versions(PACKAGES)}.",
        f"Nats of 2,000 fresh clean points through the learned flow, median of {seeds} seeds and half their range. "
        f"{result.seconds:g} CPU seconds of training each, `sde.nets.MLP` 64 wide and 3 deep, batch {BATCH}, learning "
        f"rate {RATE:g}, {POINTS:,} points. *Bare*: without average of weights and schedule, as the peers are.",
        harness.table(header, rows),
        f"Twice the steps of the ODE change no number by more than {number(result.ode, 1)} nats.",
        "\n".join(_words(result, name) for name in names),
        "![Nats above the entropy of the data](objectives.png)",
        "## Not measured",
        "\n".join(f"- {line}" for line in result.skipped) or "Nothing was skipped.",
    ]) + "\n"  # fmt: skip


def _cell(nats: list[float]) -> str:
    return f"{statistics.median(nats):.3f} ± {(max(nats) - min(nats)) / 2:.3f}"


def _words(result: Result, name: str) -> str:
    mine = best(result, name, mine=True)
    line = f"- {name}: of ours {mine.removeprefix(OURS + ', ')} is best, {above(result, name, mine):.3f} nats above"
    if all(way.startswith(OURS) for way in result.nats[name]):
        return f"{line} the entropy; no peer is installed."
    peer = best(result, name, mine=False)
    return f"{line} the entropy; of the peers {peer}, {above(result, name, peer):.3f} above."


def picture(result: Result, path: Path) -> None:
    """Nats above the entropy: a panel to each data set, a dot to each seed, a bar to the median."""
    plt = _pyplot()
    names, ways = list(result.nats), list(result.steps)
    fig, axes = plt.subplots(
        1, len(names), figsize=(3.4 * len(names) + 1.6, 0.3 * len(ways) + 1.4), sharey=True, layout="constrained",
        squeeze=False,
    )  # fmt: skip
    for ax, name in zip(axes[0], names, strict=True):
        for i, way in enumerate(ways):
            colour = ORANGE if way.startswith(OURS) else BLUE
            ax.barh(i, above(result, name, way), color=colour, height=0.7, alpha=0.75)
            ax.plot([n - result.least[name] for n in result.nats[name][way]], [i] * len(result.nats[name][way]), "k.",
                    markersize=3)  # fmt: skip
        ax.axvline(0, color=GREY, linewidth=0.8)
        ax.set_title(f"{name}\nentropy {result.least[name]:.2f} nats", fontsize=10)
        ax.set_xlabel("nats above the entropy")
    axes[0][0].set_yticks(range(len(ways)), ways, fontsize=8)
    axes[0][0].invert_yaxis()
    fig.suptitle(f"Negative log-likelihood after {result.seconds:g} CPU seconds of training", fontsize=11)
    fig.savefig(path, dpi=110)
    plt.close(fig)
