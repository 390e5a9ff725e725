r"""UniPC, and the weights that a predictor and its corrector share in one step.

In lambda = log(alpha / sigma), over a step of h = lambda_s - lambda_t, the polynomial through the values E_{i-j} enters
through its moments. That of order 0 is exact in every rule of this room, `first` = C int dkappa; for a polynomial
through two values all that is left is the moment of order 1, and there UniPC writes

    C int (lambda - lambda_i) dkappa   ~   first h / 2           B2(h) = e^h - 1
                                       ~   C' h^2 / 2            B1(h) = h,  C' = alpha_s (x0) or -sigma_s (eps)

which changes it by O(h^3). Through three values and more its linear system determines every moment, B(h) cancels, and
the rule is that of `Adams` in lambda, with the corrector through one value more. (B(h) is the authors' name; with the
exact moment, their varying coefficients, it is `Adams` throughout.)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sde.forward import ScalarSDE
from sde.score import Model
from sde.solvers.exponential.adams import Adams
from sde.solvers.exponential.base import Along

VARIANTS = ("bh1", "bh2", "vary")


def step_weights(
    along: Along, predictor: int, corrector: int, lower_order_final: bool, moment: Tensor | None = None
) -> Tensor:
    """Weights of the last values of E in each step along a grid of n steps, (n, k): as many as the two look back on.

    Args:
        along: Linear parts and integrals, in lambda.
        predictor: Values that the polynomial of a step goes through.
        corrector: Values, that at the step's end among them, that the polynomial which mends it goes through; 0: none.
        lower_order_final: Whether the last steps take fewer: one less in each, one in the last.
        moment: In place of C int (lambda - lambda_i) dkappa for two values, (n,). Default: the integral itself.

    Example:
        >>> import sde
        >>> along = Along(sde.EDM(), 1.0, torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64), "x0", "log_snr")
        >>> step_weights(along, predictor=2, corrector=0, lower_order_final=False)
        tensor([[ 0.5000,  0.0000],
                [ 0.7787, -0.2787]], dtype=torch.float64)
    """
    n, width = len(along.c), max(predictor + 1, corrector) if corrector else predictor
    steps, back = torch.arange(n), torch.arange(width)
    left = (n - steps if lower_order_final else torch.full((n,), width))[:, None]
    nodes = torch.where(back < left.clamp_max(predictor), steps[:, None] - back, -1)
    w = _weights(along, steps, nodes, moment)
    if corrector and n > 1:
        # What E_i changes in x_i, carried through the step from i.
        nodes = torch.where(back < (left[:-1] + 1).clamp_max(corrector), steps[:-1, None] + 1 - back, -1)
        change = _weights(along, steps[:-1], nodes, moment)
        change[:, 1:] -= w[:-1, :-1]
        change[~_lengths(along)[:-1].isfinite()] = 0
        w[1:] += along.c[1:, None] * change
    return w


def _lengths(along: Along) -> Tensor:
    return along.u.diff()


def _weights(along: Along, steps: Tensor, nodes: Tensor, moment: Tensor | None) -> Tensor:
    """C int L_j dkappa over the steps (n,) through the nodes (n, k), newest first; of two nodes, with this moment."""
    w, first = along.integrals(steps, nodes), along.first[steps, None]
    finite = _lengths(along)[steps].isfinite()
    count = ((nodes >= 0) & along.u[nodes.clamp_min(0)].isfinite()).sum(1)
    alone = (torch.arange(nodes.shape[1]) == 0) * first
    w = torch.where((finite & (count == 1))[:, None], alone, w)
    if moment is None or nodes.shape[1] < 2:
        return w
    here = nodes[:, :2] == steps[:, None]
    slope = moment[steps, None] / (along.u[nodes[:, :2].clamp_min(0)] - along.u[steps, None]).sum(1, keepdim=True)
    two = torch.zeros_like(w)
    two[:, :2] = torch.where(here, first - slope, slope)
    return torch.where((finite & (count == 2))[:, None], two, w)


class UniPC(Adams):
    """UniPC: a predictor of any order in lambda, and a corrector that raises it by one and costs no evaluation.

    With order k >= 3 and lower_order_final=False its rule is `Adams(k, predict, "log_snr")`, but for the first steps;
    "vary" is that rule throughout. `order` is what is observed on ever finer grids: the last step, of order 1 if
    lower_order_final, caps it at 2, the first steps at 3.

    Args:
        order: k, from 1 to 8. The authors use 1 to 3.
        variant: B(h) of the rules through two values: "bh1", "bh2", or "vary", the exact moment.
        predict: x0 or eps.
        corrector: UniC; without it UniP alone.
        lower_order_final: Whether the last steps are of lower order, one less in each, as in the authors' code.

    References:
        Zhao et al. (2023), 2302.04867.

    Example:
        >>> import torch, sde
        >>> model = sde.ExactScore(sde.Gaussian([3.0], 0.25), sde.VP())
        >>> sde.sample(model, (8, 1), steps=10, solver=UniPC(order=3)).shape
        torch.Size([8, 1])
    """

    def __init__(
        self,
        order: int = 3,
        variant: str = "bh2",
        predict: str = "x0",
        corrector: bool = True,
        lower_order_final: bool = True,
    ) -> None:
        if predict not in ("x0", "eps"):
            raise ValueError(f"predict must be x0 or eps, got {predict!r}: Adams takes edm as well")
        if variant not in VARIANTS:
            raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, got {variant!r}")
        super().__init__(order, predict, "log_snr", corrector)
        self.variant, self.lower_order_final = variant, bool(lower_order_final)

    @property
    def order(self) -> float:
        """Observed on ever finer grids: that of the rule, of its first steps or of its last."""
        return min(super().order, 2.0) if self.lower_order_final else super().order

    def columns(self, model: Model, eta: float, times: Tensor) -> Sequence[Tensor]:  # noqa: D102
        forward = model.sde
        assert isinstance(forward, ScalarSDE)
        along = Along(forward, model.data_scale(), times, self.predict, "log_snr")
        h = along.u.diff()
        unit = along.alpha[1:] if self.predict == "x0" else -along.sigma[1:]
        moment = {"bh1": unit * h**2 / 2, "bh2": along.first * h / 2, "vary": None}[self.variant]
        w = step_weights(along, self.k, (self.k + 1) * self.corrector, self.lower_order_final, moment)
        return along.p[:-1], along.q[:-1], along.c, along.shift, w
