"""Exact targets: against torch.distributions, scipy, quadrature, Monte Carlo and each other; law 5 over every SDE."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal, Normal

import sde
from sde.checks import LawViolation

ROOT = torch.tensor([[1.0, 0.0, 0.0], [0.4, 0.6, 0.0], [-0.3, 0.2, 0.5]], dtype=torch.float64)
MEANS = torch.tensor([[-1.0, 0.5, 0.0], [1.0, 0.0, 2.0]], dtype=torch.float64)
COVS = torch.stack([ROOT @ ROOT.T, torch.diag(torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64))])
TWO_MODES = sde.Mixture([0.3, 0.7], [[-1.0], [1.0]], [0.04, 0.09])


def data(n: int = 40, *event: int) -> Tensor:
    return torch.randn(n, *(event or (2,)), generator=torch.Generator().manual_seed(0), dtype=torch.float64)


TARGETS: dict[str, sde.Target] = {
    "Gaussian of one number": sde.Gaussian([0.5], 0.3),
    "Gaussian": sde.Gaussian([1.0, -1.0], [[1.0, 0.6], [0.6, 0.5]]),
    "Gaussian, singular": sde.Gaussian([0.0, 1.0], [[1.0, 1.0], [1.0, 1.0]]),
    "Gaussian of pictures": sde.Gaussian(torch.zeros(2, 3, 2), torch.linspace(0.1, 2, 12)),
    "Mixture in 1-D": TWO_MODES,
    "Mixture": sde.Mixture([1.0, 3.0], MEANS, COVS),
    "Mixture of pictures": sde.Mixture(
        [0.5, 0.5], torch.stack([torch.zeros(1, 2, 2), torch.ones(1, 2, 2)]), [0.1, 0.2]
    ),
    "Empirical": sde.Empirical(data()),
    "Empirical of one": sde.Empirical(data(1)),
    "Empirical of pictures": sde.Empirical(data(7, 1, 2, 2)),
}


@pytest.mark.parametrize("name", TARGETS)
def test_laws_of_the_target(name: str) -> None:
    sde.checks.target(TARGETS[name])


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("Gaussian", torch.float64),
        ("Mixture in 1-D", torch.float64),
        ("Mixture", torch.float32),
        ("Empirical", torch.float64),
        ("Empirical", torch.float32),
    ],
)
def test_law_5_over_every_sde(any_sde: sde.ForwardSDE, name: str, dtype: torch.dtype) -> None:
    sde.checks.exact(sde.ExactScore(TARGETS[name], any_sde), dtype=dtype)


@pytest.mark.parametrize("name", ["Gaussian of pictures", "Mixture of pictures", "Empirical of pictures"])
def test_law_5_for_pictures(name: str) -> None:
    for forward in (sde.VP(), sde.Flow(), sde.CLD()):
        sde.checks.exact(sde.ExactScore(TARGETS[name], forward))


@pytest.mark.nightly
@pytest.mark.parametrize("name", TARGETS)
def test_laws_of_every_model(any_sde: sde.ForwardSDE, name: str) -> None:
    sde.checks.model(sde.ExactScore(TARGETS[name], any_sde))


def test_laws_of_an_exact_model(any_sde: sde.ForwardSDE) -> None:
    laws = sde.checks.model(sde.ExactScore(TARGETS["Mixture"], any_sde))
    assert laws == ["4 points", "10 prior", "8 guidance", "5 exact"]


# Densities, against others' code.


def torch_mixture(alpha: float, sigma: float) -> MixtureSameFamily:
    covs = alpha**2 * COVS + sigma**2 * torch.eye(3, dtype=torch.float64)
    parts = MultivariateNormal(alpha * MEANS, covs)
    return MixtureSameFamily(Categorical(torch.tensor([0.25, 0.75], dtype=torch.float64)), parts)


def test_log_prob_against_torch() -> None:
    target, x = TARGETS["Mixture"], 2 * data(20, 3)
    torch.testing.assert_close(target.log_prob(x), torch_mixture(1.0, 0.0).log_prob(x))
    for forward, t in ((sde.VP(), 0.3), (sde.VE(), 0.7), (sde.Flow(), 1.0)):
        alpha, sigma = (float(c) for c in forward.levels(t))
        got = sde.ExactScore(target, forward).log_prob(x, t)
        torch.testing.assert_close(got, torch_mixture(alpha, sigma).log_prob(x))


def test_log_prob_against_scipy() -> None:
    x = np.linspace(-3, 3, 31)
    expected = np.log(0.3 * stats.norm.pdf(x, -1, 0.2) + 0.7 * stats.norm.pdf(x, 1, 0.3))
    np.testing.assert_allclose(TWO_MODES.log_prob(torch.from_numpy(x)[:, None]), expected)
    two = stats.multivariate_normal([1.0, -1.0], [[1.0, 0.6], [0.6, 0.5]])
    points = data(9)
    np.testing.assert_allclose(TARGETS["Gaussian"].log_prob(points), two.logpdf(points.numpy()))


def test_marginal_of_a_matrix_sde_against_torch() -> None:
    """U = A x0 + L eps of a Gaussian is Gaussian over all channels."""
    target, system, t = sde.Gaussian([0.5], 0.3), sde.CLD(), 0.3
    a, cov = system.moments(torch.tensor(t, dtype=torch.float64))
    normal = MultivariateNormal(0.5 * a, 0.3 * torch.outer(a, a) + cov)
    u = data(9, 2, 1)
    model = sde.ExactScore(target, system)
    torch.testing.assert_close(model.log_prob(u, t), normal.log_prob(u[..., 0]))
    precision = torch.linalg.inv(normal.covariance_matrix)
    torch.testing.assert_close(model(u, t).score[..., 0], -(u[..., 0] - 0.5 * a) @ precision)


@pytest.mark.parametrize(("alpha", "sigma"), [(1.0, 0.05), (0.8, 0.6), (0.1, 1.0), (1.0, 10.0)])
def test_denoiser_and_marginal_by_quadrature(alpha: float, sigma: float) -> None:
    """E[x0 | y] and log p(y) are integrals over x0, done here on a fine grid."""
    x0 = torch.linspace(-4, 4, 40_001, dtype=torch.float64)
    y = torch.linspace(-2, 2, 9, dtype=torch.float64)
    log_joint = TWO_MODES.log_prob(x0[:, None]) + Normal(alpha * x0, sigma).log_prob(y[:, None])
    log_p = torch.logsumexp(log_joint, 1) + math.log(float(x0[1] - x0[0]))
    mean = (torch.softmax(log_joint, 1) * x0).sum(1)
    torch.testing.assert_close(TWO_MODES.log_marginal(y[:, None], alpha, sigma), log_p)
    torch.testing.assert_close(TWO_MODES.denoise(y[:, None], alpha, sigma)[:, 0], mean)


def test_denoiser_is_the_regression_of_x0_on_x() -> None:
    """Among all functions of x, E[x0 | x] has an error that is uncorrelated with every one of them."""
    n, vp = 100_000, sde.VP()
    generator = torch.Generator().manual_seed(0)
    point = vp.perturb(TARGETS["Mixture"].sample(n, generator), 0.2, generator)
    error = point.x0 - sde.ExactScore(TARGETS["Mixture"], vp)(point.x, 0.2).x0
    for feature in (torch.ones_like(point.x), point.x, torch.sin(3 * point.x), point.x.square()):
        product = error * feature
        assert bool((product.mean(0).abs() < 5 * product.std(0) / n**0.5).all())


def test_perturbed_draws_have_the_exact_marginal() -> None:
    model = sde.ExactScore(TWO_MODES, sde.SubVP())
    generator = torch.Generator().manual_seed(0)
    x = model.sde.perturb(TWO_MODES.sample(20_000, generator), 0.3, generator).x[:, 0].numpy()
    grid = torch.linspace(-4, 4, 4001, dtype=torch.float64)
    cdf = model.log_prob(grid[:, None], 0.3).exp().cumsum(0) * (grid[1] - grid[0])
    assert stats.kstest(x, lambda u: np.interp(u, grid.numpy(), cdf.numpy())).pvalue > 1e-3


def test_the_exact_prior_is_the_marginal_at_t_max() -> None:
    model = sde.ExactScore(TWO_MODES, sde.VE(0.01, 0.5))  # so little noise that a Gaussian prior would be wrong
    x = model.prior(torch.zeros(20_000, 1, dtype=torch.float64), torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.prior_log_prob(x), model.log_prob(x, 1.0))
    grid = torch.linspace(-5, 5, 4001, dtype=torch.float64)
    cdf = model.prior_log_prob(grid[:, None]).exp().cumsum(0) * (grid[1] - grid[0])
    assert stats.kstest(x[:, 0].numpy(), lambda u: np.interp(u, grid.numpy(), cdf.numpy())).pvalue > 1e-3
    other = sde.EDM()
    torch.testing.assert_close(model.prior_log_prob(x, other), sde.ExactScore(TWO_MODES, other).log_prob(x, 80.0))


# Targets against each other.


def test_a_data_set_is_a_mixture_of_no_width() -> None:
    points = data(15)
    empirical, mixture = sde.Empirical(points), sde.Mixture([1 / 15] * 15, points, [1e-12] * 15)
    y = data(6) + 0.3
    for alpha, sigma in ((1.0, 0.3), (0.5, 0.8)):
        for method in ("denoise", "log_marginal"):
            got, expected = getattr(empirical, method)(y, alpha, sigma), getattr(mixture, method)(y, alpha, sigma)
            torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(empirical.mean, mixture.mean)
    assert empirical.scale == pytest.approx(mixture.scale)


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("chunk", [1, 7, 4096])
def test_chunks_change_nothing(chunk: int, each: bool) -> None:
    points, y = data(200), data(20) + 1
    t = torch.linspace(0.1, 0.9, 20, dtype=torch.float64) if each else 0.4
    whole = sde.ExactScore(sde.Empirical(points), sde.VP())
    cut = sde.ExactScore(sde.Empirical(points, chunk=chunk), sde.VP())
    torch.testing.assert_close(cut(y, t).x0, whole(y, t).x0)
    torch.testing.assert_close(cut.log_prob(y, t), whole.log_prob(y, t))


@pytest.mark.parametrize("each", [False, True])
def test_a_large_data_set_far_from_the_origin_keeps_its_digits(each: bool) -> None:
    """Distances by a product of matrices would cancel in float32: |y|^2 - 2 y x + |x|^2 with numbers of 1e4."""
    points = (1e3 + data(100)).float()
    model = sde.ExactScore(sde.Empirical(points), sde.EDM())
    y = points[:5] + 0.01
    t = torch.full((5,), 0.01) if each else 0.01
    assert float((model(y, t).x0 - points[:5]).abs().max()) < 0.1


def test_one_component_is_its_gaussian_and_equal_components_are_one() -> None:
    y = data(5)
    gaussian = TARGETS["Gaussian"]
    three = sde.Mixture([0.2, 0.0, 0.5], [[1.0, -1.0]] * 3, [[[1.0, 0.6], [0.6, 0.5]]] * 3)
    for method in ("denoise", "log_marginal"):
        torch.testing.assert_close(getattr(three, method)(y, 0.8, 0.5), getattr(gaussian, method)(y, 0.8, 0.5))


def test_variances_may_be_given_in_three_ways() -> None:
    full, y = torch.eye(2).double().expand(2, 2, 2) * 0.3, data(4)
    means = [[-1.0, 0.0], [1.0, 0.0]]
    spelled = [sde.Mixture([0.5, 0.5], means, covs).log_prob(y) for covs in (full, [[0.3, 0.3]] * 2, [0.3, 0.3])]
    assert torch.equal(spelled[0], spelled[1])
    assert torch.equal(spelled[1], spelled[2])


def test_moments_of_a_mixture() -> None:
    target = TARGETS["Mixture"]
    assert isinstance(target, sde.Mixture)
    x = target.sample(100_000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(x.mean(0), target.mean, atol=0.02, rtol=0)
    torch.testing.assert_close(x.T.cov(), target.cov, atol=0.03, rtol=0)
    assert target.scale == pytest.approx(math.sqrt(float(x.var(0).mean())), rel=0.01)


def test_far_from_every_mode_nothing_overflows() -> None:
    y = torch.tensor([[1e4], [-1e4]], dtype=torch.float32)
    for target in (TWO_MODES, sde.Empirical(data(5, 1).float())):
        model = sde.ExactScore(target, sde.EDM())
        for t in (0.002, 1.0, 80.0):
            point = model(y, t)
            assert bool(torch.isfinite(point.x0).all() & torch.isfinite(point.score).all())
            assert bool(torch.isfinite(model.log_prob(y, t)).all())


@pytest.mark.parametrize("forward", [sde.VP(), sde.Flow(), sde.CLD()], ids=lambda f: type(f).__name__)
@pytest.mark.parametrize("name", ["Gaussian", "Mixture", "Mixture of pictures", "Empirical", "network"])
def test_slopes_of_scores_against_finite_differences(name: str, forward: sde.ForwardSDE) -> None:
    """By the state, in float64, through score and x0, for one time and for a time of each sample."""
    x0 = data(2, *{"Mixture": (3,), "Mixture of pictures": (1, 2, 2)}.get(name, (2,)))
    if name == "network":
        model: sde.Model = sde.ScoreModel(sde.nets.MLP(2, width=8), forward).double()
        for p in model.parameters():
            p.data += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(len(p))).double()
    else:
        model = sde.ExactScore(TARGETS[name], forward)
    with torch.enable_grad():
        x = forward.perturb(x0, 0.4, torch.Generator().manual_seed(1)).x.requires_grad_()
        for t in (0.4, torch.tensor([0.3, 0.6]).double()):
            for part in ("score", "x0"):
                assert torch.autograd.gradcheck(lambda u, t=t, part=part: getattr(model(u, t), part), x, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", TARGETS)
def test_half_precision_is_right_to_its_digits_and_views_are_as_copies(name: str, dtype: torch.dtype) -> None:
    """The state's rounding is no error of the score: both are asked at the rounded state."""
    target, eps = TARGETS[name], torch.finfo(dtype).eps
    model = sde.ExactScore(target, sde.VP())
    x = target.sample(6, torch.Generator().manual_seed(0)).double()
    x = model.sde.perturb(x, 0.5, torch.Generator().manual_seed(1)).x.to(dtype)
    half, exact = model(x, 0.5), model(x.double(), 0.5)
    assert half.x0.dtype == half.score.dtype == dtype
    assert model.log_prob(x, 0.5).dtype == dtype
    size = float(exact.x0.abs().max() + x.double().abs().max())
    for part in ("x0", "score"):
        torch.testing.assert_close(getattr(half, part).double(), getattr(exact, part), rtol=0, atol=20 * eps * size)
    across = x.movedim(0, -1).contiguous().movedim(-1, 0)
    assert torch.equal(model(across, 0.5).score, half.score)


