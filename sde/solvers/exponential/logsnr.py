r"""Exponential integrators in half log-SNR, lambda = log(alpha / sigma): what DPM-Solver and SEEDS have in common.

With E one of the endpoints, held to be smooth in lambda, the reverse SDE of any eta is exactly, for h = lambda_s -
lambda_t, H = (1 + eta^2) h and lambda_u = lambda_t + u h,

    x_s = c x_t + C int_0^1 z e^{z (1 - u)} E du + n Z,        Z ~ N(0, 1)

| E   | c                               | C                     | z  | n                                  |
|-----|---------------------------------|-----------------------|----|------------------------------------|
| x0  | sigma_s / sigma_t e^{-eta^2 h}  | -alpha_s              | -H | sigma_s sqrt(1 - e^{-2 eta^2 h})   |
| eps | alpha_s / alpha_t               | -(1 + eta^2) sigma_s  | h  | eta sigma_s sqrt(e^{2 h} - 1)      |

A rule integrates the polynomial through values of E at some u (inside the step, or at earlier nodes) by the moments

    J_k = int_0^1 z e^{z (1 - u)} u^k du,        J_0 = e^z - 1,        J_k = k J_{k-1} / z - 1.

The noise of a stage inside the step is the part of the step's own noise up to there: what is drawn for [t, m] and for
[m, s] makes that of [t, s] as c_{m,s} n_{t,m} Z_1 + n_{m,s} Z_2. Where alpha or sigma is 0, lambda is infinite, and the
step is that of first order in x0; from sigma = 0 up it is x_s = alpha_s x_t / alpha_t, without an evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from sde.forward import SDE, ScalarSDE
from sde.random import Noise
from sde.score import Model
from sde.shape import total
from sde.solvers.exponential.base import Exponential
from sde.solvers.solver import needs_model

SERIES = 18
"""Terms of a moment's power series, which is exact in float64 for |z| < 1."""
MARGIN = 1e-3
"""Least distance between the evaluations of a step, in units of the step."""


class Levels(NamedTuple):
    """Signal, noise and half log-SNR at times."""

    alpha: Tensor
    sigma: Tensor
    half: Tensor

    @classmethod
    def at(cls, forward: ScalarSDE, times: Tensor) -> Levels:
        """Those of a schedule."""
        alpha, sigma = (torch.as_tensor(c) for c in forward.levels(times))
        return cls(alpha, sigma, torch.log(alpha) - torch.log(sigma))

    def part(self, which: slice) -> Levels:
        """Those at some of the times."""
        return Levels(*(c[which] for c in self))


def moments(z: Tensor, count: int = 3) -> Tensor:
    """J_k for k < count, in the last dimension.

    Example:
        >>> moments(torch.tensor([1.0], dtype=torch.float64), 2)  # e - 1 and e - 2
        tensor([[1.7183, 0.7183]], dtype=torch.float64)
    """
    found = [torch.expm1(z)]
    for k in range(1, count):
        term = total = z / (k + 1)
        for n in range(1, SERIES):
            term = term * z / (n + k + 1)
            total = total + term
        found.append(torch.where(z.abs() < 1, total, k * found[-1] / z - 1))
    return torch.stack(found, -1)


def through(u: Sequence[Tensor], j: Tensor) -> Tensor:
    """Weights of the values at 0 and at u that integrate the polynomial through them, from its moments j (n, 3).

    Example:
        >>> half, j = torch.tensor([0.5]), torch.tensor([[1.0, 1 / 2, 1 / 3]])  # plain integrals over [0, 1]
        >>> through([half, 2 * half], j)  # Simpson's rule: 1/6, 4/6, 1/6
        tensor([[0.1667, 0.6667, 0.1667]])
    """
    if not u:
        return j[:, :1]
    if len(u) == 1:
        one = j[:, 1] / u[0]
        return torch.stack([j[:, 0] - one, one], 1)
    a, b = u
    one, two = (j[:, 1] * b - j[:, 2]) / (a * (b - a)), (j[:, 2] - j[:, 1] * a) / (b * (b - a))
    return torch.stack([j[:, 0] - one - two, one, two], 1)


