r"""A run of Picard's iteration: the windows of all samples, their rounds, and the states that are done.

See `picard` for the iteration. Each sample has a front of its own, so that a window is a range of steps
for each; a round evaluates all of them in one batch of (window × B) states at as many times.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sde.forward import SDE, MatrixSDE, ScalarSDE
from sde.forward.transport import carried
from sde.random import Noise
from sde.score import ExactScore, Gaussian, Model
from sde.score.model import Given
from sde.shape import expand
from sde.solvers.onestep import DDIM, Euler, Heun, ReverseDiffusion
from sde.solvers.reverse import ReverseSDE
from sde.solvers.solver import Solver


class _Drawn(Noise):
    """Noise that was drawn before, for states at many times."""

    def __init__(self, z: Tensor) -> None:
        super().__init__(None)
        self.z = z

    def normal(self, x: Tensor, t: Any, s: Any) -> Tensor:
        return self.z


def _euler(solver: Solver, sde: SDE, x: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Tensor:
    h = torch.as_tensor(expand(s - t, x)).to(x.dtype)
    y = x + h * sde.drift(x, t)
    return y + h.abs().sqrt() * sde.diffusion(x, t, noise.normal(x, 0, 0)) if sde.noisy else y


def _heun(solver: Solver, sde: SDE, x: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Tensor:
    h = torch.as_tensor(expand(s - t, x)).to(x.dtype)
    w = h.abs().sqrt() * noise.normal(x, 0, 0) if sde.noisy else None
    y = x + h * sde.drift(x, t)
    if w is not None:
        y = y + sde.diffusion(x, t, w)
    y = y + h * sde.drift(y, s)
    return torch.lerp(x, y if w is None else y + sde.diffusion(x, s, w), 0.5)


RULES: dict[Callable, Callable] = {
    Euler.step: _euler,
    Heun.step: _heun,
    DDIM.step: DDIM.step,
    ReverseDiffusion.step: ReverseDiffusion.step,
}
"""Steps that can be taken at one time for each sample, by the function that says what a step is."""


class Options(NamedTuple):
    """What `Picard` was told."""

    window: int | None
    tolerance: float
    split: bool
    max_iterations: int | None


class Rounds:
    """The state of a run: for each sample its front, and the states in the window that begins there."""

    def __init__(self, solver: Solver, sde: SDE, x: Tensor, times: Tensor, noise: Noise, options: Options) -> None:
        self.solver, self.sde, self.noise, self.times, self.options = solver, sde, noise, times, options
        self.n, (self.batch, *_) = len(times) - 1, x.shape
        self.width = min(options.window or self.n, self.n)
        self.rule = RULES[type(solver).step]
        self.front = torch.zeros(self.batch, dtype=torch.long)
        self.offsets = torch.arange(self.width)[:, None]
        self.drawn: list[Tensor] = []  # noise of the steps from `passed` on, and finished states after it
        self.done = x.new_zeros(0, *x.shape)
        self.passed = 0
        self.limits = options.tolerance**2 * _step_variances(sde, times)
        self.levels, self.factors = _linear(solver, sde, times) if options.split else (None, None)
        self.conditioned = _conditioned(sde, self.batch)
        self.states = x.expand(1, *x.shape)
        self.states = self._shifted(torch.zeros_like(self.front))

    def run(self) -> Iterator[tuple[int, Tensor, int, int]]:
        """Nodes as all samples have passed them: index, state, evaluations for the whole batch, rounds."""
        evaluated = rounds = 0
        allowed = self.n if self.options.max_iterations is None else self.options.max_iterations
        while self.passed < self.n:
            if rounds == allowed:
                raise ValueError(
                    f"Picard has passed {self.passed} of {self.n} steps in max_iterations={allowed}: raise it, or the "
                    f"tolerance of {self.options.tolerance:g}, or widen the window of {self.width}"
                )
            evaluated, rounds = evaluated + self.round(), rounds + 1
            calls = -(-evaluated // self.batch)
            for _ in range(int(self.front.min()) - self.passed):
                self.passed += 1
                x, self.done, self.drawn = self.done[0], self.done[1:], self.drawn[1:]
                yield self.passed, x, calls, rounds

    def round(self) -> int:
        """One evaluation of all windows; the fronts move. The number of states that were evaluated."""
        steps = self.front + self.offsets  # (W, B)
        inside = steps < self.n
        new = self._advanced(steps.clamp_max(self.n - 1), inside)
        change = (new - self.states[1:]).flatten(2).square().mean(2)
        stands = change <= self.limits[steps.clamp_max(self.n - 1)].to(change)
        # What follows a state that stands was made from it. A look at the device, the one of a round.
        forward = stands.cumprod(0).sum(0).cpu() + 1
        self.states = torch.cat([self.states[:1], new])
        moved = torch.minimum(forward, inside.sum(0))
        self._keep(new, moved)
        self.front = self.front + moved
        self.states = self._shifted(moved)
        return int(inside.sum())

    def _advanced(self, steps: Tensor, inside: Tensor) -> Tensor:
        """New states after the front, (W, B, *D)."""
        old = self.states[:-1]
        rows = None if bool(inside.all()) else inside.flatten().nonzero()[:, 0]
        which = steps.flatten() if rows is None else steps.flatten()[rows]
        sample = torch.arange(self.batch).repeat(self.width)
        sample = sample if rows is None else sample[rows]
        x = old.flatten(0, 1) if rows is None else old.flatten(0, 1)[rows.to(old.device)]
        t, s = (_on(x, self.times[which + k]) for k in (0, 1))
        noise = self._noise_of(which, sample, x) if self.sde.noisy else self.noise
        sde = self.sde
        if self.conditioned and isinstance(sde, ReverseSDE):
            sde = ReverseSDE(_for_samples(sde.model, self.batch, sample), sde.eta)
        y = self.rule(self.solver, sde, x, t, s, noise)
        if rows is not None:
            y = old.flatten(0, 1).index_copy(0, rows.to(y.device), y)
        y = y.reshape(old.shape)
        if self.factors is None:
            new = old[:1] + torch.cumsum(y - old, 0)
        else:
            a = self.factors[steps].to(old).reshape(*steps.shape, *[1] * (old.ndim - 2))
            new = _scan(a, torch.cat([y[:1], y[1:] - a[1:] * old[1:]]))
        # The first is known as it stands; far ones that have run away begin again from what they were.
        return torch.cat([y[:1], torch.where(new[1:].isfinite(), new[1:], old[:1])])

    def _noise_of(self, which: Tensor, sample: Tensor, x: Tensor) -> Noise:
        while len(self.drawn) <= int(which.max()) - self.passed:
            i = self.passed + len(self.drawn)
            state = x.new_zeros(self.batch, *x.shape[1:])
            self.drawn.append(self.noise.normal(state, float(self.times[i]), float(self.times[i + 1])))
        z = torch.stack(self.drawn)[(which - self.passed).to(x.device), sample.to(x.device)]
        return _Drawn(z)

    def _keep(self, new: Tensor, moved: Tensor) -> None:
        """Stores the states that the fronts have passed."""
        end = int((self.front + moved).max()) - self.passed
        if end > len(self.done):
            self.done = torch.cat([self.done, new.new_zeros(end - len(self.done), *new.shape[1:])])
        place, sample = (self.offsets < moved).nonzero(as_tuple=True)
        rows = self.front[sample] - self.passed + place
        device = new.device
        self.done[rows.to(device), sample.to(device)] = new[place.to(device), sample.to(device)]

    def _shifted(self, moved: Tensor) -> Tensor:
        """The windows from the fronts on, (W + 1, B, *D): states that are known, then guesses made from the last."""
        known = len(self.states) - 1
        at = torch.arange(self.width + 1)[:, None] + moved
        device, sample = self.states.device, torch.arange(self.batch, device=self.states.device)
        found = self.states[at.clamp_max(known).to(device), sample]
        if self.levels is None:
            return found
        start = self.front - moved
        node, last = ((start + k).clamp_max(self.n) for k in (at, at.clamp_max(known)))
        shape = *at.shape, *[1] * (found.ndim - 2)
        shift, size = self.levels
        ratio = (size[node] / size[last]).to(found).reshape(shape)
        alpha, before = (shift[k].to(found).reshape(shape) for k in (node, last))
        mean = self.sde.model.data_mean() if isinstance(self.sde, ReverseSDE) else None
        if mean is None:
            return ratio * found
        mean = mean.to(found)
        return alpha * mean + ratio * (found - before * mean)


def _on(x: Tensor, t: Tensor) -> Tensor:
    """Times on the device of x, in the best precision that it has."""
    return t.to(x.device, torch.float32 if x.device.type == "mps" else torch.float64)


def _scan(a: Tensor, d: Tensor) -> Tensor:
    """y_0 = d_0 and y_j = a_j y_{j-1} + d_j along the first axis, in log2 as many rounds as it is long.

    Example:
        >>> a, d = torch.full((4, 1), 2.0), torch.ones(4, 1)
        >>> _scan(a, d)[:, 0].tolist()
        [1.0, 3.0, 7.0, 15.0]
    """
    reach = 1
    while reach < len(d):
        d = torch.cat([d[:reach], torch.addcmul(d[reach:], a[reach:], d[:-reach])])
        a = torch.cat([a[:reach], a[reach:] * a[:-reach]])
        reach *= 2
    return d


def _step_variances(sde: SDE, times: Tensor) -> Tensor:
    """v_i of the module's text, (N - 1,); |h| where there is no bridge."""
    t, s = times[:-1], times[1:]
    forward = sde.model.sde if isinstance(sde, ReverseSDE) else None
    if isinstance(forward, ScalarSDE):
        return torch.as_tensor(forward.bridge_pair(torch.zeros(len(t), 1, dtype=t.dtype), t, s)[1])[:, 0].clamp_min(0)
    if isinstance(forward, MatrixSDE):
        return carried(forward, t, s, 1.0)[2].square().sum((-2, -1)) / forward.channels
    return (s - t).abs()