def test_gradients_of_the_denoiser() -> None:
    """Guidance differentiates E[x0 | x]: its Jacobian is Cov[x0 | x] alpha / sigma^2, for a Gaussian in closed form."""
    cov = torch.tensor([[1.0, 0.6], [0.6, 0.5]], dtype=torch.float64)
    model, y = sde.ExactScore(TARGETS["Gaussian"], sde.VP()), data(1)
    alpha, sigma = (float(c) for c in model.sde.levels(0.3))  # type: ignore[attr-defined]
    jacobian = torch.autograd.functional.jacobian(lambda u: model(u, 0.3).x0[0], y)[:, 0]
    expected = alpha * cov @ torch.linalg.inv(alpha**2 * cov + sigma**2 * torch.eye(2, dtype=torch.float64))
    torch.testing.assert_close(jacobian, expected)
    empirical = sde.ExactScore(sde.Empirical(data()), sde.VP())
    for t in (0.3, torch.full((1,), 0.3)):
        u = y.clone().requires_grad_()
        (slope,) = torch.autograd.grad(empirical(u, t).x0.sum(), u)
        assert bool(torch.isfinite(slope).all())
        assert bool(slope.any())


# What is caught, and what is refused.


class Wrong(sde.Gaussian):
    """A Gaussian with one method replaced."""

    def __init__(self, **methods: object) -> None:
        super().__init__([1.0], 0.5)
        self.__dict__.update(methods)


