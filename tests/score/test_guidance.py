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


# One call for both halves.


class Counting(torch.nn.Module):
    """A net that counts its calls and their samples; with a part that depends on each row's label."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.inner = sde.nets.MLP(dim=2, classes=classes, width=16)
        torch.nn.init.normal_(self.inner.outward.weight)
        self.classes, self.calls = classes, []

    def forward(self, x: Tensor, c: Tensor, label: Tensor | None = None) -> Tensor:
        self.calls.append(len(x))
        return self.inner(x, c, label)


def two_calls(guided: sde.CFG, x: Tensor, t: float | Tensor) -> sde.Point:
    return guided.unconditional(x, t).lerp(guided.model(x, t), guided.scale)


PARAMS = ("edm", "eps", "velocity")


@pytest.mark.parametrize("param", PARAMS)
def test_one_call_of_twice_the_batch_equals_two(any_sde: sde.ForwardSDE, param: str) -> None:
    if not isinstance(any_sde, sde.ScalarSDE) and param in ("velocity", "score"):
        pytest.skip("a matrix SDE has no such network")
    net = Counting()
    model = sde.ScoreModel(net, any_sde, param, mean=[0.5, -1.0], scale=1.5).double()
    label = torch.tensor([0, 2, 1, 2])
    low, high = any_sde.t_min, any_sde.t_max
    mid, each = 0.5 * (low + high), torch.linspace(low, 0.9 * high, 4, dtype=torch.float64)
    x = any_sde.perturb(torch.randn(4, 2, dtype=torch.float64), mid).x
    for bare in (model, model.given(label=torch.full((4,), 3)), model.given(label=torch.tensor([1, 0, 0, 1]))):
        guided = sde.CFG(model.given(label=label), bare, 2.5)
        for t in (mid, torch.tensor(mid), each):
            net.calls.clear()
            got = guided(x, t)
            assert net.calls == [8]
            expected = two_calls(guided, x, t)
            assert net.calls == [8, 4, 4]
            for name in ("x0", "eps", "velocity"):
                torch.testing.assert_close(getattr(got, name), getattr(expected, name), rtol=1e-9, atol=1e-9)
        guided_table = sde.sample(guided, x=x, times=[mid, 0.8 * mid, 0.6 * mid], progress=False)
        plain = sde.sample(Twice(guided), x=x, times=[mid, 0.8 * mid, 0.6 * mid], progress=False)
        torch.testing.assert_close(guided_table, plain, rtol=1e-8, atol=1e-8)


class Twice(sde.Wrapper):
    """Guidance as it is written down, with times as tensors."""

    def __init__(self, guided: sde.CFG) -> None:
        super().__init__(guided)

    def forward(self, x: Tensor, t: float | Tensor, **cond: Any) -> sde.Point:
        assert isinstance(self.model, sde.CFG)
        return two_calls(self.model, x, t)


def test_what_cannot_be_asked_at_once_is_asked_twice() -> None:
    """Labels of another kind, networks of their own, the same network asked in another way."""
    net, label, x = Counting(), torch.tensor([0, 1]), torch.randn(2, 2)
    model = sde.ScoreModel(net, sde.VP())
    others = (
        model.given(label=torch.tensor([0, 1], dtype=torch.int32)),
        sde.ScoreModel(net, model.sde, "v"),
        sde.ScoreModel(net, model.sde, scale=2.0),
        sde.Reschedule(model, model.sde),
    )
    for other in others:
        guided = sde.CFG(model.given(label=label), other, 2.0)
        net.calls.clear()
        got = guided(x, 0.4)
        assert net.calls == [2, 2]
        torch.testing.assert_close(got.x0, two_calls(guided, x, 0.4).x0)
    with pytest.raises(ValueError, match=r"label has shape \(3,\), expected \(2,\)"):
        sde.CFG.of(model, 2.0, label=torch.tensor([0, 1, 2]))(x, 0.4)


def test_no_guidance_asks_one_model_only() -> None:
    """Law 8, to the bit."""
    net, label, x = Counting(), torch.tensor([0, 1]), torch.randn(2, 2)
    model = sde.ScoreModel(net, sde.VP())
    for scale, expected in ((1.0, model.given(label=label)), (0.0, model)):
        net.calls.clear()
        got = sde.CFG.of(model, scale, label=label)(x, 0.4)
        assert net.calls == [2]
        assert torch.equal(got.x0, expected(x, 0.4).x0)
        assert torch.equal(got.score, expected(x, 0.4).score)


def test_labels_given_in_the_call_and_given_before() -> None:
    model = sde.ScoreModel(Counting(), sde.VP())
    label, x = torch.tensor([0, 1]), torch.randn(2, 2)
    expected = sde.CFG.of(model, 3.0, label=label)(x, 0.4).x0
    assert torch.equal(sde.CFG(model, model, 3.0)(x, 0.4, label=label).x0, expected)
    nested = sde.CFG(model.given(label=label.flip(0)).given(label=label), model, 3.0)
    assert torch.equal(nested(x, 0.4).x0, expected)
    other = sde.CFG.of(model, 3.0, label=label.flip(0))  # as with `given`, what is said last counts
    assert torch.equal(other(x, 0.4, label=label).x0, expected)
    with pytest.raises(ValueError, match="a condition is missing: pass label="):
        sde.CFG.of(model, 3.0)


def test_a_run_in_parallel_asks_once_as_well() -> None:
    """Its copies of a model share the network."""
    net = Counting()
    guided = sde.CFG.of(sde.ScoreModel(net, sde.VP()), 2.0, label=torch.tensor([0, 1]))
    start = torch.randn(2, 2)
    one = sde.sample(guided, x=start, steps=8, solver=sde.Picard(sde.DDIM(), tolerance=1e-6), progress=False)
    assert all(calls % 4 == 0 for calls in net.calls)  # two samples, two halves, some steps at once
    torch.testing.assert_close(one, sde.sample(guided, x=start, steps=8, solver=sde.DDIM()), atol=1e-4, rtol=1e-4)


# The interval.


def test_outside_of_the_interval_is_the_conditional_model(any_sde: sde.ForwardSDE) -> None:
    """By the noise level sigma / alpha of the statistic, low < level <= high; floats, tensors, nodes."""
    one, all_ = (sde.ExactScore(sde.Gaussian(m, 0.25), any_sde) for m in ([1.0, 0.0], [0.0, 0.0]))
    times = torch.linspace(any_sde.t_min, any_sde.t_max, 7, dtype=torch.float64)[1:-1]
    alpha, sigma = any_sde.rates_of_statistic(times)[:2]
    levels = (sigma / alpha).tolist()
    x = any_sde.perturb(torch.randn(5, 2, dtype=torch.float64), times).x
    guided = sde.CFG(one, all_, 3.0, interval=(levels[0] * (1 + 1e-9), levels[3] * (1 + 1e-9)))  # (0, 3]
    everywhere = sde.CFG(one, all_, 3.0)
    together = guided(x, times)
    for k, t in enumerate(times):
        expected = (everywhere if 1 <= k <= 3 else one)(x, t)
        for got in (guided(x, float(t)), guided(x, t)):
            assert torch.equal(got.x0, expected.x0)
        torch.testing.assert_close(together.x0[k], expected.x0[k])
        torch.testing.assert_close(together.eps[k], expected.eps[k], rtol=1e-6, atol=1e-7)
    grid = times.flip(0)
    pieces = [one, everywhere, everywhere, everywhere]  # steps of one evaluation, at the node they begin from
    y = expected = x
    for model, t, s in zip(pieces, grid[:-1], grid[1:], strict=True):
        expected = sde.integrate(sde.ReverseSDE(model), expected, [t, s], sde.Euler())
    y = sde.integrate(sde.ReverseSDE(guided), y, grid, sde.Euler())
    torch.testing.assert_close(y, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("interval", [(1.0, 1.0), (2.0, 1.0), (-1.0, 1.0), (math.nan, 1.0)])
def test_an_interval_is_two_noise_levels(interval: tuple[float, float]) -> None:
    model = sde.ExactScore(sde.Gaussian([0.0], 1.0), sde.VP())
    with pytest.raises(ValueError, match=r"interval must be noise levels sigma / alpha with 0 <= low < high, got"):
        sde.CFG(model, model, 2.0, interval=interval)


# What guidance is, in closed form.


@pytest.mark.parametrize("w", [0.5, 2.0, 4.0])
def test_a_guided_gaussian_is_the_product_of_powers_at_each_time(any_sde: sde.ForwardSDE, w: float) -> None:
    """p_u^(1 - w) p_c^w of N(a m, a^2 C + s^2): precisions add with the powers as weights, and so do P m."""
    c_u, c_c = torch.tensor([[2.0, 0.3], [0.3, 1.5]]).double(), torch.tensor([[1.0, 0.6], [0.6, 0.5]]).double()
    m_u, m_c = torch.tensor([0.2, 0.0]).double(), torch.tensor([0.5, -1.0]).double()
    guided = sde.CFG(
        sde.ExactScore(sde.Gaussian(m_c, c_c), any_sde), sde.ExactScore(sde.Gaussian(m_u, c_u), any_sde), w
    )
    low, high = any_sde.t_min, any_sde.t_max
    for t in (low + 0.2 * (high - low), low + 0.8 * (high - low)):
        x = any_sde.perturb(torch.randn(6, 2, dtype=torch.float64), t).x
        y, alpha, sigma = any_sde.statistic(x, t)
        a, s = float(torch.as_tensor(alpha).flatten()[0]), float(torch.as_tensor(sigma).flatten()[0])
        p_u, p_c = (torch.linalg.inv(a**2 * c + s**2 * torch.eye(2).double()) for c in (c_u, c_c))
        precision = (1 - w) * p_u + w * p_c
        mean = torch.linalg.solve(precision, a * ((1 - w) * p_u @ m_u + w * p_c @ m_c))
        score_of_y = -(y - mean) @ precision
        x0 = (y + s**2 * score_of_y) / a  # Tweedie
        torch.testing.assert_close(guided(x, t).x0, x0, rtol=1e-7, atol=1e-7)


def test_where_a_guided_gaussian_ends() -> None:
    """Its flow is linear: x - m_t is carried by the exponential of an integral, known in closed form.

    N(0, a) guided away from N(0, b) on VE: d log x / d sigma = sigma ((1 - w) / (b + sigma^2) + w / (a + sigma^2)), so
    that the end has variance Smax^2 (b / (b + Smax^2))^(1 - w) (a / (a + Smax^2))^w, and not that of N_a^w N_b^(1 - w).
    """
    a, b, w, ve = 0.25, 1.0, 3.0, sde.EDM(sigma_max=80.0)
    guided = sde.CFG(sde.ExactScore(sde.Gaussian([0.0], a), ve), sde.ExactScore(sde.Gaussian([0.0], b), ve), w)
    start = torch.tensor([[100.0]], dtype=torch.float64)
    times = sde.grids.log_snr(ve, 200)
    end = sde.sample(guided, x=start, times=times, solver=sde.RK4(), progress=False)
    big, small = 80.0**2, float(times[-1]) ** 2
    factor = ((b + small) / (b + big)) ** ((1 - w) / 2) * ((a + small) / (a + big)) ** (w / 2)
    assert (end / start).item() == pytest.approx(factor, rel=1e-5)
    flowed, tilted = factor**2 * big, 1 / (w / a + (1 - w) / b)
    assert flowed == pytest.approx(b ** (1 - w) * a**w, rel=1e-2)  # a geometric mean of variances: 1 / 64
    assert tilted == pytest.approx(0.1, rel=1e-9)


def test_autoguidance_is_the_same_line() -> None:
    vp = sde.VP()
    good, weak = sde.ExactScore(sde.Gaussian([1.0], 0.1), vp), sde.ExactScore(sde.Gaussian([0.8], 0.3), vp)
    x = torch.randn(5, 1)
    guided = sde.Autoguidance(good, weak, 2.0, interval=(0.1, 1.0))
    assert torch.equal(guided(x, 0.2).x0, sde.CFG(good, weak, 2.0)(x, 0.2).x0)
    assert torch.equal(guided(x, 0.9).x0, good(x, 0.9).x0)
    with pytest.raises(ValueError, match="model and weaker must share their SDE"):
        sde.Autoguidance(good, sde.ExactScore(weak.target, sde.EDM()), 2.0)


class Unstable(sde.Wrapper):
    """A model whose estimate runs away."""

    def forward(self, x: Tensor, t: float | Tensor, **cond: Any) -> sde.Point:
        return sde.Point(self.sde, x, t, 1e200 * x)


def test_a_run_that_explodes_names_the_guidance() -> None:
    model = sde.ExactScore(sde.Gaussian([0.0, 0.0], 1.0), sde.VP())
    guided = sde.CFG(Unstable(model), model, 7.5)
    with pytest.raises(
        ValueError, match=r"not finite under CFG\(scale=7.5\): use a scale below 7.5, or guidance in an i"
    ):
        sde.sample(guided, (2, 2), steps=4, progress=False)
    with pytest.raises(ValueError, match=r"CFG\(scale=3, interval=\(0.1, 9.0\)\): use a scale below 3, or a narrower"):
        sde.sample(sde.CFG(Unstable(model), model, 3.0, interval=(0.1, 9.0)).given(), (2, 2), steps=4, progress=False)
    with pytest.raises(ValueError, match=r"under Product\(weights=\[4.0, -3.0\]\): use weights nearer to 0 than 4"):
        sde.sample(sde.Product([Unstable(model), model], [4.0, -3.0]), (2, 2), steps=4, progress=False)


SOLVERS = {
    "default": None,
    "Euler": sde.Euler(),
    "Heun": sde.Heun(),
    "DDIM": sde.DDIM(),
    "Ancestral": sde.Ancestral(),
    "DPM++": sde.DPMSolverPP(2),
    "PredictorCorrector": sde.PredictorCorrector(sde.ReverseDiffusion()),
    "Restart": sde.Restart(sde.Heun(), [sde.Interval(0.3, 0.6)]),
    "AdaptiveHeun": sde.AdaptiveHeun(rtol=0.2),
    "DormandPrince": sde.DormandPrince(rtol=1e-3),
    "Picard": sde.Picard(),
}


class As(sde.Wrapper):
    """An exact model, on another's grids: solvers ask a model for the scale and mean of its data."""

    def __init__(self, exact: sde.Model, like: sde.Model) -> None:
        super().__init__(exact)
        self.like = like

    def forward(self, x: Tensor, t: float | Tensor, **cond: Any) -> sde.Point:
        return self.model(x, t)

    def data_scale(self) -> float:
        return self.like.data_scale()

    def data_mean(self) -> Tensor | None:
        return self.like.data_mean()


