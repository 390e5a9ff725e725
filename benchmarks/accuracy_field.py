r"""What a peer is given: the denoiser of a problem in EDM's variables, counted, grids of noise levels, and the truth.

A scalar SDE shows of x0 what its ratio r = sigma / alpha shows. With x = alpha y every problem has the probability flow

    dy / dr = (y - D(y, r)) / r,        D(y, r) = E[x0 | x0 + r n = y],

from r(t_max) to r(t_min), so that one list of samplers and grids serves VP and EDM alike. Samplers that are written for
a state of unit variance are given y / sqrt(1 + r^2), which is VP's x.

The truth is the solution by scipy's DOP853 in log r at rtol 1e-11 (its own error is measured against rtol 1e-13).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import sde
from benchmarks.accuracy_targets import Problem, standard


class SpentError(Exception):
    """A run asked for more evaluations than it may."""


class Denoiser:
    """D(y, r) of a mixture at one level for all states, a few products of matrices: some times as fast as `Mixture`'s.

    Along the axes of its covariance each component is a product of normal densities; all axes lie in one matrix.
    """

    def __init__(self, target: sde.Mixture) -> None:
        k, d = target.means.shape
        self.axes = target.axes.permute(1, 0, 2).reshape(d, k * d).contiguous()
        self.centre = -torch.einsum("ki,kij->kj", target.means, target.axes).flatten()
        self.means, self.variances = target.means, target.variances.flatten()
        self.log_weights, self.sums = target.weights.log(), torch.eye(k).double().repeat_interleave(d, 0)

    def __call__(self, y: Tensor, r: float) -> Tensor:
        v = self.variances + r * r
        p = torch.addmm(self.centre, y, self.axes)
        constant = self.log_weights - 0.5 * (v.log() @ self.sums)
        weights = torch.softmax(torch.addmm(constant, p * p, self.sums / (-2 * v[:, None])), 1)
        shares = (p.unflatten(1, (len(constant), -1)) * weights[..., None]).flatten(1)
        return torch.addmm(weights @ self.means, shares, self.axes.T * (self.variances / v)[:, None])


class Quick(sde.Mixture):
    """A mixture with the quick denoiser, where all states are at one time."""

    def __init__(self, target: sde.Mixture) -> None:
        super().__init__(target.weights, target.means, target.covs)
        self.quick = Denoiser(self)

    def denoise(self, y: Tensor, alpha: Any, sigma: Any) -> Tensor:
        if any(isinstance(c, Tensor) and c.ndim for c in (alpha, sigma)):
            return super().denoise(y, alpha, sigma)
        return self.quick(y / float(alpha), float(sigma) / float(alpha))


class Field:
    """A problem in the variables y, r, with a count of evaluations.

    Attributes:
        y: States at the highest level, (B, d).
        high: Ratio at t_max.
        low: Ratio at t_min.
        calls: Evaluations since `begin`.
    """

    def __init__(self, problem: Problem, batch: int | None = None) -> None:
        forward, target = problem.forward, standard(problem.truth)
        (a1, s1), (a0, s0) = forward.levels(forward.t_max), forward.levels(forward.t_min)
        self.kind, self.shrink, self.high, self.low = problem.kind, float(a0), float(s1 / a1), float(s0 / a0)
        self.y = problem.x[:batch] / float(a1)
        self.calls, self.limit = 0, math.inf
        self.net = Denoiser(target)

    def begin(self, limit: float = math.inf) -> Tensor:
        """States to start from; evaluations are counted from here, and refused beyond the limit."""
        self.calls, self.limit = 0, limit
        return self.y

    def denoise(self, y: Tensor, r: Any) -> Tensor:
        """D(y, r), one evaluation; r is one number in any form, or the same number for each state."""
        self.calls += 1
        if self.calls > self.limit:
            raise SpentError
        if isinstance(r, Tensor):
            r = float(r.reshape(-1)[0])
        return self.net(y, r)

    def grid(self, name: str, steps: int) -> Tensor:
        """Levels (steps + 1,) from high to low, float64."""
        if (self.kind, name, steps) not in _MADE:
            levels = GRIDS[name](self, torch.linspace(0, 1, steps + 1, dtype=torch.float64))
            levels[0], levels[-1] = self.high, self.low
            _MADE[self.kind, name, steps] = levels
        return _MADE[self.kind, name, steps].clone()


_MADE: dict[tuple[str, str, int], Tensor] = {}


def between(f: Callable[[Any], Any], back: Callable[[Tensor], Tensor]) -> Callable[[Field, Tensor], Tensor]:
    """The grid that is uniform in f of the level."""
    return lambda field, u: back(_at(f, field.high) * (1 - u) + _at(f, field.low) * u)


def _at(f: Callable[[Any], Any], level: float) -> float:
    return float(f(torch.tensor(level, dtype=torch.float64)))


def time_of(r: Tensor) -> Tensor:
    """The time of VP (beta .1 .. 20) at which the ratio is r."""
    integral = torch.log1p(r**2)
    return 2 * integral / (0.1 + torch.sqrt(0.01 + 2 * 19.9 * integral))


def ratio_at(t: Tensor) -> Tensor:
    """Ratio of VP at time t."""
    return torch.sqrt(torch.expm1(0.1 * t + 9.95 * t**2))


def beta_quantiles(field: Field, u: Tensor) -> Tensor:
    """Levels at quantiles of the Beta(.6, .6) distribution in VP's time (Lee et al. 2024, 2407.12173)."""
    from scipy.stats import beta

    q = torch.from_numpy(beta.ppf(1 - u.numpy(), 0.6, 0.6))
    low, high = (_at(time_of, level) for level in (field.low, field.high))
    return ratio_at(low + (high - low) * q)


