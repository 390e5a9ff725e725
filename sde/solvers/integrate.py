r"""The one loop: x_{i+1} = step(x_i, t_i, t_{i+1}) along a fixed grid of times.

Everything that moves a state through time goes through `trajectory`: forward simulation, sampling, encoding,
likelihood. The direction of the grid decides which way it runs. Coefficients of the whole grid are made once
(`sde.nodes`), so that a step adds a handful of elementwise operations to the network's own time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sde.forward import SDE, ForwardSDE
from sde.nodes import Table
from sde.random import Generator, Noise, WhiteNoise
from sde.solvers.onestep import DDIM, Transition
from sde.solvers.reverse import ReverseSDE
from sde.solvers.solver import SelfPaced, Solver, State


@dataclass(frozen=True)
class Trajectory:
    r"""A recorded run: what every plot takes.

    Args:
        t: Times, (N,).
        x: States, (N, B, \*D).
        calls: Model evaluations up to each, (N,).
        accepted: Steps up to each that a solver with step-size control kept, (N,); zeros for others.
        rejected: Steps that it threw away, (N,).
        serial: Evaluations one after the other, (N,), where a solver makes several at once.
    """

    t: Tensor
    x: Tensor
    calls: Tensor
    accepted: Tensor | None = None
    rejected: Tensor | None = None
    serial: Tensor | None = None

    def map(self, fn: Callable[[Tensor], Tensor]) -> Trajectory:
        """The trajectory of fn(x): a projection, one channel, a decoder.

        Example:
            >>> import torch, sde
            >>> path = sde.Trajectory(torch.zeros(3), torch.zeros(3, 5, 2), torch.zeros(3))
            >>> path.map(lambda x: x[:, :1]).x.shape
            torch.Size([3, 5, 1])
        """
        return replace(self, x=torch.stack([fn(x) for x in self.x]))


def checked_times(sde: SDE, times: Tensor | Sequence[float]) -> Tensor:
    """The grid as `trajectory` takes it, float64 on the CPU, or an error that says what does not fit the SDE."""
    if not isinstance(times, Tensor):
        times = torch.tensor(times, dtype=torch.float64)  # a list of numbers would pass through float32
    times = times.detach().to("cpu", torch.float64)
    name = type(sde).__name__
    if times.ndim != 1 or len(times) < 2:
        raise ValueError(
            f"times must hold at least 2 times in a row, got shape {tuple(times.shape)}: one step needs two"
        )
    values: list[float] = times.tolist()
    up = values[-1] > values[0]
    monotone = sorted(values, reverse=not up) == values and len(set(values)) == len(values)
    if not (monotone and math.isfinite(sum(values))):
        raise ValueError(f"times must be finite and strictly increasing or decreasing, got {values[:8]}")
    if sde.direction and (sde.direction > 0) != up:
        way, remedy = ("up", "times.flip(0)") if sde.direction > 0 else ("down", "times.flip(0), or eta=0")
        raise ValueError(f"{name} is noisy and runs {way} in time only, times go the other way: use {remedy}")
    forward = sde.model.sde if isinstance(sde, ReverseSDE) else sde
    if isinstance(forward, ForwardSDE):
        low, high = sorted((values[0], values[-1]))
        if low < 0 or high > forward.t_max * (1 + 1e-6):
            raise ValueError(
                f"times must lie in [0, {forward.t_max:g}] for {type(forward).__name__}, got {low:g} to {high:g}"
            )
        if high > forward.t_max:  # a grid in float32 may end a rounding beyond it
            times = times.clamp_max(forward.t_max)
    return times


def checked_state(x: Tensor, look: bool = True) -> Tensor:
    """The state, or an error that says what is wrong with it; its values are looked at unless told."""
    if not x.is_floating_point():
        raise TypeError(f"x must be floating, got {x.dtype}: use x.float()")
    if x.ndim < 2 or x.shape[0] == 0:
        raise ValueError(f"x must be (B, *D) with B at least 1, got shape {tuple(x.shape)}")
    if look and not finite(x):
        raise ValueError(f"x holds {int((~torch.isfinite(x)).sum())} values that are not finite: clean it first")
    return x


def finite(x: Tensor) -> bool:
    """Whether all values are finite: so if their sum is, which is a fifth of the work; a finite one may overflow."""
    return math.isfinite(x.detach().sum()) or bool(torch.isfinite(x).all())


def trajectory(
    sde: SDE,
    x: Tensor,
    times: Tensor | Sequence[float],
    solver: Solver,
    generator: Generator = None,
    noise: Noise | None = None,
) -> Iterator[State]:
    r"""States along a grid of times, the first one included.

    Args:
        sde: Any SDE.
        x: State at times[0], (B, \*D).
        times: Grid, strictly monotone, in the direction of the run.
        solver: The rule of a step.
        generator: One generator, or one for each sample.
        noise: What steps draw from; a `BrownianPath` lets several solves share one path. Default:
            `WhiteNoise(generator)`.

    Raises:
        ValueError: If the grid, the state or the solver does not fit the SDE.

    Example:
        >>> import torch, sde
        >>> states = sde.trajectory(sde.BrownianMotion(), torch.zeros(3, 1), torch.linspace(0, 1, 5), sde.Euler())
        >>> [state.t for state in states]
        [0.0, 0.25, 0.5, 0.75, 1.0]
    """
    x, grid = checked_state(x), checked_times(sde, times)
    solver.check(sde)
    solver, noise = solver.start(sde, grid), noise or WhiteNoise(generator)
    return solver.run(sde, x, grid, noise) if isinstance(solver, SelfPaced) else walk(sde, x, grid, solver, noise)


def walk(
    sde: SDE, x: Tensor, times: Tensor, solver: Solver, noise: Noise, table: Table | None = None
) -> Iterator[State]:
    """The loop of a started solver over a grid: `trajectory` without its checks, and with a table of an earlier run."""
    if sde.tabulates:
        nodes: list[Any] = (table or Table(times, solver.stages(sde, times))).nodes
    else:
        nodes = list(times)
    # At an end where coefficients are infinite (alpha = 0 with noise, sigma = 0) the step goes by the endpoints
    # instead, forward by the exact transition.
    plans = [solver] * (len(nodes) - 1)
    if solver.ends:
        pass
    elif isinstance(sde, ReverseSDE):
        if sde.singular(nodes[0]):
            plans[0] = DDIM()
        if sde.singular(nodes[-1]) and solver.endpoint:
            plans[-1] = DDIM()
    elif isinstance(sde, ForwardSDE):
        if sde.singular(nodes[0]):
            plans[0] = Transition()
        if sde.singular(nodes[-1]) and solver.endpoint:
            plans[-1] = Transition()
    calls = 0
    yield State(float(nodes[0]), x, calls)
    for t, s, at, plan in zip(nodes[:-1], nodes[1:], times[1:].tolist(), plans, strict=True):
        x = plan.step(sde, x, t, s, noise)
        calls += plan.calls
        yield State(at, x, calls)


def integrate(
    sde: SDE,
    x: Tensor,
    times: Tensor | Sequence[float],
    solver: Solver,
    generator: Generator = None,
    noise: Noise | None = None,
) -> Tensor:
    """State at the end of the grid; arguments as `trajectory`.

    Example:
        >>> import torch, sde
        >>> model = sde.ExactScore(sde.Gaussian([0.0], 0.25), sde.VP())
        >>> up = torch.linspace(1e-3, 1, 101)
        >>> code = sde.integrate(sde.ReverseSDE(model), torch.full((1, 1), 0.5), up, sde.RK4())
        >>> round(code.item(), 2)  # one standard deviation of the data becomes one of the prior
        1.0
    """
    state = None
    for state in trajectory(sde, x, times, solver, generator, noise):  # noqa: B007
        pass
    assert state is not None
    return state.x


def record(states: Iterable[State], every: int = 1, device: torch.device | str = "cpu") -> Trajectory:
    """Run and keep every `every`-th state, the first and the last always.

    Args:
        states: From `trajectory`.
        every: Stride.
        device: Where the record lies.

    Example:
        >>> import torch, sde
        >>> states = sde.trajectory(sde.BrownianMotion(), torch.zeros(3, 1), torch.linspace(0, 1, 6), sde.Euler())
        >>> sde.record(states, every=2).t
        tensor([0.0000, 0.4000, 0.8000, 1.0000], dtype=torch.float64)
    """
    if every < 1:
        raise ValueError(f"every must be at least 1, got {every}")
    kept, last = [], None
    for i, state in enumerate(states):
        last = state
        if i % every == 0:
            kept.append(state._replace(x=state.x.detach().to(device)))
            last = None
    if last is not None:
        kept.append(last._replace(x=last.x.detach().to(device)))
    t, x, *counts = zip(*kept, strict=True)
    return Trajectory(torch.tensor(t, dtype=torch.float64), torch.stack(x), *map(torch.tensor, counts))
