r"""The time in which an adaptive solver steps.

An explicit rule takes long steps where slopes are smooth, and t is seldom the time in which they are. For a scalar
schedule, data of mean m and scale s, z = x0 - m and the ratio rho = sigma / alpha, the probability flow is

    angle   u = atan(rho / s),   y = (x - alpha m) / r,       dy/du = (alpha s eps - sigma z / s) / r
    log     u = log rho,         y = (x - alpha m) / alpha,   dy/du = rho eps
    t       u = t,               y = x,                       dy/du = drift

with r = hypot(alpha s, sigma). In the angle y is of unit size, nothing is stiff, and both ends are finite: alpha = 0
is u = pi/2 and sigma = 0 is u = 0. The log of the ratio ends before either; t serves any SDE. A model is asked at the
time t(u), and never outside of the times of the run. At sigma = 0 itself eps is 0 / 0: below a small angle, whose
square is a rounding, the slope is that at this angle.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from sde.forward import SDE, ScalarSDE
from sde.score import Model
from sde.shape import expand, scaled
from sde.solvers.ratio import TimeOfRatio
from sde.solvers.reverse import ReverseSDE

Time = Literal["angle", "log", "t"]
Field = Callable[[Tensor], Tensor]
"""Slope dy/du of a state y, at one time."""


def has_angle(sde: SDE) -> bool:
    """Whether the SDE is that of a model with a scalar schedule.

    Example:
        >>> import sde
        >>> has_angle(sde.BrownianMotion())
        False
    """
    return isinstance(sde, ReverseSDE) and isinstance(sde.model.sde, ScalarSDE)


def check_time(who: str, time: Time | None, sde: SDE) -> None:
    """Raise ValueError where a solver cannot step in this time on that SDE.

    Example:
        >>> import sde
        >>> check_time("DormandPrince", "t", sde.BrownianMotion())
    """
    if time not in (None, "angle", "log", "t"):
        raise ValueError(f'time must be "angle", "log" or "t", got {time!r}: leave it out for the best there is')
    if time in ("angle", "log") and not has_angle(sde):
        raise ValueError(
            f"{who}(time={time!r}) needs the ReverseSDE of a scalar SDE, got {type(sde).__name__}"
            f'{_of_model(sde)}: use time="t", or leave it out'
        )


def _of_model(sde: SDE) -> str:
    return f"(eta={sde.eta:g}) of {type(sde.model.sde).__name__}" if isinstance(sde, ReverseSDE) else ""


def coordinate(time: Time | None, sde: SDE, times: Tensor, x: Tensor) -> Coordinate:
    """The coordinate of a run: as asked for, else the angle where there is one, else t.

    Args:
        time: "angle", "log", "t" or None.
        sde: What is solved.
        times: Times of the run, (N,).
        x: A state, for its dtype.

    Example:
        >>> import torch, sde
        >>> flow = sde.ReverseSDE(sde.ExactScore(sde.Gaussian([0.0], 4.0), sde.Flow()))
        >>> line = coordinate(None, flow, torch.tensor([1.0, 0.5, 0.0]).double(), torch.zeros(1, 1))
        >>> line.of(torch.tensor([1.0, 0.0]).double())  # pi / 2 is noise, 0 is data
        tensor([1.5708, 0.0000], dtype=torch.float64)
    """
    time = time or ("angle" if has_angle(sde) else "t")
    if time == "t":
        return Plain(sde, times)
    assert isinstance(sde, ReverseSDE)
    return (Angle if time == "angle" else LogRatio)(sde.model, times, x)


class Coordinate(ABC):
    """A time u and a state y in which a flow is solved."""

    def __init__(self, times: Tensor) -> None:
        self.low, self.high = float(times.min()), float(times.max())

    @abstractmethod
    def of(self, t: Tensor) -> Tensor:
        """U at times t."""

    @abstractmethod
    def time(self, u: Tensor) -> Tensor:
        """T at u, within the times of the run."""

    @abstractmethod
    def fields(self, u: Tensor, like: Tensor) -> list[Field]:
        """Slopes at each of the rows of u, (S,) or (S, B), for states like the one given."""

    @abstractmethod
    def enter(self, x: Tensor, t: Tensor) -> Tensor:
        """Y of the state x at time t."""

    @abstractmethod
    def leave(self, y: Tensor, t: Tensor) -> Tensor:
        """State at time t of y."""


def on(t: Tensor, like: Tensor) -> Tensor:
    """Times on the device of a state, in the best precision it has; a single time stays where it is.

    Example:
        >>> on(torch.zeros(3).double(), torch.zeros(3, 2)).dtype
        torch.float64
    """
    if t.ndim == 0:
        return t
    return (t.float() if like.device.type == "mps" else t).to(like.device)


def _rows(c: Tensor, like: Tensor) -> tuple[Tensor, ...]:
    """Rows of (S, B) on the device of a state, moved together; numbers of (S,) where they are."""
    return (on(c, like) if c.ndim > 1 else c).unbind()


class Plain(Coordinate):
    """Time and state themselves.

    Example:
        >>> import sde
        >>> line = Plain(sde.DoubleWell(), torch.tensor([0.0, 1.0]))
        >>> line.time(torch.tensor([0.5, 1.5]))
        tensor([0.5000, 1.0000])
    """

    def __init__(self, sde: SDE, times: Tensor) -> None:
        super().__init__(times)
        self.sde = sde

    def of(self, t: Tensor) -> Tensor:  # noqa: D102
        return t

    def time(self, u: Tensor) -> Tensor:  # noqa: D102
        return u.clamp(self.low, self.high)

    def fields(self, u: Tensor, like: Tensor) -> list[Field]:  # noqa: D102
        return [self._field(t) for t in _rows(self.time(u), like)]

    def _field(self, t: Tensor) -> Field:
        return lambda y: self.sde.drift(y, t).to(y.dtype)

    def enter(self, x: Tensor, t: Tensor) -> Tensor:  # noqa: D102
        return x

    def leave(self, y: Tensor, t: Tensor) -> Tensor:  # noqa: D102
        return y


class _Ratio(Coordinate):
    """A function of sigma / alpha, and the state shifted and scaled: y = (x - alpha m) / r, dy/du = p z + q eps."""

    def __init__(self, model: Model, times: Tensor, x: Tensor) -> None:
        super().__init__(times)
        assert isinstance(model.sde, ScalarSDE)
        self.model, self.schedule, self.mean = model, model.sde, model.data_mean()
        self.scale = model.data_scale() or 1.0  # data in one point have no scale of their own
        self.inverse = TimeOfRatio(self.schedule, self.low, self.high)
        self.bounds = [float(u) for u in self.of(torch.tensor([self.low, self.high], dtype=torch.float64))]
        if not (math.isfinite(self.bounds[0]) and math.isfinite(self.bounds[1])):
            raise ValueError(
                f'time="log" is infinite where sigma = 0 or alpha = 0, at t = {self.low:g} or t = {self.high:g} of '
                f'{type(self.schedule).__name__}: use time="angle"'
            )

    @abstractmethod
    def ratio(self, u: Tensor) -> Tensor:
        """Sigma / alpha at u."""

    @abstractmethod
    def weights(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scale r, p and q."""

    def time(self, u: Tensor) -> Tensor:
        return self.inverse(self.ratio(u.clamp(*self.bounds)))

    def fields(self, u: Tensor, like: Tensor) -> list[Field]:
        t = self.time(u)
        alpha, sigma = (torch.as_tensor(c) for c in self.schedule.levels(t))
        coefficients = (t, alpha, *self.weights(alpha, sigma))
        return [self._field(*row) for row in zip(*(_rows(c, like) for c in coefficients), strict=True)]

    def _field(self, t: Tensor, alpha: Tensor, r: Tensor, p: Tensor, q: Tensor) -> Field:
        def slope(y: Tensor) -> Tensor:
            x = self._state(y, alpha, r)
            p_, q_ = expand(p, y), expand(q, y)
            made = self.model(x, t).combine(p_, q_)
            return made if self.mean is None else made - scaled(p_, self.mean.to(y).expand_as(y))

        return slope

    def _state(self, y: Tensor, alpha: Tensor, r: Tensor) -> Tensor:
        x = scaled(expand(r, y), y)
        return x if self.mean is None else x + scaled(expand(alpha, y), self.mean.to(y).expand_as(y))

    def enter(self, x: Tensor, t: Tensor) -> Tensor:
        alpha, r = self._frame(t)
        return (x if self.mean is None else x - scaled(alpha, self.mean.to(x).expand_as(x))) / r

    def leave(self, y: Tensor, t: Tensor) -> Tensor:
        return self._state(y, *self._frame(t))

    def size(self, t: Tensor) -> Tensor:
        """R at times t: how large the state is for each unit of y."""
        return self._frame(t)[1]

    def _frame(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = (torch.as_tensor(c) for c in self.schedule.levels(t))
        return alpha, self.weights(alpha, sigma)[0]


class Angle(_Ratio):
    """The angle between data and noise, atan(sigma / (alpha s)).

    Example:
        >>> import sde
        >>> model = sde.ExactScore(sde.Gaussian([0.0], 4.0), sde.EDM())
        >>> line = Angle(model, torch.tensor([80.0, 0.0]).double(), torch.zeros(1, 1))
        >>> line.time(torch.tensor(math.pi / 4).double())  # noise as large as the data
        tensor(2.0000, dtype=torch.float64)
    """

    def __init__(self, model: Model, times: Tensor, x: Tensor) -> None:
        super().__init__(model, times, x)
        # Where sigma = 0, eps = 0 / 0 is noise of the size of rounding / angle: both it and the slope's change over
        # the angle left out are no more than the root of rounding, and act over an angle as small.
        self.bounds[0] = min(max(self.bounds[0], math.sqrt(torch.finfo(x.dtype).eps)), self.bounds[1])

    def of(self, t: Tensor) -> Tensor:  # noqa: D102
        alpha, sigma = (torch.as_tensor(c) for c in self.schedule.levels(t))
        return torch.atan2(sigma, alpha * self.scale)

    def ratio(self, u: Tensor) -> Tensor:  # noqa: D102
        return self.scale * torch.tan(u)

    def weights(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # noqa: D102
        r = torch.hypot(alpha * self.scale, sigma)
        return r, -sigma / (self.scale * r), alpha * self.scale / r


class LogRatio(_Ratio):
    """The logarithm of sigma / alpha.

    Example:
        >>> import sde
        >>> model = sde.ExactScore(sde.Gaussian([0.0], 4.0), sde.EDM())
        >>> line = LogRatio(model, torch.tensor([80.0, 1.0]).double(), torch.zeros(1, 1))
        >>> line.of(torch.tensor([1.0]).double())
        tensor([0.], dtype=torch.float64)
    """

    def of(self, t: Tensor) -> Tensor:  # noqa: D102
        return -self.schedule.log_snr(t) / 2

    def ratio(self, u: Tensor) -> Tensor:  # noqa: D102
        return torch.exp(u)

    def weights(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # noqa: D102
        return alpha, torch.zeros_like(alpha), sigma / alpha
