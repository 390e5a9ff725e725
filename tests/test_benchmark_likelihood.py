"""The benchmark of likelihoods: its truths, its ladders, its page and picture."""

from pathlib import Path

import pytest
import torch

import sde

likelihood = pytest.importorskip("benchmarks.likelihood")
from benchmarks import likelihood_peers, likelihood_report  # noqa: E402


@pytest.mark.parametrize("name", [n for n in likelihood.PROBLEMS if not n.startswith("network")])
def test_a_peer_is_given_the_velocity_of_the_model(name: str) -> None:
    p = likelihood.problem(name, 5)
    for t in (p.model.sde.t_min, 0.3, 0.9 * p.end):
        at = torch.tensor(t, dtype=torch.float64)
        torch.testing.assert_close(p.velocity(at, p.x), p.model(p.x, at).velocity, rtol=1e-8, atol=1e-8)


def test_a_peer_is_given_the_bare_network() -> None:
    p = likelihood.problem("network, Flow", 3, steps=5)
    at = torch.tensor(0.4, dtype=torch.float64)
    torch.testing.assert_close(p.velocity(at, p.x), p.model(p.x, at).velocity)


def test_the_truth_of_flow_is_the_data_s_own_density() -> None:
    p = likelihood.problem("ring, Flow", 8)
    torch.testing.assert_close(p.exact, p.model.target.log_prob(p.x))
    assert float((sde.log_prob(p.model, p.x) - p.exact).abs().mean()) < likelihood.GOAL


def rule(library: str, shift: float, ladder: str = "") -> "likelihood.Rule":
    return likelihood.Rule(library, f"off by {shift:g}", lambda p: (p.exact + shift, 7), ladder)


def test_a_ladder_ends_where_the_goal_is_reached_and_one_that_fails_is_a_line(tmp_path: Path) -> None:
    def fails(_: object) -> tuple[torch.Tensor, int]:
        raise TypeError("no such thing")

    p, result = likelihood.problem("ring, VP", 4), likelihood.Result()
    rungs = [rule("zuko", s, "its own") for s in (1e-2, 1e-5, 1e-7)]
    rungs += [likelihood.Rule("flow_matching", "so", fails), rule("k-diffusion", 0.5), rule(likelihood.BEST, 1e-5)]
    likelihood.race(p, rungs, result, rounds=3)
    assert [s.rule.settings for s in result.tried if s.rule.library == "zuko"] == ["off by 0.01", "off by 1e-05"]
    kept = {s.rule.library: s for s in result.kept}
    assert kept["zuko"].error == pytest.approx(1e-5, rel=1e-3)
    assert kept["zuko"].reached
    assert not kept["k-diffusion"].reached
    assert result.skipped == ["flow_matching, so, ring, VP: TypeError: no such thing"]
    page = likelihood_report.report(result)
    assert "| k-diffusion | off by 0.5 | 5.0e-01 | 5.0e-01 | 7 |" in page
    assert "misses" in page
    likelihood_report.picture(result, tmp_path / "likelihood.png")
    assert (tmp_path / "likelihood.png").stat().st_size > 10_000


def test_score_sde_s_formula_with_an_exact_trace_agrees() -> None:
    """The one peer that needs no package but scipy."""
    p = likelihood.problem("ring, VP", 6)
    found = [r for r in likelihood_peers.score_sde(p, (1e-6,)) if "exact" in r.library]
    assert likelihood.tried(p, found[0]).error < 5e-5
    assert likelihood.tried(p, likelihood_peers.score_sde(p, (1e-6,))[0]).error > 1e-2
