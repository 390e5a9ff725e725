r"""Exponential integrators: the probability flow with its linear part solved, and a polynomial for the rest.

Whatever is predicted of the endpoints, E = p z + q eps with z = x0 - mean, the flow of a scalar SDE is exactly

    x_s - alpha_s m = c (x_t - alpha_t m) + C int_t^s E dkappa,                rho = sigma / alpha

| predict | E                                 | c                 | C       | kappa         |
|---------|-----------------------------------|-------------------|---------|---------------|
| eps     | eps                               | alpha_s / alpha_t | alpha_s | rho           |
| x0      | z                                 | sigma_s / sigma_t | sigma_s | 1 / rho       |
| edm     | (sigma z / a - alpha a eps) / r   | r_s / r_t         | -r_s    | atan(rho / a) |

with a the data's scale and r = hypot(alpha a, sigma). The last is the split that leaves the least: E is of unit size at
every noise level, 0 for Gaussian data of covariance a^2, and in the angle kappa = theta nothing stiff is left. A rule
of order k integrates the polynomial in a coordinate u through the last k values of E,

    int E dkappa = sum_j w_j E_{i-j},        w_j = int L_j(u) dkappa/du du   (Gauss-Legendre, on any grid).
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde.forward import SDE, ScalarSDE
from sde.random import Noise
from sde.score import Model
from sde.solvers.solver import Solver, needs_model


class Exponential(Solver):
    """A rule on the endpoints of a model under a scalar SDE, whose coefficients are made once for a grid.

    Write `columns`; `step` reads the row of its time by `row`. A run's object is a copy with its own memory.
    """

    ends = True
    noise_levels = (0.0, 0.0)
    """Least and largest eta."""

    def __init__(self) -> None:
        self.rows: dict[float, Any] = {}
        self.memory: list[Tensor] = []

    @abstractmethod
    def columns(self, model: Model, eta: float, times: Tensor) -> Sequence[Tensor]:
        """Coefficients of the steps along a grid (N,), float64: each (N - 1,) for a number, (N - 1, k) for k."""

    def start(self, sde: SDE, times: Tensor) -> Solver:  # noqa: D102
        reverse, fresh = needs_model(self, sde), copy.copy(self)
        columns = [column.tolist() for column in self.columns(reverse.model, reverse.eta, times)]
        fresh.rows = dict(zip(times.tolist(), zip(*columns, strict=True), strict=False))
        fresh.memory = []
        return fresh

    def row(self, sde: SDE, t: float, s: float) -> Any:
        """Coefficients of the step from t to s: of the run's grid, or of a grid of this one step."""
        found = self.rows.get(float(t))
        if found is None:
            alone = self.start(sde, torch.tensor([float(t), float(s)], dtype=torch.float64))
            assert isinstance(alone, Exponential)
            self.memory, found = [], alone.rows[float(t)]
        return found

    def check(self, sde: SDE) -> None:  # noqa: D102
        reverse, (low, high) = needs_model(self, sde), self.noise_levels
        name = type(self).__name__
        if not low <= reverse.eta <= high:
            if high == 0:
                raise ValueError(
                    f"{name} solves the probability flow, got eta={reverse.eta}: use eta=0, or EulerMaruyama"
                )
            raise ValueError(f"{name} takes eta from {low:g} to {high:g}, got eta={reverse.eta}")
        if not isinstance(reverse.model.sde, ScalarSDE):
            raise ValueError(f"{name} needs a scalar SDE, got {type(reverse.model.sde).__name__}: use Heun or RK4")


