"""Products, mixtures and temperatures of models against Gaussians and mixtures that they must be."""

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import sde
from sde.nodes import Table
from sde.score import Blend, Classifier, Product, Temperature

MEANS = [torch.tensor([0.5, -1.0]).double(), torch.tensor([-0.5, 0.2]).double(), torch.tensor([0.1, 0.4]).double()]
COVS = [
    torch.tensor([[1.0, 0.6], [0.6, 0.5]]).double(),
    torch.tensor([[0.8, -0.3], [-0.3, 0.6]]).double(),
    torch.tensor([[2.0, 0.2], [0.2, 3.0]]).double(),
]
EYE = torch.eye(2).double()


def gaussians(forward: sde.ForwardSDE) -> list[sde.ExactScore]:
    return [sde.ExactScore(sde.Gaussian(m, c), forward) for m, c in zip(MEANS, COVS, strict=True)]


def states(forward: sde.ForwardSDE, t: float, n: int = 5) -> Tensor:
    x0 = torch.randn(n, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return forward.perturb(x0, t, torch.Generator().manual_seed(1)).x


def times(forward: sde.ForwardSDE) -> list[float]:
    return [forward.t_min + share * (forward.t_max - forward.t_min) for share in (0.1, 0.5, 0.9)]


def pair(forward: sde.ForwardSDE, x: Tensor, t: float) -> tuple[Tensor, float, float]:
    y, *both = forward.statistic(x, t)
    alpha, sigma = (float(torch.as_tensor(c).flatten()[0]) for c in both)
    return y, alpha, sigma


def same(got: sde.Point, expected: sde.Point, rtol: float = 1e-7) -> None:
    torch.testing.assert_close(got.x0, expected.x0, rtol=rtol, atol=rtol)
    for name in ("eps", "velocity", "score"):
        a, b = getattr(got, name), getattr(expected, name)
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * (1 + b.abs().max().item()))


# Products.


def product_of_powers(forward: sde.ForwardSDE, x: Tensor, t: float, weights: list[float]) -> Tensor:
    """x0 of prod_i N(a m_i, a^2 C_i + s^2)^w_i: precisions add, then Tweedie."""
    y, a, s = pair(forward, x, t)
    precisions = [w * torch.linalg.inv(a**2 * c + s**2 * EYE) for w, c in zip(weights, COVS, strict=True)]
    score = -sum((y - a * m) @ p for m, p in zip(MEANS, precisions, strict=True))
    return (y + s**2 * score) / a


def test_a_product_of_gaussians_is_the_product_at_each_time(any_sde: sde.ForwardSDE) -> None:
    one, two, base = gaussians(any_sde)
    for t in times(any_sde):
        x = states(any_sde, t)
        for product, weights in (
            (Product([one, two], base=base), [1.0, 1.0, -1.0]),
            (Product([one, two], [0.5, 2.0], base), [0.5, 2.0, -1.5]),
            (Product([one, two, base]), [1 / 3, 1 / 3, 1 / 3]),
            (Product([one, two, base], [1.5, -1.0, 0.5]), [1.5, -1.0, 0.5]),
        ):
            got, x0 = product(x, t), product_of_powers(any_sde, x, t, weights)
            same(got, sde.Point(any_sde, x, t, x0), rtol=1e-6)


def test_a_product_with_a_base_is_guidance_for_one_expert() -> None:
    one, _, base = gaussians(sde.VP())
    x = states(one.sde, 0.4)
    same(Product([one], [2.5], base)(x, 0.4), sde.CFG(one, base, 2.5)(x, 0.4))
    same(Product([one], base=base)(x, 0.4), one(x, 0.4))


def test_what_a_product_samples_and_what_a_corrector_makes_of_it() -> None:
    """N(0, .25) N(0, 1): the product has variance .2, the flow's end another; a corrector brings it to the product.

    With a wide Gaussian as base: d log x / d sigma = sigma (1 / (.25 + s^2) + 1 / (1 + s^2) - 1 / (B + s^2)).
    """
    forward, big, wide = sde.EDM(sigma_max=80.0), 80.0**2, 100.0
    one, two, flat = (sde.ExactScore(sde.Gaussian([0.0], v), forward) for v in (0.25, 1.0, wide))
    product = Product([one, two], base=flat)
    start = torch.full((1, 1), 100.0, dtype=torch.float64)
    fine = sde.grids.log_snr(forward, 200)
    end = sde.sample(product, x=start, times=fine, solver=sde.RK4(), progress=False)
    small = float(fine[-1]) ** 2
    factor = math.prod(((v + small) / (v + big)) ** (p / 2) for v, p in ((0.25, 1), (1.0, 1), (wide, -1)))
    assert (end / start).item() == pytest.approx(factor, rel=1e-5)
    wanted = 1 / (1 / 0.25 + 1 / 1.0 - 1 / wide)
    flowed = factor**2 * big
    assert flowed == pytest.approx(0.0025, rel=0.05)  # .25 × 1 / 100, eighty times too narrow
    x = product.prior(torch.empty(4000, 1, dtype=torch.float64), torch.Generator().manual_seed(0))
    solver = sde.PredictorCorrector(sde.ReverseDiffusion(), sde.AnnealedLangevin(0.16), steps=4)
    grid = sde.grids.log_snr(forward, 60)
    x = sde.sample(product, x=x, times=grid, solver=solver, generator=torch.Generator().manual_seed(1), progress=False)
    assert x.var().item() == pytest.approx(wanted, rel=0.12)


