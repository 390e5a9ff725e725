"""Digits, the two scales of images, flips, and the sets that are downloaded."""

import gzip
import hashlib
import os
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from sde.data import cifar10, digits, fashion_mnist, flip, from_uint8, images, mnist, to_uint8
from sde.data.download import Source

real = pytest.mark.skipif(not os.environ.get("SDE_DATA"), reason="needs a folder of the published files, in SDE_DATA")


def test_digits_are_scikit_learns_in_minus_one_to_one():
    data, source = digits(), load_digits()
    assert data.x.shape == (1797, 1, 8, 8)
    assert data.x.dtype == torch.float32
    assert (data.x.min(), data.x.max()) == (-1, 1)
    assert torch.equal(data.unstandardize(data.x)[:, 0].double(), torch.as_tensor(source.images))
    assert torch.equal(data.label, torch.as_tensor(source.target).long())


def test_bytes_survive_the_round_trip():
    every = torch.arange(256).to(torch.uint8)
    x = from_uint8(every)
    assert (x[0], x[-1]) == (-1, 1)
    torch.testing.assert_close(x[1:] - x[:-1], torch.full((255,), 2 / 255), atol=1e-6, rtol=0)
    assert torch.equal(to_uint8(x), every)


def test_values_beyond_the_range_are_clamped_not_wrapped():
    assert to_uint8(torch.tensor([-5.0, 5.0, float("inf")])).tolist() == [0, 255, 255]


def test_wrong_types_and_nan_are_refused_by_name():
    with pytest.raises(TypeError, match=r"x must be floats in \[-1, 1\], got torch.uint8"):
        to_uint8(torch.zeros(3, dtype=torch.uint8))
    with pytest.raises(TypeError, match=r"x must be torch.uint8, got torch.float32"):
        from_uint8(torch.zeros(3))
    with pytest.raises(ValueError, match=r"x must have no NaN"):
        to_uint8(torch.tensor([0.0, float("nan")]))


def test_digits_as_bytes_are_the_nearest_of_256_levels():
    data = digits(bytes=True)
    assert repr(data) == "Dataset('digits', x=(1797, 1, 8, 8) uint8, classes=10)"
    torch.testing.assert_close(data.x.float(), (digits().x + 1) * 127.5, atol=0.5, rtol=0)
    torch.testing.assert_close(data.unstandardize(data.x), digits().unstandardize(digits().x), atol=0.04, rtol=0)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
def test_half_of_the_images_are_mirrored_whole(dtype, generator):
    x = torch.randint(0, 256, (4000, 3, 5, 6), generator=generator).to(dtype)
    y = flip(x, generator)
    mirrored, same = [(y == z).flatten(1).all(1) for z in (x.flip(-1), x)]
    assert y.dtype == dtype
    assert (mirrored ^ same).all()
    assert abs(int(mirrored.sum()) - 2000) < 5 * 1000**0.5  # five standard errors
    assert not torch.equal(flip(x, generator), y)


def test_flips_are_drawn_for_each_image_by_its_own_generator(seeded):
    x = torch.arange(24.0).reshape(4, 1, 2, 3)
    y = flip(x, [seeded(k) for k in range(4)])
    for k in range(4):
        assert torch.equal(flip(x[k : k + 1], seeded(k)), y[k : k + 1])


def test_flips_keep_the_layout_and_refuse_a_single_image():
    x = torch.zeros(4, 3, 8, 8).to(memory_format=torch.channels_last)
    assert flip(x).is_contiguous(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match=r"x must be a batch of images, got shape \(8,\)"):
        flip(x[0, 0, 0])


@pytest.mark.gpu
def test_flips_on_a_gpu_read_nothing_back():
    x = torch.zeros(64, 3, 32, 32, dtype=torch.uint8, device="cuda")
    generator = torch.Generator("cuda").manual_seed(0)
    flip(x, generator)
    torch.cuda.set_sync_debug_mode("error")
    try:
        flip(x, generator)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def published(tmp_path, monkeypatch) -> tuple[np.ndarray, np.ndarray]:
    """A test set of noise in place of MNIST's, in SDE_DATA."""
    rng = np.random.default_rng(0)
    pixels, label = np.zeros((10_000, 28, 28), np.uint8), rng.integers(0, 10, 10_000, np.uint8)
    pixels[:, ::9, ::9] = rng.integers(0, 256, (10_000, 4, 4), np.uint8)
    publish(tmp_path, monkeypatch, "t10k-images-idx3", pixels)
    publish(tmp_path, monkeypatch, "t10k-labels-idx1", label)
    monkeypatch.setenv("SDE_DATA", str(tmp_path))
    return pixels, label


