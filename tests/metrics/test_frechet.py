"""Fréchet distance against closed forms, scipy's matrix root and torchmetrics; moments in parts, in files."""

import math

import numpy as np
import pytest
import torch
from scipy import linalg

from sde.metrics import Moments, frechet_distance


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_moments(mean, cov, n=50, seed=0):
    """A sample whose own mean and covariance are exactly these."""
    z = normal(n, len(mean), seed=seed)
    z = z - z.mean(0)
    z = z @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(z.T))).T
    return mean + z @ torch.linalg.cholesky(cov).T


def by_scipy(a, b):
    a, b = a.numpy(), b.numpy()
    one, two = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = linalg.sqrtm(one @ two).real
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(one + two - 2 * root))


def test_commuting_gaussians_have_the_closed_form():
    """|m_a − m_b|² + Σ (s_a − s_b)² for standard deviations s along common axes."""
    axes = torch.linalg.qr(normal(4, 4)).Q
    s_a, s_b = torch.tensor([1.0, 2.0, 0.5, 3.0]).double(), torch.tensor([2.0, 2.0, 1.5, 0.1]).double()
    m_a, m_b = normal(4, seed=1), normal(4, seed=2)
    a, b = (
        with_moments(m, axes @ torch.diag(s**2) @ axes.T, seed=i) for i, (m, s) in enumerate([(m_a, s_a), (m_b, s_b)])
    )
    expected = (m_a - m_b).square().sum() + (s_a - s_b).square().sum()
    torch.testing.assert_close(frechet_distance(a, b), expected)
    torch.testing.assert_close(frechet_distance(b, a), expected)


@pytest.mark.parametrize(("n", "m", "d"), [(100, 100, 5), (60, 200, 12)])
def test_it_is_what_scipys_root_gives(n, m, d):
    a = normal(n, d) @ normal(d, d, seed=1)
    b = normal(m, d, seed=2) @ normal(d, d, seed=3) + 0.3
    assert frechet_distance(a, b) == pytest.approx(by_scipy(a, b), rel=1e-9)


def test_fewer_rows_than_features_lose_no_digits():
    """A sample and its own half-turn: singular covariances, distance known."""
    a = normal(10, 40)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-12)
    assert frechet_distance(a, a + 1e-4) == pytest.approx(40e-8, rel=1e-6)
    assert frechet_distance(a, 3 * (a - a.mean(0)) + a.mean(0)) == pytest.approx(float(4 * torch.cov(a.T).trace()))


def test_it_is_torchmetrics():
    fid = pytest.importorskip("torchmetrics.image.fid")

    class Pixels(torch.nn.Module):
        num_features = 12

        def forward(self, x):
            return x.flatten(1).double()

    metric = fid.FrechetInceptionDistance(Pixels(), input_img_size=(3, 2, 2)).set_dtype(torch.float64)
    a, b = (torch.randint(0, high, (80, 3, 2, 2), generator=torch.Generator().manual_seed(high)) for high in (256, 200))
    metric.update(a[:50].byte(), real=True)
    metric.update(a[50:].byte(), real=True)
    metric.update(b.byte(), real=False)
    ours = frechet_distance(a.flatten(1).double(), b.flatten(1).double())
    assert ours == pytest.approx(float(metric.compute()), rel=1e-6)


def test_moments_in_parts_are_those_of_the_whole():
    x = 1e4 + normal(1000, 3) * torch.tensor([1.0, 10.0, 0.1])
    whole, parts, other = Moments(x), Moments(), Moments()
    for i, part in enumerate(x.split([1, 400, 99, 500])):
        (parts if i % 2 else other).update(part)
    parts.merge(other)
    parts.merge(Moments())
    parts.update(x[:0])
    assert parts.count == 1000
    torch.testing.assert_close(parts.mean, x.mean(0))
    torch.testing.assert_close(parts.cov, torch.cov(x.T))
    torch.testing.assert_close(whole.cov, torch.cov(x.T))
    late = Moments()
    late.merge(whole)
    late.update(x)
    assert whole.count == 1000, "what was merged from is left alone"
    assert late.count == 2000


def test_single_precision_features_are_summed_in_double():
    x = (1000 + normal(20_000, 1)).float()
    moments = Moments()
    for part in x.split(256):
        moments.update(part)
    torch.testing.assert_close(moments.cov, torch.cov(x.double().T).reshape(1, 1))


def test_moments_take_the_place_of_features():
    a, b = normal(50, 4), normal(60, 4, seed=1) + 1
    expected = frechet_distance(a, b)
    torch.testing.assert_close(frechet_distance(Moments(a), b), expected)
    torch.testing.assert_close(frechet_distance(a, Moments(b)), expected)


def test_they_go_through_a_file(tmp_path):
    moments = Moments(normal(50, 4))
    moments.save(tmp_path / "train.safetensors")
    back = Moments.load(tmp_path / "train.safetensors")
    assert back.count == 50
    assert torch.equal(back.mean, moments.mean)
    assert torch.equal(back.scatter, moments.scatter)
    from safetensors.torch import save_file

    save_file({"mean": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"holds \['mean'\] and no moments"):
        Moments.load(tmp_path / "other.safetensors")
    (tmp_path / "pickle").write_bytes(b"\x80\x04no file of ours, and longer than eight bytes")
    with pytest.raises(ValueError, match="no safetensors file"):
        Moments.load(tmp_path / "pickle")


def test_wrong_features_are_refused_by_name():
    a = normal(5, 3)
    with pytest.raises(ValueError, match=r"equally many features, got 3 and 2"):
        frechet_distance(a, a[:, :2])
    with pytest.raises(ValueError, match=r"b must hold at least 2 rows, got 1"):
        frechet_distance(a, a[:1])
    with pytest.raises(ValueError, match=r"b must be finite"):
        frechet_distance(a, a * math.nan)
    with pytest.raises(ValueError, match=r"features must be \(n, d\) and floating, got \(5, 3, 1\)"):
        frechet_distance(a[:, :, None], a)
    with pytest.raises(TypeError, match=r"a must be a tensor \(n, d\) or Moments, got ndarray"):
        frechet_distance(a.numpy(), a)
    with pytest.raises(ValueError, match=r"3 wide as before, got 2"):
        Moments(a).update(a[:, :2])
    with pytest.raises(ValueError, match="at least 2 rows, got 0"):
        _ = Moments().cov


@pytest.mark.gpu
def test_moments_on_a_gpu():
    a, b = normal(50, 4), normal(60, 4, seed=1)
    value = frechet_distance(a.cuda().float(), b.cuda().float())
    assert value.is_cuda
    assert value.item() == pytest.approx(float(frechet_distance(a, b)), rel=1e-4)
    mixed = Moments(a)
    mixed.merge(Moments(b.cuda()))
    torch.testing.assert_close(mixed.cov, torch.cov(torch.cat([a, b]).T))
