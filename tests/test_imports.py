"""The rooms of the package import each other in one direction only, and `import sde` is quick.

    fused < shape, random, nodes < forward < score < solvers < inverse, metrics < checks < cli
                           forward < score < train              (train never imports solvers)
                                   solvers, train < distill

Nets, data and plot are leaves: of the other rooms they import only the first three. Nothing imports cli.
"""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SDE = Path(__file__).resolve().parent.parent / "sde"

BASE = {"fused", "shape", "random", "nodes"}
MODELS = BASE | {"forward", "score"}
LEAVES = {"nets", "data"}
MAY_IMPORT = {
    "fused": set(),
    "shape": {"fused"},
    "random": {"shape"},
    "nodes": {"shape"},
    "nets": BASE,
    "data": BASE,
    "plot": BASE,
    "forward": BASE,
    "score": BASE | {"forward"},
    "train": MODELS | LEAVES,
    "solvers": MODELS,
    "inverse": MODELS | {"solvers"},
    "distill": MODELS | {"solvers", "train"},
    "metrics": MODELS | LEAVES | {"solvers"},
}
MAY_IMPORT["checks"] = set(MAY_IMPORT) - {"plot", "distill"}
MAY_IMPORT["cli"] = {*MAY_IMPORT, "plot", "sde"}
MAY_IMPORT["sde"] = set(MAY_IMPORT) - {"cli"}
MAY_IMPORT["__main__"] = {"cli"}

# Inside functions only. A manifest names public classes of `sde`, which whoever loads it looks up by then.
MAY_IMPORT_LAZILY = {"checks": {"plot", "sde"}, "train": {"sde"}}

# What `import sde` may bring with it. Everything else is imported where it is used, inside functions.
AT_THE_TOP = {*sys.stdlib_module_names, "torch", "numpy"}


@dataclass(frozen=True)
class Import:
    """One imported module: its full name, where it is imported, and whether only when a function runs."""

    module: str
    line: int
    lazy: bool


def is_typing_only(node: ast.AST) -> bool:
    """Whether `node` is `if TYPE_CHECKING:`, whose body never runs."""
    return isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


def names(node: ast.AST, package: str) -> list[str]:
    """The modules that one statement or call imports, relative names resolved against `package`."""
    match node:
        case ast.Import():
            return [alias.name for alias in node.names]
        case ast.ImportFrom():
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            origin = ".".join([*above, *filter(None, [node.module])])
            return [f"sde.{alias.name}" for alias in node.names] if origin == "sde" else [origin]
        case ast.Call(args=[ast.Constant(value=str(name)), *_]) if "import" in ast.unparse(node.func):
            return [name]
    return []


def imports(node: ast.AST, package: str, lazy: bool = False) -> Iterator[Import]:
    """Every import below `node` that can ever run."""
    if is_typing_only(node):
        return
    yield from (Import(name, node.lineno, lazy) for name in names(node, package))
    lazy = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    for child in ast.iter_child_nodes(node):
        yield from imports(child, package, lazy)


def room_of(module: str) -> str:
    """The room of a module of `sde`; the package itself is the room `sde`."""
    inner = module.split(".")[1:]
    return inner[0] if inner and inner[0] in MAY_IMPORT else "sde"


def complaint(found: Import, room: str) -> str:
    """Why `room` must not import what it does, or nothing."""
    top = found.module.split(".")[0]
    if top == "sde":
        target = room_of(found.module)
        allowed = {room, *MAY_IMPORT[room], *(MAY_IMPORT_LAZILY.get(room, ()) if found.lazy else ())}
        return "" if target in allowed - ({"sde"} if room == "sde" else set()) else f"{room} must not import {target}"
    if room == "nets" and top not in AT_THE_TOP - {"numpy"}:
        return f"nets needs torch alone, not {top}"
    if room != "cli" and not found.lazy and top not in AT_THE_TOP:
        return f"{top} is imported by every `import sde`: import it inside the function that uses it"
    return ""


def complaints(source: str, module: str, is_package: bool = False) -> list[str]:
    """What the imports of one file do that they must not, a line each."""
    package = module if is_package else module.rpartition(".")[0]
    found = imports(ast.parse(source), package)
    return [f"line {f.line}: {why}" for f in found if (why := complaint(f, room_of(module)))]


def files() -> list[str]:
    """All files of the package, as names relative to it."""
    return sorted(p.relative_to(SDE).as_posix() for p in SDE.rglob("*.py"))


@pytest.mark.parametrize("name", files())
def test_file_keeps_to_its_room(name: str) -> None:
    parts = ["sde", *Path(name).with_suffix("").parts]
    is_package = parts[-1] == "__init__"
    module = ".".join(parts[:-1] if is_package else parts)
    assert complaints((SDE / name).read_text(encoding="utf-8"), module, is_package) == []


def test_every_room_is_in_the_table() -> None:
    rooms = {Path(name).parts[0].removesuffix(".py") for name in files()}
    unknown = rooms - MAY_IMPORT.keys() - {"__init__"}
    assert not unknown, f"add {unknown} to MAY_IMPORT, and say there what each may import"


def test_table_has_no_cycle() -> None:
    left = {room: set(needs) for room, needs in MAY_IMPORT.items() if room not in {"sde", "cli", "__main__"}}
    while left:
        free = {room for room, needs in left.items() if not needs & left.keys()}
        assert free, f"these rooms import each other in a circle: {sorted(left)}"
        left = {room: needs for room, needs in left.items() if room not in free}


