"""The exact posterior of an `Observation`: which targets and operators, and what it says."""

import math

import pytest
import torch

import sde
from sde.inverse import Blur, Function, Mask, Matrix, Observation, exact_posterior, observe

EVENT = (1, 4, 4)
PICTURES = sde.Mixture(
    [0.4, 0.6],
    torch.randn(2, *EVENT, generator=torch.Generator().manual_seed(0)),
    torch.linspace(0.1, 1, 32).reshape(2, 16),
)


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_its_mean_beats_every_other_estimate_on_the_mean(noise: float) -> None:
    """The law of total variance: E var(x0 | y) + var E(x0 | y) = var x0, over draws of x0 and y."""
    g = torch.Generator().manual_seed(0)
    operator = Blur.gaussian(EVENT, 0.8) if noise else Mask.random(EVENT, 0.5, g)
    x0 = PICTURES.sample(300, g)
    errors, widths = [], []
    for x in x0:
        posterior = exact_posterior(PICTURES, observe(operator, x[None], noise, g))
        assert isinstance(posterior, sde.Mixture)
        errors.append(float((posterior.mean - x).square().sum()))
        widths.append(float(posterior.cov.trace()))
    error = 5 * torch.tensor(errors).std() / math.sqrt(len(x0))
    assert torch.tensor(errors).mean() == pytest.approx(float(torch.tensor(widths).mean()), abs=float(error))


def test_noise_free_samples_make_y() -> None:
    operator = Matrix.random(EVENT, 6, torch.Generator().manual_seed(0))
    y = operator(PICTURES.sample(1, torch.Generator().manual_seed(1)))
    posterior = exact_posterior(PICTURES, Observation(operator, y))
    x = posterior.sample(100, torch.Generator().manual_seed(2))
    assert x.shape == (100, *EVENT)
    assert torch.allclose(operator(x), y.expand(100, -1), atol=1e-12)


def test_y_in_float32_can_be_made() -> None:
    operator = Mask.halved(EVENT)
    y = operator(PICTURES.sample(1, torch.Generator().manual_seed(1)).float())
    posterior = exact_posterior(PICTURES, Observation(operator, y))
    assert isinstance(posterior, sde.Mixture)
    assert len(posterior.weights) == 2  # hidden pixels hold 0 in y, and no component is thrown out by them


def test_all_hidden_is_the_prior() -> None:
    nothing = Mask(torch.zeros(EVENT, dtype=torch.bool))
    posterior = exact_posterior(PICTURES, Observation(nothing, torch.zeros(1, *EVENT)))
    assert isinstance(posterior, sde.Mixture)
    assert torch.allclose(posterior.weights, PICTURES.weights)
    assert torch.allclose(posterior.covs, PICTURES.covs)


def test_a_data_set_under_a_function() -> None:
    data = torch.randn(30, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    radius = Function(lambda x: x.square().sum(1, keepdim=True), (2,))
    posterior = exact_posterior(sde.Empirical(data, chunk=7), Observation(radius, torch.ones(1, 1).double(), noise=0.3))
    weights = torch.softmax(-((data.square().sum(1) - 1) ** 2) / (2 * 0.09), 0)
    assert torch.allclose(posterior.mean, weights @ data, atol=1e-12)
    exact = exact_posterior(sde.Empirical(data, chunk=7), observe(radius, data[4:5]))
    assert torch.equal(exact.mean, data[4])


def test_what_it_cannot_do_is_refused() -> None:
    flat = Function(lambda x: x.flatten(1), EVENT)
    two = Observation(Mask.halved(EVENT), torch.zeros(2, *EVENT))
    with pytest.raises(ValueError, match="needs one observation, got 2: call it for each"):
        exact_posterior(PICTURES, two)
    with pytest.raises(ValueError, match="needs a linear operator"):
        exact_posterior(PICTURES, Observation(flat, torch.zeros(1, 16), 0.1))
    with pytest.raises(ValueError, match=r"make the operator for event=\(2,\)"):
        exact_posterior(sde.Gaussian([0.0, 0.0], 1.0), Observation(flat, torch.zeros(1, 16), 0.1))
