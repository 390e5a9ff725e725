"""MMD and energy distance against double loops, scipy and closed forms."""

import math

import pytest
import torch
from scipy import stats

from sde.metrics import _samples, energy_distance, kernel_distance, median_distance, mmd


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


def kernel_by_loops(a, b, degree=3):
    def k(x, y):
        return (float(x @ y) / len(x) + 1) ** degree

    n, m = len(a), len(b)
    xx = sum(k(a[i], a[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(k(b[i], b[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return xx + yy - 2 * sum(k(x, y) for x in a for y in b) / (n * m)


@pytest.mark.parametrize(("n", "m", "subsets", "degree"), [(9, 9, 2, 3), (11, 8, 4, 2)])
def test_kernel_distance_and_its_jackknife_are_the_double_loop(n, m, subsets, degree):
    a, b = normal(n, 3), normal(m, 3, seed=1) + 0.5
    generator = torch.Generator().manual_seed(0)
    value, error = kernel_distance(a, b, subsets, degree, generator)
    assert value == pytest.approx(kernel_by_loops(a, b, degree))
    generator.manual_seed(0)
    parts = [s[torch.rand(len(s), generator=generator).argsort()].tensor_split(subsets) for s in (a, b)]
    without = [[torch.cat([u for j, u in enumerate(part) if j != i]) for part in parts] for i in range(subsets)]
    values = torch.tensor([kernel_by_loops(*two, degree) for two in without]).double()
    assert error == pytest.approx(float(((subsets - 1) * values.var(correction=0)).sqrt()))


def test_kernel_distance_of_shifted_gaussians_has_its_closed_form_no_bias_and_its_error():
    """One dimension: MMD² of (xy + 1)³ is Σ_p binom(3, p) (E x^p − E y^p)² over moments p = 1, 2, 3."""
    generator, c = torch.Generator().manual_seed(0), 0.5
    expected = 3 * c**2 + 3 * (c**2) ** 2 + (3 * c + c**3) ** 2

    def draws(n, m, shift):
        found = [
            kernel_distance(torch.randn(n, 1, generator=generator), torch.randn(m, 1, generator=generator) + shift, 5)
            for _ in range(120)
        ]
        return [torch.tensor(v).double() for v in zip(*found, strict=True)]

    value, error = draws(100, 60, c)
    assert (value.mean() - expected).abs() < 4 * value.std() / 120**0.5
    assert float(error.square().mean().sqrt()) == pytest.approx(float(value.std()), rel=0.25)
    value, error = draws(100, 60, 0)
    assert value.mean().abs() < 4 * value.std() / 120**0.5
    assert value.min() < 0
    assert 0.8 < float(error.square().mean().sqrt() / value.std()) < 2, (
        "too large by the root of 2 at most, but for noise"
    )


@pytest.mark.filterwarnings("ignore:Metric .Kernel Inception Distance. will save")
def test_kernel_distance_is_torchmetrics():
    kid = pytest.importorskip("torchmetrics.image.kid")

    class Pixels(torch.nn.Module):
        num_features = 12

        def forward(self, x):
            return x.flatten(1).double() / 255

    metric = kid.KernelInceptionDistance(Pixels(), subsets=1, subset_size=80).set_dtype(torch.float64)
    a, b = (
        torch.randint(0, high, (80, 3, 2, 2), generator=torch.Generator().manual_seed(high)).byte()
        for high in (256, 200)
    )
    metric.update(a, real=True)
    metric.update(b, real=False)
    ours = kernel_distance(a.flatten(1).double() / 255, b.flatten(1).double() / 255)
    assert ours.value == pytest.approx(float(metric.compute()[0]), rel=1e-6)


def test_kernel_distance_refuses_what_it_cannot_do():
    a = normal(9, 2)
    with pytest.raises(ValueError, match=r"subsets must be at least 2 .*, got 20 for 9 and 9 rows: pass subsets=4"):
        kernel_distance(a, a)
    with pytest.raises(ValueError, match="degree must be at least 1, got 0"):
        kernel_distance(a, a, 2, 0)
