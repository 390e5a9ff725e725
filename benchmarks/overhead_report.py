"""The page of the loop benchmark: a summary, what is lost, every loop."""

from __future__ import annotations

from benchmarks import harness
from benchmarks.harness import number
from benchmarks.overhead import BARE, GROUPS, OURS, SETTINGS, TEXTBOOK, Result, kind_of
from benchmarks.peers import PACKAGES


def summary(result: Result) -> list[dict]:
    """For each rule, setting and size: the bare loop of that setting, ours, and the quickest peer of its kind."""
    rows = []
    for group in GROUPS:
        for problem, *_ in SETTINGS:
            kind = kind_of(problem)
            for size in result.sizes:
                (integrated, _), (sampled, _) = (
                    result.of(size, group=group, library=OURS, what=f"{call}, {problem.name}")[0]
                    for call in ("integrate", "sample")
                )
                rivals = result.rivals(size, group=group, kind=kind)
                floor = result.of(size, group=group, library=BARE, what=problem.name)
                rows.append({
                    "group": group, "setting": problem.name, "size": size, "floor": floor[0][0] if floor else None,
                    "integrate": integrated, "sample": sampled, "best": rivals[0][0] if rivals else None,
                    "peer": f"{rivals[0][1].library} {rivals[0][1].what}" if rivals else "–",
                })  # fmt: skip
    return rows


def reached(rows: list[dict], size: int) -> str:
    """One line: where the loop stays within 1.5 times the bare one."""
    lines = []
    for group in ("Euler", "DDIM", "Multistep"):
        ratios = [
            f"{row['setting']} {row['integrate'] / row['floor']:.2f}"
            for row in rows
            if row["group"] == group and row["size"] == size and row["floor"]
        ]
        lines.append(f"{group}: {'; '.join(ratios)}")
    return f"`sde.integrate` ÷ bare loop at {size} evaluations. " + ". ".join(lines) + "."


def losses(result: Result) -> list[list]:
    """Every setting of ours that some peer is quicker than, of whatever kind."""
    rows = []
    for group in GROUPS:
        for size in result.sizes:
            rivals = result.rivals(size, group=group)
            for time, mine in result.of(size, group=group, library=OURS):
                if rivals and rivals[0][0] < time:
                    ahead = len({c.library for t, c in rivals if t < time})
                    best, peer = rivals[0]
                    words = [group, mine.what, f"{peer.library} {peer.what}"]
                    rows.append([*words, size, number(time), number(best), ahead])
    return rows


def report(result: Result) -> str:
    """The Markdown page."""
    header = ["rule", "setting", "evaluations", "bare loop", "sde.integrate", "÷ bare", "sde.sample",
              "best peer of its kind", "µs", "peer ÷ integrate", "peer ÷ sample"]  # fmt: skip
    found = summary(result)
    rows = [
        [
            row["group"], row["setting"], row["size"], number(row["floor"]), number(row["integrate"]),
            number(row["integrate"] / row["floor"]) if row["floor"] else "–", number(row["sample"]),
            row["peer"], number(row["best"]), *(
                number(row["best"] / row[call]) if row["best"] else "–" for call in ("integrate", "sample")
            ),
        ]
        for row in found
    ]  # fmt: skip
    (textbook, _), *_ = result.of(result.sizes[-1], library=TEXTBOOK)
    lost = losses(result)
    return "\n\n".join([
        "# Overhead of the loop: CPU µs per evaluation",
        f"{harness.machine()}. Peers: {harness.versions(PACKAGES)}.",
        "State 1000 × 2, a network that returns its input, least of interleaved turns; the median turn lay "
        f"{result.spread:.0%} above the least. The bare loop is the same rule on the same problem, by hand and with "
        "Python numbers (`benchmarks/overhead_bare.py`): its numbers are ready before it starts, where ours are made "
        f"in the run. Euler's as a textbook writes it, x + h * f(x), takes {number(textbook)}.",
        reached(found, result.sizes[-1]),
        "## Summary",
        harness.table(header, rows, left=2),
        "![Overhead relative to the bare loop](overhead.png)",
        f"## Where a peer is quicker, of any kind: {len(lost)} of {_count(result)} settings",
        harness.table(
            ["rule", "sde", "quickest peer", "evaluations", "sde, µs", "peer, µs", "peers ahead"], lost, left=3
        )
        if lost
        else "None.",
        "## Every loop",
        _everything(result),
        "## Not measured",
        "\n".join(f"- {line}" for line in result.skipped) or "Nothing was skipped.",
        f"{len(result.misfits)} loops were held against the end state that a textbook gives; all arrived.",
    ]) + "\n"  # fmt: skip


def _count(result: Result) -> int:
    rated = {group for group in GROUPS if result.rivals(result.sizes[0], group=group)}
    return len(result.sizes) * sum(c.library == OURS and c.group in rated for c in result.candidates)


def _everything(result: Result) -> str:
    rows = []
    for group in GROUPS:
        floor = [pairs[0][0] if (pairs := result.of(n, group=group, library=BARE)) else None for n in result.sizes]
        for _, c in result.of(result.sizes[0], group=group):
            times = [result.micros[c.name, size] for size in result.sizes]
            library = f"**{c.library}**" if c.library == OURS else c.library
            ratio = number(times[-1] / floor[-1]) if floor[-1] else "–"
            rows.append([group, c.kind, library, c.what, *map(number, times), ratio])
    sizes = [f"{n} evaluations" for n in result.sizes]
    return harness.table(["rule", "kind", "library", "function", *sizes, "÷ bare"], rows, left=4)
