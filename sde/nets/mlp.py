r"""A residual multilayer perceptron for points, and for anything small enough to be one.

    h_0 = W x,      h_{k+1} = h_k + V_k silu(U_k norm(h_k) + T_k e),      out = W' h_K

with e the features of time and class. Nothing is normalised on the straight way from input to output, so that the
identity (the noise itself, at the noisy end) is easy to learn. The last layer starts at zero, so that an untrained
model predicts what its parameterisation says without a network.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sde.nets.embed import TIMES, checked


class _Block(nn.Module):
    def __init__(self, width: int, features: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.time, self.down = (
            nn.Linear(width, width),
            nn.Linear(features, width),
            nn.Linear(width, width),
        )

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        return h + self.down(nn.functional.silu(self.up(self.norm(h)) + self.time(e)))


class MLP(nn.Module):
    r"""Residual MLP on flattened samples with time features and optional classes.

    Args:
        dim: Number of coordinates of a sample; a sample of shape (1, 8, 8) has 64.
        width: Hidden width.
        depth: Number of residual blocks.
        classes: Number of classes, 0 for none. Class `classes` itself means "no class".
        features: Size of the time features.
        time: "fourier" for clocks of about unit size, "sinusoidal" for an index 0 .. 999.

    Example:
        >>> import torch, sde
        >>> net = sde.nets.MLP(dim=64, width=32, classes=10)
        >>> net(torch.zeros(5, 1, 8, 8), torch.zeros(5), label=torch.arange(5)).shape
        torch.Size([5, 1, 8, 8])
    """

    def __init__(
        self,
        dim: int = 2,
        width: int = 128,
        depth: int = 3,
        classes: int = 0,
        features: int = 32,
        time: str = "fourier",
    ) -> None:
        super().__init__()
        for name, value in {"dim": dim, "width": width, "depth": depth}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}: MLP(dim=2, width=128, depth=3), say")
        if classes < 0:
            raise ValueError(f"classes must be 0 or more, got {classes}: 0 is a net without classes")
        if time not in TIMES:
            raise ValueError(f"time must be one of {', '.join(TIMES)}, got {time!r}")
        self.dim, self.width, self.depth, self.classes, self.features, self.time = (
            dim,
            width,
            depth,
            classes,
            features,
            time,
        )
        self.embed = TIMES[time](features)
        self.label = nn.Embedding(classes + 1, features) if classes else None
        self.inward, self.outward = nn.Linear(dim, width), nn.Linear(width, dim)
        self.blocks = nn.ModuleList(_Block(width, features) for _ in range(depth))
        nn.init.zeros_(self.outward.weight)
        nn.init.zeros_(self.outward.bias)

    def forward(self, x: Tensor, c: Tensor, label: Tensor | None = None) -> Tensor:
        r"""Output shaped as x (B, \*D) for a clock c (B,) and labels (B,) or None.

        Raises:
            ValueError: If x has another number of coordinates, or labels come to a net without classes.
        """
        flat = x.flatten(1)
        if flat.shape[1] != self.dim:
            raise ValueError(f"x has {flat.shape[1]} coordinates a sample, this net was made for dim={self.dim}")
        e = self.embed(c).to(flat.dtype)
        if self.label is not None:
            nobody = torch.full((len(flat),), self.classes, device=x.device)
            e = e + self.label(nobody if label is None else checked(label, len(flat), self.classes))
        elif label is not None:
            raise ValueError("label was given to a net without classes: make it with classes=10, say")
        h = self.inward(flat)
        for block in self.blocks:
            h = block(h, e)
        return self.outward(h).reshape(x.shape)
