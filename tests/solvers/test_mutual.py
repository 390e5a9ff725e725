"""I-MMSE: the ideal denoiser's error integrates to the entropy, and falls by the information of a condition."""

import math

import pytest
import torch

import sde
from sde.solvers import condition_information, elbo, mutual_information

SDES = {
    "VP": sde.VP,
    "EDM": sde.EDM,
    "Flow": sde.Flow,
    "Tabulated": lambda: sde.Tabulated.cosine(100),
    "CLD": sde.CLD,
}
MIXTURE = sde.Mixture([0.3, 0.7], [[-1.0, 0.5], [1.0, 0.0]], [0.05, 0.2])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def levels(forward, t):
    alpha, sigma, _, _ = forward.rates_of_statistic(torch.as_tensor(t, dtype=torch.float64))
    return alpha, sigma


@pytest.mark.parametrize("name", SDES)
def test_on_a_gaussian_it_is_half_the_log_of_one_plus_snr(name):
    c2, forward = 0.3, SDES[name]()
    model = sde.ExactScore(sde.Gaussian([1.0, -1.0, 0.0], c2), forward)
    found = mutual_information(model, model.target.sample(4000, generator()), cells=8, generator=generator(1))
    alpha, sigma = levels(forward, found.times)
    wanted = 1.5 * torch.log1p(c2 * (alpha / sigma) ** 2)
    off = (found.curve - wanted).abs()
    assert bool((off <= 4 * found.curve_error + 1e-6).all())
    assert found.entropy_error < 0.03
    entropy = 1.5 * math.log(2 * math.pi * math.e * float(alpha[0] ** 2 * c2 + sigma[0] ** 2))
    assert abs(found.entropy - entropy) < 4 * found.entropy_error


@pytest.mark.parametrize("name", SDES)
def test_the_error_of_the_ideal_denoiser_integrates_to_the_entropy_of_a_mixture(name):
    forward = SDES[name]()
    x = MIXTURE.sample(8000, generator())
    found = mutual_information(sde.ExactScore(MIXTURE, forward), x, generator=generator(1))
    alpha, sigma = levels(forward, forward.t_min)
    noisy = alpha * MIXTURE.sample(100_000, generator(2)) + sigma * torch.randn(100_000, 2, generator=generator(3))
    log_p = MIXTURE.log_marginal(noisy, float(alpha), float(sigma))
    error = math.hypot(found.entropy_error, float(log_p.std()) / math.sqrt(100_000))
    assert found.entropy_error < 0.02
    assert abs(found.entropy + float(log_p.mean())) < 4 * error


def test_a_wrong_denoiser_errs_upwards_by_what_the_bound_loses():
    """Entropy by a model's error = minus the mean of its ELBO over data at t_min."""

    class Wrong(sde.Wrapper):
        def forward(self, x, t, **cond):
            eps = 1.2 * self.model(x, t).eps
            return sde.Point(self.sde, x, t, self.sde.unmean(x - self.sde.color(eps, t), t), eps)

    exact = sde.ExactScore(MIXTURE, sde.EDM(0.02, 20.0))
    x = MIXTURE.sample(4000, generator())
    right, wrong = (mutual_information(m, x, generator=generator(1)) for m in (exact, Wrong(exact)))
    assert wrong.entropy > right.entropy + 4 * right.entropy_error
    noisy = exact.sde.perturb(x, exact.sde.t_min, generator(2)).x
    bound = elbo(Wrong(exact), noisy, repeats=2, generator=generator(3)).value
    error = math.hypot(wrong.entropy_error, float(bound.std()) / math.sqrt(4000))
    assert abs(wrong.entropy + float(bound.mean())) < 4 * error < 0.2


def test_a_condition_tells_what_it_says_of_the_data():
    """Overlapping components: I(x; component) = h(mixture) - sum of w h(component)."""
    parts = [(0.3, [-0.6], 0.25), (0.7, [0.6], 0.5)]
    forward = sde.VP(t_min=1e-4)
    both = sde.ExactScore(sde.Mixture(*([p[i] for p in parts] for i in range(3))), forward)
    n, found, wanted, variance = 20_000, 0.0, 0.0, 0.0
    for weight, mean, cov in parts:
        one = sde.ExactScore(sde.Gaussian(mean, cov), forward)
        x = one.target.sample(n, generator(1))
        told = condition_information(both, one, x, generator=generator(2))
        found, variance = found + weight * told.value, variance + (weight * told.error) ** 2
        ratio = one.target.log_prob(x) - both.target.log_prob(x)
        wanted, variance = wanted + weight * float(ratio.mean()), variance + (weight * float(ratio.std())) ** 2 / n
        assert told.by_time.shape == (32,)
    assert wanted > 0.1
    assert abs(found - wanted) < 4 * math.sqrt(variance) < 0.02


def test_any_cells_do_and_add_up():
    model, x = sde.ExactScore(MIXTURE, sde.VP()), MIXTURE.sample(4000, generator())
    u = torch.linspace(0, 1, 13, dtype=torch.float64)
    grid = sde.train.LogNormal().quantile(model.sde, u, MIXTURE.scale)
    other = mutual_information(model, x, grid, generator=generator(1))
    found = mutual_information(model, x, generator=generator(2))
    assert abs(other.entropy - found.entropy) < 4 * math.hypot(other.entropy_error, found.entropy_error)
    assert float(found.curve[0]) == pytest.approx(float(found.by_time.sum()) + found.start)
    assert bool((found.curve.diff() < 0).all())


def test_images_single_precision_and_views():
    target = sde.Gaussian(torch.zeros(2, 3), torch.linspace(0.2, 0.6, 6))
    model, x = sde.ExactScore(target, sde.VP()), target.sample(500, generator())
    found = mutual_information(model, x, generator=generator(1)).entropy
    assert mutual_information(model, x.float(), generator=generator(1)).entropy == pytest.approx(found, abs=1e-2)
    across = x.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert mutual_information(model, across, generator=generator(1)).entropy == pytest.approx(found, abs=1e-9)


def test_what_it_cannot_do_is_refused_by_name():
    model, x = sde.ExactScore(MIXTURE, sde.VP()), torch.zeros(4, 2)
    with pytest.raises(TypeError, match="x must be float32 or float64"):
        mutual_information(model, x.bfloat16())
    with pytest.raises(ValueError, match="x must be"):
        mutual_information(model, x[:1])
    with pytest.raises(ValueError, match="cells must be"):
        mutual_information(model, x, cells=0)
    with pytest.raises(ValueError, match="times must run up"):
        mutual_information(model, x, [0.5, 1.0])
    with pytest.raises(ValueError, match="trained with a coupling"):
        mutual_information(sde.ScoreModel(sde.nets.MLP(2, width=8), sde.VP(), coupled=True), x)
    with pytest.raises(ValueError, match="has no noise"):
        mutual_information(sde.ExactScore(MIXTURE, sde.Flow(t_min=0.0)), x)
    with pytest.raises(ValueError, match="must share an SDE"):
        condition_information(model, sde.ExactScore(MIXTURE, sde.EDM()), x)
