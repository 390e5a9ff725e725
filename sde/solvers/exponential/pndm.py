r"""PNDM and iPNDM: the textbook's coefficients for equal steps, on the noise endpoint.

DDIM's step takes a state from t to s with an eps that is held,

    phi(x, eps; t, s) = (alpha_s / alpha_t) x + (sigma_s - (alpha_s / alpha_t) sigma_t) eps,

which is Euler's in rho = sigma / alpha for x / alpha. Pseudo-numerical methods put a classical rule's mean of several
eps in the place of one: Adams–Bashforth's, Heun's, Runge–Kutta's. Their coefficients are those of equal steps on
whatever grid, so that a rule has its own order on grids uniform in rho alone. Where neighbouring steps differ by O(h),
as on all grids of `sde.grids`, the means are off by O(h^2), and the order is 2; where they do not, it is 1. `DEIS` has
the coefficients of the grid.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sde.forward import SDE, ScalarSDE
from sde.random import Noise
from sde.score import Model
from sde.solvers.exponential.adams import Adams
from sde.solvers.exponential.base import Along
from sde.solvers.solver import needs_model

ADAMS_BASHFORTH = torch.tensor(
    [
        [1, 0, 0, 0],
        [3 / 2, -1 / 2, 0, 0],
        [23 / 12, -16 / 12, 5 / 12, 0],
        [55 / 24, -59 / 24, 37 / 24, -9 / 24],
    ],
    dtype=torch.float64,
)


class IPNDM(Adams):
    """iPNDM: Adams–Bashforth for equal steps on eps, of growing order through the first steps.

    Args:
        order: From 1 (DDIM) to 4, the authors'. On grids of neighbouring steps that are nearly equal 2 is observed for
            2 to 4, as the module says, and as for any such start.

    References:
        Zhang & Chen (2023), 2204.13902, after Liu et al. (2022), 2202.09778.

    Example:
        >>> import torch, sde
        >>> model = sde.ExactScore(sde.Gaussian([3.0], 0.25), sde.VP())
        >>> sde.sample(model, (8, 1), steps=10, solver=IPNDM()).shape
        torch.Size([8, 1])
    """

    def __init__(self, order: int = 4) -> None:
        if isinstance(order, bool) or order not in (1, 2, 3, 4):
            raise ValueError(f"order must be 1, 2, 3 or 4, got {order!r}: 4 is the authors'; DEIS goes up to 8")
        super().__init__(order, "eps", "ratio", corrector=False)

    @property
    def nominal(self) -> float:
        """Of the rule on nearly equal steps."""
        return float(min(self.k, 2))

    def columns(self, model: Model, eta: float, times: Tensor) -> Sequence[Tensor]:  # noqa: D102
        forward = model.sde
        assert isinstance(forward, ScalarSDE)
        along = Along(forward, model.data_scale(), times, "eps", "ratio")
        there = along.u[:-1].isfinite()
        w = along.first[:, None] * ADAMS_BASHFORTH[(there.cumsum(0) - 1).clamp(0, self.k - 1), : self.k]
        return along.p[:-1], along.q[:-1], along.c, along.shift, w


class PNDM(IPNDM):
    """PNDM: a pseudo-numerical multistep rule behind pseudo-numerical one-step rules.

    | order | start         | is                                                            | more evaluations |
    |-------|---------------|---------------------------------------------------------------|------------------|
    | 4     | "runge-kutta" | F-PNDM: three Runge–Kutta steps, their midpoints halfway in t | 3 for each       |
    | 2     | "heun"        | S-PNDM: one step of Heun                                      | 1                |
    | 4     | "heun"        | PLMS: one step of Heun, then a growing order                  | 1                |

    A first step from alpha = 0, and a last one to sigma = 0, evaluate once.

    Args:
        order: k, from 2 to 4.
        start: "runge-kutta" for the first k - 1 steps, or "heun" for the first.

    References:
        Liu et al. (2022), 2202.09778, eq. 9, 12 and 13, algorithm 2.

    Example:
        >>> import torch, sde
        >>> model = sde.ExactScore(sde.Gaussian([3.0], 0.25), sde.VP())
        >>> sde.sample(model, (8, 1), steps=10, solver=PNDM()).shape
        torch.Size([8, 1])
    """

    def __init__(self, order: int = 4, start: str = "runge-kutta") -> None:
        if isinstance(order, bool) or order not in (2, 3, 4):
            raise ValueError(f"order must be 2, 3 or 4, got {order!r}: IPNDM takes 1, which is DDIM")
        if start not in ("runge-kutta", "heun"):
            raise ValueError(f"start must be runge-kutta or heun, got {start!r}: IPNDM has none")
        super().__init__(order)
        self.runge = start == "runge-kutta"
        self.fractions = (0.5,) if self.runge else ()

    def columns(self, model: Model, eta: float, times: Tensor) -> Sequence[Tensor]:  # noqa: D102
        forward = model.sde
        assert isinstance(forward, ScalarSDE)
        p, q, c, shift, w = super().columns(model, eta, times)
        alpha, sigma = forward.levels(times)
        at = (alpha[:-1] > 0).cumsum(0)
        begins = (at >= 1) & (at <= (self.k - 1 if self.runge else 1)) & (sigma[1:] > 0) & (sigma[:-1] > 0)
        # The mean of a one-step rule is taken across the whole step, and across half of it for its inner stages.
        first = sigma[1:] - c * sigma[:-1]
        half_alpha, half_sigma = forward.levels((times[:-1] + times[1:]) / 2)
        half_c = half_alpha / alpha[:-1]
        return p, q, c, shift, begins, first, half_c, half_sigma - half_c * sigma[:-1], w

    def step(self, sde: SDE, x: Tensor, t: float, s: float, noise: Noise) -> Tensor:  # noqa: D102
        model = needs_model(self, sde).model
        *row, begins, first, half_c, half_first, w = self.row(sde, t, s)
        row = (*row, w)
        value = self._value(model, x, t, row)
        self.memory = [value, *self.memory[: self.k - 1]]
        self.calls = 1
        if not begins:
            return self._advance(model, x, row, self.memory)
        c, mean = row[2], value
        if self.runge:
            self.calls, half, y = 4, self.stage(sde, t, s, 0), x * half_c
            e2 = model(torch.add(y, value, alpha=half_first), half).eps
            e3 = model(torch.add(y, e2, alpha=half_first), half).eps
            e4 = model(torch.add(x * c, e3, alpha=first), s).eps
            mean = (value + 2 * (e2 + e3) + e4) / 6
        else:
            self.calls = 2
            mean = (value + model(torch.add(x * c, value, alpha=first), s).eps) / 2
        return torch.add(x * c, mean, alpha=first)
