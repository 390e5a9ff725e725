r"""Embedded Runge–Kutta pairs: two orders from one set of slopes, and the difference chooses the step.

With slopes k_i = f(u + c_i h, y + h sum_{j<i} a_ij k_j), a pair moves by the weights b of the higher order and
estimates the error of the lower by h sum_i e_i k_i. The last stage is the new state, so that its slope opens the next
step. A step is kept where the root mean square over a sample's coordinates of error / (atol + rtol max(|y|, |y_new|))
is at most 1; the next is longer or shorter by (Gustafsson's PI rule, k the order of the local error)

    factor = safety err^-(1/k - .75 beta) err_before^beta,        beta = .2 / k,        within limits.

Between the ends of a step, at u + v h, the state is read off a polynomial, with D = y_new - y:

    y(v) = y + v (D + (1 - v) (h k_1 - D + v (2 D - h k_1 - h k_last + (1 - v) h sum_i d_i k_i))),

the cubic of Hermite, and the quartic of Shampine where the pair has d. Every sample has its own time, step and error,
so that it does not see what batch it is in; one that has arrived waits. With few coordinates an estimate vanishes now
and then by accident (one path in a thousand was off by 150 tolerances), so that the quartic term, ~ h^4, has a say too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from sde.forward import SDE
from sde.random import Noise
from sde.solvers.adaptive.coordinate import Coordinate, Field, Time, check_time, coordinate
from sde.solvers.adaptive.pace import Pace, check_precision, check_tolerances, on_state, rms
from sde.solvers.solver import SelfPaced, State

Row = tuple[float, ...]

SHARE = 0.01
"""Size of DormandPrince's estimate beside the 5/4th power of its quartic term: .008 to .02, the median on mixtures."""


class Step(NamedTuple):
    """One step of an embedded pair: state before and after, slopes, and the step h as it multiplies them."""

    y: Tensor
    end: Tensor
    slopes: list[Tensor]
    h: Tensor


def _sum(weights: Row, slopes: list[Tensor]) -> Tensor:
    """Sum of weights times slopes, without the terms that are 0."""
    terms = [(w, k) for w, k in zip(weights, slopes, strict=True) if w]
    total = terms[0][1] * terms[0][0]
    for w, k in terms[1:]:
        total = torch.add(total, k, alpha=w)
    return total


class EmbeddedPair(SelfPaced):
    """An embedded pair with step-size control for each sample: a subclass states its coefficients.

    Args:
        rtol: Relative tolerance of a step's error.
        atol: Absolute one, in units of y: of the data's scale in the angle and the log, of x in t. Default: rtol.
        time: What it steps in: "angle" (default for the flow of a scalar SDE), "log", or "t" (default for others);
            see `sde.solvers.adaptive.coordinate`.
        max_calls: Evaluations after which it gives up.
        safety: Share of the step that the error estimate allows.
        factors: Least and largest ratio of one step to the one before.

    `State.calls` counts evaluations of the whole batch, which are as many as its slowest sample needs; `accepted` and
    `rejected` count the steps of all samples so far, so that accepted / B is the mean over the batch.

    Raises:
        ValueError: If an argument does not fit; in the run, if the model is not finite, if a step shrinks to nothing
            or if max_calls is reached. The message says at what t.
    """

    order = 0.0  # of refining the grid of times, which the steps do not follow; that of the rule is `nominal`
    ends = True
    c: ClassVar[Row]
    a: ClassVar[tuple[Row, ...]]
    e: ClassVar[Row]
    d: ClassVar[Row] = ()
    local: ClassVar[int]
    """Order of the error estimate in one step: 1 more than that of the lower rule."""

    def __init__(
        self,
        rtol: float = 1e-5,
        atol: float | None = None,
        time: Time | None = None,
        max_calls: int = 10_000,
        safety: float = 0.8,
        factors: tuple[float, float] = (0.2, 10.0),
    ) -> None:
        atol = rtol if atol is None else atol
        check_tolerances(rtol, atol, max_calls, safety)
        if not 0 < factors[0] < 1 < factors[1]:
            raise ValueError(f"factors must be one below 1 and one above, got {factors}: keep (.2, 10)")
        self.rtol, self.atol, self.max_calls = rtol, atol, max_calls
        self.safety, self.factors = safety, factors
        self.time: Time | None = time
        self.calls = len(self.a)

    def check(self, sde: SDE) -> None:  # noqa: D102
        refuse_noise(self, sde)
        check_time(type(self).__name__, self.time, sde)

    def run(self, sde: SDE, x: Tensor, times: Tensor, noise: Noise) -> Iterator[State]:  # noqa: D102
        check_precision(self.rtol, x.dtype)
        yield State(float(times[0]), x, 0)
        yield from _Walk(self, coordinate(self.time, sde, times, x), x, times).states()

    def take(self, fields: list[Field], y: Tensor, slope: Tensor, h: Tensor) -> Step:
        """One step from y, whose slope is known, with the fields at u + c h."""
        slopes, end = [slope], y
        for row, field in zip(self.a, fields, strict=True):
            end = y + h * _sum(row, slopes)
            slopes.append(field(end))
        return Step(y, end, slopes, h)

    def error(self, step: Step) -> Tensor:
        """Estimated error in units of the tolerance: (B,)."""
        size = self.atol / self.rtol + torch.maximum(step.y.abs(), step.end.abs())
        error = rms(step.h * _sum(self.e, step.slopes) / size)
        if self.d:
            quartic = rms(step.h * _sum(self.d, step.slopes) / size)
            error = torch.maximum(error, SHARE * quartic ** (self.local / 4))
        return error / self.rtol

    def between(self, step: Step, v: Tensor) -> Tensor:
        """State at the fraction v of a step."""
        rise, first, last = step.end - step.y, step.h * step.slopes[0], step.h * step.slopes[-1]
        bend = 2 * rise - first - last
        if self.d:
            bend = bend + (1 - v) * step.h * _sum(self.d, step.slopes)
        return step.y + v * (rise + (1 - v) * (first - rise + v * bend))


