r"""A diffusion transformer for images, (B, C, H, W): patches as tokens, time and class as scales, shifts and gates.

Each block moves tokens h by attention and by a multilayer perceptron, both modulated by the vector e of time and class,

    h <- h + g_1 attention((1 + a_1) rms(h) + b_1),      h <- h + g_2 W' gelu(W ((1 + a_2) rms(h) + b_2)),

with (a_1, b_1, g_1, a_2, b_2, g_2) linear in e and zero at the start ("adaLN-zero"), so that an untrained block is the
identity. The last layer starts at zero too. Places of patches are rotary, which lets a net see other sizes than it was
made for, or learned. Linear layers within blocks have no biases: a shift before a layer does what its bias would do,
and spares a GPU the pass over memory that a bias's gradient is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sde.nets.attention import Attention, Rotary, rms
from sde.nets.embed import Conditioning

POSITIONS = ("rotary", "learned")


class _Layer(nn.Module):
    """One transformer block."""

    def __init__(self, width: int, heads: int, expansion: int, normed: bool) -> None:
        super().__init__()
        self.attention = Attention(width, heads, normed)
        self.up = nn.Linear(width, expansion * width, bias=False)
        self.down = nn.Linear(expansion * width, width, bias=False)
        self.condition = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.condition.weight)
        nn.init.zeros_(self.condition.bias)

    def forward(self, h: Tensor, e: Tensor, turn: Tensor | None) -> Tensor:
        a1, b1, g1, a2, b2, g2 = self.condition(e)[:, None].chunk(6, -1)
        h = h + g1 * self.attention(rms(h) * (1 + a1) + b1, turn)
        r = nn.functional.gelu(self.up(rms(h) * (1 + a2) + b2), approximate="tanh")
        return h + g2 * self.down(r)


class DiT(nn.Module):
    r"""Diffusion transformer with time and classes.

    Args:
        channels: Channels of an image.
        size: Height and width that it is made for. With rotary positions any multiple of `patch` works.
        patch: Side of a patch; divides the size.
        width: Numbers a token.
        depth: Number of blocks.
        heads: Attention heads; divides width.
        classes: Number of classes, 0 for none. Class `classes` itself means "no class".
        positions: "rotary" or "learned".
        normed: Whether queries and keys are divided by their root mean square.
        expansion: Width of the hidden layer over `width`.
        features: Size of the time features.
        time: "fourier" for clocks of about unit size, "sinusoidal" for an index 0 .. 999.

    References:
        Peebles & Xie (2023), 2212.09748; Dehghani et al. (2023), 2302.05442, for normed queries and keys; Su et al.
        (2021), 2104.09864, for rotary positions.

    Example:
        >>> import torch, sde
        >>> net = sde.nets.DiT(channels=1, size=8, patch=2, width=32, depth=2, heads=2, classes=10)
        >>> net(torch.zeros(5, 1, 8, 8), torch.zeros(5), label=torch.arange(5)).shape
        torch.Size([5, 1, 8, 8])
        >>> sum(p.numel() for p in sde.nets.DiT.S(size=32, patch=2).parameters()) // 10**6
        32
    """

    def __init__(
        self,
        channels: int = 3,
        size: int = 32,
        patch: int = 2,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        classes: int = 0,
        positions: str = "rotary",
        normed: bool = True,
        expansion: int = 4,
        features: int = 256,
        time: str = "fourier",
    ) -> None:
        super().__init__()
        numbers = {"channels": channels, "size": size, "patch": patch, "width": width, "depth": depth}
        for name, value in {**numbers, "heads": heads, "expansion": expansion}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}: DiT(channels=3, size=32, patch=2), say")
        if width % heads:
            raise ValueError(f"heads must divide width={width}, got {heads}: heads={max(1, width // 64)}, say")
        if positions not in POSITIONS:
            raise ValueError(f"positions must be one of {', '.join(POSITIONS)}, got {positions!r}")
        self.channels, self.size, self.patch, self.width, self.depth = channels, size, patch, width, depth
        self.heads, self.classes, self.positions, self.normed = heads, classes, positions, normed
        self.expansion, self.features, self.time = expansion, features, time
        self._check_size("size", size)
        self.conditioning = Conditioning(features, width, classes, time)
        self.inward = nn.Linear(channels * patch**2, width)
        n, learned = size // patch, positions == "learned"
        self.place = nn.Parameter(0.02 * torch.randn(n * n, width)) if learned else None
        self.rotary = None if learned else Rotary(n, n, width // heads)
        self.layers = nn.ModuleList(_Layer(width, heads, expansion, normed) for _ in range(depth))
        self.condition = nn.Linear(width, 2 * width)
        self.outward = nn.Linear(width, channels * patch**2)
        for zero in (self.condition, self.outward):
            nn.init.zeros_(zero.weight)
            nn.init.zeros_(zero.bias)

    def _check_size(self, name: str, *sizes: int) -> None:
        for size in sizes:
            if size % self.patch or size < 1:
                raise ValueError(f"{name} must be a multiple of patch={self.patch}, got {size}: crop or pad the image")

    def forward(self, x: Tensor, c: Tensor, label: Tensor | None = None) -> Tensor:
        """Output shaped as x (B, C, H, W) for a clock c (B,) and labels (B,) or None.

        Raises:
            ValueError: If x has other axes or channels, or a size that this net cannot see.
        """
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise ValueError(f"x must be (B, {self.channels}, H, W), got shape {tuple(x.shape)}")
        self._check_size("height and width of x", x.shape[2], x.shape[3])
        rows, columns = x.shape[2] // self.patch, x.shape[3] // self.patch
        tokens = x.unflatten(3, (columns, -1)).unflatten(2, (rows, -1)).permute(0, 2, 4, 1, 3, 5)
        h, e = self.inward(tokens.flatten(3).flatten(1, 2)), self.conditioning(c, label)
        h, turn = self._placed(h, rows, columns)
        for layer in self.layers:
            h = layer(h, e, turn)
        scale, shift = self.condition(e)[:, None].chunk(2, -1)
        out = self.outward(rms(h) * (1 + scale) + shift).unflatten(2, (self.channels, self.patch, self.patch))
        out = out.unflatten(1, (rows, columns)).permute(0, 3, 1, 4, 2, 5)
        return out.flatten(4).flatten(2, 3).to(x.dtype)

    def _placed(self, h: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor | None]:
        """Tokens that know their places, or the angles by which attention will."""
        if self.rotary is not None:
            return h, self.rotary(rows, columns, h.device)
        n = self.size // self.patch
        if self.place is None or (rows, columns) != (n, n):
            raise ValueError(
                f"x has {rows}×{columns} patches, learned positions were made for {n}×{n}: resize it to "
                f"{self.size}×{self.size}, or make the net with positions='rotary'"
            )
        return h + self.place.to(h.dtype), None

    @classmethod
    def S(cls, size: int = 32, patch: int = 2, **changes: Any) -> DiT:
        """Small: 12 blocks of 384, 33M parameters."""
        return cls(**{"size": size, "patch": patch, "width": 384, "depth": 12, "heads": 6, **changes})

    @classmethod
    def B(cls, size: int = 32, patch: int = 2, **changes: Any) -> DiT:
        """Base: 12 blocks of 768, 130M parameters."""
        return cls(**{"size": size, "patch": patch, "width": 768, "depth": 12, "heads": 12, **changes})

    @classmethod
    def L(cls, size: int = 32, patch: int = 2, **changes: Any) -> DiT:
        """Large: 24 blocks of 1024, 458M parameters."""
        return cls(**{"size": size, "patch": patch, "width": 1024, "depth": 24, "heads": 16, **changes})

    @classmethod
    def XL(cls, size: int = 32, patch: int = 2, **changes: Any) -> DiT:
        """Extra large: 28 blocks of 1152, 675M parameters."""
        return cls(**{"size": size, "patch": patch, "width": 1152, "depth": 28, "heads": 16, **changes})