class Along:
    """The linear part of each step along a grid, and integrals over the steps of polynomials through its nodes.

    Args:
        forward: Scalar SDE.
        scale: Of the data: a.
        times: Grid (N,), either way.
        predict: E of the module's table.
        coordinate: u of the polynomials.
    """

    def __init__(self, forward: ScalarSDE, scale: float, times: Tensor, predict: str, coordinate: str) -> None:
        self.forward, self.a, self.predict, self.coordinate = forward, scale, predict, coordinate
        alpha, sigma = self.alpha, self.sigma = forward.levels(times)
        self.r = torch.hypot(alpha * scale, sigma)
        rho, dead = sigma / alpha, torch.zeros_like(alpha, dtype=torch.bool)
        if predict == "edm":
            self.p, self.q = sigma / (scale * self.r), -alpha * scale / self.r
            self.c = self.r[1:] / self.r[:-1]
            theta = torch.atan2(sigma, alpha * scale)
            self.first = -self.r[1:] * theta.diff()
        else:
            dead = alpha == 0 if predict == "eps" else dead  # nothing of eps can be told from x there: z instead
            self.p = (dead if predict == "eps" else ~dead).double()
            self.q = 1 - self.p
            on_z = self.p[:-1] == 1
            self.c = torch.where(on_z, sigma[1:] / sigma[:-1], alpha[1:] / alpha[:-1])
            self.first = torch.where(on_z, alpha[1:] - self.c * alpha[:-1], sigma[1:] - self.c * sigma[:-1])
        self.shift = alpha[1:] - self.c * alpha[:-1]
        u = {"t": times, "ratio": rho, "log_snr": -torch.log(rho), "angle": torch.atan2(sigma, alpha * scale)}[
            coordinate
        ]
        self.u = torch.where(dead | ~u.isfinite(), torch.nan, u)

    def integrals(self, steps: Tensor, lead: int, k: int, end: int = 1) -> Tensor:
        """C int L_j dkappa over the steps from nodes `steps`, (n, k): through the nodes steps + lead and before.

        Where fewer than two nodes are there, or where an end is infinite, the first-order rule: E held.
        """
        at = steps[:, None] + lead - torch.arange(k)
        nodes = torch.where(at < 0, torch.nan, self.u[at.clamp_min(0)])
        begin, h = self.u[steps], self.u[steps + end] - self.u[steps]
        x, w = (torch.from_numpy(c) for c in np.polynomial.legendre.leggauss(QUADRATURE))
        x, w = (x + 1) / 2, w / 2
        density = self._density(begin[:, None] + h[:, None] * x, steps + end)
        found = lagrange_integrals(
            (nodes - begin[:, None]) / h[:, None], x.expand(len(steps), -1), h[:, None] * w * density
        )
        held = torch.zeros_like(found)
        held[:, lead] = self.first[steps] if end == 1 else torch.nan
        good = (nodes.isfinite().sum(1, keepdim=True) > 1) & found.isfinite().all(1, keepdim=True)
        return torch.where(good, found, held)

    def _density(self, u: Tensor, to: Tensor) -> Tensor:
        """C dkappa/du at points u (n, q) of steps that end at the nodes `to`."""
        if self.coordinate == "t":
            alpha, sigma, dalpha, dsigma = (c.reshape(u.shape) for c in self.forward.rates(u.flatten()))
            rho, drho = sigma / alpha, (dsigma * alpha - sigma * dalpha) / alpha**2
        elif self.coordinate == "ratio":
            rho, drho = u, torch.ones_like(u)
        elif self.coordinate == "log_snr":
            rho = torch.exp(-u)
            drho = -rho
        else:
            rho = self.a * torch.tan(u)
            drho = self.a + rho**2 / self.a
        if self.predict == "eps":
            return self.alpha[to, None] * drho
        if self.predict == "x0":
            return -self.sigma[to, None] * drho / rho**2
        return -self.r[to, None] * self.a * drho / (self.a**2 + rho**2)


def lagrange_integrals(nodes: Tensor, points: Tensor, weights: Tensor) -> Tensor:
    """Integrals of the Lagrange polynomials: sum_q weights_q L_j(points_q).

    Args:
        nodes: (n, k); NaN for those that are not there.
        points: Abscissae, (n, q).
        weights: Of the quadrature, times the density of the integral, (n, q).

    Returns:
        (n, k), 0 where there is no node.

    Example:
        >>> nodes = torch.tensor([[0.0, -1.0]], dtype=torch.float64)
        >>> half = torch.tensor([[0.5]], dtype=torch.float64)  # the midpoint rule on [0, 1], exact for straight lines
        >>> lagrange_integrals(nodes, half, 2 * half)  # the textbook's 3/2 and -1/2
        tensor([[ 1.5000, -0.5000]], dtype=torch.float64)
    """
    k = nodes.shape[1]
    there = nodes.isfinite()
    at = torch.where(there, nodes, 0.0)
    gap = at[:, :, None] - at[:, None, :]
    same = torch.eye(k, dtype=torch.bool) | ~there[:, None, :]
    factors = (points[:, None, None, :] - at[:, None, :, None]) / torch.where(same, 1.0, gap)[..., None]
    basis = torch.where(same[..., None], 1.0, factors).prod(2)
    return torch.where(there, (basis * weights[:, None, :]).sum(2), 0.0)


