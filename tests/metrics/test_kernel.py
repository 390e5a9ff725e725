"""MMD and energy distance against double loops, scipy and closed forms."""

import math

import pytest
import torch
from scipy import stats

from sde.metrics import _samples, energy_distance, median_distance, mmd


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mmd_by_loops(a, b, scales):
    def k(x, y):
        return sum(math.exp(-float((x - y).square().sum()) / (2 * h * h)) for h in scales) / len(scales)

    n, m = len(a), len(b)
    xx = sum(k(a[i], a[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(k(b[i], b[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    xy = sum(k(x, y) for x in a for y in b) / (n * m)
    return xx + yy - 2 * xy


@pytest.mark.parametrize("bandwidth", [0.7, [0.3, 2.0]])
def test_mmd_is_the_double_loop(bandwidth):
    a, b = normal(9, 3), normal(6, 3, seed=1) + 0.5
    scales = bandwidth if isinstance(bandwidth, list) else [bandwidth]
    assert mmd(a, b, bandwidth) == pytest.approx(mmd_by_loops(a, b, scales), abs=1e-12)


def test_default_bandwidths_are_five_about_the_pooled_median():
    a, b = normal(9, 3), normal(6, 3, seed=1) + 0.5
    pooled = torch.cat([a, b])
    distances = sorted(float((pooled[i] - pooled[j]).norm()) for i in range(15) for j in range(i))
    median = distances[(len(distances) - 1) // 2]
    assert median_distance(pooled) == pytest.approx(median)
    assert mmd(a, b) == pytest.approx(mmd_by_loops(a, b, [median * f for f in (0.25, 0.5, 1, 2, 4)]), abs=1e-12)


def test_median_of_a_large_sample_is_that_of_a_part():
    assert median_distance(normal(30_000, 1)) == pytest.approx(math.sqrt(2) * 0.6745, rel=0.05)


def test_mmd_of_shifted_gaussians_has_its_closed_form_and_no_bias():
    """With a Gaussian kernel, E k = (h²/(h²+2))^{d/2} exp(−|c|²/(2(h²+2))) for two unit Gaussians c apart."""
    h, shift = 1.3, torch.tensor([0.8, 0.0])
    factor = h**2 / (h**2 + 2)
    expected = 2 * factor * (1 - math.exp(-0.64 / (2 * (h**2 + 2))))
    generator = torch.Generator().manual_seed(0)

    def draw(n):
        return torch.randn(n, 2, generator=generator)

    far = torch.stack([mmd(draw(40), draw(30) + shift, h) for _ in range(300)])
    near = torch.stack([mmd(draw(40), draw(30), h) for _ in range(300)])
    assert (far.mean() - expected).abs() < 4 * far.std() / 300**0.5
    assert near.mean().abs() < 4 * near.std() / 300**0.5
    assert near.min() < 0


@pytest.mark.parametrize(("n", "m"), [(20, 20), (7, 30)])
def test_energy_distance_on_a_line_is_scipys(n, m):
    a, b = normal(n, 1), 2 * normal(m, 1, seed=1) - 0.3
    assert energy_distance(a, b) == pytest.approx(stats.energy_distance(a[:, 0], b[:, 0]), rel=1e-9)


def test_energy_distance_in_the_plane_is_the_double_loop():
    a, b = normal(8, 2), normal(5, 2, seed=1)

    def mean(x, y):
        return sum(float((p - q).norm()) for p in x for q in y) / (len(x) * len(y))

    expected = math.sqrt(2 * mean(a, b) - mean(a, a) - mean(b, b))
    assert energy_distance(a, b) == pytest.approx(expected, rel=1e-12)


def test_equal_samples_are_at_zero():
    a = normal(50, 2) * 1e3 + 1e6
    assert energy_distance(a, a) == pytest.approx(0, abs=1e-4)
    assert mmd(a, a, 500.0) < 0


def test_chunks_do_not_change_the_sums(monkeypatch):
    a, b = normal(50, 2), normal(30, 2, seed=1)
    whole = mmd(a, b), energy_distance(a, b)
    monkeypatch.setattr(_samples, "TABLE", 7 * 30)
    torch.testing.assert_close((mmd(a, b), energy_distance(a, b)), whole)
    monkeypatch.undo()
    assert [len(c) for c in _samples.row_chunks(a, 2**16)] == [16, 16, 16, 2]


def test_too_few_points_and_bad_bandwidths_are_refused_by_name():
    a = normal(5, 2)
    with pytest.raises(ValueError, match=r"b must hold at least 2 points, got 1"):
        mmd(a, a[:1])
    with pytest.raises(ValueError, match=r"x must hold at least 2 points, got 1"):
        median_distance(a[:1])
    for bad in (0.0, -1.0, [], [1.0, math.nan]):
        with pytest.raises(ValueError, match=r"bandwidth must be positive, got \["):
            mmd(a, a, bad)
    with pytest.raises(ValueError, match=r"bandwidth must be positive, got \[0.0, .*all points coincide"):
        mmd(torch.ones(3, 2), torch.ones(3, 2))


def test_images_take_the_fast_product_form_and_lose_nothing():
    a, b = normal(20, 3, 6, 6) + 1e3, normal(15, 3, 6, 6, seed=1) + 1e3
    expected = 2 * torch.cdist(a.flatten(1), b.flatten(1)).mean()
    for x in (a, b):
        expected -= (x.flatten(1)[:, None] - x.flatten(1)).norm(dim=-1).mean()
    assert energy_distance(a, b) == pytest.approx(float(expected.sqrt()), rel=1e-6)
