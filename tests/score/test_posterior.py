"""Exact posteriors: against Bayes on a grid, torch.distributions, rejection, and the limits of noise."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

import sde

WEIGHTS = torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64)
MEANS = torch.tensor([[-1.0, 0.5], [1.0, 0.0], [0.2, -1.0]], dtype=torch.float64)
ROOTS = torch.tensor([[[0.5, 0], [0.3, 0.2]], [[0.3, 0], [-0.2, 0.4]], [[0.2, 0], [0.0, 0.6]]], dtype=torch.float64)
COVS = ROOTS @ ROOTS.mT
PRIOR = sde.Mixture(WEIGHTS, MEANS, COVS)
ROW = torch.tensor([[0.8, -0.6]], dtype=torch.float64)
TALL = torch.tensor([[1.0, 0.2], [0.5, -1.0], [1.5, -0.8]], dtype=torch.float64)  # third row: sum of the others


def draws(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize(("matrix", "noise"), [(ROW, 0.3), (TALL, 0.5), (TALL[:2], 0.2)])
def test_density_is_bayes_on_a_grid(matrix: Tensor, noise: float) -> None:
    y = matrix @ torch.tensor([0.4, -0.3], dtype=torch.float64) + 0.1
    axis = torch.linspace(-5, 5, 801, dtype=torch.float64)
    x = torch.cartesian_prod(axis, axis)
    joint = PRIOR.log_prob(x) - ((x @ matrix.T - y) ** 2).sum(1) / (2 * noise**2)
    density = joint - torch.logsumexp(joint, 0) - 2 * math.log(axis[1] - axis[0])
    posterior = PRIOR.posterior(matrix, y, noise)
    likely = density > density.max() - 20
    assert torch.allclose(posterior.log_prob(x)[likely], density[likely], atol=1e-9)
    p = torch.softmax(joint, 0)
    assert torch.allclose(posterior.mean, p @ x, atol=1e-9)
    r = x - p @ x
    assert torch.allclose(posterior.cov, (p[:, None] * r).T @ r, atol=1e-9)


def test_without_noise_it_is_the_slice_through_the_prior() -> None:
    """Bayes on a line of points that make y; the joint's weights come with each component's own density of y."""
    y = 0.1
    along, across = torch.tensor([0.6, 0.8], dtype=torch.float64), ROW[0]
    s = torch.linspace(-6, 6, 4001, dtype=torch.float64)
    x = y * across + s[:, None] * along  # across is a unit vector
    p = torch.softmax(PRIOR.log_prob(x), 0)
    posterior = PRIOR.posterior(ROW, [y], 0.0)
    assert torch.allclose(posterior.mean, p @ x, atol=1e-9)
    r = x - p @ x
    assert torch.allclose(posterior.cov, (p[:, None] * r).T @ r, atol=1e-9)
    samples = posterior.sample(1000, torch.Generator().manual_seed(0))
    assert (samples @ across - y).abs().max() < 1e-14


def test_noise_to_zero_is_no_noise() -> None:
    exact = PRIOR.posterior(ROW, [0.2], 0.0)
    gaps = []
    for noise in (1e-2, 1e-3, 1e-7, 1e-11):
        near = PRIOR.posterior(ROW, [0.2], noise)
        gaps.append(float((near.mean - exact.mean).abs().max() + (near.weights - exact.weights).abs().max()))
        widths = near.sample(4000, torch.Generator().manual_seed(0)) @ ROW[0] - 0.2
        assert float(widths.std()) == pytest.approx(noise, rel=0.1)  # a small width is there, and is no rounding
    assert gaps[1] < gaps[0] / 50
    assert gaps[2] < 1e-12
    assert gaps[3] < 1e-14


def test_much_noise_or_nothing_seen_is_the_prior() -> None:
    for posterior in (
        PRIOR.posterior(ROW, [0.3], 1e8),
        PRIOR.posterior(torch.zeros(1, 2), [0.0], 0.0),
        PRIOR.posterior(torch.zeros(0, 2), [], 0.0),
    ):
        assert torch.allclose(posterior.weights, PRIOR.weights)
        assert torch.allclose(posterior.means, PRIOR.means)
        assert torch.allclose(posterior.covs, PRIOR.covs)


def test_everything_seen_without_noise_is_a_point() -> None:
    x0 = torch.tensor([0.3, 0.4], dtype=torch.float64)
    posterior = PRIOR.posterior(TALL, TALL @ x0, 0.0)
    assert torch.equal(posterior.variances, torch.zeros(3, 2, dtype=torch.float64))
    assert torch.allclose(posterior.sample(5), x0.expand(5, 2), atol=1e-14)
    # Each component made x0 with its own density there.
    at_x0 = torch.stack([MultivariateNormal(m, c).log_prob(x0) for m, c in zip(MEANS, COVS, strict=True)])
    assert torch.allclose(posterior.weights, torch.softmax(WEIGHTS.log() + at_x0, 0), atol=1e-12)


def test_of_supports_of_different_dimension_the_lowest_that_makes_y_takes_all() -> None:
    flat = sde.Mixture([0.5, 0.5], [[0.0, 0.0], [0.0, 0.0]], [[[1.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]])
    on, off = flat.posterior([[0.0, 1.0]], [0.0], 0.0), flat.posterior([[0.0, 1.0]], [0.7], 0.0)
    assert on.weights.tolist() == off.weights.tolist() == [1.0]
    assert on.mean.tolist() == [0.0, 0.0]
    assert off.mean[1] == pytest.approx(0.7, abs=1e-15)
    assert flat.posterior([[0.0, 1.0]], [0.0], 1e-6).weights[0] == pytest.approx(1, abs=1e-5)
    assert flat.posterior([[0.0, 1.0]], [0.7], 1e-6).weights[0] == 0


def test_two_observations_are_one_after_the_other() -> None:
    both = PRIOR.posterior(TALL[:2], [0.5, -0.1], 0.3)
    in_turn = PRIOR.posterior(TALL[:1], [0.5], 0.3).posterior(TALL[1:2], [-0.1], 0.3)
    for a, b in ((both.weights, in_turn.weights), (both.means, in_turn.means), (both.covs, in_turn.covs)):
        assert torch.allclose(a, b, atol=1e-12)


def test_samples_are_what_rejection_keeps() -> None:
    posterior = PRIOR.posterior(ROW, [0.5], 0.2)
    g = torch.Generator().manual_seed(0)
    x = PRIOR.sample(400_000, g)
    kept = x[torch.rand(len(x), generator=g, dtype=x.dtype) < torch.exp(-((x @ ROW[0] - 0.5) ** 2) / 0.08)]
    samples = posterior.sample(len(kept), g)
    error = 5 * math.sqrt(2 / len(kept))
    assert torch.allclose(samples.mean(0), kept.mean(0), atol=error)
    assert torch.allclose(samples.T.cov(), kept.T.cov(), atol=error)


def joint_log_prob(x: Tensor, alpha: float, sigma: float, y: Tensor, matrix: Tensor, noise: float) -> Tensor:
    """Log p(x_t, y), from the joint Gaussian of each component."""
    both = torch.cat([alpha * torch.eye(2, dtype=torch.float64), matrix])
    spread = torch.diag(torch.tensor([sigma**2] * 2 + [noise**2] * len(matrix), dtype=torch.float64))
    components = MultivariateNormal(MEANS @ both.T, both @ COVS @ both.T + spread)
    mixture = MixtureSameFamily(Categorical(WEIGHTS), components)
    return mixture.log_prob(torch.cat([x, y.expand(len(x), -1)], 1))


@pytest.mark.parametrize("forward", [sde.VP(), sde.EDM(), sde.Flow()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_conditional_score_is_the_prior_s_and_the_gradient_of_the_likelihood(
    forward: sde.ScalarSDE, noise: float
) -> None:
    y = torch.tensor([0.3], dtype=torch.float64)
    conditional = sde.ExactScore(PRIOR.posterior(ROW, y, noise), forward)
    prior = sde.ExactScore(PRIOR, forward)
    for t in (0.1, 0.5, 0.9):
        x = draws(6, 2).requires_grad_()
        alpha, sigma = (float(c(torch.tensor(t, dtype=torch.float64))) for c in (forward.alpha, forward.sigma))
        log_p = joint_log_prob(x, alpha, sigma, y, ROW, noise) - prior.log_prob(x, t)
        (g,) = torch.autograd.grad(log_p.sum(), x)
        with torch.no_grad():
            assert torch.allclose(conditional(x, t).score, prior(x, t).score + g, rtol=1e-9, atol=1e-9)
            assert torch.allclose(prior(x, t).tilted(g).score, conditional(x, t).score, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_laws_of_the_conditional_model(noise: float) -> None:
    for forward in (sde.VP(), sde.Flow(), sde.CLD()):
        sde.checks.exact(sde.ExactScore(PRIOR.posterior(ROW, [0.1], noise), forward))


def test_a_sampler_of_the_conditional_score_draws_the_posterior() -> None:
    posterior = PRIOR.posterior(ROW, [0.3], 0.0)
    model = sde.ExactScore(posterior, sde.VP())
    x = sde.sample(model, (4000, 2), steps=60, solver=sde.Heun(), generator=torch.Generator().manual_seed(0)).double()
    assert torch.allclose(x.mean(0), posterior.mean, atol=0.05)
    assert torch.allclose(x.T.cov(), posterior.cov, atol=0.05)


def test_pictures_keep_their_shape() -> None:
    prior = sde.Mixture([0.5, 0.5], torch.stack([torch.zeros(1, 2, 2), torch.ones(1, 2, 2)]), [0.1, 0.2])
    posterior = prior.posterior(torch.eye(4)[:2], torch.ones(1, 1, 2), 0.1)
    assert posterior.event == (1, 2, 2)
    assert posterior.sample(3).shape == (3, 1, 2, 2)


def test_a_prior_in_float32_gives_a_posterior_in_float32() -> None:
    half = sde.Mixture(WEIGHTS, MEANS, COVS).float().posterior(ROW, [0.3], 0.1)
    assert half.means.dtype is torch.float32
    assert torch.allclose(half.means.double(), PRIOR.posterior(ROW, [0.3], 0.1).means, atol=1e-6)


# A data set


def test_data_weighted_by_the_likelihood() -> None:
    data = draws(50, 2)
    prior = sde.Empirical(data, weights=torch.arange(50.0))
    posterior = prior.posterior(ROW, [0.2], 0.4)
    weights = torch.arange(50.0).double() * torch.exp(-((data @ ROW[0] - 0.2) ** 2) / 0.32)
    weights = weights / weights.sum()
    assert torch.allclose(posterior.mean, weights @ data, atol=1e-12)
    # A mixture of points is the same target, by other formulas.
    points = sde.Mixture(weights, data, torch.zeros(50))
    x = draws(7, 2)
    assert torch.allclose(posterior.denoise(x, 0.7, 0.5), points.denoise(x, 0.7, 0.5), atol=1e-10)
    assert torch.allclose(posterior.log_marginal(x, 0.7, 0.5), points.log_marginal(x, 0.7, 0.5), atol=1e-10)
    assert posterior.scale == pytest.approx(points.scale, rel=1e-10)
    samples = posterior.sample(200_000, torch.Generator().manual_seed(0))
    assert torch.allclose(samples.mean(0), posterior.mean, atol=0.01)


def test_laws_of_weighted_data() -> None:
    target = sde.Empirical(draws(20, 2), weights=torch.arange(20.0))
    sde.checks.target(target)
    sde.checks.exact(sde.ExactScore(target, sde.VP()))


def test_without_noise_only_the_data_that_make_y_are_left() -> None:
    data = torch.tensor([[0.1, 1.0], [0.1, 2.0], [0.3, 5.0]])
    posterior = sde.Empirical(data).posterior([[1.0, 0.0]], torch.tensor([0.1]), 0.0)
    assert posterior.data.tolist() == data[:2].tolist()
    with pytest.raises(ValueError, match="no datum can have made this observation: pass the noise"):
        sde.Empirical(data).posterior([[1.0, 0.0]], [0.2], 0.0)


def test_a_datum_of_weight_0_is_never_drawn() -> None:
    target = sde.Empirical(torch.tensor([[0.0], [1.0], [2.0]]), weights=[0.0, 1.0, 0.0])
    assert target.sample(1000, torch.Generator().manual_seed(0)).unique().tolist() == [1.0]


# Bad input


@pytest.mark.parametrize("prior", [PRIOR, sde.Empirical(draws(5, 2))], ids=["mixture", "data"])
@pytest.mark.parametrize(
    ("matrix", "y", "noise", "message"),
    [
        (torch.ones(1, 3), [0.0], 0.1, r"must be \(m, 2\) and \(m,\)"),
        (ROW, [0.0, 1.0], 0.1, r"operator.matrix\(\)"),
        (ROW[0], [0.0, 1.0], 0.1, r"must be \(m, 2\)"),
        (ROW, [0.0], -0.1, "noise must be 0 or more, got -0.1"),
        (ROW, [0.0], math.nan, "noise must be 0 or more"),
        (ROW, [math.nan], 0.1, "y holds values that are not finite"),
    ],
)
def test_bad_observations_are_refused(prior: sde.Target, matrix: Tensor, y: list, noise: float, message: str) -> None:
    assert isinstance(prior, sde.Mixture | sde.Empirical)
    with pytest.raises(ValueError, match=message):
        prior.posterior(matrix, y, noise)


def test_what_cannot_be_is_refused() -> None:
    line = sde.Gaussian([0.0, 1.0], [1.0, 0.0])
    with pytest.raises(ValueError, match="no component can make y without noise: the nearest is 1 off"):
        line.posterior([[0.0, 1.0]], [2.0], 0.0)
    with pytest.raises(ValueError, match="has no density: ask at t > 0"):
        line.log_prob(torch.zeros(1, 2))
    with pytest.raises(ValueError, match="weights must be 5 numbers of at least 0"):
        sde.Empirical(draws(5, 2), weights=[1.0, 2.0])
    with pytest.raises(ValueError, match="weights must be 5 numbers of at least 0"):
        sde.Empirical(draws(5, 2), weights=[1.0, 2.0, -1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match=r"log_likelihood must be \(5,\)"):
        sde.Empirical(draws(5, 2)).reweighted(torch.zeros(4))
