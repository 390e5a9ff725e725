r"""Law 4: every action is finite on [t_min, t_max], and says the same in every shape, dtype and spelling of its time.

A time is a number, a tensor of shape () or (B,), or a `Node` of a run's grid. All four must give the same state to
rounding; with a time for each sample, each must be treated as if it were alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sde.checks.agree import agree, violated
from sde.checks.probe import times_of
from sde.forward import ForwardSDE
from sde.nodes import Table
from sde.random import randn

SHAPES: tuple[tuple[int, ...], ...] = ((3, 1), (3, 2), (2, 3, 8, 8), (2, 3, 4, 8, 8))
DTYPES = (torch.float32, torch.float64)

Time = Any
"""A number, a tensor of shape () or (B,), or a `Node`."""


class Inputs(NamedTuple):
    """A datum, a noise and a state, which are not those of one point, and one that are."""

    x0: Tensor
    eps: Tensor
    x: Tensor

    def row(self, i: int) -> Inputs:
        """One sample."""
        return Inputs(*(c[i : i + 1] for c in self))


Action = Callable[[ForwardSDE, Inputs, Time, Time], Tensor]

ONE_TIME: dict[str, Action] = {
    "mean": lambda sde, on, t, _: sde.mean(on.x0, t),
    "unmean": lambda sde, on, t, _: sde.unmean(on.x, t),
    "color": lambda sde, on, t, _: sde.color(on.eps, t),
    "whiten": lambda sde, on, t, _: sde.whiten(on.x, t),
    "score": lambda sde, on, t, _: sde.score(on.eps, t),
    "tilt": lambda sde, on, t, _: sde.tilt(on.x, t),
    "the statistic": lambda sde, on, t, _: sde.statistic(on.x, t)[0],
    "x of a point": lambda sde, on, t, _: sde.at(on.x0, t, on.eps).x,
    "velocity of a point": lambda sde, on, t, _: sde.at(on.x0, t, on.eps).velocity,
    "score of a point": lambda sde, on, t, _: sde.at(on.x0, t, on.eps).score,
}
REGULAR: dict[str, Action] = {
    "drift": lambda sde, on, t, _: sde.drift(on.x, t),
    "gain": lambda sde, on, t, _: sde.gain(on.x, t),
    "diffusion": lambda sde, on, t, _: sde.diffusion(on.x, t, on.eps),
}
TWO_TIMES: dict[str, Action] = {
    "transition": lambda sde, on, t, s: sde.transition(on.x, s, t, on.eps),
    "transition_gain": lambda sde, on, t, s: sde.transition_gain(on.x, s, t),
    "bridge": lambda sde, on, t, s: sde.bridge(on.x0, on.x, t, s, on.eps),
}


def finite(sde: ForwardSDE, shapes: Sequence[Sequence[int]] = SHAPES, dtypes: Sequence[torch.dtype] = DTYPES) -> None:
    r"""Law 4: everything is finite on [t_min, t_max], and the same in every shape, dtype and spelling of t.

    Drift, gain and diffusion are asked only where the SDE does not call itself singular.

    Args:
        sde: Forward SDE.
        shapes: Shapes (B, \*D) of data, B at least 2.
        dtypes: Of the data.

    Raises:
        LawViolation: If the SDE breaks it.

    Example:
        >>> import sde
        >>> sde.checks.finite(sde.VE(), shapes=[(3, 2)])
    """
    for t in times_of(sde):
        _clock(sde, t)
    for dtype in dtypes:
        for k, shape in enumerate(shapes):
            on = _inputs(sde, shape, dtype)
            for t in times_of(sde, (0.3,) if k else (0.0, 0.3, 1.0)):
                _spellings(sde, on, t)
            _rows(sde, on)
    _nodes(sde, _inputs(sde, shapes[0], dtypes[0]))


def _inputs(sde: ForwardSDE, shape: Sequence[int], dtype: torch.dtype) -> Inputs:
    generator = torch.Generator().manual_seed(7)
    x0 = randn(shape, generator, dtype=dtype)
    state = sde.state(x0).shape
    return Inputs(x0, randn(state, generator, dtype=dtype), randn(state, generator, dtype=dtype))


def _expected(name: str, on: Inputs) -> Tensor:
    return on.x0 if name in ("unmean", "the statistic") else on.x


def _sound(sde: ForwardSDE, name: str, got: Tensor, like: Tensor, t: Time) -> None:
    if got.shape != like.shape:
        raise violated("4", sde, f"{name} has shape {tuple(got.shape)}, expected {tuple(like.shape)}", t)
    if got.dtype != like.dtype:
        raise violated("4", sde, f"{name} has dtype {got.dtype} for a state of {like.dtype}", t)
    if not bool(torch.isfinite(got).all()):
        raise violated("4", sde, f"{name} is not finite: {float(got[~torch.isfinite(got)][0])}", t)


def _same(sde: ForwardSDE, name: str, got: Tensor, expected: Tensor, t: Time) -> None:
    # Matrices in the state's dtype cancel; their terms are of the size of the largest result.
    size = float(expected.abs().max())
    agree("4", sde, name, got, expected, size, t=t, rtol=2000 * torch.finfo(got.dtype).eps)


def _actions(sde: ForwardSDE, t: float, two: bool) -> dict[str, Action]:
    one = ONE_TIME if sde.singular(t) else ONE_TIME | REGULAR
    return one | TWO_TIMES if two else one


def _spellings(sde: ForwardSDE, on: Inputs, t: float) -> None:
    size = len(on.x0)
    spell: dict[str, Callable[[float], Tensor]] = {
        "a tensor of shape ()": lambda u: torch.tensor(u, dtype=torch.float64),
        "a tensor of shape (B,)": lambda u: torch.full((size,), u, dtype=torch.float64),
    }
    s = float(sde.t_min) if t > sde.t_min else None
    for name, act in _actions(sde, t, s is not None).items():
        plain = act(sde, on, t, s)
        _sound(sde, name, plain, _expected(name, on), t)
        for words, say in spell.items():
            got = act(sde, on, say(t), None if s is None else say(s))
            _sound(sde, f"{name} for t as {words}", got, _expected(name, on), t)
            _same(sde, f"{name} for t as {words}, not a number,", got, plain, t)


def _rows(sde: ForwardSDE, on: Inputs) -> None:
    """A time for each sample: each as if alone."""
    low, high = float(sde.t_min), float(sde.t_max)
    u = torch.linspace(0.3, 0.8, len(on.x0), dtype=torch.float64)
    t, s = low + u * (high - low), low + u / 2 * (high - low)
    for name, act in _actions(sde, float(t[0]), True).items():
        got = act(sde, on, t, s)
        for i in range(len(t)):
            alone = act(sde, on.row(i), t[i], s[i])
            _same(sde, f"{name} of sample {i}, in a batch with a time for each,", got[i : i + 1], alone, t[i])


def _nodes(sde: ForwardSDE, on: Inputs) -> None:
    """The nodes of a run's grid, down and up."""
    if not sde.tabulates:
        return
    down = torch.tensor(times_of(sde, (1.0, 0.6, 0.3, 0.0)), dtype=torch.float64)
    for grid in (down, down.flip(0)):
        nodes = Table(grid, stages=[(grid[:-1] + grid[1:]) / 2]).all
        for i, t in enumerate(nodes):
            below = next((s for s in (*nodes[i + 1 :], *nodes[:i]) if s < t), None)
            for name, act in _actions(sde, float(t), below is not None).items():
                got = act(sde, on, t, below)
                plain = act(sde, on, float(t), None if below is None else float(below))
                _sound(sde, f"{name} for t as a node", got, _expected(name, on), float(t))
                _same(sde, f"{name} for t as a node, not a number,", got, plain, float(t))


def _clock(sde: ForwardSDE, t: float) -> None:
    for u in (torch.tensor(t, dtype=torch.float64), torch.full((3,), t, dtype=torch.float64)):
        clock = sde.clock(u)
        if clock.shape != u.shape:
            raise violated("4", sde, f"clock has shape {tuple(clock.shape)} for t of shape {tuple(u.shape)}", t)
        if not bool(torch.isfinite(clock).all()):
            hint = "a network is told this number: where alpha reaches 0, return t itself, say"
            raise violated("4", sde, f"clock is not finite: {float(clock.flatten()[0])}", t, hint)