class Adams(Exponential):
    r"""Exponential Adams rule of any order: Adams–Bashforth, and with a corrector that costs no evaluation.

    Each step adds the integral of the polynomial through the last k values of E. With `corrector`, the value that is
    made at the new state also mends that state, before the next step leaves it: the Adams–Moulton rule through k + 1
    values in place of the Adams–Bashforth rule through k (mode PEC; the last state of a run is predicted only).

    Args:
        order: k, from 1 to 8.
        predict: E of the table above: edm, eps or x0.
        coordinate: u of the polynomial: angle (atan(rho / a)), log_snr, ratio (rho) or t. Default: angle for edm, log_snr
            for eps and x0.
        corrector: Whether values mend the state they were made at.
        start: "ramp": first steps use what values there are, as in the papers, so that the observed order on ever finer
            grids is at most 2 (3 with a corrector). "full": the first k - 1 steps are swept until the rule's order is
            reached, for 1 + (k - 3)(k - 1) more evaluations where k >= 3.

    References:
        Adams & Bashforth (1883); Hochbruck & Ostermann (2010), Acta Numerica 19, 209; for diffusion models Zhang & Chen
        (2023), 2204.13902 (DEIS), Lu et al. (2022), 2211.01095 (DPM-Solver++), and the corrector Zhao et al. (2023),
        2302.04867 (UniPC); the angle: Salimans & Ho (2022), 2202.00512, appendix D, for DDIM.

    Example:
        >>> import torch, sde
        >>> model = sde.ExactScore(sde.Gaussian([3.0], 0.25), sde.VP())
        >>> sde.sample(model, (8, 1), steps=10, solver=sde.Adams(order=3)).shape
        torch.Size([8, 1])
    """

    def __init__(
        self,
        order: int = 3,
        predict: str = "edm",
        coordinate: str | None = None,
        corrector: bool = True,
        start: str = "ramp",
    ) -> None:
        super().__init__()
        if isinstance(order, bool) or not isinstance(order, int) or not 1 <= order <= 8:
            raise ValueError(f"order must be a whole number from 1 to 8, got {order!r}: 3 is the default")
        _one_of("predict", predict, PREDICTIONS)
        _one_of("start", start, ("ramp", "full"))
        coordinate = coordinate or ("angle" if predict == "edm" else "log_snr")
        _one_of("coordinate", coordinate, COORDINATES)
        self.k, self.predict, self.coordinate, self.corrector, self.starting = (
            order,
            predict,
            coordinate,
            corrector,
            start,
        )
        self.calls = 1

    @property
    def order(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Observed on ever finer grids: that of the rule, or of its start."""
        rule = self.k + self.corrector
        return float(rule if self.starting == "full" else min(rule, 2 + self.corrector))

    def columns(self, model: Model, eta: float, times: Tensor) -> Sequence[Tensor]:  # noqa: D102
        forward, scale = model.sde, model.data_scale()
        assert isinstance(forward, ScalarSDE)
        at = Along(forward, scale, times, self.predict, self.coordinate)
        n, k = len(times) - 1, self.k
        ahead = at.integrals(torch.arange(n), 0, k)
        if self.corrector:
            # What E_i changes in x_i, carried through the step from i.
            back = at.integrals(torch.arange(n - 1), 1, k + 1)
            back[:, 1:] -= ahead[:-1]
            ahead = torch.cat([ahead, ahead.new_zeros(n, 1)], 1)
            ahead[1:] += at.c[1:, None] * back
        return at.p[:-1], at.q[:-1], at.c, at.shift, ahead

    def start(self, sde: SDE, times: Tensor) -> Solver:  # noqa: D102
        fresh = super().start(sde, times)
        assert isinstance(fresh, Adams)
        return fresh

    def step(self, sde: SDE, x: Tensor, t: float, s: float, noise: Noise) -> Tensor:  # noqa: D102
        model, mean = needs_model(self, sde).model, needs_model(self, sde).model.data_mean()
        p, q, c, shift, w = self.row(sde, t, s)
        value = model(x, t).combine(p, q)
        if mean is not None:
            value = value - p * mean.to(value)
        self.memory = [value, *self.memory[: self.k - 1 + self.corrector]]
        y = x * c if mean is None else x * c + shift * mean.to(x)
        for weight, past in zip(w, self.memory, strict=False):
            y = torch.add(y, past, alpha=weight)
        return y


QUADRATURE = 24
PREDICTIONS = ("edm", "eps", "x0")
COORDINATES = ("angle", "log_snr", "ratio", "t")


def _one_of(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