FORBIDDEN = [
    ("sde.forward.zoo", "from sde.score import Point"),
    ("sde.forward.zoo", "from ..score.model import ScoreModel"),
    ("sde.forward.zoo", "from .. import solvers"),
    ("sde.forward.zoo", "from sde import solvers"),
    ("sde.forward.zoo", "def f():\n    import sde.solvers.grids"),
    ("sde.forward.zoo", "import sde"),
    ("sde.forward.zoo", "from sde import VP"),
    ("sde.shape", "from .random import randn"),
    ("sde.score.model", "import importlib\nimportlib.import_module('sde.solvers')"),
    ("sde.score.model", "from sde.train import fit"),
    ("sde.train.fit", "def f():\n    from sde.solvers import sample"),
    ("sde.train.fit", "import sde"),
    ("sde.nets.mlp", "from sde.forward import VP"),
    ("sde.nets.mlp", "import numpy as np"),
    ("sde.nets.mlp", "def f():\n    import diffusers"),
    ("sde.plot.points", "from sde.solvers import Trajectory"),
    ("sde.plot.points", "import matplotlib.pyplot as plt"),
    ("sde.plot.points", "class A:\n    from scipy import stats"),
    ("sde.plot.points", "try:\n    import PIL\nexcept ImportError:\n    pass"),
    ("sde.metrics.swd", "def f():\n    from sde.plot import scatter"),
    ("sde.checks.laws", "from sde.plot import scatter"),
    ("sde.solvers.solver", "from sde.cli import main"),
    ("sde.train.fit", "def f():\n    from sde.distill import consistency"),
    ("sde.checks.laws", "from sde.distill import Multistep"),
    ("sde.solvers.solver", "def f():\n    from sde import distill"),
    ("sde.metrics.swd", "from sde.distill import jump"),
    ("sde.inverse.edit", "from sde.distill.jump import jump"),
    ("sde.distill.engine", "from sde.inverse import encode"),
    ("sde.distill.engine", "from sde.metrics import wasserstein"),
    ("sde.distill.engine", "def f():\n    from sde.nets import MLP"),
    ("sde.random", "from tqdm.auto import tqdm"),
]
ALLOWED = [
    (
        "sde.forward.zoo",
        "import math\nimport numpy\nimport torch\nfrom .scalar import ScalarSDE\nfrom ..shape import expand",
    ),
    (
        "sde.forward.zoo",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from sde.score import ScoreModel",
    ),
    ("sde.solvers.solver", "from sde import random, shape\nfrom sde.score.model import ScoreModel"),
    ("sde.metrics.swd", "def f():\n    import ot"),
    ("sde.train.checkpoint", "def f():\n    import sde"),
    ("sde.checks.laws", "def f():\n    from sde.plot import scatter"),
    ("sde.cli.demo", "import tyro\nimport sde\nfrom sde.plot import scatter"),
]


@pytest.mark.parametrize(("module", "source"), FORBIDDEN)
def test_checker_sees_a_forbidden_import(module: str, source: str) -> None:
    assert complaints(source, module)


@pytest.mark.parametrize(("module", "source"), ALLOWED)
def test_checker_lets_an_allowed_import_pass(module: str, source: str) -> None:
    assert complaints(source, module) == []


def test_checker_resolves_relative_imports_of_a_package() -> None:
    assert complaints("from .score import ScoreModel", "sde.forward", is_package=True) == []
    assert complaints("from ..score import ScoreModel", "sde.forward", is_package=True)
    assert complaints("from .cli import main", "sde", is_package=True)
    assert complaints("from .forward import VP\nfrom . import plot", "sde", is_package=True) == []


def run(*args: str) -> subprocess.CompletedProcess[str]:
    """Run this Python in a process of its own, which keeps compiled modules as a user's does."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, check=True, timeout=60, env=env)


def test_import_costs_a_tenth_of_a_second_over_torch() -> None:
    """The least of a few runs counts, since a busy machine can only add to it."""
    seconds = []
    for _ in range(7):
        log = run("-X", "importtime", "-c", "import torch; import sde").stderr
        (cumulative,) = re.findall(r"^import time: +\d+ \| +(\d+) \| sde$", log, re.MULTILINE)
        seconds.append(int(cumulative) / 1e6)
        if seconds[-1] <= 0.1:
            break
    assert min(seconds) <= 0.1, (
        f"import sde takes {min(seconds):.3f} s over torch; see: python -X importtime -c 'import sde'"
    )


def test_import_brings_nothing_heavy() -> None:
    code = "import sys, torch; before = set(sys.modules); import sde; print(*sorted(set(sys.modules) - before))"
    brought = {name.split(".")[0] for name in run("-c", code).stdout.split()}
    assert "sde" in brought
    assert brought <= AT_THE_TOP | {"sde"}


def test_import_leaves_the_global_state_alone() -> None:
    code = (
        "import torch, random; torch.manual_seed(5); random.seed(5); "
        "a = torch.get_rng_state(), random.getstate(); "
        "d = torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(); import sde; "
        "assert torch.equal(a[0], torch.get_rng_state()) and a[1] == random.getstate(); "
        "assert d == (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled())"
    )
    run("-c", code)
