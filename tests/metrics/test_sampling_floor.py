"""The floor: what a metric reads between two draws of the truth."""

import math

import pytest
import torch

from sde import data
from sde.metrics import Floor, energy_distance, floor, sliced_wasserstein


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def mean_gap(a, b):
    """Between unit Gaussians of n and m points: normal, with variance 1/n + 1/m."""
    return a.mean() - b.mean()


def gaussian(n, generator):
    return torch.randn(n, 1, generator=generator)


def test_mean_and_deviation_are_those_of_independent_draws_of_the_asked_sizes():
    for n, m in ((50, None), (20, 80)):
        mean, sd = floor(mean_gap, gaussian, n, repeats=2000, generator=seeded(), m=m)
        expected = math.sqrt(1 / n + 1 / (m or n))
        assert abs(mean) < 4 * expected / 2000**0.5
        assert sd == pytest.approx(expected, rel=4 / 4000**0.5)


def test_parts_of_a_data_set_are_disjoint_and_random():
    whole = torch.arange(10.0)[:, None]
    seen = []

    def metric(a, b):
        assert not set(a.flatten().tolist()) & set(b.flatten().tolist())
        assert (len(a), len(b)) == (6, 4)
        seen.append(tuple(a.flatten().tolist()))
        return 0.0

    assert floor(metric, whole, 6, repeats=5, generator=seeded(), m=4) == (0.0, 0.0)
    assert len(set(seen)) > 1


def test_a_toy_set_is_a_truth_and_the_generator_reaches_the_metric():
    a, b = (floor(sliced_wasserstein, data.moons, 100, 3, seeded()) for _ in range(2))
    assert a == b
    assert a != floor(sliced_wasserstein, data.moons, 100, 3, seeded(1))
    far = energy_distance(data.moons(500).x, data.moons(500).x + 1)
    mean, sd = floor(energy_distance, data.moons, 500, generator=seeded())
    assert far > mean + 5 * sd


def test_it_prints_as_a_table_cell():
    assert str(Floor(0.051234, 0.00412)) == "0.0512 ± 0.0041"


def test_bad_arguments_are_refused_by_name():
    for name, bad in (("n", {"n": 0}), ("m", {"n": 3, "m": 0}), ("repeats", {"n": 3, "repeats": 1})):
        with pytest.raises(ValueError, match=rf"{name} must be at least"):
            floor(mean_gap, gaussian, **bad)
    with pytest.raises(ValueError, match=r"n \+ m = 6 \+ 6 points do not fit in the 11 of truth.*pass n=5"):
        floor(mean_gap, torch.zeros(11, 1), 6)
