"""The harness of `make bench`: it runs, its tables are well formed, and everybody solves the same problem."""

import math
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.filterwarnings("ignore")  # peers warn of their own old habits

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import __main__ as program  # noqa: E402
from benchmarks import (  # noqa: E402
    harness,
    overhead,
    overhead_report,
    peers,
    pictures,
    problems,
    training,
    training_report,
)


def cells(page: str) -> list[list[str]]:
    """Rows of all tables of a page, checked to be as wide as their headers."""
    rows, width = [], 0
    for line in page.splitlines():
        if not line.startswith("|"):
            width = 0
            continue
        row = [cell.strip() for cell in line.strip("|").split("|")]
        width = width or len(row)
        assert len(row) == width, line
        rows.append(row)
    return rows


@pytest.fixture(scope="module")
def loops() -> overhead.Result:
    with peers.quiet():
        return overhead.measure(sizes=(4, 8), rounds=1, batch=500, at_least=0.0)


def test_every_loop_of_ours_with_a_closed_form_was_held_against_it(loops: overhead.Result) -> None:
    rules = ("Euler", "Heun", "DDIM", "Euler–Maruyama", "Ancestral")
    checked = {name for name in loops.misfits if "/ sde / integrate" in name}
    assert checked == {
        f"{rule} / sde / integrate, {p.name}" for rule in rules for p in (problems.FLOW, problems.VP, problems.EDM)
    }
    exact = [off for name, off in loops.misfits.items() if name.split(" / ")[0] in ("Euler", "Heun", "DDIM")]
    assert max(exact) < 1e-4


def test_ours_and_the_bare_loop_reach_the_same_state() -> None:
    x = problems.start(50)
    with torch.no_grad():
        (bare,) = [c for c in overhead.bare(x) if c.group == "Euler"]
        (mine,) = [c for c in overhead.ours(x) if c.group == "Euler" and c.what == "integrate, Flow, velocity"]
        # The bare loop runs from 1 to 0 and ours to .05, each by its own equal steps of the same linear equation.
        for candidate, last in ((bare, 0.0), (mine, 0.05)):
            torch.testing.assert_close(candidate.make(20)(), x * (1 - (1 - last) / 20) ** 20)


def test_a_loop_that_solves_something_else_is_found_out() -> None:
    x = problems.start(500)
    wrong = overhead.Candidate("DDIM", "net", "sde", "wrong", lambda n: lambda: 1.01 * x, truth=lambda n: (1.0, 0.0))
    with pytest.raises(AssertionError, match="another problem"):
        overhead._arrives(wrong, x, {}, [])


def test_a_peer_that_fails_or_is_absent_is_skipped_with_a_line() -> None:
    def absent() -> list[int]:
        return [peers.bring("a_peer_that_nobody_has_written").x]

    def broken() -> list[int]:
        return [1 // 0]

    skipped: list[str] = []
    assert peers.collect({"a": absent, "b": lambda: [2], "c": broken}, skipped) == [2]
    assert skipped[0].startswith("a: not installed")
    assert skipped[1].startswith("c: failed with ZeroDivisionError")


def test_stand_ins_serve_a_peer_and_vanish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needy_peer.py").write_text("from image_tools_nobody_has import crop\nvalue = 3\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert peers.bring("needy_peer").value == 3
    assert "image_tools_nobody_has" not in sys.modules


def test_loop_page_and_picture(loops: overhead.Result, tmp_path: Path) -> None:
    page = overhead_report.report(loops)
    rows = cells(page)
    named = {row[3] for row in rows if len(row) == 7}
    assert {c.what for c in loops.candidates} <= named
    assert all(math.isfinite(loops.micros[c.name, size]) for c in loops.candidates for size in loops.sizes)
    assert str(ROOT) not in page
    pictures.loops(loops, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_training_page_and_picture(tmp_path: Path) -> None:
    result = training.measure(steps=2, rounds=1, seeds=2, ladder=[2, 4], goals=(1e6, 1e-6), samples=200)
    rows = cells(training_report.report(result))
    assert {name for name in result.rates if name.startswith("sde")} <= {row[0].strip("*") for row in rows}
    assert all(result.steps_to(name, 1e6) == 2 for name in result.errors)
    assert all(result.steps_to(name, 1e-6) is None for name in result.errors)
    pictures.fits(result, tmp_path / "b.png")
    assert (tmp_path / "b.png").stat().st_size > 10_000


def test_training_gives_everybody_the_same_network() -> None:
    weights = [list(training.seeded(3).parameters()) for _ in range(2)]
    assert [tuple(w.shape) for w in weights[0]] == [
        (128, 3),
        (128,),
        (128, 128),
        (128,),
        (128, 128),
        (128,),
        (2, 128),
        (2,),
    ]
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_turns_keep_the_least_and_repeat_what_is_short() -> None:
    ticks = iter(float(i) for i in range(100))
    turns = harness.interleave({"a": lambda: None}, rounds=3, at_least=2.0, clock=lambda: next(ticks))
    assert turns["a"].seconds == [0.5, 0.5, 0.5]  # a tick a call of the clock, two repeats a turn
    assert harness.Turns([3.0, 1.0, 2.0]).least == 1.0


def test_numbers() -> None:
    assert [harness.number(v) for v in (0.01234, 5.678, 123.4, 0.0, None)] == ["0.0123", "5.68", "123", "0", "–"]
    with pytest.raises(ValueError, match="2 cells"):
        harness.table(["a", "b"], [[1]])


def test_an_unknown_benchmark_is_named_with_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        program.main(["speeed"])
    assert "choose from overhead, training" in capsys.readouterr().err
