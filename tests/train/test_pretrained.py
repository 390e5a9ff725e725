"""Networks that come with the package: small, described, and better than anything linear."""

import os

import pytest
import torch

import sde

NAMES = ["cifar10", "digits", "fashion-mnist", "mnist"]


def test_what_there_is_and_how_large() -> None:
    there = sde.train.shipped()
    assert sorted(there) == NAMES
    assert sum(path.stat().st_size for path in there.values()) <= 15e6
    for name, path in there.items():
        model = sde.pretrained(name)
        assert sum(p.numel() for p in model.parameters()) <= 8e6
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert not model.training
        note = sde.train.note(path)
        assert set(note) == {"about", "data", "source", "licence", "trained", "classes"}
        assert len(note["classes"]) == model.net.classes


def test_names_are_forgiving_and_unknown_ones_listed() -> None:
    assert sde.pretrained("Fashion_MNIST").net.size == 28
    with pytest.raises(ValueError, match="one of cifar10, digits, fashion-mnist, mnist, got 'imagenet'"):
        sde.pretrained("imagenet")


def errors(
    model: sde.ScoreModel, data: sde.data.Dataset, sigma: float, known: sde.data.Dataset | None = None
) -> tuple[float, float]:
    """Mean square error of the network's x0, and of the best affine one: that of a Gaussian of the known moments."""
    x, seen = (sde.data.from_uint8(d.x) if d.x.dtype == torch.uint8 else d.x for d in (data, known or data))
    noisy = x + sigma * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        own = model(noisy, sigma, label=data.label).x0
    flat, seen = x.flatten(1).double(), seen.flatten(1).double()
    mean, cov = seen.mean(0), torch.cov(seen.T)
    gain = torch.linalg.solve(cov + sigma**2 * torch.eye(len(cov)), cov)
    affine = mean + (noisy.flatten(1).double() - mean) @ gain
    return float((own - x).square().mean()), float((affine - flat).square().mean())


@pytest.mark.parametrize("sigma", [0.2, 0.6, 1.5])
def test_digits_are_denoised_better_than_by_any_affine_map(sigma: float) -> None:
    own, affine = errors(sde.pretrained("digits"), sde.data.digits(), sigma)
    assert own < 0.8 * affine


@pytest.mark.slow
@pytest.mark.skipif("SDE_DATA" not in os.environ, reason="needs the data sets: SDE_DATA names their folder")
@pytest.mark.parametrize("sigma", [0.2, 0.6, 1.5])
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10"])
def test_images_never_seen_are_denoised_better_than_by_any_affine_map(name: str, sigma: float) -> None:
    read = getattr(sde.data, name.replace("-", "_"))
    own, affine = errors(sde.pretrained(name), read(train=False)[:200], sigma, read()[:10_000])
    assert own < 0.8 * affine
