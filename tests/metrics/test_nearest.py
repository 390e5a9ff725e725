"""Nearest neighbours and the coverage of a sample against brute force, scikit-learn and expectations."""

import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from sde.data import Dataset, digits, to_uint8
from sde.metrics import memorisation, nearest, neighbours, precision_recall


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(2,), (1, 6, 6), (3, 8, 8)])
def test_they_are_scikit_learns(shape):
    samples, data = normal(30, *shape), normal(200, *shape, seed=1)
    brute = NearestNeighbors(n_neighbors=4, algorithm="brute").fit(data.flatten(1).double().numpy())
    distance, rows = brute.kneighbors(samples.flatten(1).double().numpy())
    found = neighbours(samples, Dataset(data), k=4)
    torch.testing.assert_close(found.distance, torch.from_numpy(distance).float())
    assert torch.equal(found.rows, torch.from_numpy(rows))
    assert neighbours(samples.double(), data, k=4).distance.dtype == torch.float64


def test_chunks_of_samples_and_of_data_change_nothing(monkeypatch):
    samples, data = normal(30, 5), normal(200, 5, seed=1)
    whole = neighbours(samples, data, k=4)
    chunks = nearest._data_chunks
    monkeypatch.setattr(nearest, "_data_chunks", lambda x: [(i, x[i : i + 17]) for i in range(0, len(x), 17)])
    monkeypatch.setattr(nearest, "TABLE", 17)
    assert len(nearest._row_chunks(samples, data)) == 2
    assert len(chunks(data)) == 1
    found = neighbours(samples, data, k=4)
    torch.testing.assert_close(found, whole)


def test_copies_are_at_zero_however_far_from_the_origin():
    """What a product of matrices would lose to cancellation."""
    data = 1e3 + 1e-2 * normal(500, 3, 16, 16)
    found = neighbours(data[:20], data)
    assert torch.equal(found.distance, torch.zeros(20, 1))
    assert torch.equal(found.rows[:, 0], torch.arange(20))
    own = neighbours(data[:20], data, exclude_self=True)
    expected = torch.cdist(data[:20].flatten(1).double(), data.flatten(1).double()).sort().values[:, 1:2]
    torch.testing.assert_close(own.distance.double(), expected, rtol=1e-4, atol=0)


def test_bytes_are_images():
    data = digits()
    found = neighbours(to_uint8(data.x[:10]), to_uint8(data.x), k=2)
    torch.testing.assert_close(found.distance, neighbours(data.x[:10], data, k=2).distance, atol=0.05, rtol=0)
    assert torch.equal(found.rows[:, 0], torch.arange(10))


def test_copies_are_told_from_fresh_draws():
    data, held = digits().x[:1200], digits().x[1200:]
    fresh = memorisation(held, data)
    assert 0.8 < fresh.median < 1.3
    assert fresh.remembered < 0.01
    half = torch.cat([data[:100] + 0.05 * normal(100, 1, 8, 8), held[:100]])
    mixed = memorisation(half, data)
    assert mixed.remembered == pytest.approx(0.5, abs=0.02)
    assert sorted(mixed.closest(100).tolist()) == list(range(100))
    assert torch.equal(mixed.rows[:100, 0], torch.arange(100))
    assert str(mixed).endswith("% remembered")
    expected = torch.cdist(data.flatten(1), data.flatten(1)).fill_diagonal_(9e9).min(1).values.median()
    assert mixed.spacing == pytest.approx(float(expected), rel=1e-5)
    torch.testing.assert_close(mixed.ratio * mixed.spacing, neighbours(half, data).distance[:, 0])
    assert memorisation(data[:5], data).gap.max() == 0


def test_a_part_of_the_data_tells_the_spacing():
    data = normal(3000, 2)
    assert memorisation(data, data, 300).spacing == pytest.approx(memorisation(data, data, 3000).spacing, rel=0.2)


def coverage_by_loops(real, generated, k):
    def radii(x):
        return [sorted(float((a - b).norm()) for b in x)[k] for a in x]

    r, g = radii(real), radii(generated)
    inside = [[float((x - y).norm()) <= r[i] for i, y in enumerate(real)] for x in generated]
    precision = sum(any(row) for row in inside) / len(generated)
    density = sum(map(sum, inside)) / (k * len(generated))
    coverage = sum(any(row[i] for row in inside) for i in range(len(real))) / len(real)
    recall = sum(any(float((x - y).norm()) <= g[j] for j, x in enumerate(generated)) for y in real) / len(real)
    return precision, recall, density, coverage


@pytest.mark.parametrize("k", [1, 3])
def test_precision_recall_density_and_coverage_are_the_loops(k, monkeypatch):
    real, generated = normal(25, 3), 0.7 * normal(18, 3, seed=1) + 0.4
    expected = coverage_by_loops(real, generated, k)
    assert precision_recall(real, generated, k) == pytest.approx(expected)
    monkeypatch.setattr(nearest, "TABLE", 60)
    assert precision_recall(real, generated, k) == pytest.approx(expected)


def test_their_expectations_for_equal_distributions():
    """Density 1 and coverage 1 − Π (N − 1 − i)/(2N − 1 − i), whatever the distribution (Naeem et al., section 3.2)."""
    n, k, generator = 60, 3, torch.Generator().manual_seed(0)
    found = torch.tensor(
        [
            precision_recall(torch.rand(n, 2, generator=generator) ** 2, torch.rand(n, 2, generator=generator) ** 2, k)
            for _ in range(150)
        ]
    )
    expected = 1.0
    for i in range(k):
        expected *= (n - 1 - i) / (2 * n - 1 - i)
    mean, error = found.mean(0), found.std(0) / 150**0.5
    assert (mean[2] - 1).abs() < 4 * error[2]
    assert (mean[3] - (1 - expected)).abs() < 4 * error[3]
    assert (mean[0] - mean[1]).abs() < 4 * (found[:, 0] - found[:, 1]).std() / 150**0.5


def test_wrong_arguments_are_refused_by_name():
    x = normal(5, 2)
    with pytest.raises(ValueError, match=r"samples and data must be .*got \(5, 2\) and \(5, 1\)"):
        neighbours(x, x[:, :1])
    for k in (0, 6):
        with pytest.raises(ValueError, match=rf"k must be between 1 and the 5 points of data, got {k}"):
            neighbours(x, x, k)
    with pytest.raises(ValueError, match="data must hold at least 2 points, got 1"):
        memorisation(x, x[:1])
    with pytest.raises(ValueError, match="k must be at least 1 and below the 3 points of generated, got 3"):
        precision_recall(x, x[:3])


@pytest.mark.gpu
def test_data_may_stay_on_the_cpu():
    samples, data = normal(30, 3, 8, 8), normal(200, 3, 8, 8, seed=1)
    found = neighbours(samples.cuda(), data, k=3)
    assert found.rows.is_cuda
    torch.testing.assert_close([x.cpu() for x in found], list(neighbours(samples, data, k=3)))
    torch.testing.assert_close(list(neighbours(samples, data, k=3, device="cuda")), [x.cpu() for x in found])
