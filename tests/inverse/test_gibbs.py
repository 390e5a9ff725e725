"""Split Gibbs: its two conditionals, its law at any coupling in closed form, the posterior, laws and refusals."""

import pytest
import torch
from torch import Tensor

import sde
from sde import inverse
from sde.checks import affine
from sde.inverse.replacement import Known
from sde.metrics import floor, sliced_wasserstein

SDES = {"VP": sde.VP, "EDM": sde.EDM, "Flow": sde.Flow, "SubVP": sde.SubVP}
MEAN = torch.tensor([0.5, -1.0, 0.2], dtype=torch.float64)
COV = torch.tensor([[1.0, 0.6, 0.1], [0.6, 0.5, 0.0], [0.1, 0.0, 0.3]], dtype=torch.float64)
GAUSS = sde.Gaussian(MEAN, COV)
A = torch.tensor([[1.0, 0.5, -0.3], [0.2, -0.1, 0.4]], dtype=torch.float64)  # singular values 1.16 and .46
Y = torch.tensor([[0.7, -0.4]], dtype=torch.float64)
BLIND = inverse.Observation(inverse.Mask(torch.zeros(3, dtype=torch.bool)), torch.zeros(1, 3).double(), 0.3)


def gens(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def observed(noise: float, y: Tensor = Y) -> inverse.Observation:
    return inverse.Observation(inverse.Matrix(A), y, noise)


def posterior(precision: Tensor) -> tuple[Tensor, Tensor]:
    """Moments given y whose noise has the precision, (2, 2)."""
    cov = torch.linalg.inv(torch.linalg.inv(COV) + A.T @ precision @ A)
    return cov @ (torch.linalg.inv(COV) @ MEAN + A.T @ precision @ Y[0]), cov


def moments(forward: sde.ScalarSDE, times: Tensor, gibbs: inverse.SplitGibbs) -> tuple[Tensor, Tensor]:
    alpha, sigma = (float(c) for c in forward.levels(forward.t_max))
    run = affine(sde.ReverseSDE(sde.ExactScore(GAUSS, forward), 1.0), (3,), times, gibbs)
    return run.moments(alpha * MEAN, alpha**2 * COV + sigma**2 * torch.eye(3).double())


def down(forward: sde.ScalarSDE, low: float, turns: int) -> Tensor:
    """From t_max to sigma / alpha = low at once, where the chain stays but for a hair, and in the end to t_min."""
    levels = low * (1 + 1e-6 * torch.arange(turns, 0, -1).double())
    ends = torch.tensor([forward.t_max]).double(), torch.tensor([forward.t_min]).double()
    return torch.cat([ends[0], forward.time_at(-2 * torch.log(levels)), ends[1]])


# The two turns.


@pytest.mark.parametrize("noise", [0.3, 1.0])
def test_z_given_x_is_the_gaussian_of_bayes(noise: float) -> None:
    """Precision A'A / noise^2 + I / rho^2, by a dense inverse; and with the noise that rho leaves."""
    rho, x, eye = 0.25, torch.tensor([[0.3, -0.7, 1.1]], dtype=torch.float64), torch.eye(3).double()
    left = noise**2 * torch.eye(2).double() - rho**2 * A @ A.T
    for exact, precision in ((False, torch.eye(2).double() / noise**2), (True, torch.linalg.inv(left))):
        gibbs = inverse.SplitGibbs(observed(noise), exact=exact)
        known = Known(gibbs.observation, x)
        assert float(torch.linalg.eigvalsh(left).min()) > 0  # rho s < noise
        cov = torch.linalg.inv(A.T @ precision @ A + eye / rho**2)
        mean = cov @ (A.T @ precision @ Y[0] + x[0] / rho**2)
        shift = gibbs.turn(known, x, rho, torch.zeros(1, 3).double())
        torch.testing.assert_close(shift[0], mean)
        spread = gibbs.turn(known, x.expand(3, 3), rho, eye) - shift
        torch.testing.assert_close(spread.T @ spread, cov)


@pytest.mark.parametrize("exact", [True, False])
def test_without_noise_z_is_projected(exact: bool) -> None:
    x, n = (torch.randn(5, 3, generator=g).double() for g in gens(0, 1))
    gibbs = inverse.SplitGibbs(observed(0.0), exact=exact)
    z = gibbs.turn(Known(gibbs.observation, x), x, 0.25, n)
    torch.testing.assert_close(z @ A.T, Y.expand(5, 2))
    unseen = torch.linalg.svd(A)[2][2]
    torch.testing.assert_close(z @ unseen, (x + 0.25 * n) @ unseen)


# The chain.


@pytest.mark.parametrize("kind", ["VP", "EDM", "Flow"])
def test_its_law_at_a_coupling_is_the_posterior_of_more_noise(kind: str) -> None:
    """Published: noise^2 + rho^2 s^2; with what rho leaves, noise^2 wherever that is more than rho^2 s^2."""
    forward, noise, rho = SDES[kind](), 0.6, 0.5
    u, s, _ = torch.linalg.svd(A)
    assert 0.2 < rho * float(s[1]) < rho * float(s[0]) < noise
    times = down(forward, rho, 20)
    exact, biased = u.T / noise**2, u.T / (noise**2 + rho**2 * s[:, None] ** 2)
    results = []
    for flag, precision in ((True, u @ exact), (False, u @ biased)):
        gibbs = inverse.SplitGibbs(observed(noise), sde.Heun(), steps=16, rho=rho, exact=flag)
        mean, cov = moments(forward, times, gibbs)
        expected = posterior(precision)
        torch.testing.assert_close(mean, expected[0], rtol=0, atol=6e-3)
        torch.testing.assert_close(cov, expected[1], rtol=0, atol=1e-2)
        results.append(cov)
    assert float((results[0] - results[1]).abs().max()) > 0.02


def test_where_rho_is_too_large_the_noise_is_that_of_rho() -> None:
    forward, noise, rho = sde.EDM(), 0.3, 0.5
    u, s, _ = torch.linalg.svd(A)
    more = torch.maximum(torch.full_like(s, noise**2), rho**2 * s**2)
    assert float(more[0]) > noise**2 == float(more[1])
    gibbs = inverse.SplitGibbs(observed(noise), sde.Heun(), steps=24, rho=rho)
    mean, cov = moments(forward, down(forward, rho, 20), gibbs)
    expected = posterior(u @ torch.diag(1 / more) @ u.T)
    torch.testing.assert_close(mean, expected[0], rtol=0, atol=6e-3)
    torch.testing.assert_close(cov, expected[1], rtol=0, atol=6e-3)


@pytest.mark.parametrize("kind", SDES)
@pytest.mark.parametrize("noise", [0.6, 0.3])
def test_the_defaults_draw_from_the_posterior_of_a_gaussian(kind: str, noise: float) -> None:
    forward, law = SDES[kind](), inverse.exact_posterior(GAUSS, observed(noise))
    mean, cov = moments(forward, sde.grids.data_scaled(forward, 40), inverse.SplitGibbs(observed(noise), steps=8))
    torch.testing.assert_close(mean, law.mean, rtol=0, atol=0.02)
    torch.testing.assert_close(cov, law.cov, rtol=0, atol=0.03)


def test_without_noise_the_law_tends_to_the_posterior_with_rho() -> None:
    forward, law = sde.EDM(), inverse.exact_posterior(GAUSS, observed(0.0))

    def error(low: float) -> float:
        times = torch.cat([sde.grids.data_scaled(forward, 25)[:-1], torch.tensor([forward.t_min]).double()])
        mean, cov = moments(forward, times, inverse.SplitGibbs(observed(0.0), steps=10, rho=low))
        return float((mean - law.mean).abs().max() + (cov - law.cov).abs().max())

    large, small = error(0.5), error(0.05)
    assert small < 0.05
    assert large > 3 * small


def test_samples_of_a_mixture_are_the_posteriors() -> None:
    target = sde.Mixture([0.3, 0.3, 0.4], [[-1.0, -1.0], [1.0, 0.5], [0.5, -1.5]], [0.05, 0.1, 0.08])
    mask, n = inverse.Mask(torch.tensor([True, False])), 2000
    observation = inverse.Observation(mask, torch.tensor([[0.7, 0.0]]).double(), noise=0.3)
    law = inverse.exact_posterior(target, observation)
    x = sde.sample(
        sde.ExactScore(target, sde.VP()), (n, 2), steps=24, solver=inverse.SplitGibbs(observation), generator=gens(0)[0]
    )
    low = floor(sliced_wasserstein, law.sample, n, repeats=20, generator=gens(1)[0])
    distance = float(sliced_wasserstein(x, law.sample(n, gens(2)[0])))
    assert distance < low.mean + 5 * low.sd
    assert float(sliced_wasserstein(target.sample(n, gens(3)[0]), law.sample(n, gens(2)[0]))) > 5 * distance


# Laws.


@pytest.mark.parametrize("kind", SDES)
def test_no_observation_is_unconditional(kind: str) -> None:
    forward = SDES[kind]()
    mean, cov = moments(forward, sde.grids.data_scaled(forward, 10), inverse.SplitGibbs(BLIND, steps=24, rho=0.2))
    torch.testing.assert_close(mean, MEAN, rtol=0, atol=5e-3)
    torch.testing.assert_close(cov, COV, rtol=0, atol=0.03)


@pytest.mark.parametrize("kind", SDES)
def test_without_noise_pixels_are_kept_to_the_bit(kind: str) -> None:
    seen, y = torch.tensor([True, False, True]), torch.tensor([[0.7, 0.0, -0.4]]).double()
    gibbs = inverse.SplitGibbs(inverse.Observation(inverse.Mask(seen), y))
    x = sde.sample(sde.ExactScore(GAUSS, SDES[kind]()), (5, 3), steps=6, solver=gibbs)
    assert bool((x[:, seen] == y[:, seen]).all())
    assert len(x[:, 1].unique()) == 5


@pytest.mark.parametrize("kind", SDES)
@pytest.mark.parametrize("solver", [sde.Heun(), sde.Ancestral(), sde.SASolver()], ids=lambda s: type(s).__name__)
def test_samples_do_not_know_their_neighbours(kind: str, solver: sde.Solver) -> None:
    model = sde.ExactScore(GAUSS, SDES[kind]())

    def run(y: Tensor, seeds: list[int]) -> Tensor:
        gibbs = inverse.SplitGibbs(observed(0.3, y), solver, steps=2)
        return sde.sample(model, (len(seeds), 3), steps=5, solver=gibbs, generator=gens(*seeds))

    y = torch.cat([Y, Y + 0.5, Y - 0.3])
    torch.testing.assert_close(run(y, [1, 2, 3])[1:2], run(y[1:2], [2]), rtol=1e-9, atol=1e-9)


def test_states_and_evaluations() -> None:
    """A state on the way is z at the level of its time."""
    forward, n = sde.EDM(), 4000
    times = sde.grids.data_scaled(forward, 5)
    reverse = sde.ReverseSDE(sde.ExactScore(GAUSS, forward), 1.0)
    gibbs = inverse.SplitGibbs(BLIND, steps=8, rho=0.0)
    states = list(sde.trajectory(reverse, 80 * torch.randn(n, 3, generator=gens(0)[0]), times, gibbs, gens(1)[0]))
    assert [state.t for state in states] == times.tolist()
    assert [state.calls for state in states] == [0, 8, 16, 24, 32, 41]
    spread = states[2].x.var(0).double()
    torch.testing.assert_close(spread, COV.diagonal() + times[2] ** 2, rtol=0.15, atol=0)


def test_what_does_not_fit_is_refused() -> None:
    run = lambda o, forward=sde.VP(), eta=None: sde.sample(  # noqa: E731, B008
        sde.ExactScore(GAUSS, forward), (2, 3), steps=4, solver=inverse.SplitGibbs(o), eta=eta
    )
    with pytest.raises(ValueError, match="SplitGibbs needs a scalar SDE, got CLD: use VP"):
        run(observed(0.3), sde.CLD())
    with pytest.raises(ValueError, match="eta=0, which draws nothing: use eta=1"):
        run(observed(0.3), eta=0.0)
    with pytest.raises(ValueError, match="3 observations for 2 samples"):
        run(observed(0.3, Y.repeat(3, 1)))
    with pytest.raises(ValueError, match="needs a linear operator"):
        run(inverse.Observation(inverse.Function(torch.sin, (3,)), torch.zeros(1, 3)))
    for bad in (0, 2.5, True):
        with pytest.raises(ValueError, match="steps must be a whole number of at least 1"):
            inverse.SplitGibbs(observed(0.3), steps=bad)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="rho must be 0 or more"):
        inverse.SplitGibbs(observed(0.3), rho=-0.1)
