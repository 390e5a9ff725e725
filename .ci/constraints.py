"""Write `constraints.txt`: the exact versions in this environment, without hosts, paths or build labels."""

from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = ("test", "lint", "docs", "notebooks", "images", "video", "bench")
HEAD = """\
# The versions that continuous integration uses. A constraint installs nothing: it says which version.
# Written by `make constraints`: edit pyproject.toml, not this file. The label of a build (+cpu) is left out,
# so that torch is the CPU build wherever the index in use offers it.
"""


def closure(root: str, extras: tuple[str, ...]) -> dict[str, Distribution]:
    """All installed distributions that `root` with `extras` needs, by canonical name."""
    found: dict[str, Distribution] = {}
    todo, seen = [(root, frozenset(extras))], set()
    while todo:
        name, wanted = todo.pop()
        if (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        found[name] = distribution(name)
        for line in found[name].requires or []:
            need = Requirement(line)
            if need.marker is None or any(need.marker.evaluate({"extra": e}) for e in ("", *wanted)):
                todo.append((canonicalize_name(need.name), frozenset(need.extras)))
    del found[root]
    return found


def main() -> None:
    """Write the file."""
    pins = {name: dist.version.split("+")[0] for name, dist in closure("sde", EXTRAS).items()}
    text = HEAD + "".join(f"{name}=={pins[name]}\n" for name in sorted(pins))
    (ROOT / "constraints.txt").write_text(text, encoding="utf-8")
    print(f"constraints.txt pins {len(pins)} distributions")


if __name__ == "__main__":
    main()
