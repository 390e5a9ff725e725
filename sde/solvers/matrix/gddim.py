r"""Exponential integrators for the probability flow of a matrix SDE: a linear part solved, a polynomial for the rest.

On the clock b the flow is dU = F U db + G G' / 2 Sigma^-1 (U - A x0) db.

| class       | solved exactly            | held to a polynomial                                            |
|-------------|---------------------------|-----------------------------------------------------------------|
| GDDIM       | F U                       | eps_R = R^-1 (U - A x0), with dR/db = (F + G G' Sigma^-1 / 2) R |
| MatrixAdams | the flow of Gaussian data | E, what x0 is beyond that, of unit size                         |

For data of mean m and scale a let S = Sigma + a^2 A A', and x0' = m + a^2 A' S^-1 (U - A m) be what x0 would be if they
were Gaussian. Then with tau the deviation of the statistic and f = a tau / sqrt(a^2 + tau^2), exactly

    dU = F U db + G G' / 2 (S^-1 (U - A m) - f Sigma^-1 A E) db,    E = (x0 - x0') / f.

E is the network's output in the `edm` parameterisation: of unit size at all times, and smooth in atan(tau / a).
Coefficients are solutions of linear equations along the steps: see `sde.forward.transport`.
"""

from __future__ import annotations

import copy
import itertools
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sde.forward import SDE, MatrixSDE
from sde.forward.matrix import act
from sde.forward.transport import Path, carried, whitened
from sde.nodes import Node
from sde.random import Noise
from sde.shape import placed
from sde.solvers.reverse import ReverseSDE
from sde.solvers.solver import Solver, needs_model


class MatrixRule(Solver):
    """A rule whose K × K coefficients are made once for a grid; write `columns`, read them by `row`."""

    on_scalar = "Adams"
    """What to take for a scalar SDE."""

    def __init__(self) -> None:
        self.made: Sequence[Tensor] = ()
        self.index: dict[tuple[float, float], int] = {}
        self.cast: dict[Any, list[tuple[Tensor, ...]]] = {}
        self.memory: list[Tensor] = []
        self.origin: MatrixRule | None = None

    @abstractmethod
    def columns(self, reverse: ReverseSDE, times: Tensor) -> Sequence[Tensor]:
        """Coefficients of the steps along a grid (N,), float64, each with N - 1 rows."""

    def start(self, sde: SDE, times: Tensor) -> Solver:
        """A solver for one run, with the coefficients of its grid."""
        fresh, ends = copy.copy(self), times.tolist()
        fresh.made = self.columns(needs_model(self, sde), times)
        fresh.index = {step: i for i, step in enumerate(itertools.pairwise(ends))}
        fresh.cast, fresh.memory, fresh.origin = {}, [], self
        return fresh

    def row(self, sde: SDE, x: Tensor, t: float, s: float) -> tuple[Tensor, ...]:
        """Coefficients of the step from t to s in the dtype of x: of the run's grid, or of a grid of this one step."""
        step = float(t), float(s)
        if step not in self.index:
            alone = self.start(sde, torch.tensor(step, dtype=torch.float64))
            assert isinstance(alone, MatrixRule)
            self.memory = []
            return alone.row(sde, x, *step)

        def cast(_: object = None) -> list[tuple[Tensor, ...]]:
            return list(zip(*(placed(c, x.device, x.dtype).unbind(0) for c in self.made), strict=True))

        kind = x.dtype, x.device
        if type(t) is Node:  # what lies in a table serves every start of this rule along it, recorded ones too
            return t.table.made(self.origin or self, kind, cast)[self.index[step]]
        if kind not in self.cast:
            self.cast[kind] = cast()
        return self.cast[kind][self.index[step]]

    def check(self, sde: SDE) -> None:
        """Raise ValueError unless the SDE is the reverse of a matrix SDE."""
        forward, name = needs_model(self, sde).model.sde, type(self).__name__
        if not isinstance(forward, MatrixSDE):
            raise ValueError(f"{name} needs a matrix SDE, got {type(forward).__name__}: use {self.on_scalar}")

    def _flow_only(self, sde: SDE) -> None:
        eta = needs_model(self, sde).eta
        if eta > 0:
            name = type(self).__name__
            raise ValueError(f"{name} solves the probability flow, got eta={eta}: use eta=0, or GDDIM(order=1)")


def applied(matrix: Tensor, states: list[Tensor]) -> Tensor:
    """Sum of the matrix's blocks on states, as many as there are."""
    y = torch.cat(states, 1)
    return act(matrix[:, : y.shape[1]], y)


def forward_of(reverse: ReverseSDE) -> MatrixSDE:
    """The matrix SDE that a checked reverse SDE is the reverse of."""
    assert isinstance(reverse.model.sde, MatrixSDE)
    return reverse.model.sde


