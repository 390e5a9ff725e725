r"""RePaint: replacement with time travel.

Replacement joins an observed part to a rest that was made without it. RePaint goes back up by the forward SDE's own
transition and comes down again, so that the model sees the joined state and brings both parts in line; each way up
forgets a little of the rest, and after many the two agree:

    for each stretch of `jump` steps, from t down to s:
        repeat `resamplings` times:
            come down from t to s, with the observed part replaced after each step
            but the last time:    x_t ~ p(x_t | x_s)

The last step to the data is made once, as in the paper. With n steps that makes (n - 1) resamplings + 1 of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice, pairwise

from torch import Tensor

from sde.forward import SDE
from sde.inverse.observation import Observation
from sde.inverse.replacement import Replacement
from sde.nodes import Table
from sde.random import Noise, WhiteNoise
from sde.solvers import SelfPaced, Solver, State
from sde.solvers.integrate import walk
from sde.solvers.solver import needs_model


class Anew(WhiteNoise):
    """Another's noise, drawn anew at each visit of an interval: a path that is remembered would come back.

    Example:
        >>> import torch, sde
        >>> path, x = sde.random.BrownianPath(), torch.zeros(2, 3)
        >>> bool((Anew(path).normal(x, 1.0, 0.5) == Anew(path).normal(x, 1.0, 0.5)).any())
        False
    """

    def __init__(self, noise: Noise) -> None:
        super().__init__(noise.generator)
        self.noise = noise

    def normal(self, x: Tensor, t: float, s: float) -> Tensor:
        """A fresh draw."""
        return self.noise.fresh(x)

    def fresh(self, x: Tensor) -> Tensor:
        """A fresh draw."""
        return self.noise.fresh(x)


class RePaint(SelfPaced):
    """Replacement that goes back up in noise and down again, stretch by stretch of the grid.

    Args:
        solver: A one-step solver; `Ancestral` in the paper.
        observation: Linear; with noise for scalar SDEs only.
        jump: Steps of a stretch, 10 in the paper.
        resamplings: Times that each is walked, 10 in the paper, with 250 steps.

    Runs from noise to data. A state is recorded on the last way down over it; `State.calls` counts all evaluations, and
    the attribute `calls` those of a step of the grid.

    Raises:
        ValueError: If jump or resamplings is below 1; from a run, as `Replacement`.

    References:
        Lugmayr et al. (2022), 2201.09865, algorithm 1 and appendix B.

    Example:
        >>> import torch, sde
        >>> model = sde.ExactScore(sde.Gaussian([0.0, 0.0], [[1.0, 0.9], [0.9, 1.0]]), sde.VP())
        >>> seen = sde.inverse.Mask(torch.tensor([True, False]))
        >>> observation = sde.inverse.Observation(seen, torch.tensor([[0.5, 0.0]]))
        >>> repaint = sde.inverse.RePaint(sde.Ancestral(), observation, jump=2, resamplings=3)
        >>> sde.sample(model, (4, 2), steps=9, solver=repaint)[:, 0].tolist()
        [0.5, 0.5, 0.5, 0.5]
    """

    order = 0.0

    def __init__(self, solver: Solver, observation: Observation, jump: int = 10, resamplings: int = 10) -> None:
        for name, value in (("jump", jump), ("resamplings", resamplings)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}: 10 is the paper's")
        self.solver, self.observation, self.jump, self.resamplings = solver, observation, jump, resamplings

    @property
    def calls(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The solver's."""
        return self.solver.calls

    @property
    def eta(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The solver's."""
        return self.solver.eta

    def check(self, sde: SDE) -> None:  # noqa: D102
        Replacement(self.solver, self.observation).check(sde)

    def run(self, sde: SDE, x: Tensor, times: Tensor, noise: Noise) -> Iterator[State]:  # noqa: D102
        forward, rule = needs_model(self, sde).model.sde, Replacement(self.solver, self.observation).start(sde, times)
        last, state = len(times) - 1, State(float(times[0]), x, 0)
        yield state
        anew = Anew(noise)
        for a, b in pairwise(sorted({*range(0, last - 1, self.jump), last - 1, last})):
            stretch, repeats = times[a : b + 1], self.resamplings if b < last else 1
            table = Table(stretch, rule.stages(sde, stretch))
            for repeat in range(repeats):
                if repeat:
                    state = state._replace(x=forward.transition(state.x, times[b], times[a], anew.fresh(x)))
                begun = state.calls
                for now in islice(walk(sde, state.x, stretch, rule, anew, table), 1, None):
                    state = now._replace(calls=begun + now.calls)
                    if repeat == repeats - 1:
                        yield state