class BogackiShampine(EmbeddedPair):
    """The pair of orders 3 and 2 of Bogacki and Shampine: three evaluations a step, for loose tolerances.

    References:
        Bogacki & Shampine (1989), Appl. Math. Lett. 2, 321; step control: Hairer, Nørsett & Wanner (1993), Solving
        Ordinary Differential Equations I, section II.4.

    Example:
        >>> import torch, sde
        >>> model = sde.ExactScore(sde.Gaussian([3.0], 0.25), sde.VP())
        >>> sde.sample(model, (8, 1), solver=BogackiShampine(rtol=1e-3)).shape
        torch.Size([8, 1])
    """

    nominal = 3.0
    local = 3
    c = (1 / 2, 3 / 4, 1.0)
    a = ((1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9))
    e = (2 / 9 - 7 / 24, 1 / 3 - 1 / 4, 4 / 9 - 1 / 3, -1 / 8)


class DormandPrince(EmbeddedPair):
    """The pair of orders 5 and 4 of Dormand and Prince: six evaluations a step.

    References:
        Dormand & Prince (1980), J. Comput. Appl. Math. 6, 19; interpolant: Shampine (1986), Math. Comp. 46, 135; step
        control: Hairer, Nørsett & Wanner (1993), Solving Ordinary Differential Equations I, section II.4.

    Example:
        >>> import torch, sde
        >>> flow = sde.ReverseSDE(sde.ExactScore(sde.Gaussian([3.0], 0.25), sde.EDM()))
        >>> x, times = torch.full((1, 1), 80.0, dtype=torch.float64), torch.tensor([80.0, 1.0, 0.002])
        >>> path = sde.record(sde.trajectory(flow, x, times, DormandPrince(rtol=1e-8)))
        >>> x_exact = 3 + 77 * ((0.25 + path.t**2) / (0.25 + 80**2)).sqrt()
        >>> torch.allclose(path.x[:, 0, 0], x_exact, atol=1e-6)
        True
    """

    nominal = 5.0
    local = 5
    c = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
    a = (
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    )
    e = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
    d = (
        -12715105075 / 11282082432,
        0.0,
        87487479700 / 32700410799,
        -10690763975 / 1880347072,
        701980252875 / 199316789632,
        -1453857185 / 822651844,
        69997945 / 29380423,
    )


