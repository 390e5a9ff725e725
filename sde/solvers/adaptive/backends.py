"""Other people's ODE solvers behind the same call: scipy's and torchdiffeq's.

Both see the flow as one system in the coordinate of `sde.solvers.adaptive`, with one step for the whole batch, so
that a sample depends on what batch it is in, within the tolerance. What they do not guard against is guarded here: they
are never asked outside of the times of the run, values that are not finite raise where they occur (scipy would halve
its step for ever), and evaluations are capped.
"""

from __future__ import annotations

import importlib
import math
from bisect import bisect_left
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from sde.forward import SDE
from sde.random import Noise
from sde.solvers.adaptive.coordinate import Coordinate, Time, check_time, coordinate
from sde.solvers.adaptive.embedded import refuse_noise
from sde.solvers.adaptive.pace import check_precision, check_tolerances
from sde.solvers.solver import SelfPaced, State

SCIPY = {"RK23": 3, "RK45": 5, "DOP853": 8, "Radau": 5, "BDF": 5, "LSODA": 12}
ADAPTIVE = {"adaptive_heun": 2, "fehlberg2": 2, "bosh3": 3, "dopri5": 5, "dopri8": 8}
FIXED = {"euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4}  # its Adams rules take equal steps for granted


class _BackEnd(SelfPaced):
    """What both have in common."""

    ends = True
    orders: dict[str, int]

    def __init__(self, method: str, rtol: float, atol: float | None, time: Time | None, max_calls: int) -> None:
        atol = rtol if atol is None else atol
        check_tolerances(rtol, atol, max_calls, safety=0.5)
        if method not in self.orders:
            raise ValueError(f"method must be one of {', '.join(self.orders)}, got {method!r}")
        self.method, self.rtol, self.atol, self.max_calls = method, rtol, atol, max_calls
        self.time: Time | None = time

    @property
    def nominal(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Order of the method, the highest it has."""
        return float(self.orders[self.method])

    @property
    def order(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """0 where steps do not follow the grid of times."""
        return self.nominal if self.method in FIXED else 0.0

    def check(self, sde: SDE) -> None:
        refuse_noise(self, sde)
        check_time(f"{type(self).__name__}", self.time, sde)


class _Field:
    """dy/dv at the distance v gone in u, for a whole batch: counted, capped and looked at."""

    def __init__(self, solver: _BackEnd, line: Coordinate, times: Tensor) -> None:
        self.name, self.line, self.max_calls = type(solver).__name__, line, solver.max_calls
        u = line.of(times)
        self.origin, self.way = float(u[0]), math.copysign(1.0, float(u[-1] - u[0]))
        self.marks = self.way * (u - u[0])
        self.calls, self.accepted, self.rejected = 0, 0, 0

    def __call__(self, v: float | Tensor, y: Tensor) -> Tensor:
        u = self.origin + self.way * torch.as_tensor(v).detach().cpu().double().reshape(1)
        if self.calls >= self.max_calls:
            raise ValueError(
                f"max_calls={self.max_calls} evaluations are spent and {self.name} is at t = {self.when(u)}: raise "
                "max_calls, or rtol and atol"
            )
        (field,) = self.line.fields(u, y)
        slope = field(y)
        self.calls += 1
        if not bool(torch.isfinite(slope).all()):
            i = int((~torch.isfinite(slope)).flatten(1).any(1).nonzero()[0])
            first = ", the first evaluation" if self.calls == 1 else ""
            raise ValueError(
                f"model(x, t) is not finite at t = {self.when(u)} (sample {i} of {len(y)}){first} of {self.name}: look "
                "at it there, let the times keep away, or use DormandPrince, which then tries a shorter step"
            )
        return slope * self.way

    def when(self, u: Tensor) -> str:
        """Time at u, for messages."""
        return f"{float(self.line.time(u)):.6g}"

    def state(self, t: Tensor, y: Tensor) -> State:
        """State of the run at a time."""
        return State(float(t), self.line.leave(y, t), self.calls, self.accepted, self.rejected)


class ScipySolver(_BackEnd):
    """A solver of scipy's `solve_ivp`, run on the CPU in float64 whatever the model's device.

    Args:
        method: RK23, RK45, DOP853, or Radau, BDF, LSODA, which are implicit and ask for a Jacobian by differences: an
            evaluation for each number in the state.
        rtol: Relative tolerance, of the root mean square over the whole batch.
        atol: Absolute one, in units of y (`sde.solvers.adaptive.coordinate`). Default: rtol.
        time: What it steps in: "angle" (default for the flow of a scalar SDE), "log" or "t".
        max_calls: Evaluations after which it gives up.

    `State.calls` counts evaluations of the batch, those of the interpolant included; `rejected` is 0 for the implicit
    methods, which do not tell.

    Raises:
        ValueError: If an argument does not fit; in the run, if the model is not finite, max_calls is reached or scipy
            fails. Also where a gradient is wanted, which would be lost.

    References:
        Virtanen et al. (2020), Nat. Methods 17, 261, for scipy; DOP853: Hairer, Nørsett & Wanner (1993), section II.5.

    Example:
        >>> import torch, sde
        >>> model = sde.ExactScore(sde.Gaussian([3.0], 0.25), sde.VP())
        >>> sde.sample(model, (8, 1), solver=ScipySolver(rtol=1e-6)).shape
        torch.Size([8, 1])
    """

    orders = SCIPY

    def __init__(
        self,
        method: str = "DOP853",
        rtol: float = 1e-5,
        atol: float | None = None,
        time: Time | None = None,
        max_calls: int = 10_000,
    ) -> None:
        super().__init__(method, rtol, atol, time, max_calls)

    def run(self, sde: SDE, x: Tensor, times: Tensor, noise: Noise) -> Iterator[State]:  # noqa: D102
        try:
            from scipy import integrate
        except ImportError as error:
            raise ImportError("ScipySolver needs scipy: pip install scipy, or use DormandPrince") from error
        check_precision(self.rtol, x.dtype)
        if x.requires_grad and torch.is_grad_enabled():
            raise ValueError("x requires a gradient, which is lost in scipy: use TorchdiffeqSolver or DormandPrince")
        line = coordinate(self.time, sde, times, x)
        field, start = _Field(self, line, times), line.enter(x, times[0])

        def tensor(y: Any) -> Tensor:
            return torch.as_tensor(y).to(start).reshape(start.shape)

        def fun(v: float, y: Any) -> Any:
            return field(v, tensor(y)).flatten().cpu().double().numpy()

        yield State(float(times[0]), x, 0)
        y0, bound = start.detach().flatten().cpu().double().numpy(), float(field.marks[-1])
        engine = getattr(integrate, self.method)(fun, 0.0, y0, bound, rtol=self.rtol, atol=self.atol)
        for t, mark in zip(times[1:], field.marks[1:].tolist(), strict=True):
            while engine.t < mark:
                before = field.calls
                message = engine.step()
                if engine.status == "failed":
                    where = line.time(torch.tensor(field.origin + field.way * engine.t, dtype=torch.float64))
                    raise ValueError(
                        f"{self.method} of scipy gives up at t = {float(where):.6g} ({message}): raise "
                        f"rtol={self.rtol:g} and atol={self.atol:g}, or let the times keep away"
                    )
                field.accepted += 1
                if hasattr(engine, "n_stages"):
                    field.rejected += (field.calls - before) // engine.n_stages - 1
            yield field.state(t, tensor(engine.y if engine.t == mark else engine.dense_output()(mark)))


class TorchdiffeqSolver(_BackEnd):
    """A solver of torchdiffeq, where the state lies and with gradients.

    Args:
        method: dopri5, dopri8, bosh3, adaptive_heun, fehlberg2; or euler, midpoint, heun2, heun3, rk4, which step from
            one of the times to the next.
        rtol: Relative tolerance, of the root mean square over the whole batch.
        atol: Absolute one, in units of y (`sde.solvers.adaptive.coordinate`). Default: rtol.
        time: What it steps in: "angle" (default for the flow of a scalar SDE), "log" or "t".
        max_calls: Evaluations after which it gives up.
        options: Of torchdiffeq, for the method.

    It solves the whole run before the second state comes. An adaptive method is made to step on the last time, past
    which it would go by itself, and interpolates at the others.

    Raises:
        ImportError: If torchdiffeq is not installed; the message says what to install.
        ValueError: As for `ScipySolver`.

    References:
        Chen, Rubanova, Bettencourt & Duvenaud (2018), 1806.07366.

    Example:
        >>> import torch, sde
        >>> model = sde.ExactScore(sde.Gaussian([3.0], 0.25), sde.VP())
        >>> sde.sample(model, (8, 1), solver=TorchdiffeqSolver(rtol=1e-6)).shape
        torch.Size([8, 1])
    """

    orders = ADAPTIVE | FIXED

    def __init__(
        self,
        method: str = "dopri5",
        rtol: float = 1e-5,
        atol: float | None = None,
        time: Time | None = None,
        max_calls: int = 10_000,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(method, rtol, atol, time, max_calls)
        self.options = options or {}

    def run(self, sde: SDE, x: Tensor, times: Tensor, noise: Noise) -> Iterator[State]:  # noqa: D102
        try:
            odeint = importlib.import_module("torchdiffeq").odeint
        except ImportError as error:
            raise ImportError(
                "TorchdiffeqSolver needs torchdiffeq: pip install 'sde[ode]', or use DormandPrince"
            ) from error
        check_precision(self.rtol, x.dtype)
        line = coordinate(self.time, sde, times, x)
        field = _Logged(self, line, times)
        yield State(float(times[0]), x, 0)
        marks = field.marks.to(x.device, torch.float32 if x.device.type == "mps" else torch.float64)
        options: dict[str, Any] = {}
        if self.method in ADAPTIVE:
            options = {"step_t": marks[-1:], "dtype": marks.dtype}
            if torch.is_grad_enabled():  # its own choice would carry a gradient into times, where none is followed
                options["first_step"] = 0.01 * float(marks[-1])
        try:
            path = odeint(
                *(field, line.enter(x, times[0]), marks),
                rtol=self.rtol,
                atol=self.atol,
                method=self.method,
                options=options | self.options,
            )
        except AssertionError as error:
            raise ValueError(
                f"{self.method} of torchdiffeq gives up at t = {field.reached()} ({error}): raise rtol={self.rtol:g} "
                f"and atol={self.atol:g}, or let the times keep away"
            ) from error
        field.callback_step(torch.tensor(math.inf))
        for t, mark, y in zip(times[1:], field.marks[1:].tolist(), path[1:], strict=True):
            counts = field.log[bisect_left(field.log, mark - 1e-12, key=lambda entry: entry[0])][1]
            yield State(float(t), line.leave(y, t), *counts)


class _Logged(_Field):
    """A field that torchdiffeq tells of its steps."""

    def __init__(self, solver: TorchdiffeqSolver, line: Coordinate, times: Tensor) -> None:
        super().__init__(solver, line, times)
        self.log: list[tuple[float, tuple[int, int, int]]] = []
        if solver.method in ADAPTIVE:  # others warn of calls that they never make
            self.callback_accept_step, self.callback_reject_step = self._accepted, self._rejected

    def callback_step(self, v: Tensor, *_: Tensor) -> None:
        """Before a step from v: what it took to come there."""
        self.log.append((float(v.detach()), (self.calls, self.accepted, self.rejected)))

    def _accepted(self, *_: Tensor) -> None:
        self.accepted += 1

    def _rejected(self, *_: Tensor) -> None:
        self.rejected += 1

    def reached(self) -> str:
        """Time of the last step, for messages."""
        v = self.log[-1][0] if self.log else 0.0
        return self.when(torch.tensor(self.origin + self.way * v, dtype=torch.float64))
