"""Brownian increments for steps that may be rejected, each sample at times of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sde.random import BrownianPath, Noise, randn_like
from sde.solvers.adaptive.pace import on_state


class OwnPaths:
    """A Brownian motion for each sample, drawn as it is needed and kept until it has been walked.

    Args:
        noise: What is drawn from.
        time: Time at a distance, both of shape (B,).

    Example:
        >>> paths, x = OwnPaths(Noise(torch.Generator().manual_seed(0)), lambda v: 1 - v), torch.zeros(2, 3)
        >>> start = torch.zeros(2, dtype=torch.float64)
        >>> ends, w = paths.draw(start, start + 0.6, x)
        >>> paths.settle(torch.tensor([True, False]))  # the second sample wants less
        >>> ends, part = paths.draw(torch.tensor([0.6, 0.0]).double(), torch.tensor([1.0, 0.25]).double(), x)
        >>> ends  # a third of the step, so that no sliver is left
        tensor([1.0000, 0.2000], dtype=torch.float64)
    """

    def __init__(self, noise: Noise, time: Callable[[Tensor], Tensor]) -> None:
        self.noise, self.time = noise, time
        self.depth: Tensor | None = None
        self.ends: list[Tensor] = []  # for each level of the stack: where its increment ends, and the increment
        self.increments: list[Tensor] = []

    def draw(self, v: Tensor, ends: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Ends of steps, no further than asked for, and the increments of the paths up to them."""
        depth = torch.zeros_like(v, dtype=torch.long) if self.depth is None else self.depth
        z, waits = self.noise.fresh(x), depth > 0
        top, kept = self._top(depth, v, x)
        pieces = torch.ceil((top - v) / (ends - v).clamp_min(1e-300) * (1 - 1e-9)).clamp(1, 2**50)
        parted = waits & (pieces > 1)
        ends = torch.where(waits, torch.where(parted, v + (top - v) / pieces, top), ends)
        share, spread = self._bridge(v, ends, torch.where(waits, top, ends))
        share, spread = (
            torch.where(waits, share, 0.0),
            torch.where(waits, spread, (self.time(ends) - self.time(v)).abs()),
        )
        w = on_state(share, x) * kept + on_state(spread.sqrt(), x) * z
        # A part is put on top of what is left of the whole; a fresh increment on the empty stack.
        self._put(depth - 1, parted, top, kept - w)
        self.depth = torch.where(waits & ~parted, depth, depth + 1)
        self._put(self.depth - 1, torch.ones_like(waits), ends, w)
        return ends, w

    def settle(self, done: Tensor) -> None:
        """Take away the increments of the steps that were kept."""
        assert self.depth is not None
        self.depth = self.depth - done.long()
        deepest = int(self.depth.max())
        del self.ends[deepest:], self.increments[deepest:]

    def between(
        self, inside: Tensor, at: Tensor, ends: Tensor, known: tuple[Tensor, Tensor], w: Tensor, x: Tensor
    ) -> Tensor:
        """W inside the steps of some samples, by the bridge from the last known place to the steps' ends."""
        share, spread = self._bridge(known[0], at, ends)
        z, which = torch.zeros_like(x), inside.nonzero()[:, 0]
        generator = self.noise.generator
        if isinstance(generator, Sequence):  # a sample's numbers must not depend on what others pass
            generator = [generator[i] for i in which.tolist()]
        which = which.to(x.device)
        z[which] = randn_like(x[which], generator)
        return known[1] + on_state(share, x) * (w - known[1]) + on_state(spread.sqrt(), x) * z

    def _bridge(self, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Share of the increment over [a, c] that falls on [a, b] in the mean, and the variance about it."""
        ta, tb, tc = self.time(a), self.time(b), self.time(c)
        share = torch.where(tc == ta, 1.0, (tb - ta) / torch.where(tc == ta, 1.0, tc - ta)).clamp(0, 1)
        return share, (tb - ta).abs() * (1 - share)

    def _top(self, depth: Tensor, v: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        top, kept = v, torch.zeros_like(x)
        for level, (end, increment) in enumerate(zip(self.ends, self.increments, strict=True)):
            here = depth == level + 1
            top, kept = torch.where(here, end, top), torch.where(on_state(here, x), increment, kept)
        return top, kept

    def _put(self, level: Tensor, which: Tensor, ends: Tensor, w: Tensor) -> None:
        for i in range(int(torch.where(which, level, -1).max()) + 1):
            here = which & (level == i)
            if i == len(self.ends):
                self.ends.append(ends)
                self.increments.append(w)
            else:
                self.ends[i] = torch.where(here, ends, self.ends[i])
                self.increments[i] = torch.where(on_state(here, w), w, self.increments[i])


class OnePath:
    """A remembered path, for a batch of one, which has one clock as the path has.

    Example:
        >>> path = OnePath(BrownianPath(torch.Generator().manual_seed(0)), lambda v: 1 - v)
        >>> path.draw(torch.tensor([0.0]), torch.tensor([0.5]), torch.zeros(1, 2))[1].shape
        torch.Size([1, 2])
    """

    def __init__(self, noise: BrownianPath, time: Callable[[Tensor], Tensor]) -> None:
        self.noise, self.time = noise, time

    def draw(self, v: Tensor, ends: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Ends as asked for, and the increment up to there."""
        self.start = float(self.time(v))
        return ends, self.noise.increment(x, self.start, float(self.time(ends)))

    def settle(self, done: Tensor) -> None:
        """Nothing is kept: the path remembers."""

    def between(
        self, inside: Tensor, at: Tensor, ends: Tensor, known: tuple[Tensor, Tensor], w: Tensor, x: Tensor
    ) -> Tensor:
        """W inside the step."""
        return self.noise.increment(x, self.start, float(self.time(at)))
