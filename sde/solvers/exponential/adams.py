r"""Exponential Adams rules: one evaluation a step, the values of earlier steps remembered.

With E, c, C and kappa of `sde.solvers.exponential.base`, the state at the next node is

    predict      x_{i+1} = c x_i + C sum_{j<k} b_j E_{i-j}                       the polynomial through k values
    correct      x_{i+1} = c x_i + C (a_0 E_{i+1} + sum_{j<k} a_{j+1} E_{i-j})   and through the new one as well

where E_{i+1} is made at the predicted state, where the next step needs it anyway. The corrected state is what that step
leaves from, so that the corrector raises the order by one and costs no evaluation; both are one linear combination of
the last k + 1 values. Only a run's last state stays as it was predicted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sde.forward import SDE, ScalarSDE
from sde.nodes import Node
from sde.random import Noise
from sde.score import Model
from sde.shape import total
from sde.solvers.exponential.base import Along, Exponential
from sde.solvers.solver import Solver, needs_model

PREDICTIONS = ("edm", "eps", "x0")
COORDINATES = ("angle", "log_snr", "ratio", "t")
STARTS = ("ramp", "full")


class Adams(Exponential):
    """Exponential Adams rule of any order, by default with a corrector: what `sample` takes by default.

    Args:
        order: k, from 1 to 8.
        predict: E of the table in `sde.solvers.exponential.base`: edm, eps or x0.
        coordinate: Of the polynomial: angle (atan(rho / a)), log_snr, ratio (rho) or t. Default: angle for edm, log_snr
            for eps and x0.
        corrector: Whether values mend the state they were made at.
        start: "ramp": the first steps use what values there are, as in the papers, so that the observed order on ever
            finer grids is at most 2, or 3 with a corrector. "full": the first nodes are swept until their error is that
            of the rule, of order R = k + 1 (k without a corrector), for 1 + (R - 1)(R - 3) more evaluations.

    References:
        Adams & Bashforth (1883); Hochbruck & Ostermann (2010), Acta Numerica 19, 209; for diffusion models Zhang & Chen
        (2023), 2204.13902 (DEIS), and Lu et al. (2022), 2211.01095 (DPM-Solver++); a corrector without evaluations:
        Zhao et al. (2023), 2302.04867 (UniPC); the angle: Salimans & Ho (2022), 2202.00512, appendix D, for DDIM.

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
        coordinate = coordinate or ("angle" if predict == "edm" else "log_snr")
        for name, value, choices in (
            ("predict", predict, PREDICTIONS),
            ("coordinate", coordinate, COORDINATES),
            ("start", start, STARTS),
        ):
            if value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
        self.k, self.predict, self.coordinate, self.corrector, self.full = (
            order, predict, coordinate, bool(corrector), start == "full",
        )  # fmt: skip
        self.calls = 1
        self.swept: list[Tensor] = []
        self.first: list[float] = []

    @property
    def order(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Observed on ever finer grids: that of the rule, or of its start if that is lower."""
        return float(self.nominal if self.full else min(self.nominal, 2 + self.corrector))

    @property
    def nominal(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Of the rule itself: k, and one more with the corrector."""
        return float(self.k + self.corrector)

    def start(self, sde: SDE, times: Tensor) -> Solver:  # noqa: D102
        fresh = super().start(sde, times)
        assert isinstance(fresh, Adams)
        fresh.first, fresh.swept = times[: self._first_nodes(len(times) - 1)].tolist(), []
        return fresh

    def columns(self, model: Model, eta: float, times: Tensor) -> Sequence[Tensor]:  # noqa: D102
        forward, n, k = model.sde, len(times) - 1, self.k
        assert isinstance(forward, ScalarSDE)
        along = Along(forward, model.data_scale(), times, self.predict, self.coordinate)
        steps, last = torch.arange(n)[:, None], torch.arange(k + 1)
        w = along.integrals(steps[:, 0], steps - last[:k])
        if self.corrector:
            # What E_i changes in x_i, carried through the step from i.
            change = along.integrals(steps[:-1, 0], steps[:-1] + 1 - last)
            change[:, 1:] -= w[:-1]
            w = torch.cat([w, w.new_zeros(n, 1)], 1)
            w[1:] += along.c[1:, None] * change
        if (m := self._first_nodes(n)) > 2:  # those steps are swept, and there is no prediction for the next to mend
            w = torch.cat([w, w.new_zeros(n, max(0, m - w.shape[1]))], 1)
            w[: m - 1, :m] = along.integrals(steps[: m - 1, 0], torch.arange(m).expand(m - 1, -1))
            if m <= n - 1:
                w[m - 1] = 0
                w[m - 1, :k] = along.integrals(steps[m - 1], steps[m - 1 : m] - last[:k])[0]
        return along.p[:-1], along.q[:-1], along.c, along.shift, w

    def _first_nodes(self, n: int) -> int:
        """Nodes that a full start sweeps in a grid of n steps."""
        return min(self.k + self.corrector, n) if self.full else 0

    def step(self, sde: SDE, x: Tensor, t: float, s: float, noise: Noise) -> Tensor:  # noqa: D102
        model, row = needs_model(self, sde).model, self.row(sde, t, s)
        self.calls = 1
        if self.swept:
            self.calls = 0
        elif len(self.first) > 2 and float(t) == self.first[0]:
            self._sweep(model, x, t)
        if self.swept:
            return self.swept.pop(0)
        self.memory = [self._value(model, x, t, row), *self.memory[: len(row[-1]) - 1]]
        return self._advance(model, x, row, self.memory)

    def _value(self, model: Model, x: Tensor, t: float | Tensor, row: Any) -> Tensor:
        """E at x: p z + q eps."""
        p, q, *_ = row
        value, mean = model.move(x, t, 0.0, p, q), model.data_mean()
        return value if mean is None or not p else torch.sub(value, mean.to(value), alpha=p)

    def _advance(self, model: Model, x: Tensor, row: Any, values: Sequence[Tensor]) -> Tensor:
        """x_s = c x + shift m + sum_j w_j E_j."""
        _, _, c, shift, w = row
        y, mean = total((c, x), *zip(w, values, strict=False)), model.data_mean()
        return y if mean is None else torch.add(y, mean.to(y), alpha=shift)

    def _sweep(self, model: Model, x: Tensor, t: float) -> None:
        """States at the first nodes to the order of the rule, by Picard iteration: a sweep raises it by one."""
        m, rows = len(self.first), [self.rows[u] for u in self.first]
        nodes = t.table.nodes if type(t) is Node else [torch.tensor(u, dtype=torch.float64) for u in self.first]
        values, states = [self._value(model, x, nodes[0], rows[0])] * m, [x]
        for sweep in range(m - 1):
            states = [x]
            for i in range(m - 1):
                states.append(self._advance(model, states[i], rows[i], values))
                if sweep < m - 2:
                    new = self._value(model, states[-1], nodes[i + 1], rows[i + 1])
                    values[i + 1 :] = [new, *values[i + 2 :]] if sweep else [new] * (m - 1 - i)
        self.calls = 1 + (m - 2) * (m - 1)
        self.swept, self.memory = states[1:], values[-2::-1]
