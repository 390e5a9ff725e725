r"""DEIS: the noise endpoint held to a polynomial, or stepped by a Runge–Kutta rule, along the exact linear part.

With rho = sigma / alpha the probability flow of any scalar SDE is d(x / alpha) = eps d rho. Between two nodes

    x_s = (alpha_s / alpha_t) x_t + alpha_s int eps d rho,

with eps the polynomial through its last k values, in t (tAB), in rho (rho AB) or in log rho; or with the integral by a
Runge–Kutta rule on the equation in rho, which is an ODE without linear part (rho RK).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sde.forward import SDE, ScalarSDE
from sde.random import Noise
from sde.score import Model
from sde.solvers.exponential.adams import Adams
from sde.solvers.exponential.base import Along, Exponential
from sde.solvers.solver import needs_model

COORDINATES = ("t", "ratio", "log_snr")


class DEIS(Adams):
    """DEIS of Adams–Bashforth type: `Adams` on eps without a corrector.

    Order 1 is DDIM; order 4 in t is the paper's tAB3, its recommendation. log_snr is the polynomial in log rho that
    diffusers takes: on a grid whose last step is long in log rho, as with equal steps in t, it extrapolates too far.

    Args:
        order: Values k that the polynomial goes through, from 1 to 8; its degree, by which the paper counts, is k - 1.
        coordinate: Of the polynomial: "t" (tAB), "ratio" (rho AB) or "log_snr".
        start: "ramp", as in the paper, or "full": see `Adams`.

    References:
        Zhang & Chen (2023), 2204.13902.

    Example:
        >>> import torch, sde
        >>> model = sde.ExactScore(sde.Gaussian([3.0], 0.25), sde.VP())
        >>> sde.sample(model, (8, 1), steps=10, solver=DEIS(order=3)).shape
        torch.Size([8, 1])
    """

    def __init__(self, order: int = 4, coordinate: str = "t", start: str = "ramp") -> None:
        if coordinate not in COORDINATES:
            raise ValueError(f"coordinate must be one of {', '.join(COORDINATES)}, got {coordinate!r}")
        super().__init__(order, "eps", coordinate, corrector=False, start=start)


class Tableau(NamedTuple):
    """A Runge–Kutta rule: each later stage as (c, its row of a), and the weights b.

    Example:
        >>> sum(RHO_RK["kutta3"].b)
        1.0
    """

    order: int
    stages: tuple[tuple[float, tuple[float, ...]], ...]
    b: tuple[float, ...]


RHO_RK = {
    "heun2": Tableau(2, ((1.0, (1.0,)),), (1 / 2, 1 / 2)),
    "kutta3": Tableau(3, ((0.5, (0.5,)), (1.0, (-1.0, 2.0))), (1 / 6, 2 / 3, 1 / 6)),
    "rk4": Tableau(4, ((0.5, (0.5,)), (0.5, (0.0, 0.5)), (1.0, (0.0, 0.0, 1.0))), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
}


class RhoRK(Exponential):
    """DEIS of Runge–Kutta type: a rule on d(x / alpha) = eps d rho. On `EDM`, "heun2" is EDM's deterministic sampler.

    A step from alpha = 0 or to sigma = 0, where rho or eps is infinite, is one of DDIM.

    Args:
        rule: "heun2", "kutta3" or "rk4", of as many evaluations a step as their order.

    References:
        Zhang & Chen (2023), 2204.13902; Karras et al. (2022), 2206.00364, algorithm 1.

    Example:
        >>> import torch, sde
        >>> model = sde.ExactScore(sde.Gaussian([3.0], 0.25), sde.VP())
        >>> sde.sample(model, (8, 1), steps=10, solver=RhoRK("kutta3")).shape
        torch.Size([8, 1])
    """

    def __init__(self, rule: str = "kutta3") -> None:
        super().__init__()
        if rule not in RHO_RK:
            raise ValueError(f"rule must be one of {', '.join(RHO_RK)}, got {rule!r}")
        self.rule, self.tableau = rule, RHO_RK[rule]
        self.calls = self.tableau.order
        self.inner = sorted({c for c, _ in self.tableau.stages} - {1.0})

    @property
    def order(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """That of the rule."""
        return float(self.tableau.order)

    def stages(self, sde: SDE, times: Tensor) -> Sequence[Tensor]:  # noqa: D102
        forward = needs_model(self, sde).model.sde
        assert isinstance(forward, ScalarSDE)
        return self._inner_times(forward, times)

    def _inner_times(self, forward: ScalarSDE, times: Tensor) -> list[Tensor]:
        """Times at the rule's fractions of each step in rho."""
        rho = torch.exp(-forward.log_snr(times) / 2)
        found = [forward.time_at(-2 * torch.log(rho[:-1] + c * rho.diff())) for c in self.inner]
        middle = (times[:-1] + times[1:]) / 2  # of a step that needs none
        return [torch.where(time.isfinite(), time, middle) for time in found]

    def columns(self, model: Model, eta: float, times: Tensor) -> Sequence[Tensor]:  # noqa: D102
        forward = model.sde
        assert isinstance(forward, ScalarSDE)
        along = Along(forward, model.data_scale(), times, "eps", "ratio")
        length = along.u.diff()
        whole = length.isfinite() & (along.sigma[1:] > 0)
        inner = dict(zip(self.inner, self._inner_times(forward, times), strict=True))
        at = [forward.levels(inner[c])[0] if c < 1 else along.alpha[1:] for c, _ in self.tableau.stages]
        alpha = torch.stack([torch.as_tensor(a) for a in at], 1)
        growth, reach = alpha / along.alpha[:-1, None], alpha * length[:, None]
        return along.p[:-1], along.q[:-1], along.c, along.first, whole, growth, reach

    def step(self, sde: SDE, x: Tensor, t: float, s: float, noise: Noise) -> Tensor:  # noqa: D102
        model = needs_model(self, sde).model
        p, q, c, first, whole, growth, reach = self.row(sde, t, s)
        slopes = [model(x, t).combine(p, q)]
        if not whole:
            self.calls = 1
            return torch.add(x * c, slopes[0], alpha=first)
        self.calls = self.tableau.order
        for (at, row), g, h in zip(self.tableau.stages, growth, reach, strict=True):
            time = s if at == 1.0 else self.stage(sde, t, s, self.inner.index(at))
            slopes.append(model(_sum(x * g, row, slopes, h), time).eps)
        return _sum(x * c, self.tableau.b, slopes, first)


def _sum(y: Tensor, weights: Sequence[float], values: Sequence[Tensor], scale: float) -> Tensor:
    """y + scale sum_j weights_j values_j."""
    for weight, value in zip(weights, values, strict=True):
        y = torch.add(y, value, alpha=scale * weight) if weight else y
    return y
