"""Denoising: posterior mean, posterior samples and noise levels against closed forms."""

import math

import pytest
import torch
from torch import Tensor

import sde
from sde.inverse import denoise, estimate_noise, noise_range, posterior_samples, time_of_noise, times_below
from sde.inverse.denoising import state_of

MEAN, COV = torch.tensor([1.0, -0.5], dtype=torch.float64), [[1.0, 0.6], [0.6, 0.5]]
EYE = torch.eye(2, dtype=torch.float64)
SDES = {"EDM": sde.EDM, "VP": sde.VP, "SubVP": sde.SubVP, "Flow": sde.Flow, "CLD": sde.CLD}
MIXTURE = sde.Mixture([0.3, 0.7], [[-1.0, 0.0], [1.0, 0.5]], [0.04, 0.1])


@pytest.fixture(params=SDES)
def model(request: pytest.FixtureRequest) -> sde.ExactScore:
    return sde.ExactScore(sde.Gaussian(MEAN, COV), SDES[request.param]())


def gaussian_posterior(y: Tensor, noise: float) -> tuple[Tensor, Tensor]:
    """Mean (B, 2) and covariance of x0 | y."""
    cov = torch.tensor(COV, dtype=torch.float64)
    gain = cov @ torch.linalg.inv(cov + noise**2 * EYE)
    return MEAN + (y - MEAN) @ gain.T, cov - gain @ cov


def points(n: int, seed: int = 0) -> Tensor:
    return 2 * torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("noise", [0.2, 1.5])
def test_mean_is_the_posterior_mean(model: sde.ExactScore, noise: float) -> None:
    y = points(5)
    torch.testing.assert_close(denoise(model, y, noise), gaussian_posterior(y, noise)[0], rtol=1e-6, atol=1e-6)


def test_mean_with_a_level_for_each_sample(model: sde.ExactScore) -> None:
    y, noise = points(3), torch.tensor([0.2, 0.7, 3.0])
    one_by_one = torch.cat([denoise(model, y[i : i + 1], float(noise[i])) for i in range(3)])
    torch.testing.assert_close(denoise(model, y, noise), one_by_one, rtol=1e-5, atol=1e-6)


def test_mean_of_a_mixture_is_that_of_its_denoiser() -> None:
    y = points(6)
    exact = MIXTURE.denoise(y, 1.0, 0.4)
    torch.testing.assert_close(denoise(sde.ExactScore(MIXTURE, sde.VP()), y, 0.4), exact, rtol=1e-6, atol=1e-6)


def test_time_of_noise_inverts_the_levels(any_sde: sde.ForwardSDE) -> None:
    model = sde.ExactScore(sde.Gaussian([0.0], 1.0), any_sde)
    low, high = noise_range(model)
    levels = torch.logspace(math.log10(low * 1.01), math.log10(min(high, 50) * 0.99), 7, dtype=torch.float64)
    alpha, sigma, *_ = any_sde.rates_of_statistic(time_of_noise(model, levels))
    torch.testing.assert_close(sigma / alpha, levels, rtol=1e-6, atol=0)


@pytest.mark.parametrize("noise", [0.3, 1.5])
def test_samples_have_the_posteriors_law(model: sde.ExactScore, noise: float, generator: torch.Generator) -> None:
    y = torch.tensor([[2.0, 1.0]], dtype=torch.float64)
    steps = 100 if isinstance(model.sde, sde.CLD) else 32
    x = posterior_samples(model, y, noise, k=20_000, steps=steps, generator=generator)
    assert x.shape == (20_000, 1, 2)
    mean, cov = gaussian_posterior(y, noise)
    spread = cov.diagonal().sqrt()
    # Five standard errors, and half a per cent for the steps and the noise of t_min.
    assert (((x.mean(0)[0] - mean[0]) / spread).abs() < 5 / math.sqrt(20_000) + 0.01).all()
    found = x[:, 0].T.cov()
    torch.testing.assert_close(
        found / torch.outer(spread, spread), cov / torch.outer(spread, spread), atol=0.06, rtol=0
    )


@pytest.mark.parametrize("kind", ["VP", "CLD"])
def test_state_of_a_statistic_has_the_law_of_the_state(kind: str, generator: torch.Generator) -> None:
    """Shown the statistic alone, what is drawn beside it makes the state's covariance whole."""
    forward, t, n = SDES[kind](), 0.3, 40_000
    x = forward.perturb(torch.zeros(n, 1, dtype=torch.float64), t, generator).x
    again = state_of(forward, forward.unmean(x, t), t, generator)
    before, after = (v.reshape(n, -1).T.cov() for v in (x, again))
    torch.testing.assert_close(after, before, rtol=0.05, atol=0.02 * float(before.abs().max()))


