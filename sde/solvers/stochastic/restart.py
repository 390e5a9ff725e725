r"""Restart: an ODE solver that goes back up in noise at chosen times, and down again.

At each t_min of its intervals a run goes K times up to t_max, by the forward SDE's own transition, and back down the
probability flow. The way up is exact and leaves marginals as they are; the way down contracts, and what was wrong with
a sample shrinks with it. On Gaussian data of variance v the way down is multiplication by m,

    m^2 = (alpha^2 v + sigma^2)(t_min) / (alpha^2 v + sigma^2)(t_max),

so that of an error of the mean at t_min the part (m alpha(t_max) / alpha(t_min))^K is left, and of the variance's its
square. A stochastic solver does as much everywhere, and pays with the small steps that its noise asks for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise

import torch
from torch import Tensor

from sde.forward import SDE, ForwardSDE, ScalarSDE
from sde.random import Noise
from sde.solvers.integrate import walk
from sde.solvers.ratio import TimeOfRatio
from sde.solvers.solver import SelfPaced, Solver, State
from sde.solvers.stochastic.churn import needs_flow, ratio


@dataclass(frozen=True)
class Interval:
    """Times between which `Restart` goes back and forth, in the units of the SDE's own t (for EDM, of sigma).

    Args:
        t_min: Where it goes up from.
        t_max: Where it comes down from.
        steps: Steps of the way down, equal in (sigma / alpha)^(1/7), or in t on a matrix SDE.
        repeats: Times to do so, K.

    Example:
        >>> Interval(0.06, 0.3, steps=5, repeats=10)
        Interval(t_min=0.06, t_max=0.3, steps=5, repeats=10)
    """

    t_min: float
    t_max: float
    steps: int = 4
    repeats: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.t_min < self.t_max < math.inf:
            raise ValueError(
                f"t_min and t_max must be 0 <= t_min < t_max, got {self.t_min} and {self.t_max}: Interval(.06, .3), say"
            )
        for name in ("steps", "repeats"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}: pass {name}=4, say")

    def times(self, forward: ForwardSDE) -> Tensor:
        """Grid of the way down: (steps + 1,)."""
        ends = torch.tensor([self.t_max, self.t_min], dtype=torch.float64)
        u = torch.linspace(0, 1, self.steps + 1, dtype=torch.float64)
        if not isinstance(forward, ScalarSDE):
            return ends[0] + u * (ends[1] - ends[0])
        high, low = (ratio(forward, ends) ** (1 / 7)).unbind()
        grid = TimeOfRatio(forward, self.t_min, self.t_max)((high + u * (low - high)) ** 7)
        grid[0], grid[-1] = ends
        return grid


class Restart(SelfPaced):
    """Restart sampling: an ODE solver that goes back up in noise at chosen times, and down again.

    Args:
        solver: Any solver of the probability flow.
        intervals: Where to go back and forth; t_min becomes a time of the grid, where the run waits until it is done.

    Runs from noise to data only. A recorded state at t_min is that after the last restart there; `State.calls` counts
    all evaluations, and the attribute `calls` those of a step of the grid. It follows no path of the flow; in
    distribution it has the order of its solver, as far as intervals are refined with the grid.

    References:
        Xu, Deng, Cheng, Tian, Liu & Jaakkola (2023), 2306.14878, algorithm 1.

    Example:
        >>> import torch, sde
        >>> model = sde.ExactScore(sde.Gaussian([0.0], 1.0), sde.EDM())
        >>> restart = Restart(sde.Heun(), [Interval(0.1, 0.5, steps=3, repeats=2)])
        >>> *_, last = sde.trajectory(sde.ReverseSDE(model), torch.ones(8, 1), [80.0, 5.0, 0.1, 0.01], restart)
        >>> last.calls  # 3 steps, and 2 times 3 steps, of 2 each
        18
    """

    order = 0.0

    def __init__(self, solver: Solver, intervals: Sequence[Interval]) -> None:
        if not intervals:
            raise ValueError("intervals is empty: pass [Interval(t_min, t_max)], or use the solver alone")
        self.solver, self.intervals = solver, list(intervals)

    @property
    def calls(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The solver's."""
        return self.solver.calls

    @property
    def weak(self) -> float | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The solver's order on an ODE."""
        return self.solver.order

    def check(self, sde: SDE) -> None:  # noqa: D102
        forward = needs_flow(self, sde).model.sde
        self.solver.check(sde)
        for interval in self.intervals:
            top = interval.t_max
            if top > forward.t_max or (isinstance(forward, ScalarSDE) and float(forward.levels(top)[0]) == 0):
                raise ValueError(
                    f"{interval} goes beyond what {type(forward).__name__} can come back from, got t_max={top:g}: it "
                    f"must lie below {forward.t_max:g}, where something of the sample is left"
                )

    def start(self, sde: SDE, times: Tensor) -> Solver:  # noqa: D102
        first, last = float(times[0]), float(times[-1])
        if last > first:
            raise ValueError(f"Restart goes down in time, got times from {first:g} up to {last:g}: use its solver")
        for interval in self.intervals:
            low = interval.t_min
            if low > first or _same(low, first) or (low < last and not _same(low, last)):
                raise ValueError(
                    f"{interval} is not met by times from {first:g} to {last:g}, got t_min={low:g}: it must lie below "
                    "the first and not below the last"
                )
        return self

    def run(self, sde: SDE, x: Tensor, times: Tensor, noise: Noise) -> Iterator[State]:  # noqa: D102
        forward, asked = needs_flow(self, sde).model.sde, set(times.tolist())
        state = State(float(times[0]), x, 0)
        yield state
        for leg, intervals in self._legs(times.tolist()):
            for now in self._down(sde, state, torch.tensor(leg, dtype=torch.float64), noise):
                if now.t != leg[-1]:
                    yield now
                state = now
            for interval in intervals:
                grid = interval.times(forward)
                for _ in range(interval.repeats):
                    up = forward.transition(state.x, interval.t_min, interval.t_max, noise.fresh(x))
                    *_, state = self._down(sde, state._replace(x=up), grid, noise)
            if leg[-1] in asked:
                yield state._replace(t=leg[-1])

    def _legs(self, times: list[float]) -> Iterator[tuple[list[float], list[Interval]]]:
        """Grids between restarts, each with the intervals that begin where it ends."""
        begin = [next((t for t in times if _same(t, i.t_min)), i.t_min) for i in self.intervals]
        nodes = sorted({*times, *begin}, reverse=True)
        for a, b in pairwise(sorted({0, len(nodes) - 1, *map(nodes.index, begin)})):
            yield nodes[a : b + 1], [i for i, t in zip(self.intervals, begin, strict=True) if t == nodes[b]]

    def _down(self, sde: SDE, start: State, times: Tensor, noise: Noise) -> Iterator[State]:
        """States of the solver along a grid but for the first, which go on counting."""
        solver = self.solver.start(sde, times)
        run = solver.run if isinstance(solver, SelfPaced) else None
        states = run(sde, start.x, times, noise) if run else walk(sde, start.x, times, solver, noise)
        for state in islice(states, 1, None):
            yield State(state.t, state.x, *(a + b for a, b in zip(state[2:], start[2:], strict=True)))


def _same(t: float, s: float) -> bool:
    """Whether two times differ by a rounding of float32 at most."""
    return math.isclose(t, s, rel_tol=1e-6)
