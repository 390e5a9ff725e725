r"""Step-size control for noisy SDEs: two schemes on one Brownian increment, and their difference chooses the step.

For dx = f dt + G dW with G free of x, over a step from t to s = t + h with the increment W of the path,

    x'  = x + h f(x, t) + G(t) W                                       Euler–Maruyama
    x'' = x + h/2 (f(x, t) + f(x', s)) + (G(t) + G(s)) W / 2           Heun, or stochastic improved Euler
    err = root mean square of (x' - x'') / max(atol, rtol max(|x'|, |x'_before|))

x'' is kept where err <= 1 (the paper's extrapolation), and the next step is safety err^-r h. Where err > 1 a shorter
step follows *on the same path*: increments drawn anew would favour the small ones, which err less. What was drawn for
[t, s] is parted at a time in between by the Brownian bridge, with h_1 + h_2 = h,

    W_1 = (h_1 / h) W + sqrt(h_1 h_2 / h) z,        W_2 = W - W_1,

and W_2 waits on a stack for the steps to come. Every sample has its own time, step and path. Steps are long or short in
the angle between data and noise (`adaptive.coordinate`), so that their growth is limited alike for every schedule: a
leap over all that matters may look good at both its ends.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from sde.forward import SDE, ForwardSDE, ScalarSDE
from sde.random import BrownianPath, Noise
from sde.solvers.adaptive.brownian import OnePath, OwnPaths
from sde.solvers.adaptive.coordinate import Time, check_time, coordinate, on
from sde.solvers.adaptive.pace import Pace, check_precision, check_tolerances, on_state, rms
from sde.solvers.onestep import DDIM, Transition
from sde.solvers.ratio import TimeOfRatio
from sde.solvers.reverse import ReverseSDE
from sde.solvers.solver import SelfPaced, Solver, State

EDGE = 1e-3
"""Ratio of data to noise, or noise to data, from which on an infinite drift is stepped over at once."""


class AdaptiveHeun(SelfPaced):
    """Heun's method with the Euler–Maruyama error estimate, each sample at its own pace: the adaptive reverse SDE.

    Args:
        rtol: Relative tolerance. Default .02; the authors use .01 to .1.
        atol: Absolute tolerance, in units of x. Default .0078, one of 256 levels between -1 and 1.
        max_calls: Evaluations after which it gives up.
        safety: Share of the step that the error estimate allows: theta of the paper.
        exponent: r of the paper, between 1/2 and 1.
        growth: Largest ratio of a step to the one before; the authors set none.
        first: First step, as a part of the whole way.
        time: What steps are measured in: "angle" (default for a scalar `ReverseSDE`), "log", or "t" (default for
            others; the authors').

    `State.calls` counts evaluations of the whole batch, which are as many as its slowest sample needs; `accepted` and
    `rejected` count the steps of all samples so far. States between are read off the steps: drift in proportion, noise
    by the Brownian bridge. Where the drift is infinite (alpha = 0, sigma = 0) the outermost thousandth goes by `DDIM`,
    forward by the exact transition. A `BrownianPath` has one clock for its batch, and is taken for a batch of 1.

    Raises:
        ValueError: If an argument does not fit, or the noise depends on the state; in the run as for `DormandPrince`.

    References:
        Jolicoeur-Martineau, Li, Piché-Taillefer, Kachman & Mitliagkas (2021), 2105.14080, algorithm 1; rejection with
        memory: Rackauckas & Nie (2017), Discrete Contin. Dyn. Syst. B 22, 2731.

    Example:
        >>> import torch, sde
        >>> model = sde.ExactScore(sde.Gaussian([3.0], 0.25), sde.VP())
        >>> sde.sample(model, (8, 1), solver=AdaptiveHeun(rtol=0.05)).shape
        torch.Size([8, 1])
    """

    order, nominal, calls, eta = 0.0, 2.0, 2, 1.0  # a grid of times does not set its steps
    ends = True

    def __init__(
        self,
        rtol: float = 0.02,
        atol: float = 0.0078,
        max_calls: int = 10_000,
        safety: float = 0.9,
        exponent: float = 0.9,
        growth: float = 5.0,
        first: float = 0.01,
        time: Time | None = None,
    ) -> None:
        check_tolerances(rtol, atol, max_calls, safety)
        if not growth > 1:
            raise ValueError(f"growth must be above 1, got {growth}: keep 5, or math.inf for none")
        for name, value in {"exponent": exponent, "first": first}.items():
            if not 0 < value <= 1:
                raise ValueError(f"{name} must lie between 0 and 1, got {value}: keep the default")
        self.rtol, self.atol, self.max_calls = rtol, atol, max_calls
        self.safety, self.exponent, self.growth, self.first = safety, exponent, growth, first
        self.time: Time | None = time

    def check(self, sde: SDE) -> None:  # noqa: D102
        check_time("AdaptiveHeun", self.time, sde)
        if sde.noisy and not sde.additive:
            raise ValueError(
                f"AdaptiveHeun on {type(sde).__name__} would converge to the Stratonovich solution, as its noise "
                "depends on the state: use Euler"
            )

    def run(self, sde: SDE, x: Tensor, times: Tensor, noise: Noise) -> Iterator[State]:  # noqa: D102
        check_precision(self.rtol, x.dtype)
        if isinstance(noise, BrownianPath) and len(x) > 1:
            raise ValueError(
                f"noise is a BrownianPath, which has one clock for its batch, and AdaptiveHeun steps each of {len(x)} "
                "samples at its own times: pass one sample at a time, or generators"
            )
        plan: Solver = Transition() if isinstance(sde, ForwardSDE) else DDIM()
        (first, last), t, calls = _finite(sde, times), float(times[0]), 0
        far = {s: abs(s - t) for s in [*times.tolist(), first, last]}
        early = [s for s in times[1:].tolist() if far[s] < far[first]] + [first] * (first != t)
        inner = [s for s in times[1:].tolist() if far[first] < far[s] <= far[last]]
        late = [s for s in times[1:].tolist() if far[s] > far[last]]
        yield State(t, x, calls)
        for s in early:
            x, t, calls = plan.step(sde, x, t, s, noise), s, calls + plan.calls
            if s in times:
                yield State(s, x, calls)
        grid = torch.tensor([first, *inner, *[last] * (last not in inner)], dtype=torch.float64)
        walk = _Walk(self, sde, x, grid, noise, calls)
        for state in walk.states() if first != last else ():
            x, t = state.x, state.t
            if t in times:
                yield state
        for s in late:
            x, t, walk.pace.calls = plan.step(sde, x, t, s, noise), s, walk.pace.calls + plan.calls
            yield State(s, x, walk.pace.calls, walk.pace.accepted, walk.pace.rejected)


def _finite(sde: SDE, times: Tensor) -> tuple[float, float]:
    """The ends of the run, drawn in where the drift is infinite."""
    first, last = float(times[0]), float(times[-1])
    schedule = sde.model.sde if isinstance(sde, ReverseSDE) else sde
    if not isinstance(schedule, ScalarSDE):
        return first, last
    scale = (sde.model.data_scale() if isinstance(sde, ReverseSDE) else 1.0) or 1.0
    ratio = torch.tensor([scale * EDGE, scale / EDGE], dtype=torch.float64)
    low, high = TimeOfRatio(schedule, min(first, last), max(first, last))(ratio).tolist()
    start, end = (low, high) if first < last else (high, low)
    singular = [sde.singular(t) for t in times[[0, -1]]]
    return start if singular[0] else first, end if singular[1] else last


class _Walk:
    """One run between times at which all is finite."""

    def __init__(self, rule: AdaptiveHeun, sde: SDE, x: Tensor, times: Tensor, noise: Noise, calls: int) -> None:
        self.rule, self.sde, self.x, self.times, self.noise = rule, sde, x, times, noise
        self.pace = Pace("AdaptiveHeun", coordinate(rule.time, sde, times, x), times, len(x), rule.max_calls)
        self.pace.calls = calls
        self.pace.h = torch.full((len(x),), rule.first * self.pace.span, dtype=torch.float64)
        self.before = x
        self.path = (
            OnePath(noise, self.pace.time) if isinstance(noise, BrownianPath) else OwnPaths(noise, self.pace.time)
        )
        self.slope: Tensor | None = None

    def states(self) -> Iterator[State]:
        """States at all times but the first."""
        pace = self.pace
        while pace.underway:
            ends, w = self.path.draw(pace.v, pace.ends(pace.steps(cost=2)), self.x)
            self._attempt(ends, w)
            for i, x in pace.arrived():
                yield State(float(self.times[i]), x, pace.calls, pace.accepted, pace.rejected)

    def _attempt(self, ends: Tensor, w: Tensor) -> None:
        """Both schemes over the steps up to `ends`, along w; the next steps."""
        rule, pace, sde, x = self.rule, self.pace, self.sde, self.x
        h, t, s = ends - pace.v, pace.time(pace.v), pace.time(ends)
        signed, t, s = on_state(torch.where(h > 0, s - t, 0.0), x), on(t, x), on(s, x)
        if self.slope is None:
            self.slope = sde.drift(x, t).to(x.dtype)
            pace.calls += 1
            if not pace.accepted + pace.rejected:
                pace.check_first(rms(self.slope).cpu().double())
        kick = sde.diffusion(x, t, w).to(x.dtype) if sde.noisy else torch.zeros_like(x)
        euler = x + signed * self.slope + kick
        slope = sde.drift(euler, s).to(x.dtype)
        pace.calls += 1
        kick = (kick + sde.diffusion(x, s, w).to(x.dtype)) / 2 if sde.noisy else kick
        heun = x + signed / 2 * (self.slope + slope) + kick
        size = torch.maximum(euler.abs(), self.before.abs()).mul(rule.rtol).clamp_min(rule.atol)
        error = rms((euler - heun) / size).cpu().double()

        good, _ = pace.judge(h, error)
        self._interpolate(good, ends, heun, kick, w)
        factor = (rule.safety * error**-rule.exponent).nan_to_num(0.1, math.inf).clamp(0.1, rule.growth)
        pace.h = torch.where(h > 0, h * factor, pace.h).clamp_max(pace.span)
        pace.v = torch.where(good, ends, pace.v)
        self.path.settle(good | (h <= 0))
        if bool(good.any()):
            keep = on_state(good, x)
            self.x, self.before = torch.where(keep, heun, x), torch.where(keep, euler, self.before)
            self.slope = None  # who was rejected gets the same again

    def _interpolate(self, good: Tensor, ends: Tensor, end: Tensor, kick: Tensor, w: Tensor) -> None:
        """Put down the states at the times that kept steps pass: drift in proportion, noise by the bridge."""
        pace, x, sde = self.pace, self.x, self.sde
        known = (pace.v, torch.zeros_like(x))  # distance and W at the time put down before
        t, s = pace.time(pace.v), pace.time(ends)
        for i, mark, here in pace.passing(good, ends):
            at, inside = torch.where(here, mark, ends), here & (mark < ends)
            part = kick
            if sde.noisy and bool(inside.any()):
                motion = self.path.between(inside, at, ends, known, w, x)
                part = (sde.diffusion(x, on(t, x), motion) + sde.diffusion(x, on(s, x), motion)).to(x.dtype) / 2
                known = torch.where(inside, at, known[0]), torch.where(on_state(inside, x), motion, known[1])
            v = on_state(torch.where(inside, (pace.time(at) - t) / (s - t), 1.0), x)
            y = x + v * (end - x - kick) + part
            pace.keep(i, here, torch.where(on_state(inside, x), y, end))