def test_the_flow_would_have_another_law(generator: torch.Generator) -> None:
    """Eta other than 1 shares the marginals, not the law of x0 given y."""
    model = sde.ExactScore(sde.Gaussian([0.0], 1.0), sde.VP())
    t = float(time_of_noise(model, 1.0))
    x = model.sde.mean(torch.full((5000, 1), 1.0, dtype=torch.float64), t)
    variances = {}
    for eta in (0.0, 0.5, 1.0):
        times = times_below(model, t, 64)
        variances[eta] = float(
            sde.sample(model, x=x, times=times, solver=sde.Heun(), eta=eta, generator=generator).var()
        )
    assert variances[0.0] < 1e-12
    # Along log(noise / data) the SDE forgets at a rate eta^2: var = 1 - cos^(2 eta^2) of the angle, 45 degrees here.
    assert abs(variances[1.0] - 0.5) < 0.04
    assert abs(variances[0.5] - (1 - 0.5**0.25)) < 0.03


def test_samples_of_a_mixture_agree_with_its_exact_posterior(generator: torch.Generator) -> None:
    y, noise = torch.tensor([[0.2, 0.3]], dtype=torch.float64), 0.6
    everything = sde.inverse.Mask(torch.tensor([True, True]))
    exact = sde.inverse.exact_posterior(MIXTURE, sde.inverse.Observation(everything, y, noise))
    x = posterior_samples(sde.ExactScore(MIXTURE, sde.VP()), y, noise, k=8000, generator=generator)[:, 0]
    apart = sde.metrics.sliced_wasserstein(x, exact.sample(8000, generator).to(x), generator=generator)
    floor = sde.metrics.sliced_wasserstein(
        *(exact.sample(8000, generator).to(x) for _ in range(2)), generator=generator
    )
    assert float(apart) < 3 * float(floor) + 0.01
    means = denoise(sde.ExactScore(MIXTURE, sde.VP()), y, noise)
    torch.testing.assert_close(x.mean(0), means[0], atol=0.04, rtol=0)


def test_samples_with_a_level_for_each(generator: torch.Generator) -> None:
    model = sde.ExactScore(sde.Gaussian([0.0], 1.0), sde.EDM())
    noise = torch.tensor([0.5, 2.0, 0.5])
    x = posterior_samples(model, torch.tensor([[1.0], [1.0], [-1.0]]), noise, k=4000, generator=generator)[..., 0]
    expected = noise**2 / (1 + noise**2)
    torch.testing.assert_close(x.var(0), expected, rtol=0.12, atol=0)
    torch.testing.assert_close(x.mean(0), torch.tensor([1.0, 1.0, -1.0]) / (1 + noise**2), atol=0.06, rtol=0)


def test_each_sample_has_its_generator() -> None:
    model, y = sde.ExactScore(MIXTURE, sde.VP()), points(2)
    noise = torch.tensor([0.3, 0.6])
    seeds = [torch.Generator().manual_seed(i) for i in range(6)]
    x = posterior_samples(model, y, noise, k=3, steps=8, generator=seeds)
    alone = posterior_samples(model, y[1:], 0.6, k=1, steps=8, generator=[torch.Generator().manual_seed(3)])
    torch.testing.assert_close(x[1, 1], alone[0, 0], rtol=1e-6, atol=1e-6)


def test_least_noise_needs_no_run(model: sde.ExactScore) -> None:
    y = points(3)
    low = noise_range(model)[0]
    torch.testing.assert_close(posterior_samples(model, y, low)[0], denoise(model, y, low), atol=0.1, rtol=0)


def test_grid_below_a_time_is_the_default_grid_there() -> None:
    model = sde.ExactScore(sde.Gaussian([0.0], 1.0), sde.VP())
    whole = sde.solvers.default_times(model, 40)
    torch.testing.assert_close(times_below(model, float(whole[20]), 20), whole[20:], rtol=2e-3, atol=0)


# Noise level.


def test_noise_of_a_gaussian_is_its_maximum_likelihood(generator: torch.Generator) -> None:
    """With covariance v I and d numbers, sqrt(|y|^2 / d - v)."""
    d, v = 50, 0.25
    model = sde.ExactScore(sde.Gaussian(torch.zeros(d), v), sde.VP())
    s = torch.tensor([0.3, 1.0, 4.0], dtype=torch.float64)
    y = torch.randn(3, d, generator=generator, dtype=torch.float64) * (v + s[:, None] ** 2).sqrt()
    expected = (y.square().mean(1) - v).sqrt()
    torch.testing.assert_close(estimate_noise(model, y), expected, rtol=1e-3, atol=0)
    together = estimate_noise(model, y[:1].repeat(4, 1) * torch.tensor([[1.0], [1.1], [0.9], [1.2]]), shared=True)
    pooled = (y[0].square().mean() * (1 + 1.21 + 0.81 + 1.44) / 4 - v).sqrt()
    torch.testing.assert_close(together, pooled.expand(4), rtol=1e-3, atol=0)


