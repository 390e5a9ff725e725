"""Features: batches, bytes, modes; a stand-in that orders what is worse; the FID's Inception in structure."""

import hashlib
import math

import pytest
import torch
from torch import nn

from sde.data import Dataset, digits, from_uint8
from sde.metrics import (
    Inception,
    RandomConv,
    feature_batches,
    features,
    frechet_distance,
    inception,
    moments,
)
from sde.metrics.inception import resized


def images(n=10, c=3, size=4, seed=0):
    return torch.randint(0, 256, (n, c, size, size), generator=torch.Generator().manual_seed(seed)).byte()


def test_batches_make_no_difference_and_bytes_are_images():
    x, net = images(), nn.Flatten()
    whole = features(net, x)
    assert torch.equal(whole, from_uint8(x).flatten(1))
    for given in (x, from_uint8(x), Dataset(from_uint8(x)), iter(x.split(4)), list(from_uint8(x).split(7))):
        torch.testing.assert_close(features(net, given, batch=3), whole)
    found = moments(net, iter(x.split(4)))
    torch.testing.assert_close(found.mean, whole.double().mean(0))
    torch.testing.assert_close(found.cov, torch.cov(whole.double().T))


def test_floats_are_rounded_to_bytes_unless_told():
    x = from_uint8(images()) + 0.3 / 127.5
    assert torch.equal(features(nn.Flatten(), x), features(nn.Flatten(), images()))
    assert torch.equal(features(nn.Flatten(), 5 * x.sign()), x.sign().flatten(1))
    assert torch.equal(features(nn.Flatten(), x, quantize=False), x.flatten(1))


def test_the_network_is_asked_in_eval_mode_and_left_as_it_was():
    net = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(), nn.Conv2d(3, 2, 4))
    net[1].eval()
    found = features(net, images(), batch=3)
    assert found.shape == (10, 2)
    assert not found.requires_grad
    assert [m.training for m in net] == [True, False, True]
    assert torch.equal(net[0].running_mean, torch.zeros(3))
    for _ in feature_batches(net, images(), batch=5):
        assert net.training, "between batches it is the caller's"
    with pytest.raises(RuntimeError):
        features(net, images(c=1))
    assert net.training


def test_half_precision_features_are_widened():
    assert features(lambda x: x.flatten(1).bfloat16(), images()).dtype == torch.float32


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"net must give features \(10, d\) for 10 images, got \(10, 3, 4, 4\)"):
        features(nn.Identity(), images())
    with pytest.raises(ValueError, match=r"got list"):
        features(lambda x: [x], images())
    with pytest.raises(ValueError, match=r"images must be \(n, C, H, W\), uint8 or floats .*got \(10, 3\) of"):
        features(nn.Flatten(), torch.zeros(10, 3))
    with pytest.raises(ValueError, match=r"got \(10, 3, 4, 4\) of torch.int64"):
        features(nn.Flatten(), images().long())
    with pytest.raises(ValueError, match="batch must be at least 1"):
        features(nn.Flatten(), images(), batch=0)
    with pytest.raises(ValueError, match="images must hold at least one"):
        moments(nn.Flatten(), [])
    with pytest.raises(ValueError, match="images must hold at least one"):
        features(nn.Flatten(), images()[:0])
    with pytest.raises(ValueError, match=r"images have 3 channels: make RandomConv\(channels=3\)"):
        features(RandomConv(1), images())


def test_the_stand_in_orders_noise_blur_and_missing_classes():
    """Held-out digits are nearest, and each fault grows with its size."""
    data, net = digits(), RandomConv(channels=1)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    train, held = data.x[order[:898]], data.x[order[898:]]
    label = data.label[order[898:]]
    reference = moments(net, train)
    z = torch.randn(held.shape, generator=torch.Generator().manual_seed(1))

    def distance(x):
        return float(frechet_distance(reference, moments(net, x)))

    def blurred(width):
        kernel = torch.tensor([width, 1.0, width]) / (1 + 2 * width)
        return nn.functional.conv2d(
            nn.functional.pad(held, (1, 1, 1, 1), mode="replicate"), torch.outer(kernel, kernel)[None, None]
        )

    own = distance(held)
    for faulty in (
        [distance(held + sd * z) for sd in (0.1, 0.2, 0.4, 0.8)],
        [distance(blurred(width)) for width in (0.1, 0.3, 1.0)],
        [distance(held[label < classes]) for classes in (8, 5, 2)],
    ):
        assert own < faulty[0]
        assert faulty == sorted(faulty)
        assert faulty[-1] > 10 * own
    assert distance(torch.rand(898, 1, 8, 8) * 2 - 1) > 50 * own


