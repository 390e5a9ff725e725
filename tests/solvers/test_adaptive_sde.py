"""The adaptive reverse SDE: its algorithm, its Brownian paths, its samples, and what it refuses."""

import math

import pytest
import torch

import sde
from sde.checks import samples
from sde.solvers.adaptive.embedded import DormandPrince
from sde.solvers.adaptive.stochastic import AdaptiveHeun, OwnPaths

ELLIPSE = sde.Gaussian([2.0, -1.0], [[0.5, 0.2], [0.2, 0.1]])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def generators(seeds):
    return [generator(seed) for seed in seeds]


def whole(forward, end=None):
    return torch.tensor([forward.t_max, forward.t_min if end is None else end], dtype=torch.float64)


def run(process, x, times, solver, noise):
    key = "noise" if isinstance(noise, sde.Noise) else "generator"
    return list(sde.trajectory(process, x, times, solver, **{key: noise}))


class Watching(sde.Wrapper):
    """A model that notes when it was asked, and has no answer at some times."""

    def __init__(self, model, lost=None):
        super().__init__(model)
        self.asked, self.lost = [], lost

    def forward(self, x, t, **cond):
        point = self.model(x, t, **cond)
        self.asked.append(torch.as_tensor(t).expand(len(x)))
        if self.lost is None:
            return point
        return sde.Point(self.sde, x, t, torch.where(self.lost(self.asked[-1])[:, None], math.nan, point.x0))


# The algorithm.


def test_it_is_the_authors_algorithm(given_noise):
    """Algorithm 1 by hand, in t with f, g and the score, on a run without rejections: what follows one is ours."""
    vp = sde.VP()
    model = sde.ExactScore(ELLIPSE, vp)
    x = x_hand = model.prior(torch.zeros(1, 2, dtype=torch.float64), generator())
    draws = [torch.randn(1, 2, generator=generator(k), dtype=torch.float64) for k in range(400)]
    rtol, atol, theta, r = 0.3, 0.4, 0.05, 0.6

    f, g = lambda x, t: -(0.1 + 19.9 * t) * x / 2, lambda t: math.sqrt(0.1 + 19.9 * t)
    score = lambda x, t: model(x, t).score  # noqa: E731
    t, h, before, taken = 1.0, 0.01 * 0.9, x_hand, []
    while t > 0.1 + 1e-12:
        z = draws[len(taken)]
        euler = x_hand - h * f(x_hand, t) + h * g(t) ** 2 * score(x_hand, t) + math.sqrt(h) * g(t) * z
        s = t - h
        second = x_hand - h * f(euler, s) + h * g(s) ** 2 * score(euler, s) + math.sqrt(h) * g(s) * z
        improved = (euler + second) / 2
        delta = (rtol * torch.maximum(euler.abs(), before.abs())).clamp_min(atol)
        error = float(((euler - improved) / delta).norm() / math.sqrt(2))
        assert error <= 1, "the comparison ends at a rejection"
        x_hand, before, t = improved, euler, s
        taken.append(h)
        h = min(t - 0.1, theta * h * error**-r)

    solver = AdaptiveHeun(rtol, atol, safety=theta, exponent=r, growth=math.inf, time="t")
    states = run(
        sde.ReverseSDE(model, 1.0), x, torch.tensor([1.0, 0.1], dtype=torch.float64), solver, given_noise(*draws)
    )
    assert states[-1].rejected == 0
    assert states[-1].accepted == len(taken) > 5
    assert states[-1].calls == 2 * len(taken)
    torch.testing.assert_close(states[-1].x, x_hand, rtol=1e-9, atol=1e-9)


def test_steps_grow_no_faster_than_they_may():
    """Brownian motion has no error: .1, .2, .4 and the rest."""
    motion = sde.BrownianMotion()
    end = run(motion, torch.zeros(2, 1), torch.tensor([0.0, 1.0]), AdaptiveHeun(first=0.1, growth=2.0), generator())[-1]
    assert end.calls == 8


def test_counts_and_times():
    model = Watching(sde.ExactScore(ELLIPSE, sde.VP()))
    x, times = model.prior(torch.zeros(6, 2).double(), generator()), torch.tensor([0.9, 0.5, 0.2], dtype=torch.float64)
    path = sde.record(run(sde.ReverseSDE(model, 1.0), x, times, AdaptiveHeun(rtol=0.1), generator(1)))
    asked = torch.cat(model.asked)
    assert len(model.asked) == path.calls[-1]
    assert 0.2 <= asked.min() < 0.2 + 1e-12
    assert 0.9 - 1e-12 < asked.max() <= 0.9
    assert path.calls[0] == path.accepted[0] == 0
    assert (path.accepted.diff() > 0).all()
    assert path.rejected[-1] > 0
    assert torch.equal(path.t, times)


