"""Features for a Fréchet distance on CIFAR-10: the ResNets of He et al. (2016, section 4.2), 64 numbers an image.

The weights are Yerlan Idelbayev's (github.com/akamaster/pytorch_resnet_cifar10, BSD-2): `resnet20-12fca82f.th` (.9173
test accuracy) and `resnet56-4bfd9763.th` (.9339). Shortcuts have no weights: every other pixel, new channels zero. A
distance in these features is no FID, and not comparable with one.

`python -m benchmarks.features FILE.th FOLDER` checks them on the zips of CIFAR-10 in a folder: train against test,
noise, blur.
"""

from __future__ import annotations

import io
import os
import sys
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, pad, relu

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as in training


class Block(nn.Module):
    def __init__(self, c_in: int, c: int) -> None:
        super().__init__()
        self.grow, stride = c - c_in, 1 if c == c_in else 2
        self.conv1, self.bn1 = nn.Conv2d(c_in, c, 3, stride, 1, bias=False), nn.BatchNorm2d(c)
        self.conv2, self.bn2 = nn.Conv2d(c, c, 3, 1, 1, bias=False), nn.BatchNorm2d(c)

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn2(self.conv2(relu(self.bn1(self.conv1(x)))))
        if self.grow:
            x = pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.grow // 2, self.grow // 2))
        return relu(h + x)


class CifarResNet(nn.Module):
    """Images (B, 3, 32, 32) in [-1, 1] to the 64 pooled features; `logits` goes on to the ten classes."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        widths = [16, 16, 32, 64]
        for i in (1, 2, 3):
            ins = [widths[i - 1]] + [widths[i]] * (blocks - 1)
            self.add_module(f"layer{i}", nn.Sequential(*(Block(c, widths[i]) for c in ins)))
        self.linear = nn.Linear(64, 10)
        self.register_buffer("mean", torch.tensor(MEAN).reshape(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).reshape(3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = ((x + 1) / 2 - self.mean) / self.std
        x = self.layer3(self.layer2(self.layer1(relu(self.bn1(self.conv1(x))))))
        return avg_pool2d(x, x.shape[-1]).flatten(1)

    def logits(self, x: Tensor) -> Tensor:
        return self.linear(self(x))


def cifar_resnet(path: str | Path) -> CifarResNet:
    """The network of a file, its depth as the file has it, in eval mode."""
    state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    state = {name.removeprefix("module."): value for name, value in state.items()}
    net = CifarResNet(len({name.split(".")[1] for name in state if name.startswith("layer1.")}))
    net.load_state_dict(state)
    return net.eval().requires_grad_(False)


def resnet56() -> CifarResNet:
    """ResNet-56 out of the folder that SDE_DATA names."""
    file = Path(os.environ.get("SDE_DATA", "")).expanduser() / "cifar10_resnets/resnet56-4bfd9763.th"
    if not file.is_file():
        raise FileNotFoundError(f"no {file}: set SDE_DATA to a folder that has it (see benchmarks/features.py)")
    return cifar_resnet(file)


def cifar_zip(path: str | Path, count: int | None = None) -> tuple[Tensor, Tensor]:
    """Images (n, 3, 32, 32), uint8, and labels of a zip of stacked pictures, 500 in each."""
    from PIL import Image

    with zipfile.ZipFile(path) as z:
        names = sorted(name for name in z.namelist() if name.endswith(".webp"))
        names = names if count is None else names[: -(-count // 500)]
        pixels = [np.asarray(Image.open(io.BytesIO(z.read(name)))).reshape(-1, 32, 32, 3) for name in names]
        labels = np.load(io.BytesIO(z.read("labels.npy")), allow_pickle=False)
    x = torch.from_numpy(np.concatenate(pixels)[:count]).permute(0, 3, 1, 2).contiguous()
    return x, torch.from_numpy(labels[: len(x)].astype("int64"))


def main(file: str, folder: str, n: int = 5000) -> None:
    from sde.metrics import features, frechet_distance, kernel_distance, precision_recall

    net = cifar_resnet(file)
    train, _ = cifar_zip(Path(folder) / "cifar10_train_a.zip", n)
    test, label = cifar_zip(Path(folder) / "cifar10_test.zip", n)
    reference, found = features(net, train), features(net, test)
    accuracy = (net.linear(found).argmax(1) == label).float().mean()
    print(f"{n} images each; test accuracy {accuracy:.4f}")
    generator, x = torch.Generator().manual_seed(0), test.float() / 127.5 - 1
    z = torch.randn(x.shape, generator=generator)
    sets = {"test": found}
    for sd in (0.02, 0.05, 0.1):  # of pixels in [0, 1]
        sets[f"test + noise {sd:g}"] = features(net, x + 2 * sd * z)
    sets["blurred 3 x 3"] = features(net, avg_pool2d(pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1))
    sets["noise alone"] = features(net, torch.rand(x.shape, generator=generator) * 2 - 1)
    for name, y in sets.items():
        shares = " ".join(f"{v:.3f}" for v in precision_recall(reference, y))
        distances = f"{frechet_distance(reference, y):8.3f}  {kernel_distance(reference, y)}"
        print(f"{name:18s} {distances}   {shares}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
