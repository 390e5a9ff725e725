r"""A Gaussian through a solver, without samples.

On a Gaussian target the exact score is affine in x, and so is every step of a solver in the state and in its noise. A
whole run is therefore one affine map of the state it starts from and of the normal numbers z_1 .. z_m that it draws,

    x_end = M x_start + sum_k N_k z_k + c,      mean -> M mean + c,      cov -> M cov M' + sum_k N_k N_k'

and a batch that holds 0 and the basis vectors in its rows finds M, N and c exactly in one run of the loop, memory of a
multistep rule included. What is left of the error is the solver's own, down to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sde.forward import SDE
from sde.random import Noise
from sde.solvers import Solver, integrate


class NotAffineError(ValueError):
    """The solver's step is not affine in state and noise, so that it cannot be probed."""


class Affine(NamedTuple):
    """x_end = state x_start + noise z + shift, on flattened states of n coordinates.

    Args:
        state: M, (n, n).
        noise: (N_1 .. N_m) side by side, (n, m n).
        shift: c, (n,).
    """

    state: Tensor
    noise: Tensor
    shift: Tensor

    def moments(self, mean: Tensor, cov: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and covariance at the end, from those at the start.

        Example:
            >>> half = Affine(0.5 * torch.eye(1), torch.ones(1, 1), torch.zeros(1))
            >>> half.moments(torch.ones(1), 4 * torch.eye(1))
            (tensor([0.5000]), tensor([[2.]]))
        """
        return self.state @ mean + self.shift, self.state @ cov @ self.state.T + self.noise @ self.noise.T


class _Blocks(Noise):
    """Noise whose k-th draw of a run is the identity in the k-th block of n rows, after `first` rows of none."""

    def __init__(self, first: int) -> None:
        super().__init__(None)
        self.next = first

    def normal(self, x: Tensor, t: float, s: float) -> Tensor:
        n = x[0].numel()
        z = x.new_zeros(len(x), n)
        block = z[self.next : min(self.next + n, len(x) - 1)]
        block.copy_(torch.eye(n).to(x)[: len(block)])
        z[-1] = 1.0  # the last row sees all noise at once, to tell whether the sum of the parts is the whole
        self.next += n
        return z.reshape(x.shape)

    def increment(self, x: Tensor, t: float, s: float) -> Tensor:
        return self.normal(x, t, s) * math.sqrt(abs(float(s) - float(t)))

    def fresh(self, x: Tensor) -> Tensor:
        return self.normal(x, 0.0, 1.0)


def affine(sde: SDE, event: Sequence[int], times: Tensor | Sequence[float], solver: Solver) -> Affine:
    """The affine map of a run, by probing it with basis vectors.

    Args:
        sde: Any SDE whose drift is affine in x and whose noise does not depend on x, with float64 coefficients.
        event: Shape of one state, its channels included.
        times: Grid.
        solver: One that draws at most once from each interval of time.

    Raises:
        NotAffineError: If the parts do not add up to the whole: Langevin's step length depends on the state, say.

    Example:
        >>> import torch, sde
        >>> run = affine(sde.BrownianMotion(mu=3.0), (1,), torch.linspace(0, 1, 5), sde.Euler())
        >>> run.moments(torch.zeros(1).double(), torch.zeros(1, 1).double())
        (tensor([3.], dtype=torch.float64), tensor([[1.]], dtype=torch.float64))
    """
    n = math.prod(event)
    count = _Blocks(2)
    integrate(sde, torch.zeros(2, *event, dtype=torch.float64), times, solver, noise=count)
    rows = torch.zeros(count.next + n, n, dtype=torch.float64)
    rows[1 : 1 + n] = torch.eye(n)
    rows[-1] = 1.0
    end = integrate(sde, rows.reshape(-1, *event), times, solver, noise=_Blocks(1 + n)).flatten(1)
    shift, columns, whole = end[0], end[1:-1] - end[0], end[-1] - end[0]
    if not torch.allclose(columns.sum(0), whole, rtol=1e-6, atol=1e-8 * float(columns.abs().sum(0).max())):
        raise NotAffineError(
            f"a run of {type(solver).__name__} on {type(sde).__name__} is not affine in state and noise: "
            "use a Gaussian target, or compare samples instead"
        )
    return Affine(columns[:n].T, columns[n:].T, shift)
