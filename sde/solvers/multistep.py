r"""Multistep solvers: one evaluation a step, the slopes of earlier steps remembered.

With the data's mean m and scale s, r = hypot(alpha s, sigma) and the angle theta = atan(sigma / (alpha s)), the state
y = (x - alpha m) / r turns from noise (theta = pi/2) to data (theta = 0), and with z = x0 - m the probability flow is
exactly

    dy / dtheta = -F,        F = (sigma z / s - alpha s eps) / r,

for every scalar schedule. F is what a network of the `edm` parameterisation puts out: of unit size at every noise
level, and 0 for Gaussian data of covariance s^2. Nothing stiff is left, so that an explicit rule of high order takes
long steps. The Adams–Bashforth rule of order k integrates the polynomial through the last k slopes over the step, on
whatever grid it is given:

    y_{i+1} = y_i - sum_j w_j F_{i-j},        sum_j w_j (theta_{i-j} - theta_i)^n = h^{n+1} / (n + 1),   n < k.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor

from sde.forward import SDE, ScalarSDE
from sde.nodes import Node
from sde.random import Noise
from sde.shape import as_time
from sde.solvers.solver import Solver, needs_model


def adams_bashforth_weights(nodes: Tensor, end: Tensor) -> Tensor:
    """Weights (n, k) that integrate the polynomial through nodes (n, k), the newest first, from the newest to end (n,).

    Example:
        >>> nodes, end = torch.tensor([[0.0, -1.0]], dtype=torch.float64), torch.ones(1, dtype=torch.float64)
        >>> adams_bashforth_weights(nodes, end)  # the textbook's 3/2 and -1/2
        tensor([[ 1.5000, -0.5000]], dtype=torch.float64)
    """
    h = (end - nodes[:, 0])[:, None]
    n = torch.arange(nodes.shape[1], dtype=nodes.dtype)
    u = (nodes - nodes[:, :1]) / h  # in units of the step, so that the system is well scaled
    moments = (1 / (n + 1)).expand_as(u)
    return h * torch.linalg.solve(u[:, None, :] ** n[:, None], moments)


class AdamsBashforth(Solver):
    """Adams–Bashforth in the angle between data and noise: `sample`'s default.

    The first steps use what slopes there are, so that the observed order on ever finer grids is 2 for every k >= 2 (the
    first step is Euler's), while at practical step counts the error falls as for order k.

    Args:
        order: k, from 1 to 8.

    References:
        Adams & Bashforth (1883); in exponential form for diffusion models Zhang & Chen (2023), 2204.13902 (DEIS), and
        Lu et al. (2022), 2211.01095 (DPM-Solver++); the angle: Salimans & Ho (2022), 2202.00512, appendix D, for DDIM.

    Example:
        >>> import torch, sde
        >>> model = sde.ExactScore(sde.Gaussian([3.0], 0.25), sde.VP())
        >>> sde.sample(model, (8, 1), steps=10, solver=sde.AdamsBashforth(order=3)).shape
        torch.Size([8, 1])
    """

    calls = 1

    def __init__(self, order: int = 3) -> None:
        if not 1 <= order <= 8:
            raise ValueError(f"order must lie between 1 and 8, got {order}: 3 is the default")
        self.k = order
        self.memory: deque[tuple[float, Tensor]] = deque(maxlen=order)

    @property
    def order(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Observed on ever finer grids: 2, as the start-up is of order 1 for one step; 1 for k = 1."""
        return float(min(self.k, 2))

    def start(self, sde: SDE, times: Tensor) -> Solver:  # noqa: D102
        return AdamsBashforth(self.k)

    def check(self, sde: SDE) -> None:  # noqa: D102
        reverse = needs_model(self, sde)
        if reverse.eta > 0:
            raise ValueError(
                f"AdamsBashforth solves the probability flow, got eta={reverse.eta}: use eta=0, or EulerMaruyama"
            )
        if not isinstance(reverse.model.sde, ScalarSDE):
            raise ValueError(
                f"AdamsBashforth needs a scalar SDE, got {type(reverse.model.sde).__name__}: use Heun or RK4"
            )

    def step(self, sde: SDE, x: Tensor, t: float, s: float, noise: Noise) -> Tensor:  # noqa: D102
        model = needs_model(self, sde).model
        theta, p, q, growth, shift, *w = self._coefficients(model, t, s)
        slope, mean = model(x, t).combine(p, q), model.data_mean()
        if mean is not None:
            slope = slope - p * mean.to(slope)
        self.memory.appendleft((theta, slope))
        y = x * growth if mean is None else x * growth + shift * mean.to(x)
        for weight, (_, past) in zip(w, self.memory, strict=False):
            y = torch.add(y, past, alpha=-weight)
        return y

    def _coefficients(self, model: Any, t: float, s: float) -> tuple[float, ...]:
        """theta and F = p x0 + q eps at t; x_s = growth x + shift m - sum_j w_j F_j."""
        forward, scale, k = model.sde, model.data_scale(), self.k
        # The grid's own column, unless an earlier step went by another rule and left no slope.
        if type(t) is Node and type(s) is Node and len(self.memory) >= min(k - 1, t.index):
            return t.table.column(forward, ("angle", k, scale), lambda u: _angles(forward, scale, u, k))[t.index]
        past = [theta for theta, _ in self.memory]
        times = torch.tensor([float(t), float(s)], dtype=torch.float64)
        return tuple(float(c[0]) for c in _angles(forward, scale, times, k, past))


def _angles(sde: ScalarSDE, scale: float, times: Tensor, k: int, past: list[float] | None = None) -> tuple[Tensor, ...]:
    """Coefficients of the steps from each time to the next; the last row is a dummy."""
    alpha, sigma = sde.levels(as_time(times))
    theta, r = torch.atan2(sigma, alpha * scale), torch.hypot(alpha * scale, sigma)
    following = torch.arange(1, len(times) + 1).clamp_max(len(times) - 1)
    before = torch.tensor((past or [])[: k - 1][::-1], dtype=theta.dtype)
    known = torch.cat([before, theta])
    w = theta.new_zeros(len(times), k)
    for i in range(k):  # steps with i + 1 slopes at hand
        rows = torch.arange(len(times) - 1)
        have = (rows + len(before)).clamp_max(k - 1) == i
        rows = rows[have]
        if len(rows):
            at = rows[:, None] + len(before) - torch.arange(i + 1)
            w[rows, : i + 1] = adams_bashforth_weights(known[at], theta[rows + 1])
    growth = r[following] / r
    shift = alpha[following] - growth * alpha
    return theta, sigma / (scale * r), -alpha * scale / r, growth, shift, *(r[following, None] * w).unbind(1)