@pytest.mark.parametrize("kind", ["VP", "CLD"])
def test_noise_of_a_mixture_has_the_highest_likelihood(kind: str, generator: torch.Generator) -> None:
    y = MIXTURE.sample(200, generator) + 0.8 * torch.randn(200, 2, generator=generator, dtype=torch.float64)
    found = estimate_noise(sde.ExactScore(MIXTURE, SDES[kind]()), y, shared=True, levels=9)[0]
    levels = torch.linspace(0.5, 1.2, 701, dtype=torch.float64)
    best = levels[torch.stack([MIXTURE.log_marginal(y, 1.0, float(s)).sum() for s in levels]).argmax()]
    assert abs(float(found - best)) < 2e-3
    assert abs(float(best) - 0.8) < 0.15


def test_noise_is_found_by_the_model_and_not_by_its_size(generator: torch.Generator) -> None:
    """Data along a line: noise shows across it, however wide they are."""
    flat = sde.Gaussian(torch.zeros(20), torch.tensor([100.0] * 10 + [1e-6] * 10))
    y = flat.sample(30, generator) + 0.2 * torch.randn(30, 20, generator=generator, dtype=torch.float64)
    found = estimate_noise(sde.ExactScore(flat, sde.EDM()), y)
    across = y[:, 10:].square().mean(1).sqrt()
    torch.testing.assert_close(found, across, rtol=0.02, atol=0)


def test_probes_agree_with_the_exact_divergence(generator: torch.Generator) -> None:
    model = sde.ExactScore(sde.Gaussian(torch.zeros(100), torch.linspace(0.01, 2, 100)), sde.EDM())
    y = model.target.sample(20, generator) + 0.5 * torch.randn(20, 100, generator=generator, dtype=torch.float64)
    exact, probed = (estimate_noise(model, y, probes=p, generator=generator) for p in (0, 1))
    # Of a diagonal Jacobian a probe of signs is exact.
    torch.testing.assert_close(probed, exact, rtol=1e-6, atol=0)


def test_noise_beyond_the_range_is_its_end() -> None:
    model = sde.ExactScore(sde.Gaussian([0.0, 0.0], 1.0), sde.EDM())
    found = estimate_noise(model, torch.tensor([[0.1, 0.1], [1e3, 1e3]]))
    torch.testing.assert_close(found, torch.tensor([0.002, 80.0]), rtol=1e-5, atol=0)


# Bad input.


@pytest.mark.parametrize("noise", [-0.1, 0.0, 1e-4, 100.0, math.nan, math.inf])
@pytest.mark.parametrize("f", [denoise, posterior_samples])
def test_levels_out_of_range_are_refused_with_the_range(f, noise: float) -> None:
    model = sde.ExactScore(MIXTURE, sde.EDM())
    with pytest.raises(ValueError, match=r"noise must lie in \[0\.002, 80\]"):
        f(model, points(2), noise)
    with pytest.raises(ValueError, match=r"noise must lie in \[0\.002, 80\]"):
        f(model, points(2), torch.tensor([0.5, noise]))


def test_bad_input_is_refused_with_a_remedy() -> None:
    model = sde.ExactScore(MIXTURE, sde.EDM())
    with pytest.raises(ValueError, match="one for each of 2 samples"):
        denoise(model, points(2), torch.tensor([0.1, 0.2, 0.3]))
    with pytest.raises(TypeError, match=r"y\.float"):
        denoise(model, torch.zeros(2, 2, dtype=torch.uint8), 0.1)
    with pytest.raises(ValueError, match=r"y\[None\]"):
        denoise(model, torch.zeros(2), 0.1)
    with pytest.raises(ValueError, match="1 values that are not finite"):
        denoise(model, torch.tensor([[0.0, math.nan]]), 0.1)
    with pytest.raises(ValueError, match="k must be a whole number"):
        posterior_samples(model, points(2), 0.1, k=0)
    with pytest.raises(ValueError, match="steps must be a whole number"):
        posterior_samples(model, points(2), 0.1, steps=0)
    with pytest.raises(ValueError, match="pass 4, draw i"):
        posterior_samples(model, points(2), 0.1, k=2, generator=[torch.Generator()] * 3)
    with pytest.raises(ValueError, match="levels must be at least 3"):
        estimate_noise(model, points(2), levels=2)


def test_a_coupled_model_is_refused() -> None:
    model = sde.ScoreModel(sde.nets.MLP(dim=2, width=8), sde.Flow(), coupled=True)
    for f in (lambda: denoise(model, torch.zeros(1, 2), 0.1), lambda: estimate_noise(model, torch.zeros(1, 2))):
        with pytest.raises(ValueError, match="coupling"):
            f()
