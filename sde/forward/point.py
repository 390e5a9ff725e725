r"""One state with its two endpoints, and everything that can be read off them.

A linear-Gaussian corruption x = A x0 + L eps ties a state to a clean endpoint x0 and a noise endpoint eps: known while
training, estimated while sampling. Score, probability-flow velocity and the endpoints are linear in one another, so one
class converts between them all. For a scalar SDE

    velocity = alpha' x0 + sigma' eps,        score = -eps / sigma.

A `Point` keeps two tensors (u, w) and, for each endpoint, the pair of numbers that makes it from them: x0 = a0 u + b0 w
(+ shift), eps = a1 u + b1 w. For a network's estimate u is the state and w the raw output; so any property costs one
combination of two tensors, and nothing that is not asked for is computed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sde.shape import Coefficient, lincomb, plus

if TYPE_CHECKING:
    from sde.forward.base import ForwardSDE

Pairs = tuple[Coefficient, Coefficient, Coefficient, Coefficient]


class Point:
    r"""State x at time t with its endpoints x0 and eps, exact or estimated.

    Args:
        sde: The forward SDE that ties x to its endpoints.
        x: State, (B, \*D), or (B, K, \*D) for a matrix SDE.
        t: Time, () or (B,).
        x0: Clean endpoint, (B, \*D).
        eps: Noise endpoint, shaped as x. Default: whiten(x - mean(x0)).
        coupled: True where eps was tied to x0 in training (optimal transport): velocity is right, a score is not there.

    Example:
        >>> import torch, sde
        >>> vp = sde.VP()
        >>> point = vp.at(x0=torch.ones(1, 2), t=0.5, eps=torch.zeros(1, 2))
        >>> torch.allclose(point.score, torch.zeros(1, 2))
        True
    """

    __slots__ = ("_eps", "_pairs", "_shift", "_u", "_w", "_x0", "coupled", "sde", "t", "x")

    def __init__(
        self,
        sde: ForwardSDE,
        x: Tensor,
        t: float | Tensor,
        x0: Tensor,
        eps: Tensor | None = None,
        coupled: bool = False,
    ) -> None:
        self.sde, self.x, self.t, self.coupled = sde, x, t, coupled
        self._x0: Tensor | None = x0
        self._eps: Tensor | None = sde.whiten(x - sde.mean(x0, t), t) if eps is None else eps
        self._u, self._w, self._pairs, self._shift = x0, self._eps, (1.0, 0.0, 0.0, 1.0), None

    @classmethod
    def of(
        cls,
        sde: ForwardSDE,
        x: Tensor,
        t: float | Tensor,
        u: Tensor,
        w: Tensor,
        pairs: Pairs,
        shift: Tensor | None = None,
        coupled: bool = False,
    ) -> Point:
        """Point whose endpoints are the combinations `pairs` = (a0, b0, a1, b1) of u and w, x0 shifted."""
        self = cls.__new__(cls)
        self.sde, self.x, self.t, self.coupled = sde, x, t, coupled
        self._u, self._w, self._pairs, self._shift = u, w, pairs, shift
        self._x0 = self._eps = None
        return self

    def combine(self, c0: Coefficient, c1: Coefficient) -> Tensor:
        """c0 x0 + c1 eps, for a state without a channel axis."""
        a0, b0, a1, b1 = self._pairs
        y = lincomb(c0 * a0 + c1 * a1, self._u, c0 * b0 + c1 * b1, self._w)
        return y if self._shift is None else self._shifted(y, c0)

    def move(self, c: Coefficient, c0: Coefficient, c1: Coefficient) -> Tensor:
        """c x + c0 x0 + c1 eps, for a state without a channel axis: a solver's step in as few kernels as it takes."""
        if self._u is not self.x:
            y = self.combine(c0, c1)
            return y if isinstance(c, float) and c == 0.0 else plus(y, c, self.x)
        a0, b0, a1, b1 = self._pairs
        y = lincomb(c + c0 * a0 + c1 * a1, self._u, c0 * b0 + c1 * b1, self._w)
        return y if self._shift is None else self._shifted(y, c0)

    def _shifted(self, y: Tensor, c0: Coefficient) -> Tensor:
        assert self._shift is not None
        if isinstance(c0, Tensor):
            return y + (c0 * self._shift).to(y.dtype)
        return y if c0 == 0.0 else torch.add(y, self._shift, alpha=c0)

    @property
    def x0(self) -> Tensor:
        r"""Clean endpoint: E[x0 | x] where the model is exact. (B, \*D)."""
        if self._x0 is None:
            self._x0 = self.combine(1.0, 0.0)
        return self._x0

    @property
    def eps(self) -> Tensor:
        """Noise endpoint, shaped as the state."""
        if self._eps is None:
            self._eps = self.combine(0.0, 1.0)
        return self._eps

    @property
    def velocity(self) -> Tensor:
        """dx/dt of the probability flow."""
        return self.sde.velocity(self)

    @property
    def score(self) -> Tensor:
        """Gradient of log p_t at x.

        Raises:
            ValueError: If the model was trained with a coupling: -eps / sigma is then not a score.
        """
        if self.coupled:
            raise ValueError(
                "score: this model was trained with a coupling that ties eps to x0, so it has a velocity and no score: "
                "use eta=0 without correctors, or train with coupling=None"
            )
        return self.sde.score(self.eps, self.t)

    def lerp(self, other: Point, w: Coefficient) -> Point:
        """Point whose endpoints are self + w (other - self): guidance for w > 1, a mixture for 0 < w < 1."""
        coupled = self.coupled or other.coupled
        if self._pairs is other._pairs and self._u is other._u and not isinstance(w, Tensor):
            # Both were read off one state by one rule: the raw outputs are mixed, in one kernel for four.
            raw = torch.lerp(self._w, other._w, w)
            return Point.of(self.sde, self.x, self.t, self._u, raw, self._pairs, self._shift, coupled)
        x0 = self.x0 + w * (other.x0 - self.x0)
        eps = self.eps + w * (other.eps - self.eps)
        return Point(self.sde, self.x, self.t, x0, eps, coupled)

    def tilted(self, g: Tensor) -> Point:
        """Point of the density p_t(x) h(x), where g = grad log h: x0 moves by A^+ L L' g.

        Where alpha = 0 the state carries nothing of x0, A^+ = 0, and the point stays.
        """
        if self.coupled:
            raise ValueError(
                "tilted: this model was trained with a coupling, so it has no score to tilt: train with coupling=None"
            )
        sde, t = self.sde, self.t
        return Point(sde, self.x, t, self.x0 + sde.unmean(sde.color(sde.tilt(g, t), t), t))
