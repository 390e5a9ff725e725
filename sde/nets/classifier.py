r"""Classifiers of noisy samples, net(x, c) -> logits (B, classes): for points, and for images the way in of a U-Net.

They are told the clock c, as a class shows in fine detail where there is little noise and in coarse where there is
much. The last layer starts at zero: all classes alike, no slope.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from sde.nets.blocks import Block, Down, conv3, narrow, normed
from sde.nets.embed import TIMES, Conditioning
from sde.nets.mlp import _Block


class MLPClassifier(nn.Module):
    r"""Residual MLP on flattened samples with time features, to logits.

    Args:
        dim: Number of coordinates of a sample.
        classes: Number of classes, at least 2.
        width: Hidden width.
        depth: Number of residual blocks.
        features: Size of the time features.
        time: "fourier" for clocks of about unit size, "sinusoidal" for an index 0 .. 999.

    Example:
        >>> import torch, sde
        >>> sde.nets.MLPClassifier(dim=2, classes=3, width=32)(torch.zeros(5, 2), torch.zeros(5)).shape
        torch.Size([5, 3])
    """

    def __init__(
        self, dim: int, classes: int, width: int = 128, depth: int = 2, features: int = 32, time: str = "fourier"
    ) -> None:
        super().__init__()
        _check({"dim": dim, "width": width, "depth": depth}, classes, time)
        self.dim, self.classes, self.width, self.depth = dim, classes, width, depth
        self.features, self.time = features, time
        self.embed = TIMES[time](features)
        self.inward, self.outward = nn.Linear(dim, width), nn.Linear(width, classes)
        self.blocks = nn.ModuleList(_Block(width, features) for _ in range(depth))
        nn.init.zeros_(self.outward.weight)
        nn.init.zeros_(self.outward.bias)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        r"""Logits (B, classes) of x (B, \*D) at a clock c (B,).

        Raises:
            ValueError: If x has another number of coordinates.
        """
        flat = x.flatten(1)
        if flat.shape[1] != self.dim:
            raise ValueError(f"x has {flat.shape[1]} coordinates a sample, this net was made for dim={self.dim}")
        e, h = self.embed(c).to(flat.dtype), self.inward(flat)
        for block in self.blocks:
            h = block(h, e)
        return self.outward(silu(h))


class UNetClassifier(nn.Module):
    """The way in of a `UNet`, then the mean over pixels, to logits.

    Args:
        channels: Channels of an image.
        classes: Number of classes, at least 2.
        width: Channels at the full size.
        multipliers: Channels of each level over width; each level has half the size of the one before.
        blocks: Residual blocks of a level.
        features: Size of the time features.
        time: "fourier" for clocks of about unit size, "sinusoidal" for an index 0 .. 999.

    References:
        Dhariwal & Nichol (2021), 2105.05233, section 4.3.

    Example:
        >>> import torch, sde
        >>> net = sde.nets.UNetClassifier(channels=1, classes=10, width=8, multipliers=(1, 2))
        >>> net(torch.zeros(5, 1, 8, 8), torch.zeros(5)).shape
        torch.Size([5, 10])
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2, 4),
        blocks: int = 1,
        features: int = 32,
        time: str = "fourier",
    ) -> None:
        super().__init__()
        _check({"channels": channels, "width": width, "blocks": blocks}, classes, time)
        if not multipliers or min(multipliers) < 1:
            raise ValueError(f"multipliers must be one positive number a level, got {multipliers}: (1, 2, 4), say")
        self.channels, self.classes, self.width, self.multipliers = channels, classes, width, tuple(multipliers)
        self.blocks, self.features, self.time = blocks, features, time
        self.conditioning = Conditioning(features, 4 * features, 0, time)
        self.inward = conv3(channels, width, bias=True)
        self.steps, wide = nn.ModuleList(), width
        for level, multiplier in enumerate(multipliers):
            if level:
                self.steps.append(Down(wide, wide := width * multiplier, "shuffle"))
            for _ in range(blocks):
                self.steps.append(Block(wide, wide := width * multiplier, 4 * features, "pixel", True, 0.0))
        self.last, self.outward = normed("pixel", wide), nn.Linear(wide, classes)
        nn.init.zeros_(self.outward.weight)
        nn.init.zeros_(self.outward.bias)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Logits (B, classes) of x (B, C, H, W) at a clock c (B,).

        Raises:
            ValueError: If x has other axes or channels, or does not halve as often as there are levels.
        """
        unit = 2 ** (len(self.multipliers) - 1)
        if x.ndim != 4 or x.shape[1] != self.channels or x.shape[2] % unit or x.shape[3] % unit:
            raise ValueError(
                f"x must be (B, {self.channels}, H, W) with H and W multiples of {unit}, got shape {tuple(x.shape)}: "
                "pad it, or make the net with fewer multipliers"
            )
        h, e = narrow(self.inward, x), self.conditioning(c)
        for step in self.steps:
            h = step(h, e)
        return self.outward(silu(self.last(h)).mean((2, 3)).to(h.dtype)).to(torch.promote_types(x.dtype, h.dtype))


def _check(numbers: dict[str, int], classes: int, time: str) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if classes < 2:
        raise ValueError(f"classes must be at least 2, got {classes}: there is nothing to tell apart")
    if time not in TIMES:
        raise ValueError(f"time must be one of {', '.join(TIMES)}, got {time!r}")