class LogSNRRule(Exponential):
    """Rule of order up to 3 in half log-SNR: base of `DPMSolver`, `DPMSolverPP` and `SEEDS`."""

    noise_levels = (0.0, math.inf)
    strong = 1.0

    def __init__(
        self,
        order: int,
        predict: str,
        multistep: bool,
        solver_type: str,
        lower_order_final: bool = False,
        start: str = "ramp",
        as_published: bool = False,
    ) -> None:
        super().__init__()
        if isinstance(order, bool) or order not in (1, 2, 3):
            raise ValueError(f"order must be 1, 2 or 3, got {order!r}: for higher ones use Adams")
        for name, value, choices in (
            ("predict", predict, ("x0", "eps")),
            ("solver_type", solver_type, ("midpoint", "heun")),
            ("start", start, ("ramp", "full")),
        ):
            if value not in choices:
                raise ValueError(f"{name} must be {' or '.join(choices)}, got {value!r}")
        if lower_order_final and not multistep:
            raise ValueError("lower_order_final=True is for multistep=True: a singlestep rule has no start-up to undo")
        self.k, self.multistep, self.solver_type = order, bool(multistep), solver_type
        self.lower_order_final, self.full, self.as_published = lower_order_final, start == "full", as_published
        self.predict, self.pair = predict, (1.0, 0.0) if predict == "x0" else (0.0, 1.0)
        self.calls = 1 if multistep else order
        self.inside = ((), (0.5,), (1 / 3, 2 / 3))[order - 1]
        if multistep:
            self.inside = (0.5,) if order == 3 and self.full else ()

    @property
    def nominal(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Of the rule itself."""
        return 2.0 if self.k == 3 and self.multistep and self.as_published else float(self.k)

    @property
    def order(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Observed on ever finer grids: 2 for a multistep rule of order 3 whose first step is Euler's."""
        capped = self.multistep and (not self.full or self.lower_order_final)
        return min(self.nominal, 2.0) if capped else self.nominal

    @property
    def weak(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """In distribution, eta > 0: 2 at most, as values between see the noise at points only."""
        return float(min(self.k, 2))

    def stages(self, sde: SDE, times: Tensor) -> Sequence[Tensor]:  # noqa: D102
        forward = needs_model(self, sde).model.sde
        assert isinstance(forward, ScalarSDE)
        return self._inner(forward, times)

    def _inner(self, forward: ScalarSDE, times: Tensor) -> list[Tensor]:
        """Times inside the steps, (N - 1,) each: at the fractions `inside` of a step's half log-SNR."""
        half, found = Levels.at(forward, times).half, []
        for r in self.inside:
            aim = torch.lerp(half[:-1], half[1:], r)
            t = forward.inverse(2 * torch.where(aim.isfinite(), aim, 0.0))
            between = (t - times[:-1]) * (t - times[1:]) < 0
            found.append(torch.where(aim.isfinite() & between, t, (times[:-1] + times[1:]) / 2))
        return found

    def _linear(self, a: Levels, b: Levels, eta: float) -> tuple[Tensor, Tensor, Tensor]:
        """C times the moments (n, 3), and c and n of the steps from a to b."""
        h, more = b.half - a.half, 1 + eta**2
        if self.predict == "x0":
            c, j = b.sigma / a.sigma * torch.exp(-(eta**2) * h), -b.alpha[:, None] * moments(-more * h)
            n = b.sigma * torch.sqrt(-torch.expm1(-2 * eta**2 * h)) if eta else torch.zeros_like(h)
        else:
            c, j = b.alpha / a.alpha, -more * b.sigma[:, None] * moments(h)
            n = eta * b.sigma * torch.sqrt(torch.expm1(2 * h)) if eta else torch.zeros_like(h)
        return j, c, n

    def _adjusted(self, j: Tensor, order: int) -> Tensor:
        """The moments as the papers' rules have them, where these differ from the integrals."""
        j = j.clone()
        if order == 2 and self.solver_type == "midpoint":
            j[:, 1] = j[:, 0] / 2
        if order == 3 and self.multistep and self.as_published:
            j[:, 2] = j[:, 2] / 2
        return j

    def columns(self, model: Model, eta: float, times: Tensor) -> Sequence[Tensor]:  # noqa: D102
        forward = model.sde
        assert isinstance(forward, ScalarSDE)
        at = Levels.at(forward, times)
        begin, end, m = at.part(slice(-1)), at.part(slice(1, None)), len(times) - 1
        finite = at.half.isfinite()
        j, c, n = self._linear(begin, end, eta)
        inner = [Levels.at(forward, t) for t in self._inner(forward, times)]
        u = [(level.half - begin.half) / (end.half - begin.half) for level in inner]
        inside = self._evaluations_inside(finite, u)
        w = j.new_zeros(m, 3)
        w[:, :1] = j[:, :1]
        if self.multistep:
            self._through_the_past(w, j, at.half, finite)
        if k := len(u):
            # The paper's third order leaves the value at the first stage out, unless it is the full polynomial.
            lean = k == 2 and self.solver_type == "midpoint"
            made = through(u[1:] if lean else u, self._adjusted(j, k + 1))
            made = torch.cat([made[:, :1], j.new_zeros(m, 1), made[:, 1:]], 1) if lean else made
            w[:, : k + 1] = torch.where((inside == k)[:, None], made, w[:, : k + 1])
        parts, carry, n = self._stages_inside(begin, end, inner, u, inside, n, eta)
        p, q = (torch.full_like(c, one) for one in self.pair)
        self._at_infinity(begin, end, eta, p, q, c, n, w)
        inside = torch.where(begin.sigma == 0, -1, inside)
        return p, q, c, w, carry, n, inside, *parts

    def _evaluations_inside(self, finite: Tensor, u: list[Tensor]) -> Tensor:
        """How many evaluations each step makes between its ends."""
        apart = finite[:-1] & finite[1:]
        for a, b in pairwise([torch.zeros_like(apart), *u, torch.ones_like(apart)]):
            apart = apart & (b.double() - a.double() > MARGIN)
        if self.multistep:  # a full start makes its first step with one of order 2
            apart = apart & (finite[:-1].cumsum(0) == 1)
        return apart.long() * len(u)

    def _through_the_past(self, w: Tensor, j: Tensor, half: Tensor, finite: Tensor) -> None:
        """Weights of a multistep rule through as many earlier nodes as there are."""
        m, h = len(w), half.diff()
        known = finite[:-1].cumsum(0)
        order = known.clamp_max(self.k)
        if self.lower_order_final:
            order = torch.minimum(order, torch.arange(m, 0, -1))
        order = torch.where(finite[:-1] & finite[1:], order, 1)
        u = [torch.cat([half.new_full((min(k, m),), torch.nan), (half[: m - k] - half[k:m])]) / h for k in (1, 2)]
        for k in range(2, self.k + 1):
            made = through(u[: k - 1], self._adjusted(j, k))
            w[:, :k] = torch.where((order == k)[:, None], made, w[:, :k])

    def _stages_inside(
        self, begin: Levels, end: Levels, inner: list[Levels], u: list[Tensor], inside: Tensor, n: Tensor, eta: float
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """Of each stage c, weights, and carry and n of the noise since the one before; the latter two for the end."""
        parts, last, carry = [], begin, torch.zeros_like(n)
        for k, level in enumerate(inner):
            j, c, _ = self._linear(begin, level, eta)
            _, carried, drawn = self._linear(last, level, eta)
            parts += [c, through([v / u[k] for v in u[:k]], j), carried, drawn]
            last = level
        if inner:
            _, carried, drawn = self._linear(last, end, eta)
            carry, n = torch.where(inside > 0, carried, carry), torch.where(inside > 0, drawn, n)
        return parts, carry, n

    def _at_infinity(
        self, begin: Levels, end: Levels, eta: float, p: Tensor, q: Tensor, c: Tensor, n: Tensor, w: Tensor
    ) -> None:
        """Steps from or to an infinite lambda, in place: x0 held; from data, where x0 = x / alpha, eps = 0 held."""
        data = begin.sigma == 0
        dead = data | (begin.alpha == 0) | (end.sigma == 0) | (end.alpha == 0)
        ratio = end.sigma / begin.sigma if eta == 0 else torch.zeros_like(c)
        factor = torch.where(data, end.alpha / begin.alpha, ratio)
        p[dead], q[dead], w[dead] = 1.0, 0.0, 0.0
        c[dead], n[dead] = factor[dead], end.sigma[dead] if eta else 0.0
        w[dead, 0] = (end.alpha - factor * begin.alpha)[dead]

    def step(self, sde: SDE, x: Tensor, t: float, s: float, noise: Noise) -> Tensor:  # noqa: D102
        model = needs_model(self, sde).model
        p, q, c, w, carry, n, inside, *parts = self.row(sde, t, s)
        if self.rows:  # a run's own object: steps from and to infinity cost less, a full start one more
            self.calls = 1 + inside
        if inside < 0:
            return x * c
        values, kick, last = [model(x, t).combine(p, q)], None, t
        for k in range(inside):
            m, (c_m, a, carry_m, n_m) = self.stage(sde, t, s, k), parts[4 * k : 4 * k + 4]
            y = _combined(x, c_m, a, values)
            if n_m:
                kick = _added(noise.normal(x, last, m) * n_m, carry_m, kick)
                y = y + kick
            values.append(model(y, m).combine(*self.pair))
            last = m
        if self.multistep:
            self.memory = [values[0], *self.memory[: self.k - 1]]
        y = _combined(x, c, w, self.memory if self.multistep and not inside else values)
        return torch.add(_added(y, carry, kick), noise.normal(x, last, s), alpha=n) if n else y


def _combined(x: Tensor, c: float, weights: Sequence[float], values: Sequence[Tensor]) -> Tensor:
    return total((c, x), *zip(weights, values, strict=False))


def _added(y: Tensor, carry: float, kick: Tensor | None) -> Tensor:
    return y if kick is None else torch.add(y, kick, alpha=carry)
