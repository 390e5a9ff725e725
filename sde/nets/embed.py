r"""Time features: a clock c (B,) as sines and cosines.

An SDE's clock says how noisy a state is, mostly as log(sigma / alpha) / 4 in about [-2, 2] or as t in [0, 1]; a DDPM
table's clock is its index, 0 to 999. `Fourier` serves the former, `Sinusoidal` the latter.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Fourier(nn.Module):
    """sin and cos of c at frequencies spaced evenly in their logarithm, from .5 to 16 radians per unit of the clock.

    Args:
        features: Size of the output; even.

    References:
        Tancik et al. (2020), 2006.10739, with fixed in place of random frequencies.

    Example:
        >>> import torch, sde
        >>> sde.nets.Fourier(8)(torch.zeros(5)).shape
        torch.Size([5, 8])
    """

    frequencies: Tensor

    def __init__(self, features: int = 32) -> None:
        super().__init__()
        if features < 2 or features % 2:
            raise ValueError(f"features must be even and at least 2, got {features}: half are sines, half cosines")
        self.features = features
        self.register_buffer("frequencies", torch.logspace(-1, 4, features // 2, base=2.0), persistent=False)

    def forward(self, c: Tensor) -> Tensor:
        """Features (B, features) of a clock (B,).

        Raises:
            ValueError: If the clock has another number of axes.
        """
        if c.ndim != 1:
            raise ValueError(f"c must be (B,), got shape {tuple(c.shape)}: one clock to each sample, t.expand(len(x))")
        u = c[:, None] * self.frequencies
        return torch.cat([torch.sin(u), torch.cos(u)], 1)


class Sinusoidal(Fourier):
    """sin and cos of c at periods from 2 pi to 2 pi × 10000 units: position embedding for an index 0 .. 999.

    Args:
        features: Size of the output; even.
        max_period: The longest period over 2 pi.

    References:
        Vaswani et al. (2017), 1706.03762, section 3.5.

    Example:
        >>> import torch, sde
        >>> sde.nets.Sinusoidal(8)(torch.tensor([0.0, 999.0])).shape
        torch.Size([2, 8])
    """

    def __init__(self, features: int = 32, max_period: float = 10_000.0) -> None:
        super().__init__(features)
        self.max_period = max_period
        half = features // 2
        self.register_buffer(
            "frequencies", torch.exp(-math.log(max_period) * torch.arange(half) / half), persistent=False
        )
