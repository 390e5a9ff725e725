"""RePaint: the composition of its ways up and down, the bias that it removes, what it counts and keeps."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

import sde
from sde import inverse
from sde.checks import affine

SDES = {"VP": sde.VP, "EDM": sde.EDM, "Flow": sde.Flow, "SubVP": sde.SubVP, "CLD": sde.CLD}
GAUSS = sde.Gaussian([0.0, 0.0], [[1.0, 0.9], [0.9, 1.0]])
SEEN = torch.tensor([True, False])
Y = torch.tensor([[0.5, 0.0]], dtype=torch.float64)


def gens(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def observed(seen: Tensor = SEEN, y: Tensor = Y, noise: float = 0.0) -> inverse.Observation:
    return inverse.Observation(inverse.Mask(seen), y * seen, noise)


def reverse(forward: sde.ForwardSDE) -> sde.ReverseSDE:
    return sde.ReverseSDE(sde.ExactScore(GAUSS, forward), 1.0)


def moments(forward: sde.ScalarSDE, times: Tensor, solver: sde.Solver) -> tuple[Tensor, Tensor]:
    alpha, sigma = (float(c) for c in forward.levels(forward.t_max))
    start = alpha**2 * GAUSS.cov + sigma**2 * torch.eye(2).double()
    return affine(reverse(forward), (2,), times, solver).moments(torch.zeros(2).double(), start)


@pytest.mark.parametrize("kind", ["VP", "Flow"])
def test_a_run_is_its_ways_down_and_up(kind: str) -> None:
    """Stretches of two steps, walked three times, against moments through one stretch after another."""
    forward = SDES[kind]()
    times = sde.grids.data_scaled(forward, 6)  # stretches 0-2, 2-4, 4-5, then the last step
    mean, cov = moments(forward, times, inverse.RePaint(sde.Ancestral(), observed(), jump=2, resamplings=3))

    alpha, sigma = (float(c) for c in forward.levels(forward.t_max))
    m, c = torch.zeros(2).double(), alpha**2 * GAUSS.cov + sigma**2 * torch.eye(2).double()
    inner = inverse.Replacement(sde.Ancestral(), observed())

    class Started(sde.Solver):  # a step of the whole run's, so that a stretch's own end is not taken for data
        order, ends, eta = 0.0, True, 1.0

        def step(self, sde, x, t, s, noise):
            return inner.start(sde, times).step(sde, x, t, s, noise)

    for a, b in pairwise([0, 2, 4, 5, 6]):
        down = affine(reverse(forward), (2,), times[a : b + 1], Started())
        for repeat in range(3 if b < 6 else 1):
            if repeat:
                (alpha_b, sigma_b), (alpha_a, sigma_a) = (map(float, forward.levels(times[i])) for i in (b, a))
                gain = alpha_a / alpha_b
                m, c = gain * m, gain**2 * c + (sigma_a**2 - gain**2 * sigma_b**2) * torch.eye(2).double()
            m, c = down.moments(m, c)
    torch.testing.assert_close(mean, m, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(cov, c, rtol=1e-6, atol=1e-9)


def test_resampling_removes_the_bias_of_replacement() -> None:
    forward = sde.EDM()
    times = sde.grids.data_scaled(forward, 48)
    law = inverse.exact_posterior(GAUSS, observed())

    def error(repeats: int) -> float:
        mean, cov = moments(forward, times, inverse.RePaint(sde.Heun(), observed(), jump=6, resamplings=repeats))
        return float((mean - law.mean).abs().max() + (cov - law.cov).abs().max())

    once, more, many = error(1), error(2), error(8)
    plain = moments(forward, times, inverse.Replacement(sde.Heun(), observed()))[0] - law.mean
    assert once > float(plain.abs().max()) > 0.1  # one walk is replacement
    assert many < 0.15 * once
    assert many < more < once


def test_one_walk_is_replacement() -> None:
    model = sde.ExactScore(GAUSS, sde.VP())
    run = lambda s: sde.sample(model, (4, 2), steps=9, solver=s, generator=gens(0)[0])  # noqa: E731
    repaint = inverse.RePaint(sde.DDIM(), observed(), jump=4, resamplings=1)
    assert torch.equal(run(repaint), run(inverse.Replacement(sde.DDIM(), observed())))


@pytest.mark.parametrize("steps", [1, 2, 3, 10])
def test_evaluations_and_states(steps: int) -> None:
    times = sde.grids.data_scaled(sde.VP(), steps)
    repaint = inverse.RePaint(sde.Heun(), observed(), jump=4, resamplings=3)
    states = list(sde.trajectory(reverse(sde.VP()), torch.zeros(2, 2), times, repaint, gens(0)[0]))
    assert [state.t for state in states] == times.tolist()
    assert states[-1].calls == 2 * (3 * (steps - 1) + 1)


@pytest.mark.parametrize("kind", SDES)
@pytest.mark.parametrize("solver", [sde.Ancestral(), sde.DDIM(), sde.Heun()], ids=lambda s: type(s).__name__)
def test_observed_pixels_are_kept_to_the_bit(kind: str, solver: sde.Solver) -> None:
    model = sde.ExactScore(GAUSS, SDES[kind]())
    repaint = inverse.RePaint(solver, observed(), jump=3, resamplings=2)
    x = sde.sample(model, (5, 2), steps=8, solver=repaint, generator=gens(0)[0])
    x = x[:, 0] if kind == "CLD" else x
    assert bool((x[:, 0] == 0.5).all())
    assert len(x[:, 1].unique()) == 5


@pytest.mark.parametrize("kind", ["VP", "EDM", "Flow", "SubVP"])
def test_no_observation_is_unconditional(kind: str) -> None:
    """Going up and down leaves a marginal as it is, as far as the solver is exact."""
    forward = SDES[kind]()
    blind = observed(seen=torch.zeros(2, dtype=torch.bool))
    times = sde.grids.data_scaled(forward, 96)
    mean, cov = moments(forward, times, inverse.RePaint(sde.Heun(), blind, jump=12, resamplings=2))
    torch.testing.assert_close(mean, torch.zeros(2).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(cov, GAUSS.cov, rtol=0, atol=0.02)


@pytest.mark.parametrize("kind", SDES)
def test_samples_do_not_know_their_neighbours(kind: str) -> None:
    model = sde.ExactScore(GAUSS, SDES[kind]())

    def run(y: Tensor, seeds: list[int]) -> Tensor:
        solver = inverse.RePaint(sde.Ancestral(), observed(y=y), jump=2, resamplings=2)
        return sde.sample(model, (len(seeds), 2), steps=5, solver=solver, generator=gens(*seeds))

    y = torch.cat([Y, Y + 0.5, Y - 0.3])
    torch.testing.assert_close(run(y, [1, 2, 3])[1:2], run(y[1:2], [2]), rtol=1e-9, atol=1e-9)


def test_a_remembered_path_is_not_walked_twice() -> None:
    """With the noise of a path for each interval all of a stretch's walks would be one."""
    model, repaint = sde.ExactScore(GAUSS, sde.VP()), inverse.RePaint(sde.Ancestral(), observed(), 3, 4)
    path = sde.random.BrownianPath(gens(0)[0])
    x = sde.sample(model, (4000, 2), steps=20, solver=repaint, noise=path, generator=gens(1)[0])
    white = sde.sample(model, (4000, 2), steps=20, solver=repaint, generator=gens(2)[0])
    torch.testing.assert_close(x.var(0), white.var(0), rtol=0.1, atol=0)


def test_bad_numbers_are_refused() -> None:
    for bad in ({"jump": 0}, {"resamplings": 0}, {"jump": 2.5}, {"resamplings": True}):
        with pytest.raises(ValueError, match=f"{next(iter(bad))} must be a whole number of at least 1"):
            inverse.RePaint(sde.Ancestral(), observed(), **bad)
    with pytest.raises(ValueError, match="CLD"):
        sde.sample(
            sde.ExactScore(GAUSS, sde.CLD()), (2, 2), solver=inverse.RePaint(sde.Ancestral(), observed(noise=0.1))
        )
