"""Check that each notebook has the cells of its MyST source and keeps no output, then run it at smoke size.

A notebook is written as MyST Markdown under `notebooks/` and paired with the `.ipynb` beside it, that
students open. `SDE_SMOKE=1` in the environment asks a notebook to train for a few steps only.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def is_source(page: Path) -> bool:
    """Whether a Markdown page is a notebook: its header names a kernel or jupytext."""
    if any(part.startswith((".", "_")) for part in page.relative_to(ROOT).parts):
        return False
    _, *header = page.read_text(encoding="utf-8").split("---\n", 2)
    return len(header) == 2 and ("jupytext:" in header[0] or "kernelspec:" in header[0])


def complaints(source: Path) -> list[str]:
    """What is wrong with the `.ipynb` beside `source`; empty if nothing is."""
    import jupytext

    page = source.relative_to(ROOT).as_posix()
    name = page.removesuffix(".md") + ".ipynb"
    if not (ROOT / name).exists():
        return [f"{name} is missing; run: jupytext --to ipynb {page}"]
    wanted, found = jupytext.read(source).cells, jupytext.read(ROOT / name).cells
    wrong = []
    pairs = zip(wanted, found, strict=False)
    differ = [i for i, (w, f) in enumerate(pairs) if (w.cell_type, w.source) != (f.cell_type, f.source)]
    if differ or len(wanted) != len(found):
        cell = differ[0] if differ else min(len(wanted), len(found))
        wrong.append(f"{name} differs from its source at cell {cell}; run: jupytext --to ipynb {page}")
    if any(c.get("outputs") for c in found):
        wrong.append(f"{name} keeps outputs; run: nbstripout {name}")
    return wrong


def main(args: list[str]) -> int:
    """Check all notebooks, then run them; `args` go to pytest. The exit status is 0 if all is well."""
    sources = [page for page in sorted(ROOT.glob("notebooks/**/*.md")) if is_source(page)]
    if not sources:
        print("notebooks/ holds no notebook: nothing to run")
        return 0
    wrong = [line for source in sources for line in complaints(source)]
    print("\n".join(wrong), end="\n" if wrong else "", file=sys.stderr, flush=True)
    notebooks = [str(n) for n in (source.with_suffix(".ipynb") for source in sources) if n.exists()]
    options = [
        "--nbmake",
        "--nbmake-timeout",
        "600",
        "--timeout",
        "900",
        "--durations",
        "0",
        "-p",
        "no:xdist",
    ]
    run = [sys.executable, "-m", "pytest", *options, *args, *notebooks]
    status = subprocess.run(run, cwd=ROOT, env={"SDE_SMOKE": "1", **os.environ}, check=False).returncode
    return status or int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
