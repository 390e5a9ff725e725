r"""What posterior sampling methods are made of: E[x0 | x] moved by an observation, and the covariance that moves it.

Bayes' rule adds grad log p_t(y | x) to the score, which moves x0 by A^+ L L' times it (`Point.tilted`). A gradient that
goes through the model's estimate x0(x) is J' v, with J the Jacobian of x0(x), and what it moves x0 by is

    C v = A^+ L L' J' v,

which for an exact model is Cov[x0 | x] v, Tweedie's second formula: sigma^2 / alpha J' v for a scalar SDE. So each
method is one formula for x0 given y, and a solver of any kind, on any SDE, does the rest. The papers' algorithms that
add a gradient to a step, however long, are solvers around a solver.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor

from sde.forward import SDE, ForwardSDE, Point, ScalarSDE
from sde.inverse.observation import Observation
from sde.random import Noise
from sde.score import Model, Wrapper
from sde.solvers import Ancestral, ReverseSDE, SelfPaced, Solver
from sde.solvers.solver import needs_model

LATEST = 0.99
"""Part of t_max: where alpha = 0 at t_max, x says nothing of x0 there, nor J of C, and both are asked for earlier."""


def look(model: Model) -> float:
    """The last time at which the state says anything of x0."""
    sde = model.sde
    blind = isinstance(sde, ScalarSDE) and float(sde.levels(sde.t_max)[0]) == 0
    return LATEST * sde.t_max if blind else sde.t_max


def ratios(sde: ForwardSDE, x: Tensor, t: float | Tensor) -> list[float]:
    """sigma / alpha of the statistic of x at t, infinite where alpha = 0: one number for all samples, or one for each.

    Example:
        >>> import torch, sde
        >>> ratios(sde.EDM(), torch.zeros(2, 1), torch.tensor(0.5))
        [0.5]
    """
    _, alpha, sigma = sde.statistic(x, t)
    if isinstance(alpha, Tensor) or isinstance(sigma, Tensor):
        return torch.as_tensor(sigma / alpha).flatten().tolist()
    return [sigma / alpha if alpha else math.inf]


def each(numbers: list[float], fn: Callable[[float, Tensor], Tensor], x: Tensor) -> Tensor:
    """fn(number, x), sample by sample where there are several numbers.

    Example:
        >>> each([1.0, 2.0], lambda c, x: c * x, torch.ones(2, 1))
        tensor([[1.],
                [2.]])
    """
    if len(numbers) == 1:
        return fn(numbers[0], x)
    return torch.cat([fn(c, x[i : i + 1]) for i, c in enumerate(numbers)])


class Estimate:
    r"""The x0 that a model estimates at a state, with C as an action.

    Args:
        model: Score model.
        x: State.
        t: Time.

    Attributes:
        x: State, t: time, model: that it was asked of.
        x0: Estimate, (B, \*D), detached unless x asked for gradients.

    Example:
        >>> import torch, sde
        >>> model = sde.ExactScore(sde.Gaussian([0.0], 3.0), sde.EDM())
        >>> Estimate(model, torch.ones(1, 1), 1.0).covariance(torch.ones(1, 1)).item()  # 1 / (1/3 + 1)
        0.75
    """

    def __init__(self, model: Model, x: Tensor, t: float | Tensor, **cond: Any) -> None:
        self.model, self.sde, self.t = model, model.sde, t
        self.graph = torch.is_grad_enabled() and x.requires_grad  # for gradients of the method itself
        with torch.inference_mode(False), torch.enable_grad():
            self.x = x if self.graph else (x.clone() if x.is_inference() else x.detach()).requires_grad_()
            self.through = model(self.x, t, **cond).x0
        self.x0 = self.through if self.graph else self.through.detach()

    def pulled(self, v: Tensor) -> Tensor:
        """J' v: from x0's shape to the state's."""
        with torch.inference_mode(False), torch.enable_grad():
            return torch.autograd.grad(self.through, self.x, v, retain_graph=True, create_graph=self.graph)[0]

    def covariance(self, v: Tensor) -> Tensor:
        """C v = A^+ L L' J' v."""
        return self.sde.unmean(self.sde.color(self.sde.tilt(self.pulled(v), self.t), self.t), self.t)


