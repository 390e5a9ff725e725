r"""Samplers that cannot be installed, from their published formulas: DPM-Solver of its authors, and EDM's.

DPM-Solver (Lu et al. 2022, 2206.00927) and DPM-Solver++ (Lu et al. 2022, 2211.01095) expand the network's N along
lam = -log r with h = lam_t - lam_s, in y = x / alpha:

    dpmsolver     N = eps:    y_t = y_s            - r_t (phi1 N + phi2 D1 + phi3 D2),
                  phi1 = e^h - 1,   phi2 = phi1 / h - 1,        phi3 = phi2 / h - 1/2
    dpmsolver++   N = x0:     y_t = (r_t / r_s) y_s +    (phi1 N + phi2 D1 + phi3 D2),
                  phi1 = 1 - e^-h,  phi2 = 1 - phi1 / h,        phi3 = 1/2 - phi2 / h

where D1 and D2 are h and h^2 times the derivatives of N, from differences. Besides this form (`taylor`) each second
order rule has one with phi1 / 2 in the place of phi2 (`dpmsolver`). EDM's sampler is Heun's rule in sigma (Karras et
al. 2022, 2206.00364, algorithm 1), its generalisation the two-stage rules of order 2 (their algorithm 3).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from benchmarks.accuracy_field import Field
from benchmarks.accuracy_peers import Adaptive, Rule, halves

Phis = tuple[float, float, float]


class Lu:
    """The steps of DPM-Solver (`data` False) and DPM-Solver++ (True)."""

    def __init__(self, field: Field, data: bool, taylor: bool) -> None:
        self.field, self.data, self.taylor = field, data, taylor

    def net(self, y: Tensor, lam: float) -> Tensor:
        r = math.exp(-lam)
        x0 = self.field.denoise(y, r)
        return x0 if self.data else (y - x0) / r

    def phis(self, h: float) -> Phis:
        if self.data:
            one = -math.expm1(-h)
            two = 1 - one / h
            return one, two, 0.5 - two / h
        one = math.expm1(h)
        two = one / h - 1
        return one, two, two / h - 0.5

    def move(self, y: Tensor, at: float, to: float, change: Tensor) -> Tensor:
        """State at `to` of the linear part, plus the change that the network's part makes."""
        return math.exp(at - to) * y + change if self.data else y - math.exp(-to) * change

    def first(self, y: Tensor, at: float, to: float, n: Tensor) -> Tensor:
        return self.move(y, at, to, self.phis(to - at)[0] * n)

    def second(self, y: Tensor, at: float, to: float, n: Tensor, slope: Tensor) -> Tensor:
        one, two, _ = self.phis(to - at)
        return self.move(y, at, to, one * n + (two if self.taylor else one / 2) * slope)

    def multistep(self, y: Tensor, lams: list[float], past: list[Tensor], to: float, order: int) -> Tensor:
        """From the last of lams, by the network's values at the last `order` of them."""
        at, h = lams[-1], to - lams[-1]
        if order == 1:
            return self.first(y, at, to, past[-1])
        r0 = (at - lams[-2]) / h
        d0 = (past[-1] - past[-2]) / r0
        if order == 2:
            return self.second(y, at, to, past[-1], d0)
        r1 = (lams[-2] - lams[-3]) / h
        d1 = (past[-2] - past[-3]) / r1
        curve = (d0 - d1) / (r0 + r1)
        one, two, three = self.phis(h)
        # As the authors' code has it, and diffusers and k-diffusion with them: h^2 N'' would be 2 curve.
        return self.move(y, at, to, one * past[-1] + two * (d0 + r0 * curve) + three * curve)

    def singlestep(self, y: Tensor, at: float, to: float, order: int, n: Tensor | None, inner: list[float]) -> Tensor:
        """One step with the inner points at the fractions `inner` of it."""
        n = self.net(y, at) if n is None else n
        if order == 1:
            return self.first(y, at, to, n)
        h, c1 = to - at, inner[0]
        u1 = at + c1 * h
        n1 = self.net(self.first(y, at, u1, n), u1)
        if order == 2:
            return self.second(y, at, to, n, (n1 - n) / c1)
        return self.third(y, at, to, n, n1, c1, inner[1])

    def third(self, y: Tensor, at: float, to: float, n: Tensor, n1: Tensor, c1: float, c2: float) -> Tensor:
        h = to - at
        u2 = at + c2 * h
        one, two, _ = self.phis(c2 * h)
        n2 = self.net(self.move(y, at, u2, one * n + two * (c2 / c1) * (n1 - n)), u2)
        one, two, three = self.phis(h)
        if not self.taylor:
            return self.move(y, at, to, one * n + two / c2 * (n2 - n))
        d1, d2 = (n1 - n) / c1, (n2 - n) / c2
        slope, curve = (c2 * d1 - c1 * d2) / (c2 - c1), 2 * (d2 - d1) / (c2 - c1)
        return self.move(y, at, to, one * n + two * slope + three * curve)


def _lams(levels: Tensor) -> list[float]:
    return (-levels.log()).tolist()


def _multistep(order: int, data: bool, taylor: bool, final: bool) -> Callable[[Field, Tensor], Tensor]:
    def run(field: Field, levels: Tensor) -> Tensor:
        rule, lams, y, past = Lu(field, data, taylor), _lams(levels), field.y, []
        n = len(lams) - 1
        for i in range(n):
            past = [*past[-2:], rule.net(y, lams[i])]
            k = min(order, i + 1, n - i if final and n < 10 else order)
            y = rule.multistep(y, lams[: i + 1], past, lams[i + 1], k)
        return y

    return run


