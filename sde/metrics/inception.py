r"""The network of the FID: Inception v3 as it was frozen in 2015, in whose features the published figures are.

Weights are the user's own: the file `pt_inception-2015-12-05-6726825d.pth` that pytorch-fid publishes (torch-fidelity
and torchmetrics use the same one as `weights-inception-2015-12-05-6726825d.pth`), a conversion of TensorFlow's graph.
The hexadecimal digits are the beginning of its SHA-256, which is checked. That graph differs from later Inceptions:

* images are resized to 299 × 299 by TensorFlow 1's bilinear rule, output pixel i looking at input i · size / 299
  (corners and not centres), and enter as (byte − 128) / 128;
* average pools leave the padding out, and the pool of the very last block is a maximum;
* features are the 2048 means of the last maps, before the classifier.

A block is a table of branches; a branch is a row of convolutions with `name:channels:height x width`, each followed by
a batch norm and a rectifier; the names are those of the file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, max_pool2d

SHA256 = "6726825d"
SIZE = 299
STEM = (  # name, channels in and out, kernel, stride, padding
    ("Conv2d_1a_3x3", 3, 32, 3, 2, 0),
    ("Conv2d_2a_3x3", 32, 32, 3, 1, 0),
    ("Conv2d_2b_3x3", 32, 64, 3, 1, 1),
    ("Conv2d_3b_1x1", 64, 80, 1, 1, 0),
    ("Conv2d_4a_3x3", 80, 192, 3, 1, 0),
)


def _a(pool: int) -> list[str]:
    return [
        "branch1x1:64:1x1",
        "branch5x5_1:48:1x1 branch5x5_2:64:5x5",
        "branch3x3dbl_1:64:1x1 branch3x3dbl_2:96:3x3 branch3x3dbl_3:96:3x3",
        f"mean branch_pool:{pool}:1x1",
    ]


def _c(c: int) -> list[str]:
    return [
        "branch1x1:192:1x1",
        f"branch7x7_1:{c}:1x1 branch7x7_2:{c}:1x7 branch7x7_3:192:7x1",
        f"branch7x7dbl_1:{c}:1x1 branch7x7dbl_2:{c}:7x1 branch7x7dbl_3:{c}:1x7 branch7x7dbl_4:{c}:7x1 "
        "branch7x7dbl_5:192:1x7",
        "mean branch_pool:192:1x1",
    ]


def _e(pool: str) -> list[str]:
    return [
        "branch1x1:320:1x1",
        "branch3x3_1:384:1x1 branch3x3_2a:384:1x3|branch3x3_2b:384:3x1",
        "branch3x3dbl_1:448:1x1 branch3x3dbl_2:384:3x3 branch3x3dbl_3a:384:1x3|branch3x3dbl_3b:384:3x1",
        f"{pool} branch_pool:192:1x1",
    ]


# A stride of 2 for the last convolution of each branch, and for the pool, where a third entry says so.
BLOCKS: tuple[tuple[str, list[str], int], ...] = (
    ("Mixed_5b", _a(32), 1),
    ("Mixed_5c", _a(64), 1),
    ("Mixed_5d", _a(64), 1),
    ("Mixed_6a", ["branch3x3:384:3x3", "branch3x3dbl_1:64:1x1 branch3x3dbl_2:96:3x3 branch3x3dbl_3:96:3x3", "max"], 2),
    ("Mixed_6b", _c(128), 1),
    ("Mixed_6c", _c(160), 1),
    ("Mixed_6d", _c(160), 1),
    ("Mixed_6e", _c(192), 1),
    (
        "Mixed_7a",
        [
            "branch3x3_1:192:1x1 branch3x3_2:320:3x3",
            "branch7x7x3_1:192:1x1 branch7x7x3_2:192:1x7 branch7x7x3_3:192:7x1 branch7x7x3_4:192:3x3",
            "max",
        ],
        2,
    ),
    ("Mixed_7b", _e("mean"), 1),
    ("Mixed_7c", _e("max"), 1),
)


class Inception(nn.Module):
    """Inception v3 of the FID: images (B, 3, H, W) in [-1, 1] to features (B, 2048); made with weights by `inception`.

    References:
        Szegedy et al. (2015), 1512.00567; Heusel et al. (2017), 1706.08500.

    Example:
        >>> with torch.device("meta"):  # in outline
        ...     Inception()(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 2048])
    """

    def __init__(self) -> None:
        super().__init__()
        for name, c_in, c_out, kernel, stride, padding in STEM:
            self.add_module(name, _Convolution(c_in, c_out, (kernel, kernel), stride, (padding, padding)))
        channels = 192
        for name, branches, stride in BLOCKS:
            block = _Block(channels, branches, stride)
            self.add_module(name, block)
            channels = block.channels
        self.fc = nn.Linear(channels, 1008)  # the classifier is in the file, and not asked

    def forward(self, x: Tensor) -> Tensor:
        """Features of images in [-1, 1]."""
        if x.ndim != 4 or x.shape[1] != 3:
            raise ValueError(f"images must be (B, 3, H, W), got {tuple(x.shape)}: repeat one channel three times")
        x = (resized(x) * 127.5 - 0.5) / 128  # from [-1, 1] by bytes to the graph's own scale
        for i, (name, *_) in enumerate(STEM):
            x = self.get_submodule(name)(x)
            if i in (2, 4):
                x = max_pool2d(x, 3, 2)
        for name, *_ in BLOCKS:
            x = self.get_submodule(name)(x)
        return x.mean((2, 3))


def inception(path: str | Path, sha256: str = SHA256) -> Inception:
    """The network of the FID with the weights of a file, in eval mode, without gradients.

    `frechet_distance` between `moments(inception(path), ...)` of 50 000 generated images and of the training set is
    what papers call FID.

    Args:
        path: `pt_inception-2015-12-05-6726825d.pth`, of the releases of github.com/mseitzer/pytorch-fid.
        sha256: Beginning of the file's SHA-256.

    Raises:
        FileNotFoundError: If the file is not there.
        ValueError: If it is another file, or does not hold these weights.

    Example:
        >>> inception("pt_inception-2015-12-05-6726825d.pth")
        Traceback (most recent call last):
        FileNotFoundError: pt_inception-2015-12-05-6726825d.pth is not there: download ...
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is not there: download pt_inception-2015-12-05-6726825d.pth from "
            "https://github.com/mseitzer/pytorch-fid/releases/tag/fid_weights"
        )
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(sha256):
        raise ValueError(f"{path} has SHA-256 {found[:16]}…, not {sha256}…: it is damaged or another file")
    weights = torch.load(path, map_location="cpu", weights_only=True)
    net = Inception()
    try:
        missing = net.load_state_dict(weights, strict=False)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} does not hold the weights of the FID's Inception: {error}") from error
    wrong = [*missing.unexpected_keys, *(k for k in missing.missing_keys if not k.endswith("num_batches_tracked"))]
    if wrong:
        raise ValueError(f"{path} does not hold the weights of the FID's Inception: {wrong[:4]} do not fit")
    return net.eval().requires_grad_(False)