# Mixtures.


def test_a_blend_of_exact_models_is_their_mixture(any_sde: sde.ForwardSDE) -> None:
    blend = Blend(gaussians(any_sde), [2.0, 5.0, 3.0])
    exact = sde.ExactScore(sde.Mixture([0.2, 0.5, 0.3], torch.stack(MEANS), torch.stack(COVS)), any_sde)
    grid = torch.tensor(times(any_sde), dtype=torch.float64)
    for t, node in zip(grid.tolist(), Table(grid).nodes, strict=True):
        x = states(any_sde, t)
        same(blend(x, t), exact(x, t), rtol=1e-6)
        same(blend(x, torch.full((5,), t, dtype=torch.float64)), exact(x, t), rtol=1e-6)
        torch.testing.assert_close(blend(x, node).x0, exact(x, t).x0, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(blend.log_prob(x, t), exact.log_prob(x, t), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(blend.data_mean(), exact.data_mean())
    assert blend.data_scale() == pytest.approx(exact.data_scale())
    torch.testing.assert_close(blend.prior_log_prob(x), exact.prior_log_prob(x), rtol=1e-7, atol=1e-7)
    nested = Blend([Blend(gaussians(any_sde)[:2], [2.0, 5.0]), gaussians(any_sde)[2]], [0.7, 0.3])
    same(nested(x, t), exact(x, t), rtol=1e-6)


def test_a_blend_starts_from_its_components_as_often_as_they_weigh() -> None:
    """OU for a short time forgets little: the prior is bimodal."""
    short = sde.OrnsteinUhlenbeck(t_max=0.1)
    sides = [sde.ExactScore(sde.Gaussian([m], 0.01), short) for m in (-3.0, 3.0)]
    x = Blend(sides, [1.0, 4.0]).prior(torch.empty(4000, 1), torch.Generator().manual_seed(0))
    assert (x > 0).double().mean().item() == pytest.approx(0.8, abs=5 * (0.8 * 0.2 / 4000) ** 0.5)
    each = [torch.Generator().manual_seed(i) for i in range(6)]
    x = Blend(sides).prior(torch.empty(6, 1), each)
    again = Blend(sides).prior(torch.empty(2, 1), [torch.Generator().manual_seed(i) for i in (4, 5)])
    assert torch.equal(x[4:], again)


class Undisclosed(sde.Wrapper):
    """A model that states no density."""

    def forward(self, x: Tensor, t: float | Tensor, **cond: Any) -> sde.Point:
        return self.model(x, t)


def test_a_blend_of_models_without_densities() -> None:
    """By a judge it is the mixture; without, with a warning, the geometric mean."""
    vp = sde.VP()
    models = gaussians(vp)
    closed = [Undisclosed(m) for m in models]
    x = states(vp, 0.3)
    bayes = sde.BayesClassifier(models, [0.2, 0.5, 0.3])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        judged = Blend(closed, judge=bayes)
    same(judged(x, 0.3), Blend(models, [0.2, 0.5, 0.3])(x, 0.3), rtol=1e-6)
    with pytest.warns(UserWarning, match=r"averages their scores with constant weights.*pass judge="):
        blind = Blend(closed, [0.2, 0.5, 0.3])
    same(blind(x, 0.3), Product(models, [0.2, 0.5, 0.3])(x, 0.3), rtol=1e-6)
    untrained = Classifier(sde.nets.MLPClassifier(2, 3, width=8), vp).double()  # all alike
    same(Blend(closed, judge=untrained)(x, 0.3), Product(models)(x, 0.3), rtol=1e-6)


# Temperature.


@pytest.mark.parametrize("temperature", [0.25, 3.0])
def test_temperature_of_a_gaussian_is_a_gaussian(any_sde: sde.ForwardSDE, temperature: float) -> None:
    """Any covariance, any mean; floats, tensors and nodes. Where its noise level is within the SDE's."""
    model = gaussians(any_sde)[0]
    changed = Temperature(model, temperature)
    exact = sde.ExactScore(sde.Gaussian(MEANS[0], temperature * COVS[0]), any_sde)
    grid = torch.tensor(times(any_sde)[:2], dtype=torch.float64)
    for t, node in zip(grid.tolist(), Table(grid).nodes, strict=True):
        x = states(any_sde, t)
        same(changed(x, t), exact(x, t), rtol=1e-5)
        torch.testing.assert_close(changed(x, node).x0, changed(x, t).x0, rtol=1e-9, atol=1e-9)
        each = torch.full((5,), t, dtype=torch.float64)
        torch.testing.assert_close(changed(x, each).x0, changed(x, t).x0, rtol=1e-9, atol=1e-9)
    assert changed.data_scale() == pytest.approx(exact.data_scale())


def test_temperature_at_the_end_where_nothing_is_left_of_the_data() -> None:
    """Flow's alpha is 0 at t = 1: the answer is the mean, and nothing is infinite."""
    cold = Temperature(gaussians(sde.Flow())[0], 0.5)
    point = cold(torch.randn(4, 2, dtype=torch.float64), 1.0)
    torch.testing.assert_close(point.x0, MEANS[0].expand(4, 2), rtol=1e-6, atol=1e-6)
    assert bool(torch.isfinite(point.velocity).all())


def test_temperature_1_changes_nothing_and_others_warn_unless_exact() -> None:
    vp = sde.VP()
    gauss, mixture = gaussians(vp)[0], sde.ExactScore(sde.Mixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1]), vp)
    learned = sde.ScoreModel(sde.nets.MLP(dim=2, width=8), vp)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Temperature(gauss, 0.5)
        one = Temperature(learned, 1.0)
    x = torch.randn(3, 2)
    assert torch.equal(one(x, 0.4).x0, learned(x, 0.4).x0)
    for model in (mixture, learned):
        with pytest.warns(UserWarning, match=r"temperature=0.5 is exact for Gaussian data only"):
            Temperature(model, 0.5)


