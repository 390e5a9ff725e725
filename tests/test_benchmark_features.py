"""The CIFAR-10 network whose features the benchmarks measure in: its shape, its files, its zips."""

import io
import zipfile

import numpy as np
import pytest
import torch

features = pytest.importorskip("benchmarks.features")


@pytest.mark.parametrize(("blocks", "parameters"), [(3, 269_722), (9, 853_018)])
def test_it_is_resnet_20_and_56(blocks, parameters, tmp_path):
    net = features.CifarResNet(blocks).eval()
    assert sum(p.numel() for p in net.parameters()) == parameters
    state = {f"module.{name}": x for name, x in net.state_dict().items()}
    torch.save({"state_dict": state, "best_prec1": 90.0}, tmp_path / "net.th")
    back = features.cifar_resnet(tmp_path / "net.th")
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    assert back(x).shape == (2, 64)
    assert torch.equal(back(x), net(x))
    assert back.logits(x).shape == (2, 10)


def test_a_shortcut_takes_every_other_pixel_and_adds_zeros():
    block = features.Block(16, 32).eval()
    torch.nn.init.zeros_(block.bn2.weight)
    x = torch.rand(1, 16, 8, 8)
    y = block(x)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert not y[:, :8].any()
    assert not y[:, 24:].any()


def test_stacked_pictures_come_apart(tmp_path):
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 256, (1000, 32, 32, 3), dtype=np.uint8)
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as z:
        for i in range(2):
            file = io.BytesIO()
            image.fromarray(pixels[500 * i : 500 * (i + 1)].reshape(-1, 32, 3)).save(file, "WEBP", lossless=True)
            z.writestr(f"{i:03d}.webp", file.getvalue())
        file = io.BytesIO()
        np.save(file, np.arange(1000) % 10)
        z.writestr("labels.npy", file.getvalue())
    x, label = features.cifar_zip(tmp_path / "some.zip", 600)
    assert torch.equal(x, torch.from_numpy(pixels[:600]).permute(0, 3, 1, 2))
    assert torch.equal(label, torch.arange(600) % 10)
