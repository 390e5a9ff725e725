"""Guidance: law 8, and a guided Gaussian against its exact posterior, by formula and by samples."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import sde
from sde.checks import LawViolation

MEAN = torch.tensor([0.5, -1.0], dtype=torch.float64)
COV = torch.tensor([[1.0, 0.6], [0.6, 0.5]], dtype=torch.float64)
SEEN = torch.tensor([[1.0, -0.5]], dtype=torch.float64)  # y = SEEN x0 + ERROR n
ERROR, Y = 0.3, 1.2


def posterior() -> sde.Gaussian:
    """Law of x0 given y, by the textbook."""
    precision = torch.linalg.inv(COV) + SEEN.T @ SEEN / ERROR**2
    cov = torch.linalg.inv(precision)
    mean = cov @ (torch.linalg.solve(COV, MEAN) + SEEN[0] * Y / ERROR**2)
    return sde.Gaussian(mean, (cov + cov.T) / 2)


class Guided(sde.Wrapper):
    """The model tilted by grad log p_t(y | x): p(y | x_t) = N(SEEN E[x0 | x_t], SEEN Cov[x0 | x_t] SEEN' + ERROR^2)."""

    def forward(self, x: Tensor, t: float | Tensor, **cond: Any) -> sde.Point:
        sigma2, alpha = (torch.as_tensor(c).double().flatten()[0] for c in self._pair(x, t))
        spread = sigma2 * torch.linalg.solve(alpha**2 * COV + sigma2 * torch.eye(2).double(), COV)
        variance = (SEEN @ spread @ SEEN.T + ERROR**2)[0, 0]
        with torch.enable_grad():
            u = x.detach().requires_grad_()
            residual = Y - self.model(u, t).x0 @ SEEN[0]
            (g,) = torch.autograd.grad((-(residual**2) / (2 * variance)).sum(), u)
        return self.model(x, t).tilted(g)

    def _pair(self, x: Tensor, t: float | Tensor) -> tuple[Any, Any]:
        _, alpha, sigma = self.sde.statistic(x, t)
        return sigma**2, alpha


def test_law_8(any_sde: sde.ForwardSDE) -> None:
    sde.checks.guidance(sde.ExactScore(sde.Mixture([0.3, 0.7], [[-1.0, 0.0], [1.0, 0.5]], [0.1, 0.2]), any_sde))


def test_a_guided_gaussian_is_its_posterior(any_sde: sde.ForwardSDE) -> None:
    guided, exact = Guided(sde.ExactScore(sde.Gaussian(MEAN, COV), any_sde)), sde.ExactScore(posterior(), any_sde)
    low, high = any_sde.t_min, any_sde.t_max
    for t in (low, low + 0.3 * (high - low), low + 0.95 * (high - low)):
        x = any_sde.perturb(
            posterior().sample(5, torch.Generator().manual_seed(0)), t, torch.Generator().manual_seed(1)
        ).x
        got, expected = guided(x, t), exact(x, t)
        torch.testing.assert_close(got.x0, expected.x0, rtol=1e-6, atol=1e-6)
        if t == low:  # x - alpha x0 cancels there, and a score has few digits
            continue
        torch.testing.assert_close(got.score, expected.score, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(
            got.velocity, expected.velocity, rtol=1e-5, atol=1e-6 * expected.velocity.abs().max().item()
        )


@pytest.mark.parametrize("forward", [sde.VP(), sde.EDM(), sde.CLD()])
def test_samples_of_a_guided_gaussian_are_its_posteriors(forward: sde.ForwardSDE) -> None:
    n, target = 4000, posterior()
    model = Guided(sde.ExactScore(sde.Gaussian(MEAN, COV), forward))
    x = sde.sample(model, (n, 2), steps=64, solver=sde.Heun(), generator=torch.Generator().manual_seed(0))
    x = x if isinstance(forward, sde.ScalarSDE) else x[:, 0]
    spread = target.cov.diagonal().sqrt()
    # .01: the discretisation, and the start from the unguided prior
    assert bool(((x.mean(0) - target.mean).abs() < (5 / n**0.5 + 0.01) * spread).all())
    assert bool(((x.T.cov() - target.cov).abs() < (5 * (2 / n) ** 0.5 + 0.01) * torch.outer(spread, spread)).all())


def test_cfg_extrapolates_the_score() -> None:
    """Score and eps go w of the way, at any time and in any parameterisation; w = .5 is half way."""
    vp = sde.VP()
    one, all_ = sde.ExactScore(sde.Gaussian([1.0], 0.1), vp), sde.ExactScore(sde.Gaussian([0.0], 1.0), vp)
    x = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    for w in (0.0, 0.5, 1.0, 3.0):
        guided = sde.CFG(one, all_, w)(x, 0.4)
        for name in ("score", "x0", "eps", "velocity"):
            a, b = getattr(all_(x, 0.4), name), getattr(one(x, 0.4), name)
            torch.testing.assert_close(getattr(guided, name), a + w * (b - a))


def test_cfg_of_gaussians_of_one_width_is_a_gaussian_moved_on() -> None:
    """Equal variances: the guided score is that of the mean m_u + w (m_c - m_u), so samples land there."""
    vp, w = sde.VP(), 2.0
    models = [sde.ExactScore(sde.Gaussian([m], 0.25), vp) for m in (1.0, 0.0)]
    x = sde.sample(sde.CFG(*models, w), (4000, 1), steps=32, generator=torch.Generator().manual_seed(0))
    assert x.mean().item() == pytest.approx(w, abs=5 * 0.5 / 4000**0.5 + 0.01)
    assert x.std().item() == pytest.approx(0.5, rel=0.06)


def test_conditions_go_to_the_conditional_model_only() -> None:
    net = sde.nets.MLP(dim=2, classes=3, width=8)
    with torch.no_grad():
        net.outward.weight.normal_()
    model = sde.ScoreModel(net, sde.VP())
    label, x = torch.tensor([0, 1, 2]), torch.randn(3, 2)
    guided = sde.CFG(model, model, 3.0)
    plain, conditional = model(x, 0.5).x0, model(x, 0.5, label=label).x0
    torch.testing.assert_close(guided(x, 0.5, label=label).x0, plain + 3 * (conditional - plain))
    torch.testing.assert_close(
        sde.CFG(model.given(label=label), model, 3.0)(x, 0.5).x0, plain + 3 * (conditional - plain)
    )


def test_guidance_that_changes_something_at_no_strength_is_caught() -> None:
    class Careless(sde.ExactScore):
        calls = 0

        def forward(self, x: Tensor, t: float | Tensor, **cond: Any) -> sde.Point:
            self.calls += 1
            return super().forward(x + 1e-3 * self.calls, t, **cond)

    with pytest.raises(LawViolation, match=r"law 8 is broken by Careless: .*CFG\(scale=1\)"):
        sde.checks.guidance(Careless(sde.Gaussian([0.0, 0.0], 1.0), sde.VP()))


def test_a_wrong_tilt_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def twice(point: sde.Point, g: Tensor) -> sde.Point:
        forward, t = point.sde, point.t
        return sde.Point(forward, point.x, t, point.x0 + 2 * forward.unmean(forward.color(forward.tilt(g, t), t), t))

    monkeypatch.setattr(sde.Point, "tilted", twice)
    for forward in (sde.VP(), sde.CLD()):
        with pytest.raises(LawViolation, match=r"law 8 .*score of tilted\(g\)"):
            sde.checks.guidance(sde.ExactScore(sde.Gaussian([0.0, 0.0], 1.0), forward))


def test_models_of_two_sdes_are_not_mixed() -> None:
    target = sde.Gaussian([0.0], 1.0)
    for one, other in ((sde.VP(), sde.EDM()), (sde.VP(), sde.VP(beta_max=10.0))):
        with pytest.raises(
            ValueError, match=r"conditional and unconditional must share their SDE.*Reschedule\(model, sde\)"
        ):
            sde.CFG(sde.ExactScore(target, one), sde.ExactScore(target, other), 2.0)
    assert sde.CFG(sde.ExactScore(target, sde.VP()), sde.ExactScore(target, sde.VP()), 2.0).sde == sde.VP()


@pytest.mark.parametrize("scale", [math.nan, math.inf])
def test_a_scale_is_a_number(scale: float) -> None:
    model = sde.ExactScore(sde.Gaussian([0.0], 1.0), sde.VP())
    with pytest.raises(ValueError, match="scale must be finite, got"):
        sde.CFG(model, model, scale)