def test_the_stand_in_is_one_network():
    x = from_uint8(images(4, 3, 32))
    one, two = RandomConv(), RandomConv()
    assert torch.equal(one(x), two(x))
    assert one(x).shape == (4, 4 * (3 + 3 * 32))
    assert not torch.equal(one(x), RandomConv(seed=1)(x))
    # Drawn once and for all: another figure would make old numbers worthless
    ramp = torch.linspace(-1, 1, 192).reshape(1, 3, 8, 8)
    assert float(one(ramp).double().sum()) == pytest.approx(23.828778, rel=1e-5)


# Of every tensor of torch-fidelity's own network, which takes the same file.
LAYOUT = "760681d791cb624e1bf7a2e802a68933dd17aa5e3109fcf498d9dfa521bc10d7"


def filled(net, seed=0):
    """Weights that keep signals alive, batch norms that do something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, x in net.state_dict().items():
            if name.endswith(("conv.weight", "fc.weight")):
                x.normal_(0, math.sqrt(2 / x[0].numel()), generator=generator)
            elif name.endswith(("bn.weight", "running_var")):
                x.uniform_(0.7, 1.3, generator=generator)
            elif x.is_floating_point():
                x.normal_(0, 0.1, generator=generator)
    return net.eval()


@pytest.fixture(scope="module")
def filled_inception():
    return filled(Inception())


def test_inception_has_the_tensors_of_the_file(filled_inception):
    state = filled_inception.state_dict()
    text = "\n".join(f"{name} {tuple(x.shape)}" for name, x in sorted(state.items()))
    assert hashlib.sha256(text.encode()).hexdigest() == LAYOUT


def test_inception_computes_what_torch_fidelitys_does(filled_inception):
    """With the same made-up weights: figures of torch-fidelity 0.4.0 on these bytes."""
    ramp = (torch.arange(3 * 40 * 32) * 7 % 256).byte().reshape(1, 3, 40, 32)
    (found,) = features(filled_inception, ramp)
    assert found.shape == (2048,)
    parts = [found[:320].mean(), found[320:1088].mean(), found[1088:1856].mean(), found[1856:].mean(), found.std()]
    assert torch.stack(parts).tolist() == pytest.approx([0.4441, 0.5212, 0.4929, 0.5584, 0.6643], rel=1e-3)


def test_inception_is_loaded_from_a_file_that_is_the_right_one(filled_inception, tmp_path):
    path = tmp_path / "weights.pth"
    old = {k: v for k, v in filled_inception.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(old, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    net = inception(path, sha256=digest[:8])
    x = images(1, 3, 32)
    assert not net.training
    assert not any(p.requires_grad for p in net.parameters())
    assert torch.equal(features(net, x), features(filled_inception, x))
    with pytest.raises(ValueError, match=r"has SHA-256 [0-9a-f]{16}…, not 6726825d…: it is damaged or another file"):
        inception(path)
    with pytest.raises(FileNotFoundError, match=r"download pt_inception-2015-12-05-6726825d.pth"):
        inception(tmp_path / "none.pth")
    for wrong in ({"fc.weight": torch.zeros(3)}, {"other": torch.zeros(3)}, [1]):
        torch.save(wrong, path)
        with pytest.raises(ValueError, match="does not hold the weights of the FID's Inception"):
            inception(path, sha256="")
    with pytest.raises(ValueError, match=r"must be \(B, 3, H, W\), got \(1, 1, 8, 8\)"):
        net(torch.zeros(1, 1, 8, 8))


@pytest.mark.parametrize(("h", "w"), [(32, 40), (299, 299), (400, 350)])
def test_images_are_resized_from_corners(h, w):
    """By the rule written out for single pixels."""
    x = torch.rand(1, 2, h, w, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = resized(x)
    assert y.shape == (1, 2, 299, 299)
    for i, j in [(0, 0), (1, 2), (150, 77), (298, 298), (297, 3)]:
        u, v = i * h / 299, j * w / 299
        a, b = math.floor(u), math.floor(v)
        c, d = min(a + 1, h - 1), min(b + 1, w - 1)
        top = x[..., a, b] * (1 - v + b) + x[..., a, d] * (v - b)
        low = x[..., c, b] * (1 - v + b) + x[..., c, d] * (v - b)
        torch.testing.assert_close(y[..., i, j], top * (1 - u + a) + low * (u - a))
