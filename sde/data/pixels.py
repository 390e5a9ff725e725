"""Bytes and the scale that networks see, and the one augmentation that images of things allow.

    x = byte / 127.5 − 1,      byte = round(127.5 (x + 1)), clamped to 0..255

Every image in the package is in [-1, 1] or is bytes; no other file knows the way between them.
"""

import torch
from torch import Tensor

from sde.random import Generator, rand

HALF = 127.5
"""Half the range of a byte: byte = HALF (x + 1)."""


def to_uint8(x: Tensor) -> Tensor:
    """Images in [-1, 1] as bytes: rounded to the nearest of 256 levels, clamped beyond them.

    Raises:
        TypeError: for a tensor of integers.
        ValueError: if `x` has NaN, which no byte can stand for.

    Example:
        >>> to_uint8(torch.tensor([-1.0, 0.0, 1.0, 3.0]))
        tensor([  0, 128, 255, 255], dtype=torch.uint8)
    """
    if not x.is_floating_point():
        raise TypeError(f"x must be floats in [-1, 1], got {x.dtype}: it may be bytes already")
    if x.isnan().any():
        raise ValueError("x must have no NaN: find the step that made the first one, or pass x.nan_to_num()")
    return ((x.float() + 1) * HALF).round().clamp(0, 255).to(torch.uint8)


def from_uint8(x: Tensor) -> Tensor:
    """Bytes as float32 images in [-1, 1]; `to_uint8` takes them back exactly.

    Example:
        >>> from_uint8(torch.tensor([0, 255], dtype=torch.uint8))
        tensor([-1.,  1.])
    """
    if x.dtype != torch.uint8:
        raise TypeError(f"x must be torch.uint8, got {x.dtype}: pass x.to(torch.uint8) if it holds 0 to 255")
    return x.float().div_(HALF).sub_(1)  # in place: a data set's worth of memory less


def flip(x: Tensor, generator: Generator = None) -> Tensor:
    """A batch of images in which each is mirrored left to right with probability one half.

    Images of things stay images of things; digits and letters do not. Nothing is read back from the device, so that a
    generator on it keeps the GPU running.

    Args:
        x: the images, (B, *D, width), of any dtype, bytes too.
        generator: one for the batch, or one for each image; best on the device of `x`.

    Example:
        >>> x = torch.tensor([[[0, 1]]]).expand(1000, 1, 2)
        >>> flipped = flip(x, torch.Generator().manual_seed(0))[:, 0, 0] == 1
        >>> 400 < int(flipped.sum()) < 600
        True
    """
    if x.ndim < 2:
        raise ValueError(f"x must be a batch of images, got shape {tuple(x.shape)}: pass x[None] for one image")
    u = rand((len(x),), generator, dtype=torch.float32, device=x.device)
    return torch.where((u < 0.5).view(-1, *[1] * (x.ndim - 1)), x.flip(-1), x)
