"""SEEDS: fitted orders, the published formulas, and noise of the stages that is that of the step."""

import math
from itertools import pairwise

import pytest
import torch

import sde
from sde.checks import affine, ode_order, samples, strong_order, weak_order
from sde.checks.convergence import window
from sde.solvers.exponential.dpm import DPMSolver, DPMSolverPP
from sde.solvers.exponential.seeds import SEEDS

SDES = {"VP": sde.VP(), "EDM": sde.EDM(), "Flow": sde.Flow()}
MIXTURE = sde.Mixture([0.2, 0.3, 0.5], [[-1.5, 0.0], [1.0, 1.0], [0.5, -1.0]], [[0.15, 0.05], [0.05, 0.05], [0.1, 0.3]])
ALL = [(k, predict) for k in (1, 2, 3) for predict in ("x0", "eps")]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def start(batch=4, seed=0):
    return torch.randn(batch, 2, generator=generator(seed), dtype=torch.float64)


def exact(name):
    return sde.ExactScore(MIXTURE, SDES[name])


@pytest.mark.parametrize(("k", "predict"), ALL)
def test_declared_orders(k, predict):
    rule = SEEDS(k, predict)
    assert (rule.order, rule.weak, rule.strong, rule.calls, rule.eta) == (k, min(k, 2), 1.0, k, 1.0)
    assert ode_order(rule, SDES["EDM"]).value == pytest.approx(rule.order, abs=0.1)
    eta = 1.0 if predict == "x0" else 0.5
    assert weak_order(rule, SDES["Flow"], eta).value == pytest.approx(rule.weak, abs=0.1)


def test_strong_order():
    assert strong_order(SEEDS(3), SDES["VP"], 1.0, batch=32).value == pytest.approx(1.0, abs=0.2)


@pytest.mark.nightly
@pytest.mark.parametrize("forward", SDES)
@pytest.mark.parametrize(("k", "predict"), ALL)
def test_all_laws(k, predict, forward):
    sde.checks.solver(SEEDS(k, predict), SDES[forward], etas=(0.5, 1.0, 1.5))


# The published formulas: Gonzalez et al. (2023), 2305.14267, in half log-SNR, noise between the stages' times.


def coefficients(forward, t, s, fractions):
    lam, lam_s = forward.log_snr(t) / 2, forward.log_snr(s) / 2
    inner = [forward.time_at(2 * (lam + r * (lam_s - lam))) for r in fractions]
    return inner, [forward.levels(v) for v in (t, *inner, s)], lam_s - lam


def seeds_2_noise(model, x, t, s, z):
    (m,), ((a, _), (a1, s1), (a2, s2)), h = coefficients(model.sde, t, s, (0.5,))
    eps = model(x, t).eps
    u = a1 / a * x - 2 * s1 * torch.expm1(h / 2) * eps + s1 * torch.expm1(h).sqrt() * z[0]
    noise = (torch.exp(2 * h) - torch.exp(h)).sqrt() * z[0] + torch.expm1(h).sqrt() * z[1]
    return a2 / a * x - 2 * s2 * torch.expm1(h) * model(u, m).eps + s2 * noise


def seeds_3_noise(model, x, t, s, z):
    (m1, m2), ((a, _), (a1, s1), (a2, s2), (a3, s3)), h = coefficients(model.sde, t, s, (1 / 3, 2 / 3))
    part = torch.expm1(2 * h / 3).sqrt()
    eps = model(x, t).eps
    u = a1 / a * x - 2 * s1 * torch.expm1(h / 3) * eps + s1 * part * z[0]
    d1 = model(u, m1).eps - eps
    phi = torch.expm1(2 * h / 3) / (2 * h / 3) - 1
    v = a2 / a * x - 2 * s2 * torch.expm1(2 * h / 3) * eps - 4 * s2 * phi * d1
    v = v + s2 * part * (torch.exp(h / 3) * z[0] + z[1])
    d2 = model(v, m2).eps - eps
    y = a3 / a * x - 2 * s3 * torch.expm1(h) * eps - 3 * s3 * (torch.expm1(h) / h - 1) * d2
    return y + s3 * part * (torch.exp(2 * h / 3) * z[0] + torch.exp(h / 3) * z[1] + z[2])


def seeds_3_data(model, x, t, s, z):
    (m1, m2), ((_, b), (a1, s1), (a2, s2), (a3, s3)), h = coefficients(model.sde, t, s, (1 / 3, 2 / 3))
    part, keep = (-torch.expm1(-2 * h / 3)).sqrt(), torch.exp(-h / 3)
    d = model(x, t).x0
    u = s1 / b * keep * x - a1 * torch.expm1(-2 * h / 3) * d + s1 * part * z[0]
    d1 = model(u, m1).x0 - d
    phi = torch.expm1(-4 * h / 3) / (4 * h / 3) + 1
    v = s2 / b * keep**2 * x - a2 * torch.expm1(-4 * h / 3) * d + 2 * a2 * phi * d1 + s2 * part * (keep * z[0] + z[1])
    d2 = model(v, m2).x0 - d
    y = s3 / b * keep**3 * x - a3 * torch.expm1(-2 * h) * d + 1.5 * a3 * (torch.expm1(-2 * h) / (2 * h) + 1) * d2
    return y + s3 * part * (keep**2 * z[0] + keep * z[1] + z[2])


