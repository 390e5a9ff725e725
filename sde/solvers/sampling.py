"""Samples in one call: prior, reverse SDE, solver and grid, each with its default, plainly or as CUDA graphs."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor

from sde.nodes import Table
from sde.random import Generator, Noise
from sde.score import Model
from sde.solvers import capture
from sde.solvers.defaults import default_solver, default_times
from sde.solvers.integrate import (
    checked_state,
    checked_times,
    finite,
    trajectory,
    walk,
)
from sde.solvers.progress import bar
from sde.solvers.reverse import ReverseSDE
from sde.solvers.solver import SelfPaced, Solver, State


@torch.no_grad()
def sample(
    model: Model,
    shape: Sequence[int] | None = None,
    steps: int = 32,
    solver: Solver | None = None,
    times: Tensor | Sequence[float] | None = None,
    eta: float | None = None,
    x: Tensor | None = None,
    generator: Generator = None,
    noise: Noise | None = None,
    progress: bool | None = None,
    compile: bool = False,
) -> Tensor:
    r"""Samples of a model: prior, reverse SDE, solver, in one call.

    Args:
        model: Score model, exact or trained; put it in eval mode first.
        shape: (B, \*D).
        steps: Number of solver steps; ignored where times are given.
        solver: Default: `Adams`, `MatrixAdams` for a matrix SDE, one evaluation a step; `Heun` where eta > 0.
        times: Grid from t_max down. Default: `grids.data_scaled` for the model's data.
        eta: Noise of the reverse SDE. Default: the solver's own, 0 for ODE solvers.
        x: State to start from, instead of a draw from the prior.
        generator: One generator, or one for each sample.
        noise: What steps draw from. Default: `WhiteNoise(generator)`.
        progress: True for a bar, False for none. Default: one that appears after two seconds.
        compile: On a GPU, record the run as CUDA graphs on the first call and replay it on later ones, without a
            bar: the same samples, without waiting for Python. See `sde.solvers.capture`.

    Returns:
        Samples at the grid's last time, (B, \*D); for a matrix SDE the state, (B, K, \*D).

    Raises:
        ValueError: If an argument does not fit, or if the samples are not finite.

    Example:
        >>> import torch, sde
        >>> model = sde.ExactScore(sde.Gaussian([3.0], 0.25), sde.EDM())
        >>> x = sde.sample(model, (1000, 1), generator=torch.Generator().manual_seed(0))
        >>> round(x.mean().item(), 1)
        3.0
    """
    if shape is None and x is None:
        raise ValueError("shape is missing: pass shape=(16, 2), say, or a state x to start from")
    solver = solver or default_solver(model, eta, steps if times is None else len(times) - 1)
    if x is None:
        device, dtype = model.placement()
        shape = tuple(shape or ())
        if len(shape) < 2 or min(shape) < 1:
            raise ValueError(f"shape must be (B, *D) with every size at least 1, got {shape}: (16, 2), say")
        x = model.prior(torch.empty(shape, device=device, dtype=dtype), generator)
    reverse = ReverseSDE(model, solver.eta if eta is None else eta)
    if compile and _can_compile(x, solver, noise):
        x = _compiled(reverse, x, times, steps, solver, generator)
    else:
        if times is None:
            times = default_times(model, steps)
        states = trajectory(reverse, x, times, solver, generator, noise)
        for state in _with_bar(states, len(times) - 1, progress):
            x = state.x
    if not finite(x):
        raise ValueError(_not_finite(model))
    return x


def _not_finite(model: Model) -> str:
    """What to change, first of all where the model is guided: by what each rule calls its `remedy`."""
    rules = [part for part in model.modules() if isinstance(part, Model) and hasattr(part, "remedy")]
    steps = "more steps, a grid with smaller first steps (grids.log_snr)"
    if not rules:
        return f'samples are not finite: use {steps}, a weaker guidance, or a model of param "edm"'
    named = " and ".join(f"{type(part).__name__}({part.extra_repr()})" for part in rules)
    cure = "; ".join(dict.fromkeys(str(part.remedy) for part in rules))
    return f'samples are not finite under {named}: use {cure}; or {steps}, or a model of param "edm"'


def _can_compile(x: Tensor, solver: Solver, noise: Noise | None) -> bool:
    if noise is not None:
        raise ValueError("compile=True draws its noise before the run: leave noise=None, or use compile=False")
    if isinstance(solver, SelfPaced):
        raise ValueError(
            f"compile=True records one sequence of steps, and {type(solver).__name__} chooses its own as it goes: "
            "use compile=False, or a solver on a grid"
        )
    if x.device.type in capture.DEVICES:
        return True
    warnings.warn(
        f"compile=True has no effect on {x.device.type}: it records a CUDA graph. model.net.compile() compiles the "
        "network itself anywhere",
        stacklevel=4,
    )
    return False


def _compiled(
    reverse: ReverseSDE,
    x: Tensor,
    times: Tensor | Sequence[float] | None,
    steps: int,
    solver: Solver,
    generator: Generator,
) -> Tensor:
    """The end of a run along times, by default the grid of that many steps, as a recording of it gives it."""
    if isinstance(times, Tensor):
        times = times.tolist()

    def make() -> tuple[capture.Work, object]:
        grid = checked_times(reverse, default_times(reverse.model, steps) if times is None else times)
        solver.check(reverse)
        table = Table(grid, solver.start(reverse, grid).stages(reverse, grid))

        def work(x: Tensor, noise: Noise) -> capture.States:
            states = walk(reverse, x, grid, solver.start(reverse, grid), noise, table)
            yield from (state.x for state in islice(states, 1, None))

        return work, table.contents

    run = (solver, reverse.eta, steps if times is None else times)
    return capture.captured(reverse.model, checked_state(x, look=False), run, make, generator)


def _with_bar(states: Iterator[State], total: int, progress: bool | None) -> Iterator[State]:
    """The states, with a bar if asked for, or by default once the run has taken two seconds."""
    with bar(total, "sampling", "step", progress) as done:
        for step, state in enumerate(states):
            if step:  # the first is the start
                done(1)
            yield state
