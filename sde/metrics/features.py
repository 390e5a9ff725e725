r"""Features of images: what a network sees in them, batch by batch, on its own device.

A network is anything that takes float images (B, C, H, W) in [-1, 1] and gives (B, d) or (B, d, 1, 1):
`torch.nn.Flatten()` for the pixels themselves, a trained classifier without its last layer, `inception(path)` for a
true FID, or `RandomConv`, which needs no file. A distance between features says how alike two sets of images are *to
that network*; numbers of two networks have nothing to do with each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate

from sde.data import Dataset, from_uint8, to_uint8
from sde.metrics.frechet import Moments
from sde.random import randn
from sde.solvers.progress import bar

Images = Tensor | Dataset | Iterable[Tensor]
"""All images, or batches of them: bytes (uint8) or floats in [-1, 1]."""


def features(
    net: Callable[[Tensor], Tensor],
    images: Images,
    batch: int = 256,
    device: torch.device | str | None = None,
    quantize: bool = True,
    progress: bool | None = None,
) -> Tensor:
    r"""Features of images in the eyes of a network, (n, d), float32 or wider, on the network's device.

    Args:
        net: From float images (B, C, H, W) in [-1, 1] to (B, d) or (B, d, 1, 1); evaluated in eval mode.
        images: (n, C, H, W), uint8 or floats in [-1, 1]; a data set of them; or batches, from a loader or a generator.
        batch: Images at a time, where they come as one tensor.
        device: Where the network is and images are moved to. Default: where its parameters are.
        quantize: Round floats to bytes first, as writing them to PNG does: then a sampler's floats and its files give
            one number. Turn it off for features of what are no 8-bit images.
        progress: True for a bar, False for none. Default: one that appears after two seconds.

    Example:
        >>> features(torch.nn.Flatten(), torch.zeros(10, 3, 8, 8, dtype=torch.uint8)).shape
        torch.Size([10, 192])
    """
    return torch.cat([part.clone() for part in feature_batches(net, images, batch, device, quantize, progress)])


def moments(
    net: Callable[[Tensor], Tensor],
    images: Images,
    batch: int = 256,
    device: torch.device | str | None = None,
    quantize: bool = True,
    progress: bool | None = None,
) -> Moments:
    """Moments of the features of any number of images, of which one batch is in memory; arguments as `features`.

    Example:
        >>> noise = (torch.rand(50, 1, 4, 4) * 2 - 1 for _ in range(4))
        >>> moments(torch.nn.Flatten(), noise)
        Moments(count=200, features=16)
    """
    total = Moments()
    for part in feature_batches(net, images, batch, device, quantize, progress):
        total.update(part)
    if not total.count:
        raise ValueError("images must hold at least one, got none: a generator that was used up, perhaps")
    return total


def feature_batches(
    net: Callable[[Tensor], Tensor],
    images: Images,
    batch: int = 256,
    device: torch.device | str | None = None,
    quantize: bool = True,
    progress: bool | None = None,
) -> Iterator[Tensor]:
    """The features of one batch of images after the other, (B, d); arguments as `features`.

    Example:
        >>> [part.shape[0] for part in feature_batches(torch.nn.Flatten(), torch.zeros(10, 1, 4, 4), batch=4)]
        [4, 4, 2]
    """
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}: pass batch=256, say")
    images = images.x if isinstance(images, Dataset) else images
    total = len(images) if isinstance(images, Tensor) else None
    if total == 0:
        raise ValueError("images must hold at least one, got none")
    parts = images.split(batch) if isinstance(images, Tensor) else images
    device = device or _device(net)
    modules = list(net.modules()) if isinstance(net, nn.Module) else []
    training = [m for m in modules if m.training]
    with bar(total, "features", "image", progress) as done:
        for part in parts:
            x = prepared(part, device, quantize)
            # Modes and gradients are the caller's between batches.
            for module in training:
                module.training = False
            try:
                with torch.no_grad():
                    found = net(x)
            finally:
                for module in training:
                    module.training = True
            yield _flat(found, len(x))
            done(len(x))


def prepared(x: Tensor, device: torch.device | str | None, quantize: bool = True) -> Tensor:
    """Images as a network takes them: floats in [-1, 1] on its device, on the grid of bytes if told.

    Example:
        >>> prepared(torch.tensor([0.1]).reshape(1, 1, 1, 1), None).item() * 127.5  # byte 140 of 0 to 255
        12.5
    """
    if not isinstance(x, Tensor) or x.ndim != 4 or not (x.dtype == torch.uint8 or x.is_floating_point()):
        got = f"{tuple(x.shape)} of {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"images must be (n, C, H, W), uint8 or floats in [-1, 1], got {got}: reshape or convert them")
    x = x.to(device, non_blocking=True) if device is not None else x
    if x.dtype == torch.uint8:
        return from_uint8(x)
    return from_uint8(to_uint8(x)) if quantize else x


def _device(net: Callable[[Tensor], Tensor]) -> torch.device | None:
    if isinstance(net, nn.Module):
        for tensor in (*net.parameters(), *net.buffers()):
            return tensor.device
    return None


def _flat(found: Tensor, size: int) -> Tensor:
    if not isinstance(found, Tensor) or found.ndim < 2 or len(found) != size or found[0].numel() != found.shape[1]:
        got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(
            f"net must give features ({size}, d) for {size} images, got {got}: pass one layer, pooled, as "
            "lambda x: net(x)[0].mean((2, 3)), say"
        )
    return found.flatten(1).to(torch.promote_types(found.dtype, torch.float32))


class RandomConv(nn.Module):
    r"""Features of a fixed random convolutional network: a stand-in that needs no file, and is no FID.

    Each of `levels` scales convolves the image, halved in size each time, with `width` random 3 × 3 filters followed by
    `width` more and a rectifier after both, and pools its map to 2 × 2 means: 4 (C + `width` `levels`) features.
    Filters are random, the first ones *centred*, so that a flat patch gives nothing and what is measured is contrast,
    edges and texture at each scale, with the brightness of the four quarters beside it. Nothing in it has learnt what a
    picture shows: it orders noise, blur and missing classes rightly, and says little between two good models.

    Args:
        channels: C of the images.
        width: Filters of a layer.
        levels: Scales; as many as halving allows for small images.
        seed: Of the filters. Numbers of two seeds are not comparable; leave it at 0.

    Example:
        >>> from sde.data import digits
        >>> from sde.metrics import frechet_distance
        >>> x, net = digits().x, RandomConv(channels=1)
        >>> a, b = features(net, x[::2]), features(net, x[1::2])
        >>> noisy = features(net, x[1::2] + 0.2 * torch.randn_like(x[1::2]))
        >>> bool(frechet_distance(a, b) < frechet_distance(a, noisy))
        True
    """

    def __init__(self, channels: int = 3, width: int = 32, levels: int = 3, seed: int = 0) -> None:
        super().__init__()
        self.channels, self.width, self.levels, self.seed = channels, width, levels, seed
        generator = torch.Generator().manual_seed(seed)
        for level in range(levels):
            first = randn((width, channels, 3, 3), generator, dtype=torch.float32)
            first = first - first.mean((2, 3), keepdim=True)
            second = randn((width, width, 3, 3), generator, dtype=torch.float32)
            self.register_buffer(f"first{level}", first / math.sqrt(channels * 9), persistent=False)
            self.register_buffer(f"second{level}", second * math.sqrt(2 / (width * 9)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] to features (B, d)."""
        if x.shape[1] != self.channels:
            raise ValueError(f"images have {x.shape[1]} channels: make RandomConv(channels={x.shape[1]})")
        found = [_quarters(x)]
        for level in range(self.levels):
            if level and min(x.shape[2:]) >= 4:
                x = interpolate(x, scale_factor=0.5, mode="area")
            h = conv2d(x, self.get_buffer(f"first{level}").to(x), padding=1).relu()
            h = conv2d(h, self.get_buffer(f"second{level}").to(x), padding=1).relu()
            found.append(_quarters(h))
        return torch.cat(found, 1)


def _quarters(x: Tensor) -> Tensor:
    return torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)
