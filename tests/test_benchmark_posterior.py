"""The benchmark of posterior samplers: its exact laws, its counting, its page and picture."""

from pathlib import Path

import pytest
import torch

import sde

posterior = pytest.importorskip("benchmarks.posterior")
from benchmarks import posterior_report  # noqa: E402


@pytest.mark.parametrize("name", posterior.PROBLEMS)
def test_exact_laws_are_bayes_rule(name: str) -> None:
    """log p(x | y) - log p(x) - log p(y | x) is one number for all x."""
    given = posterior.problem(name, 4)
    x = given.target.sample(6, torch.Generator().manual_seed(0))
    for law, y in zip(given.laws, given.y, strict=True):
        likelihood = sde.inverse.Observation(given.operator, y[None], given.noise).log_likelihood(x)
        rest = law.log_prob(x) - given.target.log_prob(x) - likelihood
        torch.testing.assert_close(rest, rest[:1].expand(6), rtol=1e-6, atol=1e-6)


def test_the_judge_knows_exact_draws_from_the_prior() -> None:
    given = posterior.problem("sum of 2 coordinates", 200)
    judge = posterior.Judge(given)
    assert judge(judge.exact()) <= judge.tie
    assert judge(given.target.sample(given.shape[0], torch.Generator().manual_seed(0))) > 3 * judge.tie


def test_an_evaluation_is_a_pass_forward_or_backward() -> None:
    given = posterior.problem("sum of 2 coordinates", 3)
    x = torch.zeros(5, 2, dtype=torch.float64, requires_grad=True)
    given.target.denoise(x, 1.0, 0.5).sum().backward()
    assert given.target.passes == 10
    torch.testing.assert_close(
        given.target.denoise(x, 1.0, 0.5).detach(), sde.Mixture.denoise(given.target, x.detach(), 1.0, 0.5)
    )


def test_every_method_of_ours_runs_and_keeps_to_its_budget() -> None:
    """Short runs of RePaint take less than it says; a solver with memory may take one more at the start."""
    given = posterior.problem("box of 9 of 16 hidden", 2)
    race = posterior.Race(given)
    for rule in posterior.ours():
        race.run(rule, 40)
    assert not race.skipped
    assert all(s.evaluations <= 41 for s in race.scores)
    assert all(s.evaluations > 30 for s in race.scores if s.method != "RePaint")
    assert {s.method for s in race.scores} >= {"PiGDM", "MMPS", "TMPD", "DPS", "DiffPIR", "DDNM", "MCG", "TDS"}


def test_a_rule_that_fails_is_a_line() -> None:
    race = posterior.Race(posterior.problem("sum of 2 coordinates", 2))

    def fails(*_: object) -> torch.Tensor:
        raise TypeError("no such thing")

    race.run(posterior.Rule("peer", "Method", "so", fails, 1), 10)
    assert race.skipped == ["sum of 2 coordinates: peer Method, so: TypeError: no such thing"]
    assert not race.scores


def test_verdicts() -> None:
    assert posterior_report.verdict(0.05, 0.02, 0.04, 0.06) == "tie"  # neither can be told from exact draws
    assert posterior_report.verdict(0.5, 0.51, 0.04, 0.06) == "tie"
    assert posterior_report.verdict(0.3, 0.5, 0.04, 0.06) == "ahead"
    assert posterior_report.verdict(0.5, 0.3, 0.04, 0.06) == "**behind**"


def test_page_and_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def peers() -> list:
        """One peer, whatever is installed."""
        ours = next(rule for rule in posterior.ours() if rule.method == "DDNM")
        return [posterior.Rule("peer", "DDNM", "theirs", ours.run, 1)]

    monkeypatch.setattr("benchmarks.posterior_peers.PEERS", {"peer": peers})
    result = posterior.measure(posterior.PROBLEMS[:1], (4, 8), 10, only=("DDNM", "DiffPIR"))
    page = posterior_report.report(result)
    for words in ("The best of each side", "| DDNM | one of 2 coordinates | peer |", "*the prior*", "Nothing was skip"):
        assert words in page
    posterior_report.picture(result, tmp_path / "posterior.png")
    assert (tmp_path / "posterior.png").stat().st_size > 10_000
