r"""Symmetric splitting for matrix SDEs: a step of the score between two halves of an exactly solvable process.

With P the inverse of the stationary covariance, F P^-1 + P^-1 F' + G G' = 0, the reverse SDE

    dU = (F U - (1 + eta^2) / 2 G G' score) db + eta G dW

is the sum of

    A   dU = (F + (1 + eta^2) / 2 G G' P) U db + eta G dW        an Ornstein-Uhlenbeck process, drawn exactly
    S   dU = -(1 + eta^2) / 2 G G' (score + P U) db              what the score is beyond that of the stationary law

and a step is A(h/2) S(h) A(h/2). For eta = 0 A is the rotation that the flow of the stationary law is.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sde.forward import SDE
from sde.forward.matrix import van_loan
from sde.forward.transport import noise_root, stationary, whitened
from sde.random import Noise
from sde.shape import as_time
from sde.solvers.matrix.gddim import MatrixRule, applied, forward_of
from sde.solvers.reverse import ReverseSDE
from sde.solvers.solver import needs_model


class SSCS(MatrixRule):
    """Symmetric splitting: half a step of the stationary law's reverse SDE, a step of the score's rest, the other half.

    The score is taken at the step's middle (the authors' code takes it at the beginning). S by Euler's rule, as in the
    paper, makes the whole of first order, whatever the symmetry; by the midpoint rule, with two evaluations, of second.

    Args:
        inner: Order of the rule for S: 1, as in the paper, or 2.

    References:
        Dockhorn, Vahdat & Kreis (2022), 2112.07068; Strang (1968), SIAM J. Numer. Anal. 5,
        506.

    Example:
        >>> import torch, sde
        >>> model = sde.ExactScore(sde.Gaussian([3.0], 0.25), sde.CLD())
        >>> sde.sample(model, (8, 1), steps=50, solver=SSCS()).shape
        torch.Size([8, 2, 1])
    """

    strong = 1.0
    eta = 1.0
    fractions = (0.5,)

    def __init__(self, inner: int = 1) -> None:
        super().__init__()
        if inner not in (1, 2):
            raise ValueError(f"inner must be 1 for Euler's rule or 2 for the midpoint rule, got {inner!r}")
        self.inner = int(inner)

    @property
    def order(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """That of the rule for S."""
        return float(self.inner)

    @property
    def weak(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """That of the rule for S."""
        return float(self.inner)

    @property
    def calls(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """One evaluation, or two."""
        return self.inner

    def check(self, sde: SDE) -> None:  # noqa: D102
        super().check(sde)
        try:
            stationary(forward_of(needs_model(self, sde)))
        except ValueError as error:
            raise ValueError(f"SSCS splits off the stationary law, and {error}: use GDDIM or EulerMaruyama") from error

    def columns(self, reverse: ReverseSDE, times: Tensor) -> Sequence[Tensor]:  # noqa: D102
        forward, eta = forward_of(reverse), reverse.eta
        middle = self.stages(reverse, times)[0]
        b, mid = forward.clock_of(times), forward.clock_of(middle)
        f, g = (forward.matrix(m, times) for m in (forward.F, forward.G))
        law, gain = torch.linalg.inv(stationary(forward)), (1 + eta**2) / 2 * g @ g.T
        at, longest = whitened(forward, mid), float(forward.clock_of(as_time(forward.t_max)))
        (first, q1), (last, q2) = (
            van_loan(-(f + gain @ law), eta**2 * g @ g.T, lengths, longest) for lengths in (b[:-1] - mid, mid - b[1:])
        )
        # S: U + push U + pull x0, by the score -Sigma^-1 (U - A x0).
        precision, length = at.inverse.mT @ at.inverse, (b[:-1] - b[1:])[:, None, None]
        push, pull = length * gain @ (law - precision), length * gain @ precision @ at.mean
        half = torch.cat([torch.eye(len(f)).to(f) + push / 2, pull / 2], -1)
        back = torch.cat([last, last @ push, last @ pull, noise_root(q2, g)], -1)
        return torch.cat([first, noise_root(q1, g)], -1), half, back

    def step(self, sde: SDE, x: Tensor, t: float, s: float, noise: Noise) -> Tensor:  # noqa: D102
        model, noisy, m = needs_model(self, sde).model, sde.noisy, self.stage(sde, t, s, 0)
        first, half, back = self.row(sde, x, t, s)
        x = applied(first, [x, noise.normal(x, t, m)] if noisy else [x])
        y, x0 = x, model(x, m).x0[:, None]
        if self.inner == 2:
            y = applied(half, [x, x0])
            x0 = model(y, m).x0[:, None]
        return applied(back, [x, y, x0, noise.normal(x, m, s)] if noisy else [x, y, x0])
