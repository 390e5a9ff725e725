"""What a U-Net is built of: residual blocks with time, class and attention, and ways to shrink and grow an image.

Images are (B, C, H, W) in shape and (B, H, W, C) in memory wherever a network runs channels_last; whatever moves pixels
is written so that no layout changes on the way.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad, silu

from sde.nets.attention import Attention, rms


def pixels(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H, W, C) without a copy: contiguous where x is channels_last."""
    return x.permute(0, 2, 3, 1)


def image(x: Tensor) -> Tensor:
    """(B, H, W, C) -> (B, C, H, W) without a copy."""
    return x.permute(0, 3, 1, 2)


def halved(x: Tensor) -> Tensor:
    """Mean of 2×2 pixels."""
    return image(pixels(x).unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).mean((2, 4)))


def doubled(x: Tensor) -> Tensor:
    """Each pixel four times."""
    y = pixels(x)[:, :, None, :, None].expand(-1, -1, 2, -1, 2, -1)
    return image(y.flatten(3, 4).flatten(1, 2))


class PixelNorm(nn.Module):
    """Each pixel's channels over their root mean square."""

    def forward(self, x: Tensor) -> Tensor:
        """Shaped as x (B, C, H, W)."""
        return rms(x, 1)


def normed(kind: str, channels: int) -> nn.Module:
    """The norm named "pixel" or "group", groups of at least four channels and at most 32 of them."""
    if kind == "pixel":
        return PixelNorm()
    groups = max(g for g in (1, 2, 4, 8, 16, 32) if channels % g == 0 and (g == 1 or channels >= 4 * g))
    return nn.GroupNorm(groups, channels, eps=1e-6)


def conv3(inward: int, outward: int, bias: bool, gain: float = 1.0, stride: int = 1) -> nn.Conv2d:
    """A 3×3 convolution that keeps the size, or halves it with stride 2; `gain` is the scale of what comes out."""
    conv = nn.Conv2d(inward, outward, 3, stride, padding=1, bias=bias)
    nn.init.normal_(conv.weight, std=gain / (9 * inward) ** 0.5)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


def narrow(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A convolution between few channels and many, filled up with zeros to a multiple of 8: what matrix units read."""
    more_out, more_in = -conv.out_channels % 8, -conv.in_channels % 8
    weight, bias = pad(conv.weight, (0, 0, 0, 0, 0, more_in, 0, more_out)), conv.bias
    if bias is not None:
        bias = pad(bias, (0, more_out))
    return conv2d(pad(x, (0, 0, 0, 0, 0, more_in)), weight, bias, padding=1)[:, : conv.out_channels]


class Block(nn.Module):
    """Residual block with time, class and perhaps attention; `resample` shrinks or grows the image within it."""

    def __init__(
        self,
        inward: int,
        outward: int,
        features: int,
        norm: str,
        modulate: bool,
        dropout: float,
        heads: int = 0,
        resample: Any = None,
    ) -> None:
        super().__init__()
        bias = norm == "group"
        self.modulate, self.resample = modulate, resample
        self.norm_one, self.norm_two = normed(norm, inward), normed(norm, outward)
        self.one, self.two = conv3(inward, outward, bias), conv3(outward, outward, bias, gain=1e-5)
        self.condition = nn.Linear(features, outward * (1 + modulate))
        self.dropout = nn.Dropout(dropout)
        self.skip = nn.Identity() if inward == outward else nn.Conv2d(inward, outward, 1)
        self.attention = Attention(outward, heads, bias=bias) if heads else None
        if self.attention is not None:
            self.norm_three = normed(norm, outward)
            nn.init.normal_(self.attention.outward.weight, std=1e-5)

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        """(B, outward, H', W') from h (B, inward, H, W) and e (B, features)."""
        r, m = silu(self.norm_one(h)), self.condition(e)[:, :, None, None]
        if self.resample is not None:
            r, h = self.resample(r), self.resample(h)
        r = self.one(r)
        if self.modulate:
            scale, shift = m.chunk(2, 1)
            r = torch.addcmul(shift, self.norm_two(r), 1 + scale)
        else:
            r = self.norm_two(r + m)
        h = self.skip(h) + self.two(self.dropout(silu(r)).to(h.dtype))
        if self.attention is not None:
            tokens = pixels(self.norm_three(h)).flatten(1, 2)
            h = h + image(self.attention(tokens).unflatten(1, h.shape[2:]))
        return h


class Down(nn.Module):
    """Half the size, by 2×2 pixels to four times the channels and a linear layer, or by a convolution of stride 2."""

    def __init__(self, inward: int, outward: int, kind: str) -> None:
        super().__init__()
        shuffle = kind == "shuffle"
        self.mix = nn.Linear(4 * inward, outward, bias=False) if shuffle else None
        self.conv = None if shuffle else conv3(inward, outward, bias=True, stride=2)

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        """(B, outward, H/2, W/2); `e` is there as in a block, and not used."""
        if self.conv is not None:
            return self.conv(h)
        y = pixels(h).unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).transpose(2, 3)
        return image(self.mix(y.flatten(3)))  # pyright: ignore[reportOptionalCall]


class Up(nn.Module):
    """Twice the size: the inverse shape of `Down`, or each pixel four times and a convolution."""

    def __init__(self, inward: int, outward: int, kind: str) -> None:
        super().__init__()
        shuffle = kind == "shuffle"
        self.mix = nn.Linear(inward, 4 * outward, bias=False) if shuffle else None
        self.conv = None if shuffle else conv3(inward, outward, bias=True)

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        """(B, outward, 2H, 2W); `e` is there as in a block, and not used."""
        if self.conv is not None:
            return self.conv(doubled(h))
        y = self.mix(pixels(h)).unflatten(3, (2, 2, -1)).transpose(2, 3)  # pyright: ignore[reportOptionalCall]
        return image(y.flatten(3, 4).flatten(1, 2))
