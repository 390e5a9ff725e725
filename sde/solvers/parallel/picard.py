r"""Parallel in time: all steps of a window at once, again and again, until they agree.

A solver's steps x_{i+1} = phi_i(x_i) wait for one another. Picard's iteration guesses the states of a window, takes all
its steps in one batched evaluation, and adds the increments up: with numbers a_i, from the front f on,

    new x_{i+1} = a_i new x_i + (phi_i(x_i) - a_i x_i),        i = f, f + 1, ... f + window - 1.

The state after the front is exact at once, and one more in every round, so that it never takes more rounds than the
solver has steps; where steps are short it takes far fewer, for more evaluations in all. a_i = 1 is ParaDiGMS. With a_i
the factor by which a step moves Gaussian data of the model's mean and scale, only what the data add to that waits for
a round, and noise levels far above the data's are passed at once.

The front of each sample moves past the states whose last change is small against the noise of their step,

    mean (new x_{i+1} - x_{i+1})^2 <= tolerance^2 v_i,        v_i the variance of the bridge x_{i+1} | x_i, x0,

whatever the other samples of the batch do.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from sde.forward import SDE, ForwardSDE
from sde.random import Noise
from sde.solvers.onestep import DDIM, Transition
from sde.solvers.parallel.rounds import RULES, Options, Rounds
from sde.solvers.reverse import ReverseSDE
from sde.solvers.solver import SelfPaced, Solver, State


class Picard(SelfPaced):
    """Parallel in time: Picard iteration over a window of steps of a one-step solver.

    `State.calls` counts all evaluations, `State.serial` those one after the other. Noise is drawn in the order of the
    path, so that the result is the solver's own, to the tolerance. The window times the batch is what a device
    evaluates at once; conditions that were `given`, one for each sample, go along.

    Args:
        solver: `DDIM` (the default), `Ancestral`, `Euler`, `EulerMaruyama`, `Heun` or `ReverseDiffusion`; others
            are refused.
        window: Steps at once; None for the whole grid. Wider ones take fewer rounds and more evaluations in all.
        tolerance: Change of a state between rounds, over the noise of its step, at which it stands. The paper takes .1;
            .01 costs a round or two more, and leaves less than the solver's own error.
        split: Whether the linear part is moved exactly (scalar SDEs); False is the paper's iteration.
        max_iterations: Rounds after which an error is raised. Default: as many as the grid has steps, which is enough.

    Raises:
        ValueError: If an argument is out of range, or it takes too many rounds.

    References:
        Shih, Belkhale, Ermon, Sadigh & Anari (2023), 2305.16317 (ParaDiGMS). Splitting a linear part off: Lim et al.
        (2024), 2309.12252 (DEER), with the whole Jacobian.

    Example:
        >>> import torch, sde
        >>> model = sde.ExactScore(sde.Mixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1]), sde.VP())
        >>> x = model.prior(torch.zeros(8, 1), torch.Generator().manual_seed(0))
        >>> times = sde.grids.uniform(sde.VP(), 200)
        >>> *_, last = sde.trajectory(sde.ReverseSDE(model), x, times, Picard())
        >>> last.serial < 20 < 200 < last.calls
        True
        >>> torch.allclose(last.x, sde.integrate(sde.ReverseSDE(model), x, times, sde.DDIM()), atol=1e-3)
        True
    """

    def __init__(
        self,
        solver: Solver | None = None,
        window: int | None = 64,
        tolerance: float = 0.01,
        split: bool = True,
        max_iterations: int | None = None,
    ) -> None:
        for name, value in (("window", window), ("max_iterations", max_iterations)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}: or None")
        if solver is not None and not isinstance(solver, Solver):
            raise TypeError(f"solver must be a Solver object, got {solver!r}: DDIM(), say")
        if not tolerance >= 0:
            raise ValueError(f"tolerance must be 0 or more, got {tolerance}: .01 is the default")
        self.solver = DDIM() if solver is None else solver
        self.window, self.tolerance, self.split, self.max_iterations = (
            window,
            float(tolerance),
            bool(split),
            max_iterations,
        )
        self.eta = self.solver.eta

    @property
    def order(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The solver's."""
        return self.solver.order

    @property
    def strong(self) -> float | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The solver's."""
        return self.solver.strong

    @property
    def weak(self) -> float | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The solver's."""
        return self.solver.weak

    def check(self, sde: SDE) -> None:  # noqa: D102
        if type(self.solver).step not in RULES:
            raise ValueError(
                f"Picard cannot take the steps of {type(self.solver).__name__} all at once, as they may depend on one "
                "another beyond their states: use DDIM, Euler, Heun or ReverseDiffusion"
            )
        self.solver.check(sde)

    def run(self, sde: SDE, x: Tensor, times: Tensor, noise: Noise) -> Iterator[State]:  # noqa: D102
        before, after = self._ends(sde, times)
        state = State(float(times[0]), x, 0)
        yield state
        if before is not None:
            state, times = _alone(before, sde, state, times[0], times[1], noise), times[1:]
            yield state
        inner, begun = times if after is None else times[:-1], state
        if len(inner) > 1:
            cost, options = self.solver.calls, Options(self.window, self.tolerance, self.split, self.max_iterations)
            for node, x, evaluated, rounds in Rounds(self.solver, sde, state.x, inner, noise, options).run():
                calls, serial = begun.calls + cost * evaluated, begun.serial + cost * rounds
                state = State(float(inner[node]), x, calls, serial=serial)
                yield state
        if after is not None:
            yield _alone(after, sde, state, times[-2], times[-1], noise)

    def _ends(self, sde: SDE, times: Tensor) -> tuple[Solver | None, Solver | None]:
        """What takes the first and the last step where coefficients are infinite: see `walk`."""
        if not isinstance(sde, ReverseSDE | ForwardSDE):
            return None, None
        other = DDIM() if isinstance(sde, ReverseSDE) else Transition()
        first = sde.singular(times[0])
        last = sde.singular(times[-1]) and self.solver.endpoint and not (first and len(times) == 2)
        return other if first else None, other if last else None


def _alone(solver: Solver, sde: SDE, state: State, t: Tensor, s: Tensor, noise: Noise) -> State:
    """The state after one step that nothing runs beside."""
    x = solver.step(sde, state.x, t, s, noise)  # pyright: ignore[reportArgumentType]
    return State(float(s), x, state.calls + solver.calls, serial=state.serial + solver.calls)
