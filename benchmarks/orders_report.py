"""The page and the picture of the orders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.orders import KINDS, RULES, STATE, WHATS, WITHIN, Fitted, Result, Rule

TITLES = {"flow": "on the flow", "weak": "in distribution (weak)", "strong": "along one path (strong)"}
WIDTHS = {"flow": 3.0, "weak": 1.35, "strong": 1.35}
LIMITS = {"flow": (0.5, 6.55), "weak": (0.5, 2.5), "strong": (0.2, 1.85)}
# Okabe and Ito (2008).
LOOKS = {
    "VP": ("#0072B2", "o", -0.24),
    "EDM": ("#D55E00", "s", 0.0),
    "Flow": ("#009E73", "^", 0.24),
    "CLD": ("#CC79A7", "D", 0.0),
    "GBM": ("#000000", "*", 0.3),
}
NAMES = {"GBM": "geometric Brownian motion (dotted: declared there)"}

READING = """\
An order on the flow written 3 … 4 is that of the solver's start or last step, and that of the rule itself: a fit may
lie between. Weak orders, and strong ones of rules whose own order is higher, are lower bounds. *Calls* are evaluations
in a step."""

HOW = """\
Runs in float64 between log SNR −3 and 3; grids are refined until the estimate settles.

- *On the flow*: 32 paths of the probability flow of a mixture in the plane, against a fine solve.
- *Weak*: mean and covariance of a Gaussian, carried without samples, at η = 1.
- *Strong*: 256 paths of a mixture's reverse SDE along one Brownian path, at η = 1; 1.5 for SRA1 and SRA3.
- Embedded pairs: equal steps in their own time. AdaptiveHeun: against evaluations as its tolerance falls, 24 paths; its
  weak order is that of Heun, whose steps it takes. Restart: its interval is refined with the grid, at η = 0, as for
  Churn, which brings noise of its own.
- Calls of Picard and Restart are those of their solver, as often as it is run.
- Correctors have no order: their bias does not shrink with the time step. The back ends of scipy and torchdiffeq have
  their methods' own."""