def _linear(solver: Solver, sde: SDE, times: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor] | tuple[None, None]:
    """Alpha and the size r of the state for Gaussian data, (N,) each, and the factors a_i of the steps, (N - 1,)."""
    forward = sde.model.sde if isinstance(sde, ReverseSDE) else None
    if not isinstance(sde, ReverseSDE) or not isinstance(forward, ScalarSDE):
        return None, None
    scale, (alpha, sigma) = sde.model.data_scale() or 1.0, forward.levels(times)
    gaussian = ReverseSDE(ExactScore(Gaussian([0.0], scale**2), forward), sde.eta)
    none, one = (
        RULES[type(solver).step](solver, gaussian, x, times[:-1], times[1:], _Drawn(torch.zeros_like(x)))
        for x in (times.new_zeros(len(times) - 1, 1), times.new_ones(len(times) - 1, 1))
    )
    factors = (one - none)[:, 0]
    return (alpha, torch.hypot(alpha * scale, sigma)), torch.where(factors.isfinite(), factors, 1.0)


def _conditioned(sde: SDE, batch: int) -> bool:
    """Whether the model has a condition for each sample."""
    if not isinstance(sde, ReverseSDE):
        return False
    given = [m for m in sde.model.modules() if isinstance(m, Given)]
    return any(_one_each(v, batch) for m in given for v in m.cond.values())


def _one_each(value: object, batch: int) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0 and len(value) == batch


def _for_samples(model: Model, batch: int, sample: Tensor) -> Model:
    """The model for a batch made of the given samples, conditions taken along."""
    new = copy.copy(model)
    children = {k: _for_samples(m, batch, sample) if isinstance(m, Model) else m for k, m in model._modules.items()}
    new._modules = children
    if isinstance(new, Given):
        new.cond = {k: v[sample.to(v.device)] if _one_each(v, batch) else v for k, v in new.cond.items()}
    return new
