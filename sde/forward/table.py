r"""Discrete diffusion tables as continuous SDEs.

A DDPM is given by N numbers alphas_cumprod, the squared alphas of its N noise levels. Every sampler of this package
runs on a continuous time; a smooth interpolation of log SNR between the entries gives one that passes through them all.
"""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from sde.forward.scalar import ScalarSDE
from sde.shape import as_time


class Tabulated(ScalarSDE):
    r"""A DDPM table as an SDE: alpha^2 at the integers t = 1 .. N is the table, t = 0 is the data.

    Entry i of `alphas_cumprod` stands at t = i + 1, where the clock is i: what a network trained on the table is told.
    Between entries log SNR is a monotone cubic (PCHIP) in t; on [0, 1] sigma^2 is linear in t, so that alpha = 1 and
    sigma = 0 at t = 0, the last node of a sampling grid. VP: alpha^2 + sigma^2 = 1.

    Args:
        alphas_cumprod: N decreasing numbers in (0, 1).

    References:
        Ho, Jain & Abbeel (2020), 2006.11239, eq. 4; Fritsch & Carlson (1980) for the interpolant.

    Example:
        >>> import torch, sde
        >>> table = sde.Tabulated.linear()
        >>> table.t_max, float(table.clock(torch.tensor(1000.0)))
        (1000.0, 999.0)
    """

    t_min = 1.0

    def __init__(self, alphas_cumprod: Tensor | list[float]) -> None:
        self.alphas_cumprod = alphas_cumprod
        a = self._table
        if a.ndim != 1 or len(a) < 2:
            raise ValueError(f"alphas_cumprod must hold at least 2 numbers in a row, got shape {tuple(a.shape)}")
        if not bool((a[0] < 1) & (a[-1] > 0) & (a.diff() < 0).all()):
            raise ValueError(
                f"alphas_cumprod must decrease within (0, 1), got {float(a[0]):.6g} .. {float(a[-1]):.6g}: "
                "pass the cumulative products of 1 - beta; for a table that ends in 0 raise its last entry to 1e-8"
            )

    def __repr__(self) -> str:
        return f"Tabulated({len(self.alphas_cumprod)} entries)"

    @classmethod
    def linear(cls, n: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Tabulated:
        """Table with beta linear in i: Ho et al. (2020), section 4."""
        return cls(torch.cumprod(1 - torch.linspace(beta_start, beta_end, n, dtype=torch.float64), 0).tolist())

    @classmethod
    def cosine(cls, n: int = 1000, s: float = 0.008, beta_clip: float = 0.999) -> Tabulated:
        """Table of Nichol & Dhariwal (2021), eq. 17, with beta clipped."""
        u = (torch.arange(n + 1, dtype=torch.float64) / n + s) / (1 + s) * (math.pi / 2)
        bar = torch.cos(u) ** 2
        beta = (1 - bar[1:] / bar[:-1]).clamp(max=beta_clip)
        return cls(torch.cumprod(1 - beta, 0).tolist())

    @property
    def t_max(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """N, the number of entries."""
        return float(len(self.alphas_cumprod))

    @cached_property
    def _table(self) -> Tensor:
        return torch.as_tensor(self.alphas_cumprod, dtype=torch.float64).cpu()

    @cached_property
    def _knots(self) -> tuple[Tensor, Tensor]:
        from scipy.interpolate import PchipInterpolator

        a = self._table
        value = torch.log(a) - torch.log1p(-a)
        index = np.arange(len(a))
        return value, torch.from_numpy(PchipInterpolator(index, value.numpy()).derivative()(index))

    def log_snr(self, t: float | Tensor) -> Tensor:
        """log alpha^2 / sigma^2: cubic Hermite between the entries, sigma^2 = t sigma_1^2 below them."""
        t = as_time(t)
        value, slope = (c.to(t) for c in self._knots)
        i = (t.detach() - 1).long().clamp(0, len(value) - 2)
        u = (t - 1 - i).clamp_min(0)
        v, d, v1, d1 = value[i], slope[i], value[i + 1], slope[i + 1]
        cubic = v + u * (d + u * (3 * (v1 - v) - 2 * d - d1 + u * (2 * (v - v1) + d + d1)))
        first = t.clamp(0, 1) * torch.sigmoid(-value[0])
        return torch.where(t < 1, torch.log1p(-first) - torch.log(first), cubic)

    def alpha(self, t: Tensor) -> Tensor:  # noqa: D102
        return torch.sqrt(torch.sigmoid(self.log_snr(t)))

    def sigma(self, t: Tensor) -> Tensor:  # noqa: D102
        return torch.sqrt(torch.sigmoid(-self.log_snr(t)))

    def clock(self, t: Tensor) -> Tensor:
        """t - 1: the table's index."""
        return t - 1
