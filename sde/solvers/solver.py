r"""What a solver is: one step from t to s, and what it promises.

A solver's orders are claims that the tests fit on closed forms: `order` for an ODE (global error ~ h^order), `strong`
along one Brownian path with additive noise, `weak` in distribution. `calls` is the number of model evaluations in a
step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from sde.forward import SDE
from sde.random import Noise
from sde.solvers.reverse import ReverseSDE


class Solver(ABC):
    """One rule for a step; write `step`, declare the orders.

    Attributes:
        order: Global order on an ODE.
        strong: Strong order with additive noise; None if it takes none.
        weak: Weak order with additive noise; None if it takes none.
        calls: Model evaluations in a step.
        eta: The eta that `sample` gives it by default.
        fractions: Where inside a step it evaluates, beside t and s; see `sde.nodes.between`.
        endpoint: True if it evaluates the drift at s.

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
    strong: ClassVar[float | None] = None
    weak: ClassVar[float | None] = None
    calls: int = 1
    eta: float = 0.0
    fractions: tuple[float, ...] = ()
    endpoint: bool = False

    def start(self) -> Solver:
        """A solver for one run; a multistep rule returns a fresh object with memory."""
        return self

    def check(self, sde: SDE) -> None:
        """Raise ValueError where this solver cannot solve that SDE, with the reason."""
        return

    @abstractmethod
    def step(self, sde: SDE, x: Tensor, t: float, s: float, noise: Noise) -> Tensor:
        """State at s from the state x at t."""


def needs_model(solver: Solver, sde: SDE) -> ReverseSDE:
    """The SDE as a `ReverseSDE`, or an error for a solver that uses the structure of one."""
    if not isinstance(sde, ReverseSDE):
        raise ValueError(
            f"{type(solver).__name__} uses the endpoints of a score model and cannot solve a {type(sde).__name__}: "
            "wrap a model in ReverseSDE(model, eta), or use Euler, Heun or RK4"
        )
    return sde
