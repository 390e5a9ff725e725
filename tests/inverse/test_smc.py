"""TDS: the evidence without bias, the posterior as particles grow, its resampling, laws and refusals."""

import math

import pytest
import torch
from torch import Tensor

import sde
from sde import inverse
from sde.checks import affine
from sde.metrics import floor, sliced_wasserstein
from sde.random import WhiteNoise

SDES = {"VP": sde.VP, "EDM": sde.EDM, "Flow": sde.Flow, "SubVP": sde.SubVP}
MEAN = torch.tensor([0.5, -1.0, 0.2], dtype=torch.float64)
COV = torch.tensor([[1.0, 0.6, 0.1], [0.6, 0.5, 0.0], [0.1, 0.0, 0.3]], dtype=torch.float64)
GAUSS = sde.Gaussian(MEAN, COV)
A = torch.tensor([[1.0, 0.5, -0.3], [0.2, -0.1, 0.4]], dtype=torch.float64)
Y = torch.tensor([[0.7, -0.4]], dtype=torch.float64)


def gens(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def observed(noise: float = 0.5, y: Tensor = Y) -> inverse.Observation:
    return inverse.Observation(inverse.Matrix(A), y, noise)


def chain(forward: sde.ScalarSDE, times: Tensor) -> sde.Gaussian:
    """What an unconditional ancestral run on those times draws from."""
    alpha, sigma = (float(c) for c in forward.levels(forward.t_max))
    run = affine(sde.ReverseSDE(sde.ExactScore(GAUSS, forward), 1.0), (3,), times, sde.Ancestral())
    return sde.Gaussian(*run.moments(alpha * MEAN, alpha**2 * COV + sigma**2 * torch.eye(3).double()))


def evidence(law: sde.Gaussian, noise: float) -> float:
    cov = A @ law.cov @ A.T + noise**2 * torch.eye(2).double()
    return float(torch.distributions.MultivariateNormal(A @ law.mean, cov).log_prob(Y[0]))


@pytest.mark.parametrize(("kind", "particles"), [("VP", 1), ("VP", 6), ("EDM", 6), ("Flow", 6), ("SubVP", 3)])
def test_the_evidence_is_unbiased_under_the_chain(kind: str, particles: int) -> None:
    """On a grid so coarse that the chain's p(y) is not the model's."""
    forward, groups = SDES[kind](), 4000
    times = sde.grids.data_scaled(forward, 10)
    truth = evidence(chain(forward, times), 0.5)
    assert abs(math.expm1(truth - evidence(GAUSS, 0.5))) > 0.04
    tds = inverse.TDS(observed(), particles)
    swarm = tds.particles_of(sde.ExactScore(GAUSS, forward), (groups, 3), times=times, generator=gens(0)[0])
    ratio = torch.exp(swarm.log_evidence - truth)
    error = float(ratio.std()) / math.sqrt(groups)
    assert error < 0.02
    assert abs(float(ratio.mean()) - 1) < 4 * error


@pytest.mark.parametrize("kind", SDES)
def test_weighted_particles_are_the_chains_posterior(kind: str) -> None:
    forward = SDES[kind]()
    times = sde.grids.data_scaled(forward, 10)
    law = inverse.exact_posterior(chain(forward, times), observed())
    tds = inverse.TDS(observed(), particles=400)
    swarm = tds.particles_of(sde.ExactScore(GAUSS, forward), (20, 3), times=times, generator=gens(1)[0])
    w = swarm.log_weights.exp()[..., None]
    torch.testing.assert_close(w.sum(1), torch.ones(20, 1).double())
    mean = (w * swarm.x).sum(1)
    cov = torch.einsum("bp,bpi,bpj->bij", w[..., 0], swarm.x, swarm.x).mean(0) - mean.mean(0).outer(mean.mean(0))
    torch.testing.assert_close(mean.mean(0), law.mean, rtol=0, atol=0.03)
    torch.testing.assert_close(cov, law.cov, rtol=0, atol=0.04)


def test_the_bias_goes_with_more_particles() -> None:
    model, times = sde.ExactScore(GAUSS, sde.VP()), sde.grids.data_scaled(sde.VP(), 24)
    law = inverse.exact_posterior(chain(sde.VP(), times), observed(0.3))

    def error(particles: int) -> float:
        tds = inverse.TDS(observed(0.3), particles)
        x = sde.sample(model, (3000, 3), times=times, solver=tds, generator=gens(2)[0])
        return float((x.mean(0) - law.mean).abs().max() + (x.T.cov() - law.cov).abs().max())

    alone, few, more = error(1), error(4), error(16)
    assert alone > 2 * few
    assert more < few
    assert more < 0.06


def test_samples_of_a_mixture_are_the_posteriors() -> None:
    target = sde.Mixture([0.3, 0.3, 0.4], [[-1.0, -1.0], [1.0, 0.5], [0.5, -1.5]], [0.05, 0.1, 0.08])
    mask, n = inverse.Mask(torch.tensor([True, False])), 1000
    observation = inverse.Observation(mask, torch.tensor([[0.7, 0.0]]).double(), noise=0.1)
    law = inverse.exact_posterior(target, observation)
    tds = inverse.TDS(observation, 8)
    x = sde.sample(sde.ExactScore(target, sde.VP()), (n, 2), steps=80, solver=tds, generator=gens(0)[0])
    low = floor(sliced_wasserstein, law.sample, n, repeats=20, generator=gens(1)[0])
    distance = float(sliced_wasserstein(x, law.sample(n, gens(2)[0])))
    assert distance < low.mean + 5 * low.sd
    assert float(sliced_wasserstein(target.sample(n, gens(3)[0]), law.sample(n, gens(2)[0]))) > 3 * distance


def test_any_function_may_be_observed() -> None:
    """x^2 of one Gaussian number, against the posterior by quadrature: two modes, and the evidence."""
    target = sde.Gaussian([0.4], 1.0)
    observation = inverse.Observation(inverse.Function(torch.square, (1,)), torch.tensor([[1.0]]).double(), noise=0.4)
    tds = inverse.TDS(observation, 50)
    swarm = tds.particles_of(sde.ExactScore(target, sde.VP()), (100, 1), steps=100, generator=gens(0)[0])
    grid = torch.linspace(-6, 6, 4001).double()[:, None]
    density = torch.exp(target.log_prob(grid) + observation.log_likelihood(grid))
    z = float(torch.trapezoid(density, grid[:, 0]))
    assert float(swarm.log_evidence.exp().mean()) == pytest.approx(z, rel=0.05)
    mean = float(torch.trapezoid(density * grid[:, 0], grid[:, 0])) / z
    weighted = (swarm.log_weights.exp() * swarm.x[..., 0]).sum(1).mean()
    assert float(weighted) == pytest.approx(mean, abs=0.08)
    assert mean > 0.2


def test_resampling_is_systematic_and_for_uneven_groups_alone() -> None:
    tds, n = inverse.TDS(observed(), particles=8), 500
    weights = torch.tensor([[0.4, 0.3, 0.3, 0.0, 0.0, 0.0, 0.0, 0.0], [1 / 8] * 8]).double().repeat(n, 1)
    log_w = torch.log(weights) + 3.0
    which = torch.arange(8).double().expand(2 * n, 8)
    noise = WhiteNoise(gens(0)[0])
    even, log_z, (chosen, _, _) = tds._resampled(log_w, torch.zeros(2 * n).double(), (which, which, which), noise)
    assert bool((chosen[1::2] == which[1::2]).all())
    torch.testing.assert_close(even[1::2], log_w[1::2])
    assert bool((even[::2] == 0).all())
    torch.testing.assert_close(log_z[::2], torch.full((n,), 3.0 - math.log(8)).double())
    assert bool((log_z[1::2] == 0).all())
    counts = torch.stack([(chosen[::2] == k).sum(1) for k in range(8)], 1).double()
    expected = 8 * weights[0]
    assert bool(((counts >= expected.floor()) & (counts <= expected.ceil())).all())
    torch.testing.assert_close(counts.mean(0), expected, rtol=0, atol=0.1)


@pytest.mark.parametrize("kind", SDES)
def test_no_observation_is_unconditional(kind: str) -> None:
    model = sde.ExactScore(GAUSS, SDES[kind]())
    blind = inverse.Observation(inverse.Mask(torch.zeros(3, dtype=torch.bool)), torch.zeros(1, 3).double(), 0.3)
    shape, run = (4, 3), {"steps": 7, "eta": 1.0}
    alone = sde.sample(model, shape, solver=inverse.TDS(blind, 1), generator=gens(0, 1, 2, 3), **run)
    drawn = sde.sample(model, shape, solver=sde.Ancestral(), generator=gens(0, 1, 2, 3), **run)
    torch.testing.assert_close(alone, drawn)
    swarm = inverse.TDS(blind, 5).particles_of(model, shape, steps=7, generator=gens(0)[0])
    torch.testing.assert_close(swarm.log_weights, torch.full((4, 5), -math.log(5)).double())


@pytest.mark.parametrize("kind", SDES)
def test_groups_do_not_know_their_neighbours(kind: str) -> None:
    model = sde.ExactScore(GAUSS, SDES[kind]())

    def run(y: Tensor, seeds: list[int]) -> Tensor:
        solver = inverse.TDS(observed(0.2, y), 6)
        return sde.sample(model, (len(seeds), 3), steps=6, solver=solver, generator=gens(*seeds))

    y = torch.cat([Y, Y + 0.5, Y - 0.3])
    torch.testing.assert_close(run(y, [1, 2, 3])[1:2], run(y[1:2], [2]), rtol=1e-9, atol=1e-9)


def test_a_network_and_evaluations() -> None:
    """Float32, times as nodes, gradients through a network that is no exact model; a grid that ends at t = 0."""
    model = sde.ScoreModel(sde.nets.MLP(dim=3, width=16), sde.EDM())
    times = torch.cat([sde.grids.karras(sde.EDM(), 6), torch.zeros(1).double()])
    observation = inverse.Observation(inverse.Matrix(A.float()), Y.float(), 0.5)
    reverse, x = sde.ReverseSDE(model, 1.0), 80 * torch.randn(4, 3, generator=gens(0)[0])
    with torch.no_grad():
        states = list(sde.trajectory(reverse, x, times, inverse.TDS(observation, 3), gens(1)[0]))
    assert [state.calls for state in states] == [0, 3, 6, 9, 12, 15, 18, 21]
    assert states[-1].x.dtype is torch.float32
    assert states[-1].x.shape == (4, 3)
    assert bool(states[-1].x.isfinite().all())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_does_not_fit_is_refused() -> None:
    run = lambda o, forward=sde.VP(), eta=None: sde.sample(  # noqa: E731, B008
        sde.ExactScore(GAUSS, forward), (2, 3), steps=4, solver=inverse.TDS(o, 2), eta=eta
    )
    with pytest.raises(ValueError, match="TDS needs a scalar SDE, got CLD: use VP"):
        run(observed(), sde.CLD())
    with pytest.raises(ValueError, match=r"TDS divides by the observation's noise, and noise=0"):
        run(observed(0.0))
    with pytest.raises(ValueError, match=r"eta=0\.0: use 0 < eta <= 1"):
        run(observed(), eta=0.0)
    with pytest.raises(ValueError, match="3 observations for 2 samples"):
        run(observed(0.3, Y.repeat(3, 1)))
    for bad in (0, 2.5, True):
        with pytest.raises(ValueError, match="particles must be a whole number of at least 1"):
            inverse.TDS(observed(), particles=bad)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="threshold must be in"):
        inverse.TDS(observed(), threshold=1.5)
