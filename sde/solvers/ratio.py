r"""Time as a function of sigma / alpha, for solvers that step in a function of that ratio.

A schedule may state its inverse. Where it does not, atan(sigma / alpha), which grows with t and is finite at both ends,
is tabulated, and the root sought between two knots.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sde.forward import ScalarSDE


class TimeOfRatio:
    """Time at which sigma / alpha takes given values: the schedule's own inverse, or a search between knots.

    Args:
        sde: Schedule.
        low: Least time.
        high: Largest time.

    Raises:
        ValueError: If sigma / alpha does not grow with t.

    Example:
        >>> import sde
        >>> TimeOfRatio(sde.Flow(), 0.0, 1.0)(torch.tensor([1.0, 3.0]).double())
        tensor([0.5000, 0.7500], dtype=torch.float64)
    """

    KNOTS = 1025

    def __init__(self, sde: ScalarSDE, low: float, high: float) -> None:
        self.sde, self.low, self.high = sde, low, high
        self.closed = type(sde).inverse is not ScalarSDE.inverse
        if not self.closed:
            self.knots = torch.linspace(low, high, self.KNOTS, dtype=torch.float64)
            self.values = self._angle(self.knots)
            if not bool((self.values.diff() > 0).all()):
                raise ValueError(
                    f"sigma / alpha of {type(sde).__name__} does not grow with t between {low:g} and {high:g}, so that "
                    'it cannot serve as time: use time="t"'
                )

    def __call__(self, ratio: Tensor) -> Tensor:
        """Times, shaped as the ratios."""
        if self.closed:
            return self.sde.inverse(-2 * torch.log(ratio)).clamp(self.low, self.high)
        return self._search(torch.atan(ratio))

    def _angle(self, t: Tensor) -> Tensor:
        alpha, sigma = (torch.as_tensor(c) for c in self.sde.levels(t))
        return torch.atan2(sigma, alpha)

    def _search(self, value: Tensor) -> Tensor:
        """The Illinois rule from the knots about each value: regula falsi that halves the side which stays."""
        i = torch.searchsorted(self.values, value.clamp(self.values[0], self.values[-1])).clamp(1, self.KNOTS - 1)
        a, b = self.knots[i - 1], self.knots[i]
        f, g = self.values[i - 1] - value, self.values[i] - value
        t, side = b, torch.zeros_like(value)
        for _ in range(60):
            gap = g - f
            t = torch.where(gap > 0, (a * g - b * f) / gap, b)
            t = torch.minimum(torch.maximum(t, a), b)
            now = self._angle(t) - value
            if bool(((now.abs() <= 4e-16 * value.abs()) | (b - a <= 4e-16 * b)).all()):
                break
            above = now > 0
            f = torch.where(above, torch.where(side > 0, f / 2, f), now)
            g = torch.where(above, now, torch.where(side < 0, g / 2, g))
            a, b = torch.where(above, a, t), torch.where(above, t, b)
            side = torch.where(above, 1.0, -1.0)
        return t