@pytest.mark.filterwarnings("ignore:temperature")
def test_what_temperature_makes_of_two_modes() -> None:
    """With noise on the way each mode has T times its variance; the flow stops at their inner flanks."""
    vp, t = sde.VP(), 0.25
    model = sde.ExactScore(sde.Mixture([0.5, 0.5], [[-2.0], [2.0]], [0.1, 0.1]), vp)
    modes = {}
    for eta, solver in ((0, None), (1, sde.DPMSolverPP())):
        x = sde.sample(
            Temperature(model, t), (4000, 1), 60, solver, eta=eta, generator=torch.Generator().manual_seed(0),
            progress=False,
        )  # fmt: skip
        modes[eta] = x[x > 0].mean().item(), x[x > 0].var().item()
    assert modes[1] == (pytest.approx(2.0, abs=0.1), pytest.approx(0.1 * t, rel=0.2))
    assert modes[0][0] < 1.9
    assert modes[0][1] > 1.5 * 0.1 * t


def test_refusals() -> None:
    vp = sde.VP()
    one, two, _ = gaussians(vp)
    elsewhere = gaussians(sde.EDM())[0]
    coupled = sde.ScoreModel(sde.nets.MLP(dim=2, width=8), vp, coupled=True)
    cases = [
        (lambda: Product([one, two], [1.0, 1.0]), r"weights must sum to 1 without a base, got 2, .*pass .* as base"),
        (lambda: Product([one, two], [1.0]), r"weights must be 2 finite numbers, one for each model, got \[1.0\]"),
        (lambda: Product([one, two], [math.nan, 1.0]), r"weights must be 2 finite numbers"),
        (lambda: Product([]), r"Product needs models, got none"),
        (lambda: Blend([]), r"Blend needs models, got none"),
        (lambda: Blend([one, two], [1.0, -1.0]), r"weights must be 2 non-negative numbers with a positive sum"),
        (lambda: Product([one, elsewhere]), r"models\[0\] and models\[1\] must share their SDE"),
        (lambda: Product([one, two], base=elsewhere), r"must share their SDE"),
        (lambda: Product([one, coupled]), r"Product needs a score, and models\[1\] was trained with a coupling"),
        (lambda: Blend([coupled, one]), r"Blend needs a score, and models\[0\] was trained with a coupling"),
        (lambda: Temperature(coupled, 0.5), r"Temperature needs a score, and model was trained with a coupling"),
        (lambda: Temperature(one, 0.0), r"temperature must be positive and finite, got 0.0: 1 changes nothing"),
    ]
    for make, message in cases:
        with pytest.raises(ValueError, match=message):
            make()


def test_conditions_go_along_in_parallel() -> None:
    """A run of many steps at once takes the labels that lie in the parts along."""
    model = sde.ScoreModel(sde.nets.MLP(dim=2, classes=3, width=16), sde.VP())
    torch.nn.init.normal_(model.net.outward.weight)
    labels = torch.tensor([0, 1, 2]), torch.tensor([2, 2, 0])
    product = Product([model.given(label=label) for label in labels], base=model)
    start = torch.randn(3, 2)
    one, other = (
        sde.sample(product, x=start, steps=8, solver=solver, progress=False)
        for solver in (sde.Picard(sde.DDIM(), tolerance=1e-6), sde.DDIM())
    )
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