def picture(result: Result, path: Path) -> None:
    """Fitted beside declared: a row for each solver, a panel for each kind of order, a mark for each SDE."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    places, headings = _rows(result)
    bottom = max(places.values()) + 0.8
    figure, axes = plt.subplots(
        1, 3, figsize=(9, 0.19 * bottom + 1.1), sharey=True, layout="constrained",
        width_ratios=[WIDTHS[what] for what in WHATS],
    )  # fmt: skip
    for ax, what in zip(axes, WHATS, strict=True):
        _panel(ax, result, what, places)
        for name, y in headings.items():
            if ax is axes[0]:
                ax.text(
                    -0.03,
                    y,
                    name,
                    transform=ax.get_yaxis_transform(),
                    fontsize=8,
                    weight="bold",
                    ha="right",
                    va="center",
                )
            ax.axhline(y, color="0.85", linewidth=0.6, zorder=0)
    axes[0].set_ylim(bottom, -1)
    axes[0].set_yticks(list(places.values()), list(places), fontsize=7, family="monospace")
    _legend(figure, axes[0], {f.kind for f in result.fits})
    figure.suptitle("Orders of convergence: declared (bars) and fitted (marks)", fontsize=11)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _rows(result: Result) -> tuple[dict[str, float], dict[str, float]]:
    """Where each solver that was fitted and each heading lies."""
    fitted, places, headings, y = {f.rule.name for f in result.fits}, {}, {}, 0.0
    for group, rules in RULES.items():
        headings[group] = y
        for rule in rules:
            if rule.name in fitted:
                y += 1
                places[rule.name] = y
        y += 1.4
    return places, headings


def _panel(ax: Any, result: Result, what: str, places: dict[str, float]) -> None:
    for rule in _rules():
        declared = rule.declared(what)
        fits = [f for f in result.fits if f.rule.name == rule.name and f.what == what]
        if rule.name not in places or not fits:
            continue
        y, most = places[rule.name], rule.most("flow") if what == "flow" else declared
        ax.barh(y, most - declared + 2 * WITHIN, 0.86, declared - WITHIN, color="0.88", zorder=1)
        ax.plot([declared, declared], [y - 0.43, y + 0.43], color="0.35", linewidth=1.2, zorder=2)
        for fit in fits:
            if fit.kind == "GBM" and fit.expected != declared:
                ax.barh(y, 2 * WITHIN, 0.86, fit.expected - WITHIN, color="0.94", zorder=1)
                ax.plot([fit.expected] * 2, [y - 0.43, y + 0.43], ":", color="0.35", linewidth=1.2, zorder=2)
            colour, mark, shift = LOOKS[fit.kind]
            size = 5.5 if mark == "*" else 3.4
            ax.plot(fit.order.value, y + shift, mark, color=colour, markersize=size, markeredgewidth=0, zorder=3)
    low, high = LIMITS[what]
    ax.set_xlim(low, high)
    ticks = [0.5, 1, 1.5] if what == "strong" else range(1, int(high) + 1)
    ax.set_xticks(list(ticks), [f"{t:g}" for t in ticks], fontsize=8)
    ax.grid(axis="x", color="0.92", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.set_title(TITLES[what], fontsize=9)
    ax.set_xlabel("order", fontsize=8)
    ax.tick_params(axis="y", length=0)
    ax.spines[["top", "right", "left"]].set_visible(False)


def _legend(figure: Any, ax: Any, kinds: set[str]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    marks = [
        Line2D([], [], color=c, marker=m, linewidth=0, markersize=6 if m == "*" else 4.5, label=NAMES.get(k, k))
        for k, (c, m, _) in LOOKS.items()
        if k in kinds
    ]
    bars = [
        Line2D([], [], color="0.35", linewidth=1.2, label="declared"),
        Patch(color="0.88", label=f"± {WITHIN:g}, and up to the order of the rule itself"),
    ]
    figure.legend(handles=[*marks, *bars], loc="outside lower center", ncols=3, fontsize=7.5, frameon=False)


def report(result: Result) -> str:
    """The Markdown page."""
    kinds = [kind for kind in KINDS if any(f.kind == kind for f in result.fits)]
    return "\n\n".join([
        "# Orders of convergence, declared and fitted",
        f"{harness.machine()}; {result.seconds:.0f} s.",
        "![Declared and fitted orders of every solver](orders.png)",
        f"{len(result.fits)} fits. {_verdict(result)}",
        READING,
        _table(result, [r for r in _rules() if r not in RULES["matrix SDEs"]], kinds),
        "## Matrix SDEs",
        _table(result, RULES["matrix SDEs"], ["CLD"]),
        "## Noise that depends on the state",
        harness.table(["solver", "strong", "GBM"], [_state(f) for f in result.fits if f.kind == "GBM"]),
        "## How",
        HOW,
    ]) + "\n"  # fmt: skip


def _rules() -> list[Rule]:
    return [rule for rules in RULES.values() for rule in rules]


def _verdict(result: Result) -> str:
    wrong = [f"{f.rule.name} on {f.kind} ({f.what}, {f.order})" for f in result.fits if not f.kept]
    if not wrong:
        return f"All agree with what is declared within {WITHIN:g}."
    return f"{len(wrong)} differ from what is declared: {'; '.join(wrong)}."


def _table(result: Result, rules: Sequence[Rule], kinds: Sequence[str]) -> str:
    header = ["solver", "calls"]
    for what in ("order on the flow", "weak", "strong"):
        header += [what, *kinds]
    rows = [_row(result, rule, kinds) for rule in rules if any(f.rule.name == rule.name for f in result.fits)]
    return harness.table(header, rows)


def _row(result: Result, rule: Rule, kinds: Sequence[str]) -> list[str]:
    several = rule.name.startswith(("Picard", "Restart"))
    row = [f"`{rule.name}`", "–" if several else f"{rule.solver.calls:g}"]
    for what in WHATS:
        declared = rule.declared(what)
        most = rule.most(what) if what == "flow" else declared
        row.append("–" if declared is None else f"{declared:g} … {most:g}" if most != declared else f"{declared:g}")
        fits = [result.of(rule, what, kind) for kind in kinds]
        row += [f"{fit.order.value:.2f}" if fit else "–" for fit in fits]
    return row


def _state(fit: Fitted) -> list[str]:
    return [f"`{fit.rule.name}`", f"{STATE[fit.rule.name]:g}", f"{fit.order.value:.2f}"]