@pytest.mark.parametrize(
    ("methods", "word"),
    [
        ({"denoise": lambda y, alpha, sigma: 0.5 + 0 * y}, "denoise for alpha = 1.0, sigma = 0.3"),
        ({"log_marginal": lambda y, a, s: TWO_MODES.log_marginal(y, a, s)}, "denoise"),
        (
            {"log_marginal": lambda y, a, s: sde.Gaussian([1.0], 0.5).log_marginal(y, a, s) + 0.1},
            "integral of the density",
        ),
        ({"sample": lambda n, generator=None: torch.zeros(n, 1)}, "mean of draws"),
        ({"sample": lambda n, generator=None: torch.zeros(n)}, "shape"),
        ({"sample": lambda n, generator=None: 1 + 0.5**0.5 * torch.randn(n, 1)}, "the same seed gives other bits"),
    ],
)
def test_a_wrong_target_is_caught(methods: dict, word: str) -> None:
    with pytest.raises(LawViolation) as caught:
        sde.checks.target(Wrong(**methods))
    assert word in str(caught.value)


def test_a_score_that_is_not_its_densitys_is_caught() -> None:
    model = sde.ExactScore(TWO_MODES, sde.VP())
    model.log_prob = sde.ExactScore(sde.Gaussian([0.0], 1.0), sde.VP()).log_prob  # type: ignore[method-assign]
    with pytest.raises(
        LawViolation, match=r"law 5 is broken by ExactScore: at t = 0\.001 score.* autograd of log_prob"
    ):
        sde.checks.exact(model)


