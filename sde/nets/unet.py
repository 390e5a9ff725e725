r"""A U-Net for images, (B, C, H, W): DDPM, DDPM++ and ADM by their published shapes, and a lean one that is quick.

A level runs residual blocks at its resolution, hands a smaller image to the level within, and goes on with what comes
back beside what it had:

    level(h) = outward(merge(up(deeper(down(inward(h)))), what inward left on its way)),
    block(h) = h + conv(silu((1 + scale(e)) norm(conv(silu(norm(h)))) + shift(e))),   then h + attention(norm(h)),

with e the vector of time and class. The lean shape differs where a GPU loses its time. Its norms are root mean squares
over the channels of one pixel, which need one pass over memory where group norm needs two; they and the convolutions
have no biases, whose gradients would be a pass each; a level adds what it kept in place of laying it beside; images
shrink and grow by moving 2×2 pixels to channels and back, around a linear layer. The last convolution starts at zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from sde.nets.blocks import Block, Down, Up, conv3, doubled, halved, narrow, normed
from sde.nets.embed import Conditioning

NORMS, MERGES, RESAMPLES = ("pixel", "group"), ("add", "concat"), ("shuffle", "block", "conv")


class _Level(nn.Module):
    """One resolution, and the smaller ones within it."""

    def __init__(self, net: UNet, depth: int, inward: int) -> None:
        super().__init__()
        width, n, wide = net.width * net.multipliers[depth], net.counts[depth], inward
        heads = max(1, width // net.head) if net.size >> depth in net.attention else 0
        shared = (4 * net.features, net.norm, net.modulate, net.dropout)
        self.concat, kept = net.merge == "concat", [inward] + n * [width]
        self.inward, self.middle, self.outward = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for _ in range(n):
            self.inward.append(Block(wide, width, *shared, heads))
            wide = width
        self.down = self.deeper = self.up = None
        if depth + 1 < len(net.multipliers):
            inner = net.width * net.multipliers[depth + 1]
            below = inner if net.resample == "shuffle" else width
            wide = inner if self.concat else width
            if net.resample == "block":
                self.down = Block(width, below, *shared, resample=halved)
                self.up = Block(inner, wide, *shared, resample=doubled)
            else:
                self.down, self.up = Down(width, below, net.resample), Up(inner, wide, net.resample)
            self.deeper = _Level(net, depth + 1, below)
        elif self.concat:
            self.middle.append(Block(width, width, *shared, max(1, width // net.head)))
            self.middle.append(Block(width, width, *shared))
        if self.concat:
            for extra in reversed(kept):
                self.outward.append(Block(wide + extra, width, *shared, heads))
                wide = width
        elif self.deeper is not None:
            self.outward.extend(Block(width, width, *shared, heads) for _ in range(n))

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        kept = [h]
        for block in self.inward:
            h = block(h, e)
            kept.append(h)
        for block in self.middle:
            h = block(h, e)
        if self.down is not None and self.deeper is not None and self.up is not None:
            inner = self.up(self.deeper(self.down(h, e), e), e)
            h = inner if self.concat else h + inner
        for block in self.outward:
            h = block(torch.cat([h, kept.pop()], 1) if self.concat else h, e)
        return h


class UNet(nn.Module):
    r"""U-Net of residual blocks and attention, with time and classes.

    Args:
        channels: Channels of an image.
        size: Height and width that it is made for. Others work that halve as often.
        width: Channels at the full size.
        multipliers: Channels of each level over width; each level has half the size of the one before.
        blocks: Residual blocks of a level on the way in and, one more with "concat", on the way out: a number, or one
            for each level. With "add" the smallest level has no way out.
        attention: Sizes at which attention follows each block.
        head: Channels of an attention head.
        classes: Number of classes, 0 for none. Class `classes` itself means "no class".
        dropout: Share of numbers that a block drops in training.
        norm: "pixel" (root mean square, no parameters, no biases) or "group".
        merge: "add" or "concat": how a level joins what it kept to what comes from within.
        resample: "shuffle" (2×2 pixels to channels, a linear layer), "block" (within residual blocks, by the mean of
            pixels and their repetition) or "conv" (stride 2; repetition and a convolution).
        modulate: True for scale and shift by time and class after the second norm, False to add them before it.
        features: Size of the time features; the vector of time and class has four times as many numbers.
        time: "fourier" for clocks of about unit size, "sinusoidal" for an index 0 .. 999.

    References:
        Ho et al. (2020), 2006.11239; Dhariwal & Nichol (2021), 2105.05233; Song et al. (2021), 2011.13456, appendix H;
        Hoogeboom et al. (2023), 2301.11093, for added skips; Karras et al. (2024), 2312.02696, for pixel norms.

    Example:
        >>> import torch, sde
        >>> net = sde.nets.UNet(channels=1, size=8, width=16, multipliers=(1, 2), classes=10)
        >>> net(torch.zeros(5, 1, 8, 8), torch.zeros(5), label=torch.arange(5)).shape
        torch.Size([5, 1, 8, 8])
    """

    def __init__(
        self,
        channels: int = 3,
        size: int = 32,
        width: int = 64,
        multipliers: Sequence[int] = (1, 2, 4),
        blocks: int | Sequence[int] = 2,
        attention: Sequence[int] = (),
        head: int = 64,
        classes: int = 0,
        dropout: float = 0.0,
        norm: str = "pixel",
        merge: str = "add",
        resample: str = "shuffle",
        modulate: bool = True,
        features: int = 64,
        time: str = "fourier",
    ) -> None:
        super().__init__()
        self.channels, self.size, self.width, self.head, self.classes = channels, size, width, head, classes
        self.multipliers, self.attention, self.blocks = tuple(multipliers), tuple(attention), blocks
        self.dropout, self.norm, self.merge, self.resample, self.modulate = dropout, norm, merge, resample, modulate
        self.features, self.time = features, time
        self.counts = (blocks,) * len(self.multipliers) if isinstance(blocks, int) else tuple(blocks)
        self._check()
        self.conditioning = Conditioning(features, 4 * features, classes, time)
        self.inward = conv3(channels, width, bias=True)
        self.level = _Level(self, 0, width)
        self.last = normed(norm, width * self.multipliers[0])
        self.outward = conv3(width * self.multipliers[0], channels, bias=True, gain=0.0)

    def _check(self) -> None:
        numbers = {"channels": self.channels, "size": self.size, "width": self.width, "head": self.head}
        for name, value in numbers.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}: UNet(channels=3, size=32, width=64), say")
        for name, kinds in {"norm": NORMS, "merge": MERGES, "resample": RESAMPLES}.items():
            if getattr(self, name) not in kinds:
                raise ValueError(f"{name} must be one of {', '.join(kinds)}, got {getattr(self, name)!r}")
        if not self.multipliers or min(self.multipliers) < 1:
            raise ValueError(f"multipliers must be one positive number a level, got {self.multipliers}: (1, 2, 4), say")
        if len(self.counts) != len(self.multipliers) or min(self.counts) < 1:
            raise ValueError(
                f"blocks must be a positive number, or one for each of {len(self.multipliers)} levels, "
                f"got {self.blocks}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}: a share of numbers, 0.1, say")
        self._check_size("size", self.size)
        sizes = [self.size >> i for i in range(len(self.multipliers))]
        if not set(self.attention) <= set(sizes):
            raise ValueError(f"attention must name sizes of levels, {sizes}, got {self.attention}")
        for m in self.multipliers:
            if self.attention and (self.width * m) % max(1, self.width * m // self.head):
                raise ValueError(f"head={self.head} does not divide the {self.width * m} channels of a level")

    def _check_size(self, name: str, *sizes: int) -> None:
        unit = 2 ** (len(self.multipliers) - 1)
        for size in sizes:
            if size % unit or size < 1:
                raise ValueError(
                    f"{name} must be a multiple of {unit} to be halved {len(self.multipliers) - 1} times, got {size}: "
                    f"pad it to {-(-size // unit) * unit}, or make the net with fewer multipliers"
                )

    def forward(self, x: Tensor, c: Tensor, label: Tensor | None = None) -> Tensor:
        """Output shaped as x (B, C, H, W) for a clock c (B,) and labels (B,) or None.

        Raises:
            ValueError: If x has other axes or channels or does not halve, or labels come to a net without classes.
        """
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise ValueError(f"x must be (B, {self.channels}, H, W), got shape {tuple(x.shape)}")
        self._check_size("height and width of x", x.shape[2], x.shape[3])
        h = narrow(self.inward, x)
        e = self.conditioning(c, label)
        h = self.level(h, e)
        return narrow(self.outward, silu(self.last(h)).to(h.dtype)).to(x.dtype)

    @classmethod
    def digits(cls, **changes: Any) -> UNet:
        """For 8×8 digits of one channel and ten classes."""
        shape = {"channels": 1, "size": 8, "width": 32, "multipliers": (1, 2), "blocks": (2, 2), "attention": (4,)}
        return cls(**{**shape, "head": 32, "classes": 10, "features": 32, **changes})

    @classmethod
    def mnist(cls, **changes: Any) -> UNet:
        """For 28×28 pictures of one channel and ten classes, MNIST and Fashion-MNIST: levels of 28, 14 and 7."""
        shape = {"channels": 1, "size": 28, "width": 32, "multipliers": (1, 2, 2), "blocks": (2, 2, 2)}
        return cls(**{**shape, "attention": (7,), "classes": 10, "features": 32, **changes})

    @classmethod
    def cifar10(cls, **changes: Any) -> UNet:
        """Lean, of the parameters and operations of `ddpm_cifar10`."""
        shape = {"width": 128, "multipliers": (1, 2, 4), "blocks": (3, 5, 3), "attention": (8,), "features": 88}
        return cls(**{**shape, **changes})

    @classmethod
    def cifar10_small(cls, **changes: Any) -> UNet:
        """Lean, for CIFAR-10 in few megabytes: 4.7M parameters, and the operations that they allow."""
        shape = {"width": 128, "multipliers": (1, 1, 2), "blocks": (2, 2, 1), "attention": (16, 8), "features": 24}
        return cls(**{**shape, **changes})

    @classmethod
    def ddpm_cifar10(cls, **changes: Any) -> UNet:
        """The shape of Ho et al. (2020), 35.7M parameters: `google/ddpm-cifar10-32` is one, its clock an index."""
        shape = {"width": 128, "multipliers": (1, 2, 2, 2), "blocks": 2, "attention": (16,), "head": 256}
        kinds = {"norm": "group", "merge": "concat", "resample": "conv", "modulate": False, "features": 128}
        return cls(**{**shape, **kinds, "time": "sinusoidal", **changes})

    @classmethod
    def ddpmpp_cifar10(cls, **changes: Any) -> UNet:
        """The shape of DDPM++ for CIFAR-10 in Karras et al. (2022), 2206.00364."""
        shape = {"width": 128, "multipliers": (2, 2, 2), "blocks": 4, "attention": (16,), "head": 256, "dropout": 0.13}
        kinds = {"norm": "group", "merge": "concat", "resample": "block", "modulate": False, "features": 128}
        return cls(**{**shape, **kinds, **changes})

    @classmethod
    def adm_64(cls, **changes: Any) -> UNet:
        """The shape of ADM for ImageNet 64×64, 296M parameters: Dhariwal & Nichol (2021), 2105.05233."""
        shape = {"size": 64, "width": 192, "multipliers": (1, 2, 3, 4), "blocks": 3, "attention": (32, 16, 8)}
        kinds = {"norm": "group", "merge": "concat", "resample": "block", "features": 192, "dropout": 0.1}
        return cls(**{**shape, **kinds, "classes": 1000, **changes})
