"""The harness of `make bench`: it runs, its tables are well formed, and everybody solves the same problem."""

import math
import sys
from pathlib import Path

import pytest
import torch

import sde

pytestmark = pytest.mark.filterwarnings("ignore")  # peers warn of their own old habits

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import __main__ as program  # noqa: E402
from benchmarks import (  # noqa: E402
    accuracy,
    accuracy_diffusers,
    accuracy_field,
    accuracy_formulas,
    accuracy_report,
    accuracy_targets,
    harness,
    overhead,
    overhead_report,
    peers,
    pictures,
    problems,
    stochastic,
    stochastic_peers,
    stochastic_report,
    stochastic_wrong,
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


def test_every_loop_with_a_closed_form_was_held_against_it(loops: overhead.Result) -> None:
    rules = ("Euler", "Heun", "DDIM", "Euler–Maruyama", "Ancestral")
    for library, what in (("sde", "integrate, "), ("bare loop", "")):
        checked = {name for name in loops.misfits if f"/ {library} / {what}" in name}
        assert checked == {
            f"{rule} / {library} / {what}{p.name}" for rule in rules for p in (problems.FLOW, problems.VP, problems.EDM)
        }
    exact = [off for name, off in loops.misfits.items() if name.split(" / ")[0] in ("Euler", "Heun", "DDIM")]
    assert max(exact) < 1e-4


def test_ours_and_the_bare_loop_of_the_default_reach_the_same_state() -> None:
    x = problems.start(50)
    with torch.no_grad():
        found = {c.name: c.make(12)() for c in [*overhead.bare(x), *overhead.ours(x)] if c.group == "Multistep"}
    for problem in (problems.FLOW, problems.VP, problems.EDM):
        bare, ours = (found[f"Multistep / {name}{problem.name}"] for name in ("bare loop / ", "sde / integrate, "))
        torch.testing.assert_close(bare, ours)


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


def test_targets_are_those_that_were_committed() -> None:
    scales = {
        "ring": 1.005,
        "pair": 1.758,
        "fine": 0.5465,
        "nested": 0.6043,
        "large": 39.9,
        "small": 0.01876,
        "spiral": 1.269,
        "squares": 1.418,
        "broad": 1.047,
        "tails": 1.015,
        "sixteen": 1.046,
        "sixty-four": 1.628,
    }
    assert {name: float(f"{make().scale:.4g}") for name, make in accuracy_targets.TARGETS.items()} == scales
    assert accuracy_targets.SEEDS["start"] == 20260
    assert accuracy_targets.SEEDS["unseen"] == tuple(range(501, 513))


@pytest.mark.parametrize("kind", accuracy.KINDS)
def test_peers_are_given_the_denoiser_of_the_exact_model(kind: str) -> None:
    given = accuracy_targets.problem("spiral", kind, 20)
    field, t = accuracy_field.Field(given), 0.3
    alpha, sigma = map(float, given.forward.levels(t))
    expected = given.model(given.x, t).x0
    torch.testing.assert_close(field.denoise(given.x / alpha, sigma / alpha), expected, rtol=0, atol=1e-12)
    quick = accuracy.Counted(accuracy_field.Quick(given.model.target), given.forward)
    torch.testing.assert_close(quick(given.x, t).x0, expected, rtol=0, atol=1e-12)
    assert field.calls == quick.calls == 1


@pytest.mark.parametrize("kind", accuracy.KINDS)
def test_reference_of_a_gaussian_is_its_closed_form(kind: str) -> None:
    cov = torch.tensor([[2.0, 0.6], [0.6, 0.5]], dtype=torch.float64)
    law = sde.Mixture([1.0], [[3.0, -1.0]], cov[None])
    given = accuracy_targets.Problem("gaussian", kind, law, torch.randn(30, 2, dtype=torch.float64))
    field, at = accuracy_field.Field(given), accuracy_targets.standard(law)
    v, axes = torch.linalg.eigh(at.covs[0])
    # Along each axis the flow multiplies by the ratio of standard deviations; the mean of the standardised law is 0.
    ratio = ((v + field.low**2) / (v + field.high**2)).sqrt()
    expected = field.shrink * (field.y @ axes * ratio) @ axes.T
    torch.testing.assert_close(accuracy_field.truth(given), expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", accuracy_field.GRIDS)
def test_grids_fall_from_end_to_end(name: str) -> None:
    for kind in accuracy.KINDS:
        field = accuracy_field.Field(accuracy_targets.problem("tails", kind, 2))
        levels = field.grid(name, 7)
        assert levels.shape == (8,)
        assert bool((levels.diff() < 0).all())
        assert (float(levels[0]), float(levels[-1])) == (field.high, field.low)


@pytest.mark.parametrize("form", accuracy_field.FORMS, ids=lambda form: form.name)
def test_forms_of_the_flow_have_one_solution(form: accuracy_field.Form) -> None:
    given = accuracy_targets.problem("broad", "VP", 5)
    field = accuracy_field.Field(given)
    end = accuracy_field.by_scipy(field, "DOP853", 1e-10, form)
    torch.testing.assert_close(field.shrink * end, accuracy_field.truth(given), rtol=0, atol=1e-6)


def test_formulas_are_those_of_diffusers() -> None:
    """Of two who wrote them from the papers: multistep and singlestep DPM-Solver, and Heun in sigma."""
    field = accuracy_field.Field(accuracy_targets.problem("broad", "VP", 20))
    theirs = {rule.name: rule for rule in accuracy_diffusers.diffusers()}
    mine = {rule.name: rule for rule in accuracy_formulas.dpm_solver() + accuracy_formulas.edm()}
    pairs = {
        "multistep 2, dpmsolver": "DPMSolverMultistepScheduler 2 dpmsolver midpoint",
        "multistep 2, dpmsolver++": "DPMSolverMultistepScheduler 2 dpmsolver++ midpoint",
        "multistep 2, dpmsolver++, taylor": "DPMSolverMultistepScheduler 2 dpmsolver++ heun",
        "multistep 3, dpmsolver": "DPMSolverMultistepScheduler 3 dpmsolver heun",
        "multistep 3, dpmsolver++": "DPMSolverMultistepScheduler 3 dpmsolver++ heun",
        "singlestep 3, dpmsolver++, taylor": "DPMSolverSinglestepScheduler 3 dpmsolver++ heun",
        "Heun": "HeunDiscreteScheduler",
    }
    for one, other in pairs.items():
        levels = field.grid("log", 13)
        # diffusers rounds a few of its coefficients to float32.
        torch.testing.assert_close(mine[one].run(field, levels), theirs[other].run(field, levels), rtol=0, atol=1e-4)


def test_nobody_makes_more_evaluations_than_the_budget() -> None:
    field = accuracy_field.Field(accuracy_targets.problem("broad", "EDM", 3))
    rules = accuracy_formulas.dpm_solver() + accuracy_formulas.edm() + accuracy_diffusers.diffusers()
    for rule in (rule for rule in rules if isinstance(rule, accuracy.Rule)):
        for budget in (5, 10):
            if rule.steps(budget):
                field.begin()
                rule.run(field, field.grid(rule.grids[0], rule.steps(budget)))
                assert budget - 3 <= field.calls <= budget, rule.name


def test_a_configuration_far_behind_is_not_run_further() -> None:
    runs = {"a | x | log": [(20, 1.0, 1.0)], "a | y | log": [(20, 9.0, 1.0)], "b | z | log": [(20, 50.0, 1.0)],
            "b | w | log": [(20, 90.0, 1.0)], "a | late | log": [(50, 0.1, 0.1)]}  # fmt: skip
    assert accuracy.near(runs, list(runs), 20) == ["a | x | log", "a | y | log", "b | z | log"]


def test_accuracy_page_and_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accuracy, "rivals", lambda skipped: accuracy_formulas.edm())
    few = {"targets": ("ring",), "unseen": ("unseen 3",), "budgets": (5, 10), "batch": 20}
    result = accuracy.measure(**few, cache=None)
    assert len(result.seen.cells) == len(result.unseen.cells) == 4
    assert all(cell.calls <= cell.budget for cell in result.seen.cells)
    assert all(cell.best.startswith("EDM | ") for cell in result.seen.cells)
    # `sample` standardises by itself: on the target as it was written it makes the same error.
    assert all(math.isclose(cell.raw, cell.error, rel_tol=1e-6) for cell in result.seen.cells)
    rows = cells(accuracy_report.report(result))
    assert sum(row[0] in ("ring", "unseen 3") and len(row) == 10 for row in rows) == 8
    pictures.accuracies(result, tmp_path / "c.png")
    assert (tmp_path / "c.png").stat().st_size > 10_000


def test_kept_errors_come_back(tmp_path: Path) -> None:
    rules = [accuracy.Rule(name, "r", lambda field, levels: field.y, grids=("log",)) for name in accuracy.OFFERED]
    options = {"budgets": (5,), "batch": 4, "cache": tmp_path}
    first = accuracy.measured("broad", "VP", rules=rules, **options)
    again = accuracy.measured("broad", "VP", rules=[], **options)
    assert again.runs == {name: [(0, *(float(f"{v:.4g}") for v in run[0][1:]))] for name, run in first.runs.items()}
    torch.testing.assert_close(again.truth, first.truth)
    assert not accuracy.measured("broad", "VP", rules=[], fresh=True, **options).runs


def test_ruler_of_sliced_distances() -> None:
    law = sde.Mixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], [0.04, 0.04])
    ruler = stochastic.Ruler(law, 0.1, 2000)
    shift = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert ruler.floor < ruler.tie < 0.2
    assert math.isclose(ruler(ruler.exact(2000) + shift), 5 / math.sqrt(2), rel_tol=0.05)
    assert ruler(torch.full((2000, 2), math.nan)) == math.inf


def test_stochastic_page_and_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        stochastic_peers, "PEERS", {"score_sde": stochastic_peers.score_sde, "EDM": stochastic_peers.edm}
    )
    few = [one for one in stochastic.SOLVERS if one.name in ("", "Ancestral", "PredictorCorrector")]
    monkeypatch.setattr(stochastic, "SOLVERS", few)
    monkeypatch.setattr(stochastic_wrong, "SOLVERS", [*few, stochastic.Ours("DDIM", "DDIM")])
    wrong = {
        "targets": ("ring",),
        "budgets": (6,),
        "training": (5,),
    }
    small = {"targets": ("ring",), "budgets": (6,), "samples": 200, "final_samples": 300, "wrong_samples": 200}
    result = stochastic.measure(**small, wrong_options=wrong)
    assert not result.skipped
    assert {score.library for score in result.scores} == {"sde", "score_sde (formulas)", "EDM (formula)"}
    assert all(math.isfinite(score.distance) for score in result.scores)
    cells(stochastic_report.report(result))
    pictures.distances(result, tmp_path / "d.png")
    assert (tmp_path / "d.png").stat().st_size > 10_000
