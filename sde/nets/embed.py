r"""Time features: a clock c (B,) as sines and cosines.

An SDE's clock says how noisy a state is, mostly as log(sigma / alpha) / 4 in about [-2, 2] or as t in [0, 1]; a DDPM
table's clock is its index, 0 to 999. `Fourier` serves the former, `Sinusoidal` the latter. `Conditioning` makes one
vector of time and class, which image networks modulate their blocks by.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


class Precise(nn.Module):
    """A module whose buffers stay at single precision where its net is cast to half.

    An index of 999 in half precision has other features than it was trained with.
    """

    def _apply(self, fn: Any, recurse: bool = True) -> Precise:
        kept = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, was in kept.items():
            now = self._buffers[name]
            if was is not None and now is not None and torch.finfo(now.dtype).bits < 32:
                self._buffers[name] = was.to(now.device)
        return self


class Fourier(Precise):
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


TIMES = {"fourier": Fourier, "sinusoidal": Sinusoidal}


class Conditioning(nn.Module):
    r"""One vector of time and class: silu(W' silu(W features(c)) + v_label).

    Args:
        features: Size of the time features; even.
        width: Size of the vector.
        classes: Number of classes, 0 for none. Class `classes` itself means "no class".
        time: "fourier" for clocks of about unit size, "sinusoidal" for an index 0 .. 999.

    Example:
        >>> import torch, sde
        >>> e = sde.nets.Conditioning(32, 64, classes=10)
        >>> e(torch.zeros(3), torch.tensor([0, 9, 10])).shape
        torch.Size([3, 64])
    """

    def __init__(self, features: int = 64, width: int = 256, classes: int = 0, time: str = "fourier") -> None:
        super().__init__()
        if classes < 0:
            raise ValueError(f"classes must be 0 or more, got {classes}: 0 is a net without classes")
        if time not in TIMES:
            raise ValueError(f"time must be one of {', '.join(TIMES)}, got {time!r}")
        self.features, self.width, self.classes, self.time = features, width, classes, time
        self.embed = TIMES[time](features)
        self.one, self.two = nn.Linear(features, width), nn.Linear(width, width)
        self.label = nn.Embedding(classes + 1, width) if classes else None

    def forward(self, c: Tensor, label: Tensor | None = None) -> Tensor:
        """The vector (B, width) for a clock (B,) and labels (B,) or None.

        Raises:
            ValueError: If labels do not fit the clock, or come to a net without classes.
        """
        e = self.two(nn.functional.silu(self.one(self.embed(c).to(self.one.weight.dtype))))
        if self.label is not None:
            nobody = torch.full((len(c),), self.classes, device=c.device)
            e = e + self.label(nobody if label is None else checked(label, len(c), self.classes)).to(e.dtype)
        elif label is not None:
            raise ValueError("label was given to a net without classes: make it with classes=10, say")
        return nn.functional.silu(e)


def checked(label: Tensor, size: int, classes: int) -> Tensor:
    """A label if it is one class to each sample.

    Raises:
        ValueError: If it is not.

    Example:
        >>> checked(torch.tensor([0, 2]), 2, classes=2)
        tensor([0, 2])
    """
    if label.shape != (size,):
        raise ValueError(f"label has shape {tuple(label.shape)}, expected ({size},): one class to each sample")
    # A look at the values would halt a GPU, and break a compiled graph.
    seen = label.device.type == "cpu" and label.numel() and not torch.compiler.is_compiling()
    if seen and not 0 <= int(label.min()) <= int(label.max()) <= classes:
        raise ValueError(f"label must be 0 to {classes} ({classes}: no class), got {label.tolist()[:8]}")
    return label
