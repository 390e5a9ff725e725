"""Two models' codes of the same points: closed forms on Gaussians, and unlike networks beside the exact code."""

import math
from typing import Any

import pytest
import torch

import sde
from sde.inverse import compare_codes, encode

RING = [[1.5 * math.cos(a), 1.5 * math.sin(a)] for a in (0.0, 1.3, 2.6, 3.6, 5.0)]
LAW = sde.Mixture([0.4, 0.25, 0.15, 0.12, 0.08], RING, [0.05] * 5)


@pytest.mark.parametrize("forward", [sde.EDM(), sde.VP(), sde.Flow()])
def test_distances_of_two_gaussian_models_in_closed_form(forward: sde.ScalarSDE, generator: torch.Generator) -> None:
    """A code is as many standard deviations from the mean as its point: 0.5 and 0.8 of variance differ by a factor."""
    one, other = (sde.ExactScore(sde.Gaussian([1.0, 0.0], v), forward) for v in (0.5, 0.8))
    x0 = torch.randn(300, 2, generator=generator, dtype=torch.float64)
    found = compare_codes(*(encode(model, x0, steps=400) for model in (one, other)))
    ends = torch.tensor([forward.t_min, forward.t_max], dtype=torch.float64)
    alpha, sigma = forward.levels(ends)
    first, last = ((alpha[i] ** 2 * torch.tensor([0.5, 0.8]).double() + sigma[i] ** 2).sqrt() for i in (0, 1))
    stretch, off = last / first * alpha[0], x0 - torch.tensor([1.0, 0.0])
    wanted = (stretch[0] - stretch[1]).abs() * off.norm(dim=1) / math.sqrt(2)
    torch.testing.assert_close(found.distances, wanted, rtol=2e-3, atol=1e-6)
    pairs = torch.pdist(stretch[0] * x0).square().mean() / 2
    assert found.apart == pytest.approx(float(pairs.sqrt()), rel=2e-3)
    assert found.same == pytest.approx(float(wanted.square().mean().sqrt()), rel=2e-3)
    assert found.correlation == pytest.approx(1.0, abs=1e-5)


def test_codes_that_know_nothing_of_each_other(generator: torch.Generator) -> None:
    a, b = torch.randn(2, 2000, 3, generator=generator).double()
    found = compare_codes(a, b)
    assert found.ratio == pytest.approx(1.0, abs=0.05)
    assert abs(found.correlation) < 0.06
    assert found.matched < 0.01
    again = compare_codes(a, a)
    assert (again.same, again.ratio, again.matched) == (0.0, 0.0, 1.0)
    assert again.correlation == pytest.approx(1.0)
    moved = compare_codes(a, a + 5.0)  # a shift is a distance, and no loss of correlation
    assert moved.same == pytest.approx(5.0)
    assert moved.correlation == pytest.approx(1.0)


def test_images_keep_their_shape_and_views_are_read_right(generator: torch.Generator) -> None:
    a, b = torch.randn(2, 6, 1, 4, 4, generator=generator)
    across = a.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)
    assert compare_codes(across, b).same == compare_codes(a, b).same
    assert compare_codes(a, b).same == pytest.approx(float((a - b).double().square().mean().sqrt()))


def trained(forward: sde.ScalarSDE, seed: int, **make: Any) -> sde.ScoreModel:
    data = LAW.sample(5000, torch.Generator().manual_seed(1)).float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = sde.nets.MLP(dim=2, **make)
    model = sde.ScoreModel(net, forward, mean=data.mean(0), scale=float(data.std()))
    sde.fit(model, data, steps=700, lr=3e-3, generator=torch.Generator().manual_seed(seed), progress=False)
    return model.double()


def test_networks_of_unlike_make_give_a_point_the_code_of_the_exact_score() -> None:
    """And two laws that are each other's mirror image do not, though all their codes have one law."""
    forward, x0 = sde.VP(), LAW.sample(300, torch.Generator().manual_seed(2))
    wide = encode(trained(forward, 3, width=64, depth=2), x0)
    deep = encode(trained(forward, 4, width=40, depth=4, time="sinusoidal"), x0)
    exact = encode(sde.ExactScore(LAW, forward), x0, steps=200)
    for a, b in ((wide, exact), (deep, exact), (wide, deep)):
        found = compare_codes(a, b)
        assert found.ratio < 0.15, found
        assert found.correlation > 0.98
    other = encode(sde.ExactScore(LAW, forward), -x0, steps=200)
    assert compare_codes(other, exact).ratio > 1


def test_what_does_not_fit_is_refused() -> None:
    x = torch.randn(4, 2)
    for a, b in ((x, x[:3]), (x[:1], x[:1]), (x[:, 0], x[:, 0])):
        with pytest.raises(ValueError, match="encode the same points"):
            compare_codes(a, b)
    with pytest.raises(ValueError, match="all codes in a are equal"):
        compare_codes(torch.ones(3, 2), x[:3])
