"""The documentation is true: its code runs, its tables say what the classes say, every public name is described."""

import importlib
import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sde

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = [
    ROOT / "README.md",
    *sorted(p for folder in (DOCS, DOCS / "extend", DOCS / "api") for p in folder.glob("*.md")),
]
ROOMS = ["forward", "score", "solvers", "inverse", "distill", "train", "nets", "data", "metrics", "plot", "checks"]
BLOCK = re.compile(r"^```(?:python|\{code-cell\}[^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> Iterator[tuple[int, str]]:
    """Line number and code of each block of a page that claims to run."""
    text = page.read_text(encoding="utf-8")
    for match in BLOCK.finditer(text):
        code = re.sub(r"\A(:[^\n]*)?", "", match[1])
        yield text[: match.start(1)].count("\n"), code


def quick_fit(*args: Any, steps: int = 5000, **kwargs: Any) -> sde.History:
    """`sde.fit` for a few steps: a page must run, not converge."""
    return REAL_FIT(*args, steps=min(steps, 20), **{"progress": False, **kwargs})


REAL_FIT = sde.fit


@pytest.mark.parametrize("page", [p for p in PAGES if list(blocks(p))], ids=name_of)
def test_code_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a page, in order, in one namespace, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sde, "fit", quick_fit)
    namespace: dict[str, Any] = {"__name__": "page"}
    for line, code in blocks(page):
        exec(compile("\n" * line + code, str(page), "exec"), namespace)


def commands() -> list[str]:
    """The command lines that the page of the command line shows as a session."""
    sessions = re.findall(r"^```console\n(.*?)^```$", (DOCS / "cli.md").read_text(encoding="utf-8"), re.M | re.S)
    return [line.removeprefix("$ ") for session in sessions for line in session.splitlines()]


def test_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lines of the page, in order, for a few steps, in an empty folder."""
    from sde.cli import main

    monkeypatch.chdir(tmp_path)
    assert len(commands()) > 3
    for line in commands():
        _, command, *words = shlex.split(line)
        words = [w for w in words if not w.startswith("steps=")] + ["steps=4"]
        if command == "train":
            words += ["resume=false", "data.n=500"]
        assert main([command, *words]) == 0, line


def test_pages_with_code_are_found() -> None:
    running = {name_of(p) for p in PAGES if list(blocks(p))}
    assert {"README.md", "docs/quickstart.md", "docs/extend/sde.md", "docs/extend/solver.md"} <= running


def test_the_program_of_the_readme_has_six_lines() -> None:
    _, code = next(blocks(ROOT / "README.md"))
    assert len([line for line in code.splitlines() if line]) == 6


def rows(page: Path, heading: str) -> list[list[str]]:
    """Cells of the table whose header begins with `heading`, markup removed."""
    lines = page.read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {heading} |"))
    table = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        cells = [c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]]
        table.append([re.sub(r"\[?`(\w+)`(\]\([^)]*\))?", r"\1", c) for c in cells])
    return table


MADE_OF_SOLVERS = {"PredictorCorrector", "Picard", "Restart"}
"""What they declare is their solver's, and said in words."""
OTHERS = {"ScipySolver", "TorchdiffeqSolver"}
"""Their calls are as many as the tolerance asks for."""


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs" / "zoo.md"], ids=name_of)
def test_table_of_solvers(page: Path) -> None:
    table = {row[0]: row for row in rows(page, "solver")}
    shipped = {n for n in sde.__all__ if inspect.isclass(c := getattr(sde, n)) and issubclass(c, sde.Solver)}
    assert table.keys() == shipped - {"Solver", "SelfPaced"}
    for name in table.keys() - MADE_OF_SOLVERS:
        _, _, order, strong, weak, calls, eta, _ = table[name]
        solver = getattr(sde, name)()
        low, _, high = order.partition(" … ")
        written = [None if c == "–" else float(c) for c in (low, high or low, strong, weak, eta)]
        own = solver.nominal or solver.order  # of one that chooses its own steps the rule's order is all there is
        assert written == [solver.order or own, own, solver.strong, solver.weak, solver.eta], name
        assert calls == ("by tolerance" if name in OTHERS else f"{solver.calls:g}"), name


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs" / "zoo.md"], ids=name_of)
def test_tables_of_sdes(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    abstract = {"SDE", "ForwardSDE", "ScalarSDE", "ReverseSDE"}
    shipped = {n for n in sde.__all__ if inspect.isclass(c := getattr(sde, n)) and issubclass(c, sde.SDE)} - abstract
    missing = {n for n in shipped if not re.search(rf"^\| \[?`{n}\b", text, re.MULTILINE)}
    assert not missing


def described(obj: object) -> bool:
    return bool((inspect.getdoc(obj) or "").strip())


def public() -> Iterator[tuple[str, object]]:
    """Every public name of the package, and every public method of a public class that is defined there."""
    for room in ["sde", *(f"sde.{r}" for r in ROOMS), "sde.solvers.grids", "sde.random"]:
        module = importlib.import_module(room)
        own = [n for n, o in vars(module).items() if inspect.isfunction(o) and o.__module__ == room and n[0] != "_"]
        for name in getattr(module, "__all__", own):
            obj = getattr(module, name)
            if inspect.isclass(obj) or inspect.isroutine(obj) or inspect.ismodule(obj):
                yield f"{room}.{name}", obj
            if inspect.isclass(obj):
                methods = [m for m in vars(obj).items() if inspect.isfunction(m[1]) and m[0][0] != "_"]
                yield from ((f"{room}.{name}.{n}", getattr(obj, n)) for n, _ in methods)


def test_every_public_name_is_described() -> None:
    bare = sorted({name for name, obj in public() if not described(obj)})
    assert not bare, f"no docstring: {', '.join(bare)}"


def test_every_room_has_a_page_of_the_reference() -> None:
    pages = (ROOT / "docs" / "api").glob("*.rst")
    shown = {m for p in pages for m in re.findall(r"^\.\. room:: (\S+)$", p.read_text(encoding="utf-8"), re.MULTILINE)}
    assert {f"sde.{r}" for r in ROOMS} <= shown
    homes = {getattr(o, "__module__", "") for o in (getattr(sde, n) for n in sde.__all__) if not inspect.ismodule(o)}
    assert all(any(home == room or home.startswith(room + ".") for room in shown) for home in homes)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    links = [k.replace("_generated/", "../notebooks/") for k in links]  # where a build copies the notebooks to
    gone = [k for k in links if "://" not in k and k[0] != "#" and not (page.parent / k.split("#")[0]).exists()]
    assert not gone


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_page_speaks_plain_text(page: Path) -> None:
    assert "\t" not in page.read_text(encoding="utf-8")
