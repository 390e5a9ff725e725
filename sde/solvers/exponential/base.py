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
import functools
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde.forward import SDE, ScalarSDE
from sde.nodes import by_value, remembered
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
        reverse, fresh, grid = needs_model(self, sde), copy.copy(self), times.tolist()
        model = reverse.model

        def make() -> dict[float, Any]:
            columns = [column.tolist() for column in self.columns(model, reverse.eta, times)]
            return dict(zip(grid, zip(*columns, strict=True), strict=False))

        # Coefficients follow from these alone; integrals cost as much as a hundred steps, and the next run's are equal.
        settings = tuple((k, tuple(v) if isinstance(v, list) else v) for k, v in vars(self).items() if k != "rows")
        key = (type(self).__name__, settings, model.sde, model.data_scale(), reverse.eta, tuple(grid))
        fresh.rows = remembered((type(self), key), make) if by_value(key) else make()
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


QUADRATURE = 24
MINIMAL = 5
"""Points that integrate any density well, and a polynomial of degree 9 exactly."""


@functools.cache
def _gauss_legendre(n: int) -> tuple[Tensor, Tensor]:
    """Abscissae and weights on [0, 1]."""
    x, w = np.polynomial.legendre.leggauss(n)
    return torch.from_numpy((x + 1) / 2), torch.from_numpy(w / 2)


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
            # Nothing of eps can be told from x at alpha = 0, nor of z from E held to sigma = 0: the other one there.
            dead = (alpha if predict == "eps" else sigma) == 0
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

    def integrals(self, steps: Tensor, nodes: Tensor) -> Tensor:
        """C int L_j dkappa over the steps (n,) that begin there, through the given nodes (n, k); absent if below 0.

        Where fewer than two nodes are there, or an end is infinite, E is held: the rule of order 1.
        """
        at = torch.where(nodes < 0, torch.nan, self.u[nodes.clamp_min(0)])
        begin, h = self.u[steps, None], (self.u[steps + 1] - self.u[steps])[:, None]
        x, w = _gauss_legendre(MINIMAL if self.predict == "edm" and self.coordinate == "angle" else QUADRATURE)
        density = self._density(begin + h * x, steps + 1)
        found = lagrange_integrals((at - begin) / h, x.expand(len(steps), -1), h * w * density)
        good = (at.isfinite().sum(1, keepdim=True) > 1) & h.isfinite() & found.isfinite().all(1, keepdim=True)
        return torch.where(good, found, (nodes == steps[:, None]) * self.first[steps, None])

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
