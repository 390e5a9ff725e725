r"""Time grids: a tensor of steps + 1 times from t_max down to t_min, float64. Flip one to run up.

Grids other than `uniform` place their nodes by the noise-to-signal ratio rho = sigma / alpha, which is what a network
sees. Where alpha = 0 at t_max that ratio is infinite: the first node is t_max itself, and the rest are placed as if the
ratio there were `CAP`, growing with the square of the number of steps, so that the first step shrinks with the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sde.forward import ForwardSDE, ScalarSDE
from sde.nodes import by_value, remembered

CAP = 80.0
"""Ratio that stands for an infinite one on a grid of 32 steps: EDM's largest noise level."""


def _checked(steps: int) -> int:
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps must be a whole number of at least 1, got {steps!r}: pass steps=32, say")
    return steps


def uniform(sde: ForwardSDE, steps: int) -> Tensor:
    """Equal steps in t.

    Example:
        >>> import sde
        >>> sde.grids.uniform(sde.VP(), 2)
        tensor([1.0000, 0.5005, 0.0010], dtype=torch.float64)
    """
    return torch.linspace(sde.t_max, sde.t_min, _checked(steps) + 1, dtype=torch.float64)


def quadratic(sde: ForwardSDE, steps: int) -> Tensor:
    """Equal steps in sqrt(t): denser near the data (the quadratic tau of DDIM).

    References:
        Song, Meng & Ermon (2021), 2010.02502, appendix D.2.

    Example:
        >>> import sde
        >>> sde.grids.quadratic(sde.VP(), 2)[1].round(decimals=4)
        tensor(0.2661, dtype=torch.float64)
    """
    times = torch.linspace(math.sqrt(sde.t_max), math.sqrt(sde.t_min), _checked(steps) + 1, dtype=torch.float64) ** 2
    times[0], times[-1] = sde.t_max, sde.t_min  # squaring a root is off by a rounding
    return times


def by_ratio(
    sde: ForwardSDE, steps: int, forth: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor]
) -> Tensor:
    """Equal steps in forth(sigma / alpha), with `back` its inverse: the grid behind the named ones.

    Example:
        >>> import torch, sde
        >>> torch.allclose(sde.grids.by_ratio(sde.EDM(), 4, torch.log, torch.exp), sde.grids.log_snr(sde.EDM(), 4))
        True
    """
    if not isinstance(sde, ScalarSDE):
        return uniform(sde, steps)
    ends = torch.exp(-sde.log_snr(torch.tensor([sde.t_max, sde.t_min], dtype=torch.float64)) / 2)
    high, low = forth(ends).tolist()
    if not math.isfinite(high):
        high = float(forth(torch.tensor([CAP * max(1.0, steps / 32) ** 2], dtype=torch.float64)))
    u = torch.linspace(high, low, _checked(steps) + 1, dtype=torch.float64)
    times = sde.time_at(-2 * torch.log(back(u)))
    times[0], times[-1] = sde.t_max, sde.t_min
    return times


def karras(sde: ForwardSDE, steps: int, rho: float = 7.0) -> Tensor:
    """Equal steps in (sigma / alpha)^(1/rho): Karras' grid for any schedule.

    Args:
        sde: Forward SDE; a matrix SDE gets the uniform grid.
        steps: Number of steps.
        rho: 7 in the paper; 1 is uniform in the ratio, large values approach uniform log SNR.

    References:
        Karras et al. (2022), 2206.00364, eq. 5.

    Example:
        >>> import sde
        >>> sde.grids.karras(sde.EDM(), 2).round(decimals=3)
        tensor([8.0000e+01, 2.5150e+00, 2.0000e-03], dtype=torch.float64)
    """
    return by_ratio(sde, steps, lambda r: r ** (1 / rho), lambda u: u**rho)


def log_snr(sde: ForwardSDE, steps: int) -> Tensor:
    """Equal steps in log SNR.

    References:
        Lu et al. (2022), 2206.00927, section 3.3.

    Example:
        >>> import sde
        >>> sde.grids.log_snr(sde.EDM(0.01, 1.0), 2).round(decimals=4)
        tensor([1.0000, 0.1000, 0.0100], dtype=torch.float64)
    """
    return by_ratio(sde, steps, torch.log, torch.exp)


def data_scaled(
    sde: ForwardSDE,
    steps: int,
    scale: float = 1.0,
    centre: float | None = None,
    widths: tuple[float, float] | None = None,
) -> Tensor:
    """Equal steps in w asinh(L / w), L = log(ratio / (centre × scale)): dense where noise and data are alike.

    That is where trajectories bend. The width w may differ above and below: little happens at high noise, while finer
    structure of the data is decided at lower noise. Large widths approach uniform log SNR.

    Args:
        sde: Forward SDE; a matrix SDE gets the uniform grid.
        steps: Number of steps.
        scale: Standard deviation of the data.
        centre: Where the grid is densest, in units of scale. Default: 1, and .8 for fewer than 8 steps.
        widths: w above and below the centre, in log ratio. Default: (.5, 1.5), and (.7, 1) for fewer than 8 steps.

    Raises:
        ValueError: If a number is not positive.

    Example:
        >>> import sde
        >>> sde.grids.data_scaled(sde.EDM(), 10)[3:7].round(decimals=3)
        tensor([1.0470, 0.6550, 0.3940, 0.2170], dtype=torch.float64)
    """
    few = _checked(steps) < 8
    centre = centre if centre is not None else 0.8 if few else 1.0
    above, below = widths or ((0.7, 1.0) if few else (0.5, 1.5))
    if not min(scale, centre, above, below) > 0:
        raise ValueError(
            f"scale, centre and widths must be positive, got scale={scale}, centre={centre}, widths={(above, below)}"
        )
    c = centre * scale

    def forth(r: Tensor) -> Tensor:
        log = torch.log(r / c)
        w = below + (above - below) * (log > 0)
        return w * torch.asinh(log / w)

    def back(u: Tensor) -> Tensor:
        w = below + (above - below) * (u > 0)
        return c * torch.exp(w * torch.sinh(u / w))

    if not by_value(sde):
        return by_ratio(sde, steps, forth, back)
    key = ("data_scaled", sde, steps, c, above, below)
    return remembered(key, lambda: by_ratio(sde, steps, forth, back)).clone()