# The Brownian path.


def test_what_was_rejected_is_walked_again():
    """Increments drawn anew after a rejection would not add up to the first."""
    paths, x = OwnPaths(sde.WhiteNoise(generator()), lambda v: 2 * v), torch.zeros(3, 4, dtype=torch.float64)
    v, goal = torch.zeros(3, dtype=torch.float64), torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    _, whole = paths.draw(v, goal, x)
    paths.settle(torch.zeros(3, dtype=torch.bool))
    total, luck = torch.zeros_like(x), generator(5)
    for _ in range(200):
        wish = v + goal * torch.rand(3, generator=luck, dtype=torch.float64)
        ends, w = paths.draw(v, torch.minimum(wish, goal), x)
        assert ((ends <= torch.minimum(wish, goal) + 1e-9) & (ends > v - 1e-12) | (v == goal)).all()
        good = torch.rand(3, generator=luck) < 0.5
        paths.settle(good | (v == goal))
        total = total + torch.where(good[:, None], w, 0.0)
        v = torch.where(good, ends, v)
        if bool((v == goal).all()):
            break
    assert torch.equal(v, goal)
    torch.testing.assert_close(total, whole, rtol=0, atol=1e-12)


def test_increments_have_the_law_of_brownian_motion():
    """A step of 4 is tried, then 2, then 1, and 1/2 where the increment is large: four independent quarters."""
    n = 20_000
    paths, x = OwnPaths(sde.WhiteNoise(generator()), lambda v: 2 * v), torch.zeros(n, 1, dtype=torch.float64)
    v, last, parts = torch.zeros(n, dtype=torch.float64), torch.full((n,), 8.0), torch.zeros(n, 4, dtype=torch.float64)
    while bool((v < 4).any()):
        ends, w = paths.draw(v, torch.where(v < 4, v + last / 2, v), x)
        good = (ends - v < 0.9) | ((ends - v < 1.1) & (w[:, 0].abs() < 1))
        parts.scatter_add_(1, v.long().clamp_max(3)[:, None], torch.where(good[:, None], w, 0.0))
        paths.settle(good)
        v, last = torch.where(good, ends, v), torch.where(good, 8.0, ends - v)
    torch.testing.assert_close(parts.T.cov(), 2 * torch.eye(4, dtype=torch.float64), rtol=0, atol=0.08)


class Forgetful(OwnPaths):
    """Draws anew after every rejection, as the authors do."""

    def settle(self, done):
        super().settle(torch.ones_like(done))


def spread_after(n=20_000):
    """Variance of an Ornstein–Uhlenbeck process 1 after it was 0, its standard error, and how often steps failed."""
    process = sde.OrnsteinUhlenbeck()
    solver, x = AdaptiveHeun(rtol=1e-9, atol=0.03), torch.zeros(n, 1, dtype=torch.float64)
    end = run(process, x, torch.tensor([0.5, 1.5], dtype=torch.float64), solver, generator())[-1]
    assert end.rejected > 0.2 * end.accepted
    return float(end.x.var()), float(end.x.var()) * math.sqrt(2 / n)


def test_rejections_leave_the_law_as_it_is(monkeypatch):
    exact = 1 - math.exp(-2)
    variance, deviation = spread_after()
    assert abs(variance - exact) < 4 * deviation + 0.005
    monkeypatch.setattr("sde.solvers.adaptive.stochastic.OwnPaths", Forgetful)
    variance, deviation = spread_after()
    assert variance < exact - 10 * deviation  # small increments pass, large ones are drawn again


def test_states_between_are_on_the_path():
    """One step takes Brownian motion from 0 to 1; the times between have covariance min(s, t)."""
    times = torch.tensor([0.0, 0.2, 0.5, 0.9, 1.0], dtype=torch.float64)
    x = torch.zeros(20_000, 1, dtype=torch.float64)
    path = sde.record(run(sde.BrownianMotion(mu=1.0), x, times, AdaptiveHeun(first=1.0), generator()))
    assert path.calls[-1] == 2
    values = path.x[1:, :, 0] - times[1:, None]
    torch.testing.assert_close(values.mean(1), torch.zeros(4).double(), rtol=0, atol=0.03)
    torch.testing.assert_close(values.cov(), torch.minimum(times[1:, None], times[None, 1:]), rtol=0, atol=0.04)


