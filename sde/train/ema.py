r"""Averages of the weights while they are trained.

An exponential average of decay d forgets at a fixed rate, with a warm-up so that the start is forgotten at once,

    mean <- mean + (1 - d_n) (theta - mean),        d_n = min(d, (1 + n) / (10 + n)).

A power-function average looks back over a fixed *share* of the run: weight tau^gamma on the weights of time tau. Its
recursion has d_n = (1 - 1 / n)^(gamma + 1), so that after N steps those of step n count (n/N)^(gamma+1) -
((n-1)/N)^(gamma+1), the profile's own integral over the step. It is named by its width, the standard deviation of tau
as a share of the run, sigma_rel = sqrt((gamma + 1) / ((gamma + 2)^2 (gamma + 3))).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sde.train.distributed import local

WIDEST = 0.28
"""Just below 1/sqrt(12), the width of gamma = 0, which weighs the beginning of a run as much as its end."""


@dataclass(frozen=True)
class Power:
    """Averages of power-function profiles, and snapshots of them from which `reconstruct` makes any other.

    Args:
        sigma_rel: Relative width, or several; a model is left with the first. Two, .05 and .10, serve reconstruction.
        snapshots: How many to keep during a run, evenly spaced, beside its checkpoint; 0 for none.

    References:
        Karras et al. (2024), 2312.02696, section 3 and appendix C.

    Example:
        >>> import sde
        >>> [round(g, 2) for g in sde.train.Power((0.05, 0.10)).gammas]
        [16.97, 6.94]
    """

    sigma_rel: float | Sequence[float] = (0.05, 0.10)
    snapshots: int = 16

    def __post_init__(self) -> None:
        if not self.each or not all(0 < s <= WIDEST for s in self.each):
            raise ValueError(
                f"sigma_rel must lie in (0, {WIDEST}], got {self.sigma_rel}: .05 averages over the last twentieth"
            )
        if len(set(self.each)) != len(self.each):
            raise ValueError(f"sigma_rel has one width twice, got {self.sigma_rel}: pass each once")
        if isinstance(self.snapshots, bool) or not isinstance(self.snapshots, int) or self.snapshots < 0:
            raise ValueError(f"snapshots must be a whole number of at least 0, got {self.snapshots!r}: pass 16, say")

    @property
    def each(self) -> tuple[float, ...]:
        """The widths."""
        return (
            (float(self.sigma_rel),) if isinstance(self.sigma_rel, int | float) else tuple(map(float, self.sigma_rel))
        )

    @property
    def gammas(self) -> tuple[float, ...]:
        """The exponents."""
        return tuple(exponent(s) for s in self.each)

    def due(self, steps: int) -> set[int]:
        """Steps after which a snapshot is kept."""
        return {math.ceil(steps * (k + 1) / self.snapshots) for k in range(self.snapshots)}


def exponent(sigma_rel: float) -> float:
    """Gamma of a profile of relative width sigma_rel: the largest root of (g + 2)^2 (g + 3) sigma_rel^2 = g + 1.

    Example:
        >>> round(exponent(12**-0.5), 6) + 0.0  # uniform over the run
        0.0
    """
    inverse = sigma_rel**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


class Averages:
    """Averages of a list of weights, one list for each profile; none for a decay of 0."""

    def __init__(self, ema: float | Power, parameters: Sequence[Tensor]) -> None:
        self.decay = 0.0 if isinstance(ema, Power) else ema
        self.gammas = ema.gammas if isinstance(ema, Power) else ()
        count = len(self.gammas) or (1 if ema else 0)
        self.means = [[p.detach().clone() for p in parameters] for _ in range(count)]
        self.local = [[local(e) for e in means] for means in self.means]

    def update(self, values: list[Tensor], step: int) -> None:
        """Take in the weights after a step, counted from 1."""
        if self.decay:
            d = min(self.decay, (1 + step) / (10 + step))
            torch._foreach_lerp_(self.local[0], values, 1 - d)  # pyright: ignore[reportPrivateImportUsage]
        for mean, gamma in zip(self.local, self.gammas, strict=False):
            share = -math.expm1((gamma + 1) * math.log1p(-1 / step)) if step > 1 else 1.0
            torch._foreach_lerp_(mean, values, share)  # pyright: ignore[reportPrivateImportUsage]