def power(rho: float) -> Callable[[Field, Tensor], Tensor]:
    """Karras' grid."""
    return between(lambda r: r ** (1 / rho), lambda v: v**rho)


GRIDS: dict[str, Callable[[Field, Tensor], Tensor]] = {
    "time": between(time_of, ratio_at),
    "quadratic": between(lambda r: time_of(r).sqrt(), lambda v: ratio_at(v**2)),
    "log": between(torch.log, torch.exp),
    "karras 7": power(7.0),
    "karras 5": power(5.0),
    "karras 3": power(3.0),
    "flow": between(lambda r: r / (1 + r), lambda u: u / (1 - u)),
    "cosine": between(torch.atan, torch.tan),
    "beta": beta_quantiles,
}
"""The grids that some peer offers by name; each is given to every peer that takes levels or times from its user: equal
steps in VP's time, in its root, in log SNR, in sigma^(1/rho), in the time of a straight path, in the angle atan sigma;
quantiles of a Beta distribution."""


@dataclass(frozen=True)
class Form:
    """The probability flow as an ODE du / ds = slope, for libraries that integrate ODEs: s is monotone in the level r.

    Attributes:
        name: In words.
        time: s at a level.
        level: The level at s.
        scale: u = y / scale(r).
        slope: From x0, u and r to du / ds.
    """

    name: str
    time: Callable[[float], float]
    level: Callable[[float], float]
    scale: Callable[[float], float]
    slope: Callable[[Tensor, Tensor, float], Tensor]

    def begin(self, field: Field) -> Tensor:
        """u at the highest level."""
        return field.y / self.scale(field.high)

    def end(self, field: Field, u: Tensor) -> Tensor:
        """Y at the lowest level."""
        return u * self.scale(field.low)

    def ends(self, field: Field) -> tuple[float, float]:
        """The interval of s."""
        return self.time(field.high), self.time(field.low)

    def __call__(self, field: Field, s: Any, u: Tensor) -> Tensor:
        """du / ds, one evaluation."""
        r = self.level(float(s))
        return self.slope(field.denoise(u * self.scale(r), r), u, r)


FORMS = (
    Form("log sigma", math.log, math.exp, lambda r: 1.0, lambda x0, u, r: u - x0),
    Form(
        "log sigma, unit variance",
        math.log,
        math.exp,
        lambda r: math.hypot(1, r),
        lambda x0, u, r: u / (1 + r * r) - x0 / math.hypot(1, r),
    ),
    Form(
        "flow matching's time",
        lambda r: r / (1 + r),
        lambda s: s / (1 - s),
        lambda r: 1 + r,
        lambda x0, u, r: (u * (1 + r) - x0) / r - x0,
    ),
)
"""EDM's state y, VP's x, and the straight path's x = (1 - s) x0 + s eps."""


def truth(problem: Problem, rtol: float = 1e-11) -> Tensor:
    """States at t_min of the probability flow from the problem's starts, by DOP853 in log r."""
    field = Field(problem)
    return field.shrink * by_scipy(field, "DOP853", rtol, FORMS[0])


def by_scipy(field: Field, method: str, tolerance: float, form: Form) -> Tensor:
    """States y at the lowest level by scipy's solve_ivp, all trajectories as one system."""
    from scipy.integrate import solve_ivp

    def slope(s: float, flat: np.ndarray) -> np.ndarray:
        return form(field, s, torch.from_numpy(flat).reshape(field.y.shape)).reshape(-1).numpy()

    span, start = form.ends(field), form.begin(field).reshape(-1).numpy()
    done = solve_ivp(slope, span, start, method, t_eval=span[1:], rtol=tolerance, atol=tolerance)
    if not done.success:
        raise RuntimeError(f"solve_ivp {method}: {done.message}")
    return form.end(field, torch.from_numpy(done.y[:, -1].copy()).reshape(field.y.shape))
