r"""Targets: distributions of x0 whose diffusion, and whose posterior given a linear observation, is in closed form."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sde.random import Generator
from sde.shape import Coefficient


class Target(nn.Module, ABC):
    """A distribution of x0 with its denoiser and its noisy log-density in closed form.

    Attributes:
        event: Shape D of one sample.
    """

    event: torch.Size

    @property
    @abstractmethod
    def mean(self) -> Tensor:
        r"""Mean, \*D."""

    @property
    @abstractmethod
    def scale(self) -> float:
        """Standard deviation of a coordinate, in the mean over them."""

    @abstractmethod
    def sample(self, n: int, generator: Generator = None) -> Tensor:
        r"""N draws, (n, \*D)."""

    @abstractmethod
    def denoise(self, y: Tensor, alpha: Coefficient, sigma: Coefficient) -> Tensor:
        """E[x0 | y] for y = alpha x0 + sigma n; coefficients are numbers or broadcast against y."""

    def traced(self, y: Tensor, alpha: Coefficient, sigma: Coefficient) -> tuple[Tensor, Tensor, Tensor] | None:
        """E[x0 | y], and the traces of its Jacobian and of that of E[n | y], (B,) each, where sigma > 0.

        None where they are not known in closed form.
        """
        return None

    @abstractmethod
    def log_marginal(self, y: Tensor, alpha: Coefficient, sigma: Coefficient) -> Tensor:
        """Log-density of y: (B,)."""

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density at x: (B,)."""
        return self.log_marginal(x, 1.0, 0.0)

    def _flat(self, y: Tensor) -> Tensor:
        if y.shape[1:] != self.event:
            needs = ", ".join(map(str, self.event))
            raise ValueError(
                f"x has shape {tuple(y.shape)}, this target needs (B, {needs}): reshape x, or make another"
            )
        return y.flatten(1)


def column(c: Coefficient) -> Coefficient:
    """A coefficient that multiplies (B, K, D)."""
    return c.reshape(-1, 1, 1) if isinstance(c, Tensor) and c.ndim else c


class Seen(NamedTuple):
    """A linear observation y = A x0 + noise n over flattened samples, in float64 on the CPU."""

    matrix: Tensor
    y: Tensor
    noise: float
    rounding: float
    """What rounding leaves of 0, beside y, in the precision that y came in."""


def linear(matrix: Tensor | Sequence, y: Tensor | Sequence, noise: float, d: int) -> Seen:
    """A linear observation of samples of d coordinates, or an error that says what does not fit."""
    a, y = (v.detach().cpu() if isinstance(v, Tensor) else torch.tensor(v, dtype=torch.float64) for v in (matrix, y))
    if a.ndim != 2 or a.shape[1] != d or y.numel() != len(a):
        raise ValueError(
            f"matrix {tuple(a.shape)} and y {tuple(y.shape)} must be (m, {d}) and (m,) over flattened samples: pass "
            "operator.matrix() and one observation"
        )
    if not (math.isfinite(noise) and noise >= 0):
        raise ValueError(f"noise must be 0 or more, got {noise}: it is a standard deviation")
    for name, v in {"matrix": a, "y": y}.items():
        if not bool(torch.isfinite(v).all()):
            raise ValueError(f"{name} holds values that are not finite: clean it first")
    eps = max(torch.finfo(v.dtype).eps if v.is_floating_point() else 0.0 for v in (a, y))
    return Seen(a.double(), y.double().flatten(), float(noise), max(eps, 2.3e-16) ** 0.75)
