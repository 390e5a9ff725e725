"""Langevin correctors: the step as written, the bias of a fixed step in closed form, and nobody's neighbours."""

import math

import pytest
import torch

import sde
from sde.checks import affine
from sde.checks.convergence import marginal


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def one_step(model, solver, t, event=(1,)):
    """The affine map of one corrector step at time t, from a time next to it."""
    return affine(sde.ReverseSDE(model), event, [t * (1 + 1e-9), t], solver)


@pytest.mark.parametrize("forward", [sde.EDM(), sde.VP(), sde.Flow()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("snr", [0.05, 0.16, 0.5])
def test_annealed_langevin_leaves_the_bias_of_its_fixed_step(forward, snr):
    """x + e score + sqrt(2 e) z on N(m, v): stationary variance v / (1 - e / (2 v)), mean m."""
    t, data = 0.4, sde.Gaussian([2.0], 0.25)
    step = one_step(sde.ExactScore(data, forward), sde.AnnealedLangevin(snr), t)
    mean, cov = marginal(data, forward, t)
    v, sigma = float(cov), float(forward.levels(torch.tensor(t))[1])
    e = 2 * (snr * sigma) ** 2
    assert float(step.state) == pytest.approx(1 - e / v)
    stationary = float(step.noise.square().sum()) / (1 - float(step.state) ** 2)
    assert stationary == pytest.approx(v / (1 - e / (2 * v)))
    assert float(step.shift) / (1 - float(step.state)) == pytest.approx(float(mean))


def test_samples_show_that_bias():
    """And not the variance of the target, from which it is twenty standard errors away."""
    forward, data, t, snr, n = sde.EDM(), sde.Gaussian([0.0], 0.25), 1.0, 0.5, 20_000
    model, noise = sde.ExactScore(data, forward), sde.WhiteNoise(generator())
    x, reverse = torch.zeros(n, 1), sde.ReverseSDE(model)
    for _ in range(40):
        x = sde.AnnealedLangevin(snr).step(reverse, x, t, t, noise)
    expected = 1.25 / (1 - 0.5 / 2.5)
    error = expected * math.sqrt(2 / n)
    assert float(x.var()) == pytest.approx(expected, abs=5 * error)
    assert abs(float(x.var()) - 1.25) > 15 * error


def test_annealed_langevin_on_a_matrix_sde_adds_half_its_noise():
    """x + c L L' score + sqrt(2 c) L z: the stationary covariance is that of p_t plus c / 2 L L' for small c."""
    forward, data, snr = sde.CLD(), sde.Gaussian([0.5], 0.25), 0.02
    _, cov = marginal(data, forward, 0.4)
    step = one_step(sde.ExactScore(data, forward), sde.AnnealedLangevin(snr), 0.4, (2, 1))
    stationary, power = step.noise @ step.noise.T, step.state
    for _ in range(16):  # doubling: 65536 steps
        stationary, power = stationary + power @ stationary @ power.T, power @ power
    expected = snr**2 * forward.covariance(0.4)
    torch.testing.assert_close(stationary - cov, expected, rtol=1e-3, atol=1e-3 * float(expected.norm()))


def test_langevin_is_the_papers_step(given_noise):
    """e = 2 (r |z| / |score|)^2 with the norms of one sample, x + e score + sqrt(2 e) z."""
    model = sde.ExactScore(sde.Gaussian([[0.0, 1.0]], [0.5, 2.0]), sde.VE())
    x, z = torch.randn(5, 1, 2, generator=generator()), torch.randn(5, 1, 2, generator=generator(1))
    y = sde.Langevin(0.2).step(sde.ReverseSDE(model), x, 0.5, 0.5, given_noise(z))
    score = model(x, 0.5).score
    for i in range(5):
        e = 2 * (0.2 * z[i].norm() / score[i].norm()) ** 2
        torch.testing.assert_close(y[i], x[i] + e * score[i] + (2 * e).sqrt() * z[i])


@pytest.mark.parametrize("corrector", [sde.Langevin(), sde.AnnealedLangevin()], ids=lambda c: type(c).__name__)
def test_a_sample_does_not_depend_on_its_batch(corrector, two_modes):
    """The authors' code takes the mean of the norms over the batch, so that it does."""
    model = sde.ExactScore(two_modes, sde.VP())
    solver = sde.PredictorCorrector(sde.ReverseDiffusion(), corrector)
    draw = lambda seeds: sde.sample(  # noqa: E731
        model, (len(seeds), 2), 8, solver, generator=[generator(s) for s in seeds], progress=False
    )
    batch = draw(range(6))
    for i in range(6):
        torch.testing.assert_close(draw([i]), batch[i : i + 1])


def test_a_corrector_repairs_a_bad_predictor(two_modes):
    """From far off, Langevin steps alone bring the samples to the marginal."""
    model = sde.ExactScore(sde.Gaussian([0.5, 0.0], 0.25), sde.EDM(sigma_max=5.0))
    times, x = torch.tensor([5.0, 4.0, 1.0]), torch.full((4000, 2), 9.0)
    pc = sde.PredictorCorrector(sde.DDIM(), sde.AnnealedLangevin(0.3), steps=60)
    y = sde.integrate(sde.ReverseSDE(model), x, times, pc, generator())
    v, e = 1.25, 2 * 0.3**2
    expected = v / (1 - e / (2 * v))
    assert float(y[:, 0].mean()) == pytest.approx(0.5, abs=5 * math.sqrt(expected / 4000))
    assert float(y[:, 0].var()) == pytest.approx(expected, abs=5 * expected * math.sqrt(2 / 4000))


def test_predictor_first_then_so_many_corrector_steps(two_modes, given_noise):
    model = sde.ExactScore(two_modes, sde.VP())
    reverse, x = sde.ReverseSDE(model, 1.0), torch.randn(3, 2, generator=generator())
    draws = [torch.randn(3, 2, generator=generator(i)) for i in range(1, 4)]
    pc = sde.PredictorCorrector(sde.EulerMaruyama(), sde.AnnealedLangevin(0.1), steps=2)
    assert (pc.calls, pc.eta) == (3, 1.0)
    got = sde.integrate(reverse, x, [0.6, 0.5], pc, noise=given_noise(*draws))
    noise = given_noise(*draws)
    y = sde.integrate(reverse, x, [0.6, 0.5], sde.EulerMaruyama(), noise=noise)
    for _ in range(2):
        y = sde.AnnealedLangevin(0.1).step(reverse, y, 0.5, 0.5, noise)
    torch.testing.assert_close(got, y)


def test_correctors_keep_the_marginal_as_snr_shrinks(two_modes):
    """Law 6b for a pair: with a small corrector step the bias is that of the predictor."""
    forward, data = sde.VP(), sde.Gaussian([0.5, -0.2], [[0.5, 0.2], [0.2, 0.4]])
    reverse, times = sde.ReverseSDE(sde.ExactScore(data, forward), 1.0), torch.linspace(0.6, 0.2, 65)
    start, (mean, cov) = marginal(data, forward, 0.6), marginal(data, forward, 0.2)

    def wrong(solver):
        got_mean, got_cov = affine(reverse, (2,), times, solver).moments(*start)
        return float((got_mean - mean).norm() + (got_cov - cov).norm())

    alone = wrong(sde.Heun())
    pairs = [wrong(sde.PredictorCorrector(sde.Heun(), sde.AnnealedLangevin(snr))) for snr in (0.005, 0.16, 0.5)]
    assert pairs[0] < 3 * alone
    assert pairs[0] < pairs[1] < pairs[2]
    assert pairs[2] > 0.05
