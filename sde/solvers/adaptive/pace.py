"""How far each sample of a run has come, for solvers that choose their steps sample by sample.

Times and errors lie on the CPU in float64, one for each sample, and states where they were given; a step costs one look
at the device, for the errors. Samples pass the times asked for at steps of their own: what has passed is kept until the
slowest sample is there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NoReturn

import torch
from torch import Tensor

from sde.shape import expand
from sde.solvers.adaptive.coordinate import Coordinate


def check_tolerances(rtol: float, atol: float, max_calls: int, safety: float) -> None:
    """Raise ValueError unless the settings of a step-size control make sense.

    Example:
        >>> check_tolerances(1e-5, 1e-5, 100, 0.8)
    """
    for name, value in {"rtol": rtol, "atol": atol}.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be positive and finite, got {value}: pass {name}=1e-5, say")
    if max_calls < 1:
        raise ValueError(f"max_calls must be at least 1, got {max_calls}: keep 10000")
    if not 0 < safety < 1:
        raise ValueError(f"safety must lie between 0 and 1, got {safety}: keep the default")


def check_precision(rtol: float, dtype: torch.dtype) -> None:
    """Raise ValueError for a tolerance that the state's dtype cannot hold.

    Example:
        >>> check_precision(1e-5, torch.float32)
    """
    eps = torch.finfo(dtype).eps
    if rtol < 4 * eps:
        raise ValueError(f"rtol={rtol:g} is below the rounding of {dtype}: pass x in float64, or rtol={10 * eps:.0e}")


def on_state(c: Tensor, x: Tensor) -> Tensor:
    """Numbers or flags, one for each sample, shaped to act on a state, where it lies; numbers in its dtype.

    Example:
        >>> on_state(torch.ones(3).double(), torch.zeros(3, 2)).shape
        torch.Size([3, 1])
    """
    c = c if c.dtype == torch.bool else c.to(x.dtype)
    return torch.as_tensor(expand(c.to(x.device), x))


def rms(x: Tensor) -> Tensor:
    """Root mean square of each sample: (B,).

    Example:
        >>> rms(torch.tensor([[3.0, 4.0]]))
        tensor([3.5355])
    """
    return x.detach().flatten(1).square().mean(1).sqrt()


class Pace:
    """Progress of every sample from the first of the times to the last, and what it costs.

    Args:
        name: Of the solver, for messages.
        line: Coordinate u that it steps in.
        times: Where it starts, what it passes and where it ends, (N,).
        batch: Number of samples.
        max_calls: Evaluations allowed.

    Attributes:
        v: Distance gone in u: (B,), from 0 to `span`.
        h: Length of each sample's next step.
        way: Direction of u, 1 or -1.
        calls: Evaluations so far.
        accepted: Steps kept, of all samples.
        rejected: Steps thrown away.

    Example:
        >>> import sde
        >>> from sde.solvers.adaptive.coordinate import Plain
        >>> times = torch.tensor([1.0, 0.5, 0.0])
        >>> pace = Pace("Example", Plain(sde.DoubleWell(), times), times, batch=2, max_calls=10)
        >>> pace.span, pace.time(pace.v)
        (1.0, tensor([1., 1.], dtype=torch.float64))
    """

    def __init__(self, name: str, line: Coordinate, times: Tensor, batch: int, max_calls: int) -> None:
        self.name, self.line, self.max_calls = name, line, max_calls
        u = line.of(times)
        self.origin, self.way = float(u[0]), math.copysign(1.0, float(u[-1] - u[0]))
        self.marks: list[float] = (self.way * (u - u[0])).tolist()
        self.span = self.marks[-1]
        self.tiny = 2.0**-48 * max(abs(float(u[0])), abs(float(u[-1])))
        self.v, self.h = torch.zeros(2, batch, dtype=torch.float64)
        self.broken = torch.zeros(batch, dtype=torch.bool)
        self.calls, self.accepted, self.rejected = 0, 0, 0
        self._next, self._kept = 1, {}

    def u(self, v: Tensor) -> Tensor:
        """Coordinate at the distance v."""
        return self.origin + self.way * v

    def time(self, v: Tensor) -> Tensor:
        """Time at the distance v."""
        return self.line.time(self.u(v))

    @property
    def underway(self) -> bool:
        """Whether a time is yet to come."""
        return self._next < len(self.marks)

    def steps(self, cost: int) -> Tensor:
        """Steps to try, 0 for who has arrived: no sliver is left before the end.

        Raises:
            ValueError: If a step has shrunk to nothing, or its cost is more than is left.
        """
        left = self.span - self.v
        stuck = (self.h < self.tiny) & (left > 0)
        if bool(stuck.any()):
            self._refuse_collapse(int(stuck.nonzero()[0]))
        if self.calls + cost > self.max_calls:
            raise ValueError(
                f"max_calls={self.max_calls} evaluations are spent and {self.name} is at "
                f"{self.where(int(left.argmax()))}: raise max_calls, or rtol and atol"
            )
        return torch.where(1.01 * self.h >= left, left, self.h)

    def ends(self, h: Tensor) -> Tensor:
        """Distances after steps h."""
        return torch.where(h >= self.span - self.v, self.span, self.v + h)

    def judge(self, h: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
        """Which samples have a step to keep, and which one to throw away: counted."""
        good, bad = (h > 0) & (error <= 1), (h > 0) & ~(error <= 1)
        self.broken = (h > 0) & ~torch.isfinite(error)
        self.accepted += int(good.sum())
        self.rejected += int(bad.sum())
        return good, bad

    def passing(self, good: Tensor, ends: Tensor) -> Iterator[tuple[int, float, Tensor]]:
        """Times that the kept steps pass: number, distance, and which samples pass it."""
        furthest = float(torch.where(good, ends, 0.0).max())
        for i in range(self._next, len(self.marks)):
            if self.marks[i] > furthest:
                return
            here = good & (self.v < self.marks[i]) & (self.marks[i] <= ends)
            if bool(here.any()):
                yield i, self.marks[i], here

    def keep(self, i: int, here: Tensor, y: Tensor) -> None:
        """Put down the states of some samples at the i-th time."""
        kept = self._kept.get(i)
        self._kept[i] = y if kept is None else torch.where(on_state(here, y), y, kept)

    def arrived(self) -> Iterator[tuple[int, Tensor]]:
        """Times that every sample has passed, and the states there."""
        slowest = float(self.v.min())
        while self.underway and self.marks[self._next] <= slowest:
            i, self._next = self._next, self._next + 1
            yield i, self._kept.pop(i)

    def where(self, i: int) -> str:
        """The i-th sample and its time, for messages."""
        return f"t = {float(self.time(self.v)[i]):.6g} (sample {i} of {len(self.v)})"

    def check_first(self, size: Tensor) -> None:
        """Raise ValueError if the norm of a first slope is not finite for every sample."""
        if not bool(torch.isfinite(size).all()):
            self._refuse_values(int((~torch.isfinite(size)).nonzero()[0]), "the first evaluation")

    def _refuse_values(self, i: int, what: str) -> NoReturn:
        raise ValueError(
            f"model(x, t) is not finite at {self.where(i)}, {what} of {self.name}: look at it there, or let the times "
            "keep away"
        )

    def _refuse_collapse(self, i: int) -> NoReturn:
        if bool(self.broken[i]):
            self._refuse_values(i, "and beyond it for any step")
        raise ValueError(
            f"h={float(self.h[i]):.1e}, the step of {self.name}, shrinks to nothing at {self.where(i)}: the slope "
            "jumps there, or its rounding exceeds the tolerance: raise rtol and atol, pass x in float64, or let the "
            "times keep away"
        )