def test_times_between_change_nothing_but_the_record():
    """With a generator for each sample the steps are the same; what lies between is right in law."""
    vp, n = sde.VP(), 3000
    model = sde.ExactScore(ELLIPSE, vp)
    x = model.prior(torch.zeros(n, 2, dtype=torch.float64), generator())
    times = torch.tensor([1.0, 0.7, 0.4, 0.3, 0.15, 0.05], dtype=torch.float64)
    path = sde.record(run(sde.ReverseSDE(model, 1.0), x, times, AdaptiveHeun(rtol=0.1, atol=0.03), generator(1)))
    alpha, sigma = vp.levels(times)
    for i in range(1, len(times)):
        exact = alpha[i] ** 2 * ELLIPSE.cov + sigma[i] ** 2 * torch.eye(2)
        torch.testing.assert_close(path.x[i].T.cov(), exact, rtol=0, atol=0.15 * float(exact.max()))
        torch.testing.assert_close(path.x[i].mean(0), alpha[i] * ELLIPSE.mean, rtol=0, atol=0.12)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_error_along_a_path_follows_the_tolerance(seed):
    """A batch of one shares its path with a fine solve, rejections and all."""
    well, x = sde.DoubleWell(), torch.ones(1, 64, dtype=torch.float64)
    path = sde.BrownianPath(generator(seed))
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    tolerances = (0.1, 0.01, 0.001)
    got = [run(well, x, ends, AdaptiveHeun(rtol=tol, atol=tol / 3), path)[-1] for tol in tolerances]
    assert got[0].rejected > 0
    fine = sde.integrate(well, x, torch.linspace(0, 1, 4001, dtype=torch.float64), sde.Heun(), noise=path)
    errors = [float((state.x - fine).square().mean().sqrt()) for state in got]
    assert errors[0] < 0.1
    assert errors[1] < 0.4 * errors[0]
    assert errors[2] < 0.4 * errors[1]


def test_a_sample_does_not_see_its_batch():
    model = sde.ExactScore(ELLIPSE, sde.EDM())
    reverse, times = sde.ReverseSDE(model, 1.0), torch.tensor([80.0, 3.0, 1.0, 0.9, 0.1, 0.002], dtype=torch.float64)
    x = model.prior(torch.zeros(6, 2, dtype=torch.float64), generator())
    solver = AdaptiveHeun(rtol=0.1)
    together = sde.record(run(reverse, x, times, solver, generators(range(6))))
    for i in (0, 3, 5):
        alone = sde.record(run(reverse, x[i : i + 1], times, solver, generators([i])))
        torch.testing.assert_close(alone.x[:, 0], together.x[:, i], rtol=1e-9, atol=1e-9)
    again = sde.record(run(reverse, x, times, solver, generators(range(6))))
    assert torch.equal(again.x, together.x)


def test_the_laws_of_a_solver():
    assert sde.checks.solver(AdaptiveHeun(rtol=0.3, atol=0.1), sde.VP()) == {}


# Samples.


@pytest.mark.parametrize(("forward", "eta"), [(sde.VP(), 0.5), (sde.VE(), 0.5)])
def test_samples_of_a_mixture(forward, eta, two_modes):
    samples(sde.ExactScore(two_modes, forward), AdaptiveHeun(rtol=0.1), 8, eta=eta)


