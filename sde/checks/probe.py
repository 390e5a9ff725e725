r"""Linear actions as matrices: an action on a basis of states gives its columns.

A forward SDE is a handful of linear maps, written as actions on tensors. On a state of n coordinates and data of d,
both flattened, `probe` makes them matrices in float64, whatever the class:

    A (n, d)  L, W = L^-1, S (score), T (tilt), D (drift), N (diffusion), C (gain) (n, n)  U (unmean) (d, n)

so that moments are products of matrices and no law needs a sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from sde.forward import ForwardSDE

FRACTIONS = (0.0, 1e-3, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 1.0)
FEW = (0.0, 0.01, 0.3, 0.99, 1.0)


def times_of(sde: ForwardSDE, fractions: Sequence[float] = FRACTIONS) -> list[float]:
    """Times over the closed interval [t_min, t_max], ends exact."""
    low, high = float(sde.t_min), float(sde.t_max)
    return [low if u == 0 else high if u == 1 else low + u * (high - low) for u in fractions]


def matrix_of(action: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
    """Matrix of a linear action on tensors shaped as one row of `like`, both sides flattened: (out, in), float64."""
    n = like[0].numel()
    basis = torch.eye(n, dtype=torch.float64).reshape(n, *like.shape[1:])
    return action(basis).flatten(1).T.contiguous()


class Probe:
    """The matrices of a forward SDE at one time.

    Args:
        sde: Forward SDE.
        t: Time.
        event: Shape of one datum.
    """

    def __init__(self, sde: ForwardSDE, t: float, event: Sequence[int] = (1,)) -> None:
        self.sde, self.t = sde, t
        self.data = torch.zeros(1, *event, dtype=torch.float64)
        self.state = sde.state(self.data)

    def _square(self, action: Callable[[Tensor], Tensor]) -> Tensor:
        return matrix_of(action, self.state)

    @cached_property
    def A(self) -> Tensor:
        """Of `mean`."""
        return matrix_of(lambda x: self.sde.mean(x, self.t), self.data)

    @cached_property
    def U(self) -> Tensor:
        """Of `unmean`."""
        return self._square(lambda x: self.sde.unmean(x, self.t))

    @cached_property
    def L(self) -> Tensor:
        """Of `color`."""
        return self._square(lambda x: self.sde.color(x, self.t))

    @cached_property
    def W(self) -> Tensor:
        """Of `whiten`."""
        return self._square(lambda x: self.sde.whiten(x, self.t))

    @cached_property
    def S(self) -> Tensor:
        """Of `score`."""
        return self._square(lambda x: self.sde.score(x, self.t))

    @cached_property
    def T(self) -> Tensor:
        """Of `tilt`."""
        return self._square(lambda x: self.sde.tilt(x, self.t))

    @cached_property
    def D(self) -> Tensor:
        """Of `drift`."""
        return self._square(lambda x: self.sde.drift(x, self.t))

    @cached_property
    def N(self) -> Tensor:
        """Of `diffusion`, in the noise."""
        return self._square(lambda z: self.sde.diffusion(torch.zeros_like(z), self.t, z))

    @cached_property
    def C(self) -> Tensor:
        """Of `gain`."""
        return self._square(lambda x: self.sde.gain(x, self.t))

    @property
    def cov(self) -> Tensor:
        """Sigma = L L'."""
        return self.L @ self.L.T

    def singular(self) -> bool:
        """Whether drift and diffusion are infinite here."""
        return self.sde.singular(self.t)