def refuse_noise(solver: SelfPaced, sde: SDE) -> None:
    """Raise ValueError for an SDE that is none of an ODE solver's."""
    if sde.noisy:
        eta = getattr(sde, "eta", None)
        raise ValueError(
            f"{type(solver).__name__} solves ODEs, and this {type(sde).__name__} is noisy"
            + (f" (eta={eta:g}): use eta=0, or AdaptiveHeun" if eta else ": use AdaptiveHeun")
        )


class _Walk:
    """One run of an embedded pair: states and first slopes of every sample, and the control of its steps."""

    def __init__(self, pair: EmbeddedPair, line: Coordinate, x: Tensor, times: Tensor) -> None:
        self.pair, self.line, self.times = pair, line, times
        self.pace = Pace(type(pair).__name__, line, times, len(x), pair.max_calls)
        self.y = line.enter(x, times[0])
        self.before, self.growth = torch.full((2, len(x)), 1e-4, dtype=torch.float64)
        self.growth += pair.factors[1]
        self.c = torch.tensor(pair.c, dtype=torch.float64)[:, None]

    def states(self) -> Iterator[State]:
        """States at all times but the first."""
        pace = self.pace
        self._begin()
        while pace.underway:
            h = pace.steps(cost=len(self.c))
            step = self.pair.take(self._fields(pace.v + self.c * h), self.y, self.slope, self._signed(h))
            pace.calls += len(self.c)
            self._judge(step, h, self.pair.error(step).cpu().double())
            for i, y in pace.arrived():
                t = self.times[i]
                yield State(float(t), self.line.leave(y, t), pace.calls, pace.accepted, pace.rejected)

    def _fields(self, v: Tensor) -> list[Field]:
        return self.line.fields(self.pace.u(v), self.y)

    def _signed(self, h: Tensor) -> Tensor:
        return on_state(self.pace.way * h, self.y)

    def _begin(self) -> None:
        """First slope and first step, by Hairer's recipe with the run's own length for want of a scale."""
        pair, pace, (field,) = self.pair, self.pace, self._fields(self.pace.v[None])
        self.slope = field(self.y)
        size = pair.atol + pair.rtol * self.y.abs()
        d0, d1 = (rms(z / size).cpu().double() for z in (self.y, self.slope))
        pace.check_first(d1)
        h = torch.where((d0 < 1e-5) | (d1 < 1e-5), 1e-3 * pace.span, 0.01 * d0 / d1).clamp_max(pace.span)
        (field,) = self._fields((pace.v + h)[None])
        change = field(self.y + self._signed(h) * self.slope) - self.slope
        d2 = rms(change / size).cpu().double() / h
        steepest = torch.maximum(d1, d2.nan_to_num(0.0, 0.0)).clamp_min(1e-30)  # the first step meets what is infinite
        pace.h = torch.minimum(100 * h, (0.01 / steepest) ** (1 / pair.local)).clamp_max(pace.span)
        pace.calls = 2

    def _judge(self, step: Step, h: Tensor, error: Tensor) -> None:
        """Keep what is good enough, choose the next steps, and interpolate what was passed."""
        pair, pace = self.pair, self.pace
        good, bad = pace.judge(h, error)
        ends = pace.ends(h)
        for i, mark, here in pace.passing(good, ends):
            v = torch.where(here, (mark - pace.v) / h.clamp_min(pace.tiny), 0.0).clamp(0, 1)
            pace.keep(i, here, pair.between(step, on_state(v, self.y)))
        pace.v = torch.where(good, ends, pace.v)
        keep = on_state(good, self.y)
        self.y, self.slope = torch.where(keep, step.end, self.y), torch.where(keep, step.slopes[-1], self.slope)

        k, beta, (least, most) = pair.local, 0.2 / pair.local, pair.factors
        safe = error.nan_to_num(math.inf, math.inf).clamp(1e-10, 1e10)
        grow = (pair.safety * safe ** (0.75 * beta - 1 / k) * self.before**beta).clamp(least, most)
        shrink = (pair.safety * safe ** (-1 / k)).clamp(least, 1.0)
        pace.h = torch.where(h > 0, h * torch.where(good, torch.minimum(grow, self.growth), shrink), pace.h)
        self.before = torch.where(good, safe.clamp_min(1e-4), self.before)
        self.growth = torch.where(good, most, torch.where(bad, 1.0, self.growth))  # no growth after a rejection