@pytest.mark.nightly
@pytest.mark.parametrize("eta", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("forward", [sde.VP(), sde.SubVP(), sde.VE(), sde.EDM(), sde.Cosine(), sde.Flow(), sde.CLD()])
def test_samples_of_the_full_product(forward, eta, two_modes):
    samples(sde.ExactScore(two_modes, forward), AdaptiveHeun(rtol=0.02), 8, eta=eta)


def test_no_leap_over_all_that_matters(two_modes):
    """At both ends of EDM's whole range the slopes are alike; in t one step in a thousand went from 79 to .002."""
    model = sde.ExactScore(two_modes, sde.EDM())
    x = model.prior(torch.zeros(2000, 2, dtype=torch.float64), generator())
    end = run(sde.ReverseSDE(model, 0.5), x, whole(sde.EDM()), AdaptiveHeun(rtol=0.1), generator(1))[-1].x
    assert float(end.abs().max()) < 4


@pytest.mark.parametrize("forward", [sde.Flow(), sde.VP(), sde.EDM()], ids=lambda f: type(f).__name__)
def test_both_ends_where_noise_or_data_vanish(forward):
    model = sde.ExactScore(ELLIPSE, forward)
    x = model.prior(torch.zeros(1000, 2, dtype=torch.float64), generator())
    top = forward.t_max
    times = torch.tensor([top, 0.9999 * top, 0.5 * top, 1e-5 * top, 0.0], dtype=torch.float64)
    path = sde.record(run(sde.ReverseSDE(model, 1.0), x, times, AdaptiveHeun(rtol=0.1), generator(1)))
    assert torch.equal(path.t, times)
    assert path.x.isfinite().all()
    torch.testing.assert_close(path.x[-1].T.cov(), ELLIPSE.cov, rtol=0, atol=0.09)
    torch.testing.assert_close(path.x[-1].mean(0), ELLIPSE.mean, rtol=0, atol=0.1)


def test_up_from_data_to_noise():
    vp = sde.VP()
    x = torch.full((4000, 1), 2.0, dtype=torch.float64)
    path = sde.record(
        run(vp, x, torch.tensor([0.0, 0.2, 1.0], dtype=torch.float64), AdaptiveHeun(rtol=0.02), generator())
    )
    alpha, sigma = vp.levels(path.t)
    torch.testing.assert_close(path.x.mean((1, 2)), 2 * alpha, rtol=0, atol=0.08)
    torch.testing.assert_close(path.x[1:].var((1, 2)), sigma[1:] ** 2, rtol=0.1, atol=0)


def test_without_noise_it_is_heun_with_control():
    flow = sde.ReverseSDE(sde.ExactScore(ELLIPSE, sde.VP()), 0.0)
    x = flow.model.prior(torch.zeros(4, 2, dtype=torch.float64), generator())
    exact = sde.integrate(flow, x, whole(sde.VP()), DormandPrince(rtol=1e-8))
    ends = [sde.integrate(flow, x, whole(sde.VP()), AdaptiveHeun(rtol=tol, atol=tol)) for tol in (1e-1, 1e-3)]
    coarse, fine = (float((end - exact).abs().max()) for end in ends)
    assert coarse < 0.3
    assert fine < 0.05 * coarse


def test_dtype_and_guided_models(two_modes):
    model = sde.ExactScore(two_modes, sde.Flow())
    x = model.prior(torch.zeros(3, 2), generator())
    y = sde.sample(sde.CFG(model, model, 1.0), x=x, solver=AdaptiveHeun(rtol=0.1), generator=generators(range(3)))
    assert y.shape == (3, 2)
    assert y.dtype == torch.float32


# Refusals.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rtol": -0.1}, r"rtol must be positive and finite, got -0\.1"),
        ({"atol": 0.0}, r"atol must be positive and finite, got 0\.0"),
        ({"exponent": 1.5}, r"exponent must lie between 0 and 1, got 1\.5"),
        ({"first": 0.0}, r"first must lie between 0 and 1, got 0\.0"),
        ({"growth": 1.0}, r"growth must be above 1, got 1\.0: keep 5"),
        ({"safety": 2.0}, r"safety must lie between 0 and 1, got 2\.0"),
    ],
)
def test_arguments_that_make_no_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        AdaptiveHeun(**arguments)


def refused(process, solver, message, x=None, times=(1.0, 0.1), **noise):
    x = torch.ones(2, 2, dtype=torch.float64) if x is None else x
    with pytest.raises(ValueError, match=message):
        sde.integrate(process, x, torch.tensor(times, dtype=torch.float64), solver, **noise)


def test_what_it_cannot_solve_is_refused():
    growth = sde.GeometricBrownianMotion()
    refused(growth, AdaptiveHeun(), "AdaptiveHeun on GeometricBrownianMotion would .* Stratonovich", times=(0.0, 1.0))
    refused(
        sde.DoubleWell(), AdaptiveHeun(time="angle"), "ReverseSDE of a scalar SDE, got DoubleWell", times=(0.0, 1.0)
    )
    reverse = sde.ReverseSDE(sde.ExactScore(ELLIPSE, sde.VP()), 1.0)
    shared = {"noise": sde.BrownianPath(generator())}
    refused(reverse, AdaptiveHeun(), r"BrownianPath, which has one clock .* each of 2 samples at its own", **shared)
    refused(reverse, AdaptiveHeun(max_calls=20), r"max_calls=20 evaluations are spent and AdaptiveHeun is at t = 0\.9")


def test_values_that_are_not_finite_are_named_and_do_not_hang():
    exact = sde.ExactScore(ELLIPSE, sde.VP())
    everywhere = sde.ReverseSDE(Watching(exact, lost=lambda t: t > 0), 1.0)
    refused(everywhere, AdaptiveHeun(), r"not finite at t = 1 \(sample 0 of 2\), the first evaluation of AdaptiveHeun")
    late = sde.ReverseSDE(Watching(exact, lost=lambda t: t < 0.5), 1.0)
    refused(late, AdaptiveHeun(rtol=0.1), r"not finite at t = 0\.5\d* \(sample \d of 2\), and beyond it")