def _order(k: int) -> int:
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= 8:
        raise ValueError(f"order must be a whole number from 1 to 8, got {k!r}: 2 or 3, say")
    return k


def polynomials(path: Path, inside: Tensor, nodes: Tensor, k: int, ahead: int = 0) -> Tensor:
    """Lagrange's polynomials of each step at the nodes inside, (P, m, k + ahead), zeros where a run has no past yet.

    The step from node i goes through nodes i + ahead, i + ahead - 1, ... k + ahead of them, or as many as there are.

    Args:
        path: Of the grid.
        inside: The coordinate at the nodes inside, (P, m).
        nodes: The coordinate at the grid's times, (N,).
        k: Values at and before a step's beginning.
        ahead: 1 to go through the value at its end as well.
    """
    basis = inside.new_zeros(*inside.shape, k + ahead)
    for known in range(1, k + 1):
        rows = (path.step + 1).clamp_max(k) == known
        at = nodes[path.step[rows][:, None] + ahead - torch.arange(known + ahead)]
        for j in range(known + ahead):
            rest = [i for i in range(known + ahead) if i != j]
            gaps = (inside[rows][..., None] - at[:, None, rest]) / (at[:, j, None] - at[:, rest])[:, None]
            basis[rows, :, j] = gaps.prod(-1)
    return basis