def publish(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, data: np.ndarray) -> None:
    content = gzip.compress(struct.pack(f">{1 + data.ndim}I", 0x0800 + data.ndim, *data.shape) + data.tobytes(), 1)
    source = Source(f"mnist/{name}-ubyte.gz", len(content), hashlib.sha256(content).hexdigest(), ())
    monkeypatch.setitem(images.MNIST, name, source)
    (folder / "mnist").mkdir(exist_ok=True)
    (folder / source.path).write_bytes(content)


def test_a_set_is_read_from_the_publishers_files(published):
    pixels, label = published
    data = mnist(train=False, bytes=True)
    assert repr(data) == "Dataset('mnist', x=(10000, 1, 28, 28) uint8, classes=10)"
    np.testing.assert_array_equal(data.x[:, 0], pixels)
    np.testing.assert_array_equal(data.label, label)
    floats = mnist(train=False)
    torch.testing.assert_close(floats.x, from_uint8(data.x))
    torch.testing.assert_close(floats.unstandardize(floats.x[:50]), data.x[:50].float(), atol=1e-4, rtol=0)


def test_a_label_that_is_no_class_is_refused(published, tmp_path, monkeypatch):
    publish(tmp_path, monkeypatch, "t10k-labels-idx1", published[1] + np.uint8(1))
    with pytest.raises(ValueError, match=r"t10k-labels-idx1-ubyte\.gz: it holds the label 10, and classes are 0 to 9"):
        mnist(train=False)


def test_another_file_under_a_publishers_name_is_refused(published, monkeypatch):
    name = "t10k-labels-idx1"
    monkeypatch.setitem(images.MNIST, name, replace(images.MNIST[name], sha256="0" * 64))
    with pytest.raises(ValueError, match=r"t10k-labels-idx1-ubyte\.gz is not the published file"):
        mnist(train=False)


def test_strips_that_are_not_cifar_are_refused(tmp_path, monkeypatch):
    (tmp_path / "cifar10").mkdir()
    (tmp_path / "cifar10" / "cifar10_test.zip").touch()
    monkeypatch.setenv("SDE_DATA", str(tmp_path))
    monkeypatch.setattr(images.readers, "read_strips", lambda path, n: np.zeros((n, 3073), np.uint8))
    with pytest.raises(ValueError, match=r"cifar10_test\.zip: it does not hold CIFAR-10's own pixels and labels"):
        cifar10(train=False)


REAL = [
    (mnist, True, (60_000, 1, 28, 28), [0.1307], 0.3081),
    (mnist, False, (10_000, 1, 28, 28), [0.1325], None),
    (fashion_mnist, True, (60_000, 1, 28, 28), [0.2860], 0.3530),
    (fashion_mnist, False, (10_000, 1, 28, 28), [0.2868], None),
    (cifar10, True, (50_000, 3, 32, 32), [0.4914, 0.4822, 0.4465], None),
    (cifar10, False, (10_000, 3, 32, 32), [0.4942, 0.4851, 0.4504], None),
]


@real
@pytest.mark.parametrize(("load", "train", "shape", "mean", "std"), REAL)
def test_published_counts_means_and_spreads(load, train, shape, mean, std):
    """Against the figures that everybody normalises these sets by, on [0, 1]."""
    data = load(train, bytes=True)
    assert data.x.shape == shape
    assert data.label.unique().tolist() == list(range(10))
    if load is not mnist:
        assert (data.label.bincount() == shape[0] // 10).all()
    pixels = data.x.double() / 255
    torch.testing.assert_close(pixels.mean((0, 2, 3)), torch.tensor(mean).double(), atol=5.1e-5, rtol=0)
    if std:
        assert abs(pixels.std() - std) < 5e-5
    torch.testing.assert_close((data.statistics()[0].double().mean((1, 2)) + 1) / 2, pixels.mean((0, 2, 3)))