def rules(forward: sde.ForwardSDE) -> dict[str, tuple[sde.Model, sde.Gaussian]]:
    """Every rule beside the Gaussian that it makes of others, at every t."""
    cov = torch.tensor([[0.3, 0.1], [0.1, 0.2]]).double()
    sides = [sde.ExactScore(sde.Gaussian([m, 0.0], cov), forward) for m in (-1.0, 1.0)]
    both, bayes = sde.Blend(sides, [0.3, 0.7]), sde.BayesClassifier(sides, [0.3, 0.7])
    return {
        "CFG": (sde.CFG(sides[1], sides[0], 1.5), sde.Gaussian([2.0, 0.0], cov)),
        "classifier": (sde.ClassifierGuidance(both, bayes, torch.ones(4, dtype=torch.int64)), sides[1].target),
        "product": (sde.Product(sides, [0.25, 0.75]), sde.Gaussian([0.5, 0.0], cov)),
        "temperature": (sde.Temperature(sides[1], 0.5), sde.Gaussian([1.0, 0.0], 0.5 * cov)),
    }


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("forward", [sde.VP(), sde.Flow(), sde.CLD()], ids=lambda f: type(f).__name__)
def test_every_solver_takes_every_guided_model(forward: sde.ForwardSDE, name: str) -> None:
    """A rule that makes a Gaussian is sampled as that Gaussian is, sample by sample."""
    solver, matrix = SOLVERS[name], not isinstance(forward, sde.ScalarSDE)
    if matrix and name in ("DDIM", "DPM++", "AdaptiveHeun", "Picard", "DormandPrince"):
        pytest.skip("for scalar SDEs, or slow")
    times = torch.linspace(0.9, 0.05, 13, dtype=torch.float64)
    start = forward.perturb(torch.zeros(4, 2, dtype=torch.float64), 0.9, torch.Generator().manual_seed(1)).x
    for rule, (model, target) in rules(forward).items():
        expected, got = (
            sde.sample(m, x=start, times=times, solver=solver, generator=torch.Generator().manual_seed(0))
            for m in (As(sde.ExactScore(target, forward), model), model)
        )
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5, msg=lambda m, rule=rule: f"{rule}: {m}")