class GDDIM(MatrixRule):
    """gDDIM: DDIM for a matrix SDE in the factor R that follows its flow, with a polynomial for eps_R.

    U_s = Psi U_t + sum_j W_j eps_R(t_{i-j}), with Psi = exp(F (b_s - b_t)) and W_j the integral of
    Psi(s, b) G G' R^-T / 2 times Lagrange's polynomial in t, down the step. Order 1 is `DDIM`, which a matrix SDE gives
    the same factor, and takes every eta >= 0; higher orders solve the flow. The first steps use what values there are,
    so that the observed order on ever finer grids is 2 for every order from 2 on. With one channel it is `DEIS` in t.

    Args:
        order: Number of values of eps_R, from 1 to 8.

    References:
        Zhang, Tao & Chen (2022), 2206.05564.

    Example:
        >>> import torch, sde
        >>> model = sde.ExactScore(sde.Gaussian([3.0], 0.25), sde.CLD())
        >>> sde.sample(model, (8, 1), steps=20, solver=GDDIM()).shape
        torch.Size([8, 2, 1])
    """

    on_scalar = "DDIM, or DEIS for a higher order, which it is there"

    def __init__(self, order: int = 2) -> None:
        super().__init__()
        self.k = _order(order)

    @property
    def order(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Observed on ever finer grids."""
        return float(min(self.k, 2))

    @property
    def nominal(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Of the rule itself: k."""
        return float(self.k)

    @property
    def strong(self) -> float | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """1 where it takes noise."""
        return 1.0 if self.k == 1 else None

    @property
    def weak(self) -> float | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """1 where it takes noise."""
        return self.strong

    def check(self, sde: SDE) -> None:  # noqa: D102
        super().check(sde)
        if self.k > 1:
            self._flow_only(sde)

    def columns(self, reverse: ReverseSDE, times: Tensor) -> Sequence[Tensor]:  # noqa: D102
        forward, k = forward_of(reverse), self.k
        if k == 1:
            return [torch.cat(carried(forward, times[:-1], times[1:], reverse.eta), -1)]
        path, ends = Path(forward, times[:-1], times[1:]), whitened(forward, forward.clock_of(times))
        inside = whitened(forward, path.b)
        turns, _, within = path.solve(inside.turn, inside.turn[..., :0])
        since = [torch.eye(forward.channels).to(turns)]  # rotations since the first node, where R = L
        for turn in turns:
            since.append(turn @ since[-1])
        frame = torch.stack(since)
        noise = inside.noise @ inside.noise.mT / 2
        source = noise @ within @ frame[path.step][:, None]
        basis = polynomials(path, path.b, forward.clock_of(times), k)
        spread = (basis[..., None, :, None] * source[..., None, :]).flatten(-2)  # (P, m, K, k K)
        v, y, _ = path.solve(inside.turn - noise, spread)
        whiten = (frame.mT @ ends.inverse)[:-1]
        step = ends.root[1:] @ torch.cat([v @ ends.inverse[:-1], y], -1)
        return step, torch.cat([whiten, -whiten @ ends.mean[:-1]], -1)

    def step(self, sde: SDE, x: Tensor, t: float, s: float, noise: Noise) -> Tensor:  # noqa: D102
        reverse = needs_model(self, sde)
        row, x0 = self.row(sde, x, t, s), reverse.model(x, t).x0[:, None]
        if self.k == 1:
            seen = [x, x0, noise.normal(x, t, s)] if reverse.eta else [x, x0]
        else:
            self.memory = [act(row[1], torch.cat([x, x0], 1)), *self.memory[: self.k - 1]]
            seen = [x, *self.memory]
        return applied(row[0], seen)


class MatrixAdams(MatrixRule):
    """Adams rule for a matrix SDE in the angle between data and noise, by default with a corrector.

    U_s = A_s m + T (U_t - A_t m) + sum_j w_j E_{i-j}, T the flow of Gaussian data of the model's mean and scale, and
    w_j the integrals of what E does times Lagrange's polynomial in atan(tau / a). The corrector mends the state where E
    was made, by the polynomial that goes through the new value too, and costs no evaluation. The first steps use what
    values there are, so that the observed order on ever finer grids is at most 2, or 3 with the corrector. Equal steps
    in sqrt(t) serve it best (`grids.quadratic`): 20 to 100 of them.

    Args:
        order: Number of values of E, from 1 to 8.
        corrector: Whether values mend the state they were made at.

    References:
        The split of `Adams` for a state of several channels; see there. Hochbruck & Ostermann (2010), Acta Numerica 19,
        209; Zhang, Tao & Chen (2022), 2206.05564.

    Example:
        >>> import torch, sde
        >>> model = sde.ExactScore(sde.Gaussian([3.0], 0.25), sde.CLD())
        >>> x = sde.sample(model, (1000, 1), steps=1, solver=MatrixAdams(), generator=torch.Generator().manual_seed(0))
        >>> round(x[:, 0].mean().item(), 1)  # exact in one step: the data are Gaussian
        3.0
    """

    def __init__(self, order: int = 3, corrector: bool = True) -> None:
        super().__init__()
        self.k, self.corrector = _order(order), bool(corrector)

    @property
    def order(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Observed on ever finer grids."""
        return float(min(self.k, 2) + self.corrector)

    @property
    def nominal(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Of the rule itself: k, and one more with the corrector."""
        return float(self.k + self.corrector)

    def check(self, sde: SDE) -> None:  # noqa: D102
        super().check(sde)
        self._flow_only(sde)

    def columns(self, reverse: ReverseSDE, times: Tensor) -> Sequence[Tensor]:  # noqa: D102
        forward, k, a = forward_of(reverse), self.k, reverse.model.data_scale() or 1.0
        clock = forward.clock_of(times)
        path, ends = Path(forward, times[:-1], times[1:]), whitened(forward, clock, a)
        inside, bare = whitened(forward, path.b, a), whitened(forward, path.b)
        tau, tau_ends = _deviation(bare.inverse @ bare.mean), _deviation(self._white_mean(forward, clock))
        source = -(inside.noise @ bare.noise.mT @ bare.inverse @ bare.mean) / 2 * _size(tau, a)[..., None, None]
        angles = torch.atan(tau / a), torch.atan(tau_ends / a)
        basis = [polynomials(path, *angles, k, ahead) for ahead in range(1 + self.corrector)]
        v, y, _ = path.solve(inside.turn, source * torch.cat(basis, -1)[..., None, :])
        t, w = ends.root[1:] @ v @ ends.inverse[:-1], ends.root[1:] @ y
        w, change = w[..., :k], w[..., k:]
        if self.corrector:
            # What E_i changes in U_i, carried through the step from i.
            change[..., 1:] -= w
            w = torch.cat([w, torch.zeros_like(w[..., :1])], -1)
            w[1:] += t[1:] @ change[:-1]
        read = a**2 * ends.mean.mT @ ends.inverse.mT @ ends.inverse  # x0' = m + read (U - A m)
        one = torch.ones_like(read[..., :1])
        value = torch.cat([-read, one, read @ ends.mean - one], -1) / _size(tau_ends, a)[:, None, None]
        return torch.cat([t, w], -1), value[:-1], ends.mean[1:] - t @ ends.mean[:-1]

    @staticmethod
    def _white_mean(forward: MatrixSDE, clock: Tensor) -> Tensor:
        ends = whitened(forward, clock)
        return ends.inverse @ ends.mean

    def step(self, sde: SDE, x: Tensor, t: float, s: float, noise: Noise) -> Tensor:  # noqa: D102
        model = needs_model(self, sde).model
        (step, value, shift), mean = self.row(sde, x, t, s), model.data_mean()
        seen = [x, model(x, t).x0[:, None]]
        if mean is not None:
            mean = mean.to(x).expand_as(seen[1])
            seen.append(mean)
        self.memory = [applied(value, seen), *self.memory[: self.k + self.corrector - 1]]
        y = applied(step, [x, *self.memory])
        return y if mean is None else y + act(shift, mean)


def _deviation(white: Tensor) -> Tensor:
    """Tau, from L^-1 A."""
    return white.square().sum((-2, -1)).rsqrt()


def _size(tau: Tensor, a: float) -> Tensor:
    """f, the size of x0 - x0'."""
    return a * tau / torch.hypot(tau, torch.full_like(tau, a))