@pytest.mark.parametrize(
    ("rule", "formula"),
    [(SEEDS(2, "eps"), seeds_2_noise), (SEEDS(3, "eps"), seeds_3_noise), (SEEDS(3), seeds_3_data)],
    ids=["2 noise", "3 noise", "3 data"],
)
@pytest.mark.parametrize("forward", SDES)
def test_the_published_formulas(rule, formula, forward, given_noise):
    model, times = exact(forward), window(SDES[forward], 5)
    draws = [start(seed=k) for k in range(5 * rule.calls)]
    x = start(seed=99)
    ours = sde.integrate(sde.ReverseSDE(model, 1.0), x, times, rule, noise=given_noise(*draws))
    for i, (t, s) in enumerate(pairwise(times)):
        x = formula(model, x, t, s, draws[i * rule.calls :])
    torch.testing.assert_close(ours, x, rtol=1e-10, atol=1e-10)


def test_data_prediction_of_second_order_is_dpm_sde(given_noise):
    times, draws = window(SDES["VP"], 4), [start(seed=k) for k in range(8)]
    flow = sde.ReverseSDE(exact("VP"), 1.0)
    ours, theirs = (
        sde.integrate(flow, start(seed=9), times, rule, noise=given_noise(*draws))
        for rule in (SEEDS(2), DPMSolverPP(2, multistep=False))
    )
    assert torch.equal(ours, theirs)
    flow = sde.ReverseSDE(exact("VP"))
    assert torch.equal(*(sde.integrate(flow, start(), times, rule) for rule in (SEEDS(3, "eps"), DPMSolver(3))))


# The noise of a step.


@pytest.mark.parametrize(("k", "predict"), ALL)
@pytest.mark.parametrize("eta", [0.5, 1.0, 1.7])
def test_the_parts_of_a_steps_noise_have_the_variance_of_the_whole(k, predict, eta):
    """Where the model's estimate does not depend on x, what is left of a step's noise is its Itô integral."""

    class Blind(sde.Wrapper):
        def forward(self, x, t, **cond):
            same = torch.ones_like(x)
            alpha, sigma = self.sde.levels(t)
            if predict == "x0":
                return sde.Point(self.sde, x, t, same)
            return sde.Point(self.sde, x, t, (x - float(sigma) * same) / float(alpha), same)

    model = Blind(exact("VP"))
    times = window(SDES["VP"], 1)
    found = affine(sde.ReverseSDE(model, eta), (2,), times, SEEDS(k, predict)).noise
    h = float(SDES["VP"].log_snr(times).diff()) / 2
    sigma = float(SDES["VP"].levels(times[1])[1])
    whole = 1 - math.exp(-2 * eta**2 * h) if predict == "x0" else eta**2 * math.expm1(2 * h)
    torch.testing.assert_close(found @ found.T, sigma**2 * whole * torch.eye(2).double(), rtol=1e-10, atol=1e-12)


def test_noise_of_its_own_in_the_stages_would_cost_an_order():
    """What diffusers' single-step scheduler does in its SDE version: weak order 1."""

    class Apart(SEEDS):
        def step(self, sde, x, t, s, noise):
            _, _, c, w, carry, n, _, *parts = self.row(sde, t, s)
            whole = math.hypot(n, carry * parts[3])
            model, m = sde.model, self.stage(sde, t, s, 0)
            first = model(x, t).x0
            y = x * parts[0] + parts[1][0] * first + parts[3] * noise.normal(x, t, m)
            return x * c + w[0] * first + w[1] * model(y, m).x0 + whole * noise.fresh(x)

    assert weak_order(Apart(2), SDES["VP"], 1.0).value == pytest.approx(1.0, abs=0.1)
    assert weak_order(SEEDS(2), SDES["VP"], 1.0).value == pytest.approx(2.0, abs=0.1)


# The ends, and everything that calls.


@pytest.mark.parametrize(("k", "predict"), ALL)
@pytest.mark.parametrize(
    ("forward", "times"),
    [("VP", [1.0, 0.6, 0.1, 0.0]), ("EDM", [80.0, 5.0, 0.4, 0.0]), ("Flow", [1.0, 0.7, 0.2, 0.0])],
)
def test_from_alpha_zero_and_to_sigma_zero(k, predict, forward, times):
    model = exact(forward)
    x = model.prior(torch.zeros(6, 2, dtype=torch.float64), generator())
    for eta in (0.0, 1.0):
        flow = sde.ReverseSDE(model, eta)
        *_, before, last = sde.trajectory(flow, x, times, SEEDS(k, predict), generator(1))
        assert before.x.isfinite().all()
        torch.testing.assert_close(last.x, model(before.x, before.t).x0, rtol=1e-12, atol=1e-12)
        assert last.calls == k * (1 if forward == "Flow" else 2) + (2 if forward == "Flow" else 1)


def test_a_sample_does_not_depend_on_its_batch():
    model, solver = exact("VP"), SEEDS(3)
    whole = sde.sample(model, (4, 2), steps=5, solver=solver, generator=[generator(k) for k in range(4)])
    one = sde.sample(model, (1, 2), steps=5, solver=solver, generator=[generator(2)])
    torch.testing.assert_close(whole[2:3], one, rtol=1e-6, atol=1e-6)
    sde.checks.solvers.calls(solver, SDES["VP"])


@pytest.mark.parametrize(("k", "predict", "forward", "steps"), [(2, "x0", "Flow", 40), (3, "x0", "EDM", 32)])
def test_samples_of_a_mixture(k, predict, forward, steps):
    samples(exact(forward), SEEDS(k, predict), steps)


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"order must be 1, 2 or 3, got 0"):
        SEEDS(0)
    with pytest.raises(ValueError, match=r"predict must be x0 or eps, got 'v'"):
        SEEDS(2, "v")
    with pytest.raises(ValueError, match=r"SEEDS needs a scalar SDE, got CLD"):
        sde.sample(sde.ExactScore(MIXTURE, sde.CLD()), (4, 2), solver=SEEDS())