@pytest.mark.parametrize(
    ("make", "kind", "word"),
    [
        (lambda: sde.Mixture([0.5, 0.5], [[0.0]], [1.0]), ValueError, "must agree in their first axis"),
        (lambda: sde.Mixture([1.0], [0.0], [1.0]), ValueError, "pass (K,), (K, *D) and (K, d, d), (K, d) or (K,)"),
        (lambda: sde.Mixture([-0.5, 1.5], [[0.0], [1.0]], [1.0, 1.0]), ValueError, "non-negative with a positive sum"),
        (lambda: sde.Mixture([0.0, 0.0], [[0.0], [1.0]], [1.0, 1.0]), ValueError, "weights must be non-negative"),
        (lambda: sde.Mixture([1.0], [[0.0, 0.0]], [[1.0]]), ValueError, "covs must be (1, 2, 2), (1, 2) or (1,)"),
        (lambda: sde.Gaussian([0.0, 0.0], [[1.0, 2.0], [2.0, 1.0]]), ValueError, "eigenvalues down to -1"),
        (lambda: sde.Gaussian([0.0, 0.0], [[1.0, 0.5], [0.0, 1.0]]), ValueError, "symmetric positive semi-definite"),
        (lambda: sde.Gaussian([0.0], -1.0), ValueError, "or variances of at least 0"),
        (lambda: sde.Gaussian([math.nan], 1.0), ValueError, "means must be finite, got [[nan]]"),
        (lambda: sde.Gaussian([0.0], math.inf), ValueError, "covs must be finite"),
        (lambda: sde.Empirical(torch.zeros(0, 2)), ValueError, "data must be (N, *D) with N at least 1, got (0, 2)"),
        (lambda: sde.Empirical(torch.zeros(5)), ValueError, "data must be (N, *D)"),
        (lambda: sde.Empirical(torch.zeros(5, 2, dtype=torch.int64)), TypeError, "use data.float()"),
        (lambda: sde.Empirical(torch.tensor([[0.0], [math.nan]])), ValueError, "1 values that are not finite"),
        (lambda: sde.Empirical(torch.zeros(5, 2), chunk=0), ValueError, "chunk must be at least 1, got 0"),
        (lambda: sde.Empirical(torch.zeros(5, 2)).log_prob(torch.zeros(1, 2)), ValueError, "has no density"),
        (lambda: TWO_MODES.log_prob(torch.zeros(3, 2)), ValueError, "x has shape (3, 2), this target needs (B, 1)"),
        (lambda: TWO_MODES.denoise(torch.zeros(3), 1.0, 1.0), ValueError, "this target needs (B, 1)"),
    ],
)
def test_wrong_arguments_are_refused(make: object, kind: type, word: str) -> None:
    with pytest.raises(kind) as caught:
        make()  # type: ignore[operator]
    assert word in str(caught.value)
