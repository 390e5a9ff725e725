"""`sde list`: everything that has a name, a line each."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

from sde import train
from sde.cli.choice import arguments
from sde.cli.mistakes import unknown
from sde.cli.names import TABLES
from sde.cli.parse import RECIPES

TITLES = {
    "sde": "forward SDEs",
    "solver": "solvers",
    "data": "data sets",
    "net": "networks",
    "loss": "losses",
    "weight": "weights over noise levels",
    "times": "distributions of training times",
    "coupling": "couplings of noise and data",
    "grid": "time grids",
    "method": "methods of `sde restore`",
    "recipe": "recipes, for `sde train`",
    "pretrained": "trained networks, for `sde sample` and `sde plot`",
}


def listing(argv: Sequence[str]) -> int:
    """Run the command; 0 if all went well."""
    kinds = list(TITLES)
    asked = [word.lower().removesuffix("s") if word.lower() not in kinds else word.lower() for word in argv]
    for word in asked:
        if word not in kinds:
            raise unknown("kind", word, kinds)
    for kind in asked or kinds:
        print(f"{TITLES[kind]}:")
        own = {"recipe": recipes, "pretrained": trained}.get(kind)
        for name, *lines in own() if own else [(n, *about(kind, n)) for n in TABLES[kind]]:
            print(f"  {name:<18} {lines[0]}", *lines[1:], sep=f"\n  {'':<18} ")
        print()
    return 0


def about(kind: str, name: str) -> list[str]:
    """First line of its docstring; its arguments with their defaults, if it has any."""
    thing = TABLES[kind][name]
    document = inspect.getdoc(thing() if thing.__name__ == "<lambda>" else thing) or ""
    given = [
        p.name if p.default is p.empty else f"{p.name}={_short(p.default)}" for p in arguments(kind, name).values()
    ]
    return [document.split("\n")[0], *([", ".join(given)] if given else [])]


def recipes() -> list[tuple[str, str]]:
    """Name and first comment of each shipped recipe."""
    return [(p.stem, p.read_text(encoding="utf-8").split("\n")[0].lstrip("# ")) for p in sorted(RECIPES.glob("*.toml"))]


def trained() -> list[tuple[str, str]]:
    """Name and note of each network that comes with the package."""
    return [(name, str(train.note(path).get("about", ""))) for name, path in train.shipped().items()]


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