def fast_orders(calls: int, order: int) -> list[int]:
    """Orders of the steps that spend a number of evaluations: as many of the highest as fit, then lower ones."""
    if order == 2:
        return [2] * (calls // 2) + [1] * (calls % 2)
    whole, rest = divmod(calls, 3)
    return [3] * (whole - 1) + [2, 1] if rest == 0 else [3] * whole + [rest]


def _singlestep(order: int, data: bool, taylor: bool) -> Callable[[Field, Tensor], Tensor]:
    """Steps of several stages on a grid of all evaluations, the inner points on the grid."""

    def run(field: Field, levels: Tensor) -> Tensor:
        rule, lams, y, i = Lu(field, data, taylor), _lams(levels), field.y, 0
        for k in fast_orders(len(lams) - 1, order):
            at, to = lams[i], lams[i + k]
            inner = [(lams[i + j] - at) / (to - at) for j in range(1, k)]
            y, i = rule.singlestep(y, at, to, k, None, inner), i + k
        return y

    return run


def _adaptive(order: int, data: bool) -> Callable[[Field, float], Tensor]:
    """DPM-Solver-12 and 23: the step by the worst state's error E in x, E <= 1 accepts, h <- .9 h E^(-1/order)."""

    def run(field: Field, tolerance: float) -> Tensor:
        rule, y = Lu(field, data, False), field.y
        at, last, h, before = -math.log(field.high), -math.log(field.low), 0.05, torch.zeros_like(y)
        while last - at > 1e-9:
            to = at + h
            n, c1 = rule.net(y, at), 1 / order
            n1 = rule.net(rule.first(y, at, at + c1 * h, n), at + c1 * h)
            low = high = rule.second(y, at, to, n, (n1 - n) / c1)
            if order == 2:
                low = rule.first(y, at, to, n)
            else:
                high = rule.third(y, at, to, n, n1, 1 / 3, 2 / 3)
            scale = math.hypot(1.0, math.exp(-to))  # of VP's x, which the tolerances are for
            allowed = (tolerance * torch.maximum(low.abs() / scale, before.abs())).clamp_min(0.156 * tolerance)
            error = float(((high - low) / scale / allowed).square().mean(1).sqrt().max())
            if error <= 1:
                y, before, at = high, low / scale, to
            h = min(0.9 * h * max(error, 1e-8) ** (-1 / order), last - at)
        return y

    return run


def dpm_solver() -> list[Rule | Adaptive]:
    """The options of its authors' `sample`: multistep, singlestep, adaptive; dpmsolver or taylor; eps or x0."""
    found: list[Rule | Adaptive] = []
    for data in (False, True):
        which = "dpmsolver++" if data else "dpmsolver"
        for taylor in (False, True):
            kind = f"{which}{', taylor' if taylor else ''}"
            found.append(Rule("dpm-solver", f"multistep 2, {kind}", _multistep(2, data, taylor, False)))
            for order in (2, 3):
                found.append(Rule("dpm-solver", f"singlestep {order}, {kind}", _singlestep(order, data, taylor)))
        found.append(Rule("dpm-solver", f"multistep 3, {which}", _multistep(3, data, False, False)))
        for order in (2, 3):
            name = f"multistep {order}, {which}, lower order at the end"
            found.append(Rule("dpm-solver", name, _multistep(order, data, False, True), few))
            found.append(Adaptive("dpm-solver", f"adaptive {order}, {which}", _adaptive(order, data)))
    return found


def few(budget: int) -> int:
    """Steps of a rule whose ending is another below ten steps, and the same from there on."""
    return budget if budget < 10 else 0


def _two_stage(alpha: float) -> Callable[[Field, Tensor], Tensor]:
    """EDM's algorithm 3: an inner point at alpha of the step in sigma; 1 is Heun's rule, 1/2 the midpoint's."""

    def run(field: Field, levels: Tensor) -> Tensor:
        y, r = field.y, levels.tolist()
        for at, to in pairwise(r):
            d = (y - field.denoise(y, at)) / at
            mid = at + alpha * (to - at)
            z = y + (mid - at) * d
            d2 = (z - field.denoise(z, mid)) / mid
            y = y + (to - at) * ((1 - 1 / (2 * alpha)) * d + d2 / (2 * alpha))
        return y

    return run


def _ends_by_euler(field: Field, levels: Tensor) -> Tensor:
    """Heun's rule with Euler's for the last step, as EDM's ends."""
    *most, at, to = levels.tolist()
    y = _two_stage(1.0)(field, torch.tensor([*most, at], dtype=torch.float64)) if most else field.y
    return y + (to - at) * (y - field.denoise(y, at)) / at


def edm() -> list[Rule]:
    return [
        Rule("EDM", "Heun", _two_stage(1.0), halves),
        Rule("EDM", "Heun, Euler at the end", _ends_by_euler, lambda budget: (budget + 1) // 2),
        Rule("EDM", "alpha 1/2", _two_stage(0.5), halves),
        Rule("EDM", "alpha 2/3", _two_stage(2 / 3), halves),
    ]


FORMULAS: dict[str, Callable[[], list]] = {"dpm-solver": dpm_solver, "EDM": edm}
