"""The set-up does what README and CONTRIBUTING promise: pins, make targets, kind errors."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
PINNED = ["test", "lint", "docs", "notebooks", "images", "video", "bench"]

needs_make = pytest.mark.skipif(
    shutil.which("make") is None or sys.platform == "win32", reason="needs make and a POSIX shell"
)


def pins() -> dict[str, str]:
    """Name and version of each line of constraints.txt; a line that is no exact pin fails."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    matches = [re.fullmatch(r"([a-z0-9-]+)==([0-9][0-9a-z.]*)", line) for line in lines if line[:1] not in ("#", "")]
    assert all(matches), "constraints.txt holds exact pins only: no hosts, paths, markers or build labels"
    return {m[1]: m[2] for m in matches if m}


def test_every_dependency_is_pinned_at_a_version_that_pyproject_allows() -> None:
    pinned = pins()
    for line in [*PROJECT["dependencies"], *(line for extra in PINNED for line in EXTRAS[extra])]:
        need = Requirement(line)
        name = canonicalize_name(need.name)
        if name == "sde":  # one extra within another, which is among those that are looked at
            assert need.extras <= {*PINNED}
            continue
        assert name in pinned, f"{name} is not pinned: run make constraints"
        assert need.specifier.contains(pinned[name]), f"{line} does not allow {name}=={pinned[name]}"


def test_pins_suit_the_oldest_python() -> None:
    oldest = PROJECT["requires-python"].removeprefix(">=") + ".0"
    for name in pins():
        try:
            wants = metadata.metadata(name).get("Requires-Python")
        except metadata.PackageNotFoundError:  # of an extra that is not installed here
            continue
        assert SpecifierSet(wants or "").contains(oldest), f"{name} wants Python {wants}"


def test_a_dependency_is_named_once() -> None:
    core = {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]}
    for extra, lines in EXTRAS.items():
        assert not core & {canonicalize_name(Requirement(line).name) for line in lines}, extra


def test_hooks_have_the_pinned_versions() -> None:
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    found = re.findall(r'"(ruff|nbstripout)==([^"]+)"', hooks)
    assert {name for name, _ in found} == {"ruff", "nbstripout"}
    assert all(pins()[name] == version for name, version in found)


def test_console_script_is_the_command_line() -> None:
    (script,) = metadata.entry_points(group="console_scripts", name="sde")
    assert script.value == "sde.cli:main"


def test_changelog_has_one_unreleased_section() -> None:
    assert (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").count("\n## [Unreleased]\n") == 1


def test_ci_calls_the_targets_that_the_readme_names() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for target in ("test", "lint", "docs", "notebooks"):
        assert re.search(rf"^step {target}( |$)", script, re.MULTILINE)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the files that make reads."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def make(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Run make in `folder`, as from a fresh shell."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(["make", *args], cwd=folder, env=env, capture_output=True, text=True, timeout=60)


def script(path: Path, text: str) -> Path:
    """An executable shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


@needs_make
def test_a_second_run_installs_nothing(checkout: Path) -> None:
    log = checkout / "log"
    script(checkout / ".venv" / "bin" / "python", f'echo "$@" >> "{log}"')

    def installs(target: str) -> int:
        log.write_text("", encoding="utf-8")
        assert make(checkout, target).returncode == 0
        return log.read_text(encoding="utf-8").count("pip install")

    assert installs("test") == 1
    assert installs("test") == 0
    assert installs("demo") == 1
    assert installs("demo") == 0
    for name in ("pyproject.toml", "constraints.txt"):
        later = (checkout / ".venv" / ".stamp-test").stat().st_mtime + 5
        os.utime(checkout / name, (later, later))
        assert installs("test") == 1
        os.utime(checkout / ".venv" / ".stamp-test", (later + 1, later + 1))
        assert installs("test") == 0


@needs_make
def test_a_failed_installation_leaves_no_stamp(checkout: Path) -> None:
    script(checkout / ".venv" / "bin" / "python", 'case "$*" in *install*) exit 1;; esac')
    done = make(checkout, "test")
    assert done.returncode != 0
    assert "PIP_FLAGS" in done.stderr
    assert "distclean" in done.stderr
    assert not (checkout / ".venv" / ".stamp-test").exists()


@needs_make
def test_a_failing_test_fails_make(checkout: Path) -> None:
    script(checkout / ".venv" / "bin" / "python", 'case "$*" in *pytest*) exit 1;; esac')
    assert make(checkout, "test").returncode != 0


@needs_make
@pytest.mark.parametrize(
    ("python", "remedy"),
    [
        ("exit 1", "sde needs Python 3.11 or newer, and PYTHON="),
        ('case "$*" in *venv*) exit 1;; esac', "sudo apt install python3-venv"),
    ],
    ids=["too old", "without venv"],
)
def test_a_python_that_will_not_do_gets_a_remedy(checkout: Path, python: str, remedy: str) -> None:
    done = make(checkout, "test", f"PYTHON={script(checkout / 'mine', python)}")
    assert done.returncode != 0
    assert remedy in done.stderr
    assert not (checkout / ".venv").exists()


@needs_make
def test_an_environment_of_an_old_python_gets_a_remedy(checkout: Path) -> None:
    script(checkout / ".venv" / "bin" / "python", 'case "$*" in *version_info*) exit 1;; esac')
    done = make(checkout, "test")
    assert done.returncode != 0
    assert "make distclean" in done.stderr


@needs_make
def test_help_is_the_default_and_names_every_target(checkout: Path) -> None:
    done = make(checkout)
    targets = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert done.returncode == 0
    assert targets
    assert re.findall(r"^  (\w+) ", done.stdout, re.MULTILINE) == targets[1].split()


@needs_make
def test_ci_runs_every_step_and_fails_if_one_does(tmp_path: Path) -> None:
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    steps = "test lint docs notebooks"
    recipe = '\n\t@echo $@ >> log; test "$@" != "$(BAD)"\n'
    (tmp_path / "Makefile").write_text(f"{steps}:{recipe}", encoding="utf-8")
    for bad in ("", *steps.split()):
        (tmp_path / "log").write_text("", encoding="utf-8")
        done = subprocess.run(["bash", ".ci/run"], cwd=tmp_path, env={**os.environ, "BAD": bad}, capture_output=True)
        assert (done.returncode != 0) == bool(bad)
        assert sorted((tmp_path / "log").read_text(encoding="utf-8").split()) == sorted(steps.split())
