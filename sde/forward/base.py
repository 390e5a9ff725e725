r"""Stochastic differential equations, at two levels of knowledge.

Level 1, `SDE`: dx = f(x, t) dt + G(x, t) dW, given as `drift(x, t)` and the product `diffusion(x, t, z)` = G(x, t) z.
Because noise enters as a product, scalar, diagonal, matrix and state-dependent noise are one code path.

Level 2, `ForwardSDE`: linear-Gaussian corruption x_t = A(t) x0 + L(t) eps with eps ~ N(0, I), written as actions on
tensors, so that scalar and matrix coefficients look the same to every caller. With Sigma = L L' the marginal given x0
is N(A x0, Sigma), and everything a sampler needs follows:

    score      grad log p(x_t | x0) = -L^-T eps
    velocity   dx/dt of the probability flow = f - G G' score / 2          (Song et al. 2021, 2011.13456, eq. 13)
    statistic  x^ = (A' Sigma^-1 A)^-1 A' Sigma^-1 x, all that x_t says of x0, with variance (A' Sigma^-1 A)^-1

Data live at t = 0, noise at t_max; a grid's direction decides forward or reverse.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from sde.forward.arguments import shaped
from sde.forward.point import Point
from sde.random import Generator, randn_like
from sde.shape import Coefficient, as_time, sum_event


class SDE(ABC):
    """Level-1 SDE: dx = drift dt + G dW.

    Attributes:
        noisy: False for an ODE. A noisy SDE runs one way in time only: see `direction`.
        additive: False where G depends on x; Heun and RK4 would then converge to the Stratonovich solution.
        direction: +1 where the SDE runs up in time, -1 where it runs down, 0 for either.
        tabulates: True where times are accepted as `sde.nodes.Node`; leave it False in your own.

    Example:
        >>> import torch, sde
        >>> class Decay(sde.SDE):
        ...     noisy, direction = False, 0
        ...
        ...     def drift(self, x, t):
        ...         return -x
        ...
        ...     def diffusion(self, x, t, z):
        ...         return torch.zeros_like(z)
        >>> times = torch.linspace(0, 1, 101)
        >>> x = sde.integrate(Decay(), torch.ones(1, 1), times, sde.RK4())
        >>> round(x.item(), 4)
        0.3679
    """

    noisy: bool = True
    additive: bool = True
    direction: int = +1
    tabulates: bool = False

    @abstractmethod
    def drift(self, x: Tensor, t: float | Tensor) -> Tensor:
        r"""f(x, t), shaped as x, for t of shape () or (B,)."""

    @abstractmethod
    def diffusion(self, x: Tensor, t: float | Tensor, z: Tensor) -> Tensor:
        """G(x, t) z, shaped as x."""

    def advance(self, x: Tensor, t: float | Tensor, h: float) -> Tensor:
        """x + h drift(x, t); fewer kernels where the drift is a combination that x can join."""
        return torch.add(x, self.drift(x, t), alpha=h)

    def kick(self, y: Tensor, c: float, x: Tensor, t: float | Tensor, z: Tensor) -> Tensor:
        """y + c G(x, t) z; fewer kernels where G is a number."""
        return torch.add(y, self.diffusion(x, t, z), alpha=c)

    def singular(self, t: float | Tensor) -> bool:
        """True where drift or diffusion is infinite at time t."""
        return False


class ForwardSDE(SDE):
    """Level-2 SDE: x_t = A(t) x0 + L(t) eps, as actions on tensors.

    Attributes:
        t_min: First time at which everything is finite: where sampling stops.
        t_max: Time of the prior.
    """

    t_min: float
    t_max: float
    tabulates = True

    def check_time(self, t: float | Tensor) -> None:
        """Raise ValueError unless 0 <= t <= t_max; times on a GPU pass unseen, as a look would halt it."""
        u = t if isinstance(t, Tensor) else torch.tensor(float(t), dtype=torch.float64)
        high = self.t_max * (1 + 1e-6)  # a float32 time may be rounded past t_max
        seen = u.device.type == "cpu" and not torch.compiler.is_compiling()
        if seen and not bool(((u >= 0) & (u <= high)).all()):
            raise ValueError(
                f"t must lie in [0, {self.t_max:g}] for {type(self).__name__}, got {float(u.min()):g} to "
                f"{float(u.max()):g}: data are at t = 0, noise at t_max"
            )

    @abstractmethod
    def mean(self, x0: Tensor, t: float | Tensor) -> Tensor:
        r"""A x0: from (B, \*D) to a state."""

    @abstractmethod
    def unmean(self, r: Tensor, t: float | Tensor) -> Tensor:
        r"""A^+ r in the metric of Sigma: from a state to (B, \*D); 0 where A = 0."""

    @abstractmethod
    def color(self, eps: Tensor, t: float | Tensor) -> Tensor:
        """L eps."""

    @abstractmethod
    def whiten(self, r: Tensor, t: float | Tensor) -> Tensor:
        """L^-1 r."""

    @abstractmethod
    def score(self, eps: Tensor, t: float | Tensor) -> Tensor:
        """-L^-T eps."""

    @abstractmethod
    def tilt(self, g: Tensor, t: float | Tensor) -> Tensor:
        """L' g."""

    @abstractmethod
    def gain(self, s: Tensor, t: float | Tensor) -> Tensor:
        """G G' s."""

    @abstractmethod
    def logdet(self, t: float | Tensor, x: Tensor) -> Coefficient:
        """Log |det L|, summed over one sample's state: () or (B,)."""

    @abstractmethod
    def velocity(self, point: Point) -> Tensor:
        """dx/dt of the probability flow at a point."""

    def reverse_drift(self, point: Point, eta: float) -> Tensor:
        """Velocity - eta^2 / 2 G G' score: the drift of the reverse SDE."""
        if eta == 0.0:
            return self.velocity(point)
        return self.velocity(point) - (eta**2 / 2) * self.gain(point.score, point.t)

    @abstractmethod
    def transition(self, x: Tensor, s: float | Tensor, t: float | Tensor, z: Tensor) -> Tensor:
        """Draw of x_t given x_s = x, s < t, from the standard normal z."""

    @abstractmethod
    def transition_gain(self, r: Tensor, s: float | Tensor, t: float | Tensor) -> Tensor:
        """Covariance of x_t given x_s, applied to r."""

    @abstractmethod
    def bridge(self, x0: Tensor, x: Tensor, t: float | Tensor, s: float | Tensor, z: Tensor) -> Tensor:
        """Draw of x_s given x_t = x and x0, s < t, from the standard normal z."""

    @abstractmethod
    def clock(self, t: Tensor) -> Tensor:
        """What a network is told about a tensor of times; finite on [t_min, t_max]."""

    @abstractmethod
    def log_snr(self, t: float | Tensor) -> Tensor:
        """Log alpha^2 / sigma^2 of the statistic, decreasing in t."""

    def time_at(self, log_snr: Tensor) -> Tensor:
        """Time at which `log_snr` takes the given values, clipped to [t_min, t_max]."""
        return self.inverse(as_time(log_snr)).clamp(self.t_min, self.t_max)

    def inverse(self, log_snr: Tensor) -> Tensor:
        """Inverse of `log_snr`, any value outside of its range: by bisection, unless a subclass states it."""
        low, high = torch.full_like(log_snr, self.t_min), torch.full_like(log_snr, self.t_max)
        for _ in range(60):  # halvings of an interval in float64
            mid = (low + high) / 2
            early = self.log_snr(mid) > log_snr
            low, high = torch.where(early, mid, low), torch.where(early, high, mid)
        return (low + high) / 2

    @abstractmethod
    def rates_of_statistic(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """alpha, sigma of the statistic and their time derivatives at a tensor of times."""

    @abstractmethod
    def statistic(self, x: Tensor, t: float | Tensor) -> tuple[Tensor, Coefficient, Coefficient]:
        r"""(y, alpha, sigma) with y = alpha x0 + sigma n all that x says of x0. y: (B, \*D)."""

    @abstractmethod
    def log_residual(self, x: Tensor, t: float | Tensor) -> Coefficient:
        """Log p(x | y) of the state beyond its statistic y, which does not depend on the data: (B,)."""

    def mixed(self, x0: Tensor, t: float | Tensor, eps: Tensor) -> Tensor:
        """A x0 + L eps.

        Raises:
            ValueError: If eps is not shaped as the state.
        """
        mean = self.mean(x0, t)
        shaped(eps, mean)
        return mean + self.color(eps, t)

    def state(self, x0: Tensor) -> Tensor:
        """Zeros in the shape of the state of x0."""
        return torch.zeros_like(x0)

    def velocity_singular(self, t: float | Tensor) -> bool:
        """True where the probability flow has no finite velocity at time t."""
        return False

    def published(self, t: Tensor) -> tuple[Tensor, Tensor] | None:
        """(f, g), or (F, G), as the source prints them, independent of the moments; None if not stated."""
        return None

    # Derived from the actions above; never overridden.

    def at(self, x0: Tensor, t: float | Tensor, eps: Tensor) -> Point:
        r"""Point at time t with the given endpoints: x0 (B, \*D), eps shaped as the state.

        Raises:
            ValueError: If eps is not shaped as the state.
        """
        return Point(self, self.mixed(x0, t, eps), t, x0, eps)

    def perturb(self, x0: Tensor, t: float | Tensor, generator: Generator = None) -> Point:
        r"""Draw of x_t given x0, with its endpoints.

        Args:
            x0: Data, (B, \*D), floating.
            t: Time in [0, t_max], () or (B,).
            generator: For eps.

        Raises:
            TypeError: If x0 is not floating.
            ValueError: If x0 has no batch axis, or t is out of range or of another shape.
        """
        if not x0.is_floating_point():
            raise TypeError(f"x0 must be floating, got {x0.dtype}: use x0.float()")
        if x0.ndim < 2:
            raise ValueError(f"x0 must be (B, *D), got shape {tuple(x0.shape)}: use x0[:, None] for numbers")
        self.check_time(t)
        return self.at(x0, t, randn_like(self.state(x0), generator))

    def prior(
        self, x0_like: Tensor, mean: float | Tensor = 0.0, scale: float = 1.0, generator: Generator = None
    ) -> Tensor:
        """Draw from N(A mean, scale^2 A A' + L L') at t_max: the marginal of data of that mean and scale."""
        z = randn_like(x0_like, generator)
        x0 = torch.add(mean, z, alpha=scale) if isinstance(mean, Tensor) else mean + scale * z
        return self.mixed(x0, self.t_max, randn_like(self.state(x0), generator))

    def prior_log_prob(self, x: Tensor, mean: float | Tensor = 0.0, scale: float = 1.0) -> Tensor:
        """Log-density of `prior` at x: (B,)."""
        y, alpha, sigma = self.statistic(x, as_time(self.t_max))
        variance = torch.as_tensor(alpha**2 * scale**2 + sigma**2).to(y)
        r = y - alpha * torch.as_tensor(mean).to(y)
        return sum_event(-(r**2) / (2 * variance) - 0.5 * torch.log(2 * math.pi * variance)) + self.log_residual(
            x, as_time(self.t_max)
        )
