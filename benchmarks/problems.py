r"""The problems of the loop benchmark, in scalars: what every loop must arrive at.

The network returns its input, so velocity, x0 and eps are multiples of the state and one step is x_s = a x + b z with
numbers a, b that a textbook gives. They are computed here in plain floats, independently of the package: a loop that is
fast because it solves something else is found out by `misfit`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

Step = tuple[float, float]
"""a and b of x_s = a x + b z."""


@dataclass(frozen=True)
class Problem:
    """A schedule and a parameterisation whose network is the identity, for data of mean 0 and standard deviation 1."""

    name: str
    kind: str  # flow, vp or edm

    def levels(self, t: float) -> tuple[float, float, float, float]:
        """alpha, sigma, alpha', sigma'."""
        if self.kind == "flow":
            return 1 - t, t, -1.0, 1.0
        if self.kind == "edm":
            return 1.0, t, 0.0, 1.0
        integral, beta = 0.1 * t + 9.95 * t**2, 0.1 + 19.9 * t
        alpha, sigma = math.exp(-integral / 2), math.sqrt(-math.expm1(-integral))
        return alpha, sigma, -beta * alpha / 2, beta * alpha**2 / (2 * sigma)

    def endpoints(self, t: float) -> tuple[float, float]:
        """x0 / x and eps / x."""
        if self.kind == "flow":  # velocity x, so x0 = x - t v and eps = x + (1 - t) v
            return 1 - t, 2 - t
        if self.kind == "edm":  # F = x / r with r^2 = 1 + t^2, D = x / r^2 + t F / r, eps = (x - D) / t
            return (1 + t) / (1 + t * t), (t - 1) / (1 + t * t)
        alpha, sigma, *_ = self.levels(t)
        return (1 - sigma) / alpha, 1.0

    def slope(self, t: float, eta: float = 0.0) -> float:
        """Drift / x of the reverse SDE: alpha' x0 + sigma' eps + eta^2 g^2 eps / (2 sigma)."""
        _, sigma, dalpha, dsigma = self.levels(t)
        x0, eps = self.endpoints(t)
        return dalpha * x0 + dsigma * eps + (eta**2 / 2 * self.g2(t) * eps / sigma if eta else 0.0)

    def g2(self, t: float) -> float:
        alpha, sigma, dalpha, dsigma = self.levels(t)
        return 2 * sigma * (dsigma - dalpha / alpha * sigma)

    # One step of each rule.

    def euler(self, t: float, s: float) -> Step:
        return 1 + (s - t) * self.slope(t), 0.0

    def euler_maruyama(self, t: float, s: float) -> Step:
        if self.kind == "flow" and t == 1:  # the drift is infinite: that step goes by the bridge
            return self.ancestral(t, s)
        return 1 + (s - t) * self.slope(t, eta=1.0), math.sqrt(self.g2(t) * (t - s))

    def heun(self, t: float, s: float) -> Step:
        h, k = s - t, self.slope(t)
        return 1 + h / 2 * (k + self.slope(s) * (1 + h * k)), 0.0

    def ddim(self, t: float, s: float) -> Step:
        (alpha, sigma, *_), (x0, eps) = self.levels(s), self.endpoints(t)
        return alpha * x0 + sigma * eps, 0.0

    def ancestral(self, t: float, s: float) -> Step:
        (alpha_t, sigma_t, *_), (alpha, sigma, *_) = self.levels(t), self.levels(s)
        kept = (alpha_t / alpha * sigma / sigma_t) ** 2  # of sigma_s^2, the part that is eps of x_t and not drawn anew
        x0, eps = self.endpoints(t)
        return alpha * x0 + sigma * math.sqrt(kept) * eps, sigma * math.sqrt(1 - kept)

    def run(self, rule: str, times: Sequence[float]) -> Step:
        """a and b of the whole grid."""
        step = getattr(self, rule)
        return compose([step(t, s) for t, s in pairwise(times)])


def compose(steps: Sequence[Step]) -> Step:
    """a and b of steps taken in turn.

    Example:
        >>> compose([(2.0, 0.0), (3.0, 1.0)])
        (6.0, 1.0)
    """
    a, variance = 1.0, 0.0
    for factor, noise in steps:
        a, variance = a * factor, factor**2 * variance + noise**2
    return a, math.sqrt(variance)


def misfit(x: Tensor, start: Tensor, truth: Step) -> float:
    """How far an end state is from a start + b z: the relative error of x where b = 0, else that of b."""
    a, b = truth
    rest = x.double() - a * start.double()
    scale = rest.pow(2).mean().sqrt().item()
    if b == 0.0:
        return scale / (abs(a) * start.double().pow(2).mean().sqrt().item())
    return abs(scale / b - 1)


FLOW, VP, EDM = Problem("Flow, velocity", "flow"), Problem("VP, eps", "vp"), Problem("EDM, edm", "edm")


def start(batch: int = 1000) -> Tensor:
    """The state that every loop starts from, (batch, 2)."""
    return torch.randn(batch, 2, generator=torch.Generator().manual_seed(0))
