r"""What a solver is: one step from t to s, and what it promises.

A solver's orders are claims that the tests fit on closed forms: `order` for an ODE (global error ~ h^order), `strong`
along one Brownian path with additive noise, `weak` in distribution. `calls` is the number of model evaluations in a
step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from sde.forward import SDE
from sde.nodes import Node
from sde.random import Noise
from sde.solvers.reverse import ReverseSDE


class State(NamedTuple):
    """A moment of a run: time, state, and what it has cost so far.

    `calls` counts model evaluations, one for a whole batch. A solver that chooses its own steps also counts those that
    it `accepted` and `rejected`, and `serial` evaluations where several run at once.
    """

    t: float
    x: Tensor
    calls: int
    accepted: int = 0
    rejected: int = 0
    serial: int = 0


class Solver(ABC):
    """One rule for a step; write `step`, declare the orders.

    Attributes:
        order: Global order on an ODE.
        nominal: Order of the rule itself where its first steps cap `order` below it; a fit may lie between the two.
        strong: Strong order with additive noise; None if it takes none.
        weak: Weak order with additive noise; None if it takes none.
        calls: Model evaluations in a step.
        eta: The eta that `sample` gives it by default.
        fractions: Where inside a step it evaluates, beside t and s; a rule that is not spaced in t writes `stages`.
        endpoint: True if it evaluates the drift at s.
        ends: True if it steps from alpha = 0 and to sigma = 0 by itself; the loop does it by `DDIM` for others.

    Example:
        >>> import torch, sde
        >>> class Backwards(sde.Solver):  # one implicit Euler step by two fixed-point iterations
        ...     order, strong, weak, calls = 1.0, 1.0, 1.0, 2
        ...
        ...     def step(self, sde, x, t, s, noise):
        ...         h, y = float(s) - float(t), x
        ...         for _ in range(2):
        ...             y = x + h * sde.drift(y, s)
        ...         return y
        >>> model = sde.ExactScore(sde.Gaussian([0.0], 1.0), sde.VP())
        >>> sde.sample(model, (8, 1), steps=10, solver=Backwards()).shape
        torch.Size([8, 1])
    """

    order: ClassVar[float]
    nominal: float | None = None
    strong: ClassVar[float | None] = None
    weak: ClassVar[float | None] = None
    calls: int = 1
    eta: float = 0.0
    fractions: tuple[float, ...] = ()
    endpoint: bool = False
    ends: bool = False

    def start(self, sde: SDE, times: Tensor) -> Solver:
        """A solver for one run along a grid (float64, on the CPU); one with memory returns a fresh object."""
        return self

    def stages(self, sde: SDE, times: Tensor) -> Sequence[Tensor]:
        """Times inside the steps of a grid (N,) at which it evaluates, each of shape (N - 1,)."""
        return [times[:-1] + c * times.diff() for c in self.fractions]

    def stage(self, sde: SDE, t: float, s: float, k: int) -> Any:
        """The k-th of `stages` in the step from t to s: a node where t is one."""
        if type(t) is Node and type(s) is Node and s.index == t.index + 1 and t.table.stages > k:
            return t.table.all[len(t.table.nodes) + k * t.table.steps + t.index]
        return self.stages(sde, torch.tensor([float(t), float(s)], dtype=torch.float64))[k][0]

    def check(self, sde: SDE) -> None:
        """Raise ValueError where this solver cannot solve that SDE, with the reason."""
        return

    @abstractmethod
    def step(self, sde: SDE, x: Tensor, t: float, s: float, noise: Noise) -> Tensor:
        """State at s from the state x at t."""


class SelfPaced(Solver):
    """A solver that chooses its own steps between the times it is asked for; write `run` instead of `step`.

    Example:
        >>> import torch, sde
        >>> from sde import State
        >>> class Halves(sde.solvers.SelfPaced):  # Euler with two steps to each interval
        ...     order, calls = 1.0, 2
        ...
        ...     def run(self, sde, x, times, noise):
        ...         calls = 0
        ...         yield State(float(times[0]), x, calls)
        ...         for t, s in zip(times.tolist(), times[1:].tolist()):
        ...             for a in (t, (t + s) / 2):
        ...                 x, calls = x + (s - t) / 2 * sde.drift(x, a), calls + 1
        ...             yield State(s, x, calls)
        >>> model = sde.ExactScore(sde.Gaussian([0.0], 1.0), sde.VP())
        >>> sde.sample(model, (8, 1), steps=10, solver=Halves()).shape
        torch.Size([8, 1])
    """

    @abstractmethod
    def run(self, sde: SDE, x: Tensor, times: Tensor, noise: Noise) -> Iterator[State]:
        """States at each of the times, the first included; times as checked by `trajectory`, float64 on the CPU."""

    def step(self, sde: SDE, x: Tensor, t: float, s: float, noise: Noise) -> Tensor:  # noqa: D102
        times = torch.tensor([float(t), float(s)], dtype=torch.float64)
        return list(self.run(sde, x, times, noise))[-1].x


def needs_model(solver: Solver, sde: SDE) -> ReverseSDE:
    """The SDE as a `ReverseSDE`, or an error for a solver that uses the structure of one."""
    if not isinstance(sde, ReverseSDE):
        raise ValueError(
            f"{type(solver).__name__} uses the endpoints of a score model and cannot solve a {type(sde).__name__}: "
            "wrap a model in ReverseSDE(model, eta), or use Euler, Heun or RK4"
        )
    return sde