class Guided(Wrapper):
    """A model whose x0 is moved by an observation; write `moved`.

    Args:
        model: Score model; it must have a score.
        observation: What is known of x0.

    Raises:
        ValueError: If the model was trained with a coupling.
    """

    def __init__(self, model: Model, observation: Observation) -> None:
        name = type(self).__name__
        if model.coupled:
            raise ValueError(
                f"{name} adds the gradient of a likelihood to a score, and this model was trained with a coupling that "
                "ties eps to x0, so that it has none: train with coupling=None"
            )
        super().__init__(model)
        self.observation, self.tabulates, self.latest = observation, model.tabulates, look(model)

    @abstractmethod
    def moved(self, x: Tensor, t: float | Tensor, **cond: Any) -> Tensor:
        r"""E[x0 | x, y] as the method estimates it: (B, \*D)."""

    def forward(self, x: Tensor, t: float | Tensor, **cond: Any) -> Point:  # noqa: D102
        early = t.clamp_max(self.latest) if isinstance(t, Tensor) else t if t <= self.latest else self.latest
        return Point(self.sde, x, t, self.moved(x, early, **cond))


class _Watched(Guided):
    """The model itself, which keeps what the last state it was asked about is to be pulled by."""

    pulled: Tensor

    def __init__(self, model: Model, observation: Observation, pull: Callable[[Estimate], Tensor]) -> None:
        super().__init__(model, observation)
        self.pull = pull

    def forward(self, x: Tensor, t: float | Tensor, **cond: Any) -> Point:
        here = Estimate(self.model, x, t, **cond)
        self.pulled = self.pull(here)
        return Point(self.sde, x, t, here.x0)


class PulledSolver(Solver):
    """A step of a solver, then a pull towards the observation by the same evaluation; write `pull`.

    Args:
        observation: What is known of x0.
        solver: What steps, of one evaluation a step. Default: `Ancestral`.

    Raises:
        ValueError: If the solver evaluates otherwise than once a step.
    """

    order, strong, weak = 0.0, 0.0, 0.0
    watched: _Watched | None = None

    def __init__(self, observation: Observation, solver: Solver | None = None) -> None:
        self.observation, self.solver = observation, solver or Ancestral()
        if isinstance(self.solver, SelfPaced) or self.solver.calls != 1:
            raise ValueError(
                f"solver must evaluate once a step, got {type(self.solver).__name__}: use Ancestral or DDIM"
            )
        self.eta, self.endpoint, self.ends = self.solver.eta, self.solver.endpoint, self.solver.ends

    @abstractmethod
    def pull(self, here: Estimate) -> Tensor:
        """What is added to the state after the step."""

    def check(self, sde: SDE) -> None:  # noqa: D102
        self._watching(sde)  # refuses a coupled model
        self.solver.check(sde)

    def start(self, sde: SDE, times: Tensor) -> Solver:  # noqa: D102
        fresh = copy(self)
        fresh.solver, fresh.watched = self.solver.start(sde, times), self._watching(sde)
        return fresh

    def stages(self, sde: SDE, times: Tensor) -> Sequence[Tensor]:  # noqa: D102
        return self.solver.stages(sde, times)

    def step(self, sde: SDE, x: Tensor, t: float, s: float, noise: Noise) -> Tensor:  # noqa: D102
        watched = self.watched or self._watching(sde)
        x = self.solver.step(ReverseSDE(watched, needs_model(self, sde).eta), x, t, s, noise)
        return x + watched.pulled

    def _watching(self, sde: SDE) -> _Watched:
        return _Watched(needs_model(self, sde).model, self.observation, self.pull)