def resized(x: Tensor, size: int = SIZE) -> Tensor:
    """Images (B, C, H, W) at size × size by the bilinear rule of TensorFlow 1, in which i looks at i · H / size.

    Example:
        >>> resized(torch.tensor([[[[0.0, 1.0]]]]), 4)[0, 0, 0]  # at 0, 1/2, 1, and 3/2, which stays at 1
        tensor([0.0000, 0.5000, 1.0000, 1.0000])
    """
    if x.shape[2:] == (size, size):
        return x
    rows, columns = (_weights(n, size).to(x) for n in x.shape[2:])
    return rows @ x @ columns.T


def _weights(n: int, size: int) -> Tensor:
    """(size, n) with the two neighbours' weights in each row."""
    at = torch.arange(size, dtype=torch.float64) * (n / size)
    low = at.floor().long()
    part = (at - low)[:, None]
    grid = torch.arange(n)
    return part * (grid == (low + 1).clamp(max=n - 1)[:, None]) + (1 - part) * (grid == low[:, None])


class _Convolution(nn.Module):
    def __init__(
        self, c_in: int, c_out: int, kernel: tuple[int, int], stride: int = 1, padding: tuple[int, int] = (0, 0)
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(c_out, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)).relu_()


class _Block(nn.Module):
    """Branches side by side, their maps one after the other; a branch may fork at its end."""

    def __init__(self, c_in: int, branches: Sequence[str], stride: int) -> None:
        super().__init__()
        self.stride, self.channels = stride, 0
        self.branches: list[list[list[str]]] = []
        for branch in branches:
            words, width = branch.split(), c_in
            row = [[part.split(":")[0] for part in word.split("|")] for word in words]
            for word in words:
                if ":" in word:
                    last = stride if word == words[-1] else 1
                    width = sum(self._convolution(part, width, last) for part in word.split("|"))
            self.channels += width
            self.branches.append(row)

    def _convolution(self, part: str, c_in: int, stride: int) -> int:
        name, channels, kernel = part.split(":")
        h, w = map(int, kernel.split("x"))
        padding = (h // 2, w // 2) if stride == 1 else (0, 0)
        self.add_module(name, _Convolution(c_in, int(channels), (h, w), stride, padding))
        return int(channels)

    def forward(self, x: Tensor) -> Tensor:
        found = []
        for row in self.branches:
            h = x
            for names in row:
                h = self._pool(names[0], h) if names[0] in ("mean", "max") else self._fork(names, h)
            found.append(h)
        return torch.cat(found, 1)

    def _fork(self, names: list[str], h: Tensor) -> Tensor:
        maps = [self.get_submodule(name)(h) for name in names]
        return torch.cat(maps, 1) if len(maps) > 1 else maps[0]

    def _pool(self, kind: str, h: Tensor) -> Tensor:
        if kind == "mean":
            return avg_pool2d(h, 3, 1, 1, count_include_pad=False)
        return max_pool2d(h, 3, self.stride, 1 if self.stride == 1 else 0)
