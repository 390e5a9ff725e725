r"""Objectives: what a network is trained on, as one object for `fit(loss=...)`.

With u = alpha z + sigma eps, k = sigma (alpha q - sigma p) / alpha and g = sqrt(w) (F - (p / alpha) u), which is
-sqrt(w) k times the model's score, the three losses of score matching are

    denoising   E w |F - (p z + q eps)|^2 / d
    implicit    E (|g|^2 - 2 sqrt(w) k div_u g) / d
    sliced      E (|g|^2 - 2 sqrt(w) k v' (dg / du) v) / d,    v independent, E v v' = 1.

F's ideal is (p / alpha) u - k grad log p_t(u), and E <g, grad log p_t> = -E div g by parts. So they differ by numbers
that do not depend on the network: one gradient in expectation, one minimiser. What differs is the gradient's variance
(`gradient_variance`): the target's noise makes denoising's large where sigma is small, the divergence makes the other
two large where alpha is.

Everything else is a weight, a law of the times and a coupling, and one call: `maximum_likelihood`, `min_snr_loss`,
`edm_loss`, `flow_matching`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde.score import ScoreModel
from sde.shape import placed
from sde.train.couple import Coupling
from sde.train.loss import Rows, Weight, likelihood, min_snr, regression, rows, shaped, unit
from sde.train.times import LikelihoodTimes, LogNormal, Times, Uniform
from sde.train.weights import karras, noise, velocity

Network = Callable[..., Tensor]


@dataclass(frozen=True)
class Objective(ABC):
    """A loss with what it asks for where `fit` is told nothing else.

    Attributes:
        weight: Weight of the error of F at given levels.
        times: Distribution of times; None for the SDE's own (`default_times`).
        coupling: Which noise goes with which datum; None for independent noise.
        twice: Whether the network's derivative is in the loss, so that the gradient goes back through it twice.
    """

    weight: Weight = unit
    times: Times | None = None
    coupling: Coupling | None = None
    twice = False

    @abstractmethod
    def of(
        self, net: Network, z: Tensor, eps: Tensor, row: Rows, weighted: bool, generator: torch.Generator, **cond: Any
    ) -> Tensor:
        """Mean loss of centred data z, noise eps and coefficients that broadcast against them."""

    @property
    def kind(self) -> str:
        """Which loss it is, for a file to tell."""
        return type(self).__name__

    def __call__(
        self,
        model: ScoreModel,
        x0: Tensor,
        t: Tensor,
        eps: Tensor,
        generator: torch.Generator | None = None,
        **cond: Any,
    ) -> Tensor:
        r"""The loss of one batch: what a training loop of one's own calls.

        Args:
            model: Score model.
            x0: Data, (B, \*D).
            t: Times, (B,), drawn from `times`.
            eps: Standard normal, shaped as x0.
            generator: For what the loss itself draws.
            **cond: Passed to the network.
        """
        z = x0 - model.mean.to(x0.dtype)
        if self.coupling is not None:
            eps = self.coupling(z, eps)
        row = shaped(rows(model, t, self.weight, self.times), x0)
        return self.of(model.net, z, eps, row, True, generator or torch.default_generator, **cond)


@dataclass(frozen=True)
class Denoising(Objective):
    """Denoising score matching, the default: regression on the endpoints that made the state. See `sde.train.loss`.

    References:
        Vincent (2011), Neural Comput. 23, 1661; Song & Ermon (2019), 1907.05600.

    Example:
        >>> import torch, sde
        >>> model = sde.ScoreModel(sde.nets.MLP(dim=2, width=8), sde.VP())
        >>> loss = sde.train.Denoising()(model, torch.randn(64, 2), torch.rand(64), torch.randn(64, 2))
        >>> loss.shape
        torch.Size([])
    """

    def of(
        self, net: Network, z: Tensor, eps: Tensor, row: Rows, weighted: bool, generator: torch.Generator, **cond: Any
    ) -> Tensor:
        """Mean loss of a batch."""
        return regression(net, z, eps, row, weighted, **cond)


DENOISING = Denoising()


@dataclass(frozen=True)
class Implicit(Objective):
    r"""Implicit score matching with the exact trace: E w k^2 (|s|^2 + 2 div s) / d, in d backward passes.

    It never sees what was there before the noise. For data of few coordinates; `Sliced` serves many.

    References:
        Hyvärinen (2005), J. Mach. Learn. Res. 6, 695, theorem 1.

    Example:
        >>> import torch, sde
        >>> model = sde.ScoreModel(sde.nets.MLP(dim=2, width=8), sde.VP())
        >>> history = sde.fit(model, torch.randn(200, 2), 10, loss=sde.train.Implicit(), every=5, progress=False)
        >>> history.step
        [5, 10]
    """

    weight: Weight = noise
    twice = True

    def of(
        self, net: Network, z: Tensor, eps: Tensor, row: Rows, weighted: bool, generator: torch.Generator, **cond: Any
    ) -> Tensor:
        """Mean loss of a batch."""
        with torch.enable_grad():
            x, g, gain = _score_like(net, z, eps, row, weighted, cond)
            flat, trace = g.flatten(1), torch.zeros_like(gain)
            for i in range(flat.shape[1]):
                (slope,) = torch.autograd.grad(flat[:, i].sum(), x, create_graph=True)
                trace = trace + slope.flatten(1)[:, i]
        return flat.square().mean() - 2 * (gain * trace).mean() / flat.shape[1]


@dataclass(frozen=True)
class Sliced(Objective):
    r"""Sliced score matching: the trace by random slices v' (ds / du) v, in one backward pass for each.

    Args:
        probes: Slices of each datum, of independent signs.
        reduced: |s|^2 in place of (v' s)^2, which is its mean over slices: the variant of reduced variance, SSM-VR.

    References:
        Song, Garg, Shi & Ermon (2019), 1905.07088, eqs. 7 and 8.

    Example:
        >>> import torch, sde
        >>> model = sde.ScoreModel(sde.nets.MLP(dim=2, width=8), sde.VP())
        >>> loss = sde.train.Sliced(probes=2)(model, torch.randn(64, 2), torch.rand(64), torch.randn(64, 2))
        >>> loss.shape
        torch.Size([])
    """

    weight: Weight = noise
    probes: int = 1
    reduced: bool = True
    twice = True

    def __post_init__(self) -> None:
        if isinstance(self.probes, bool) or not isinstance(self.probes, int) or self.probes < 1:
            raise ValueError(f"probes must be a whole number of at least 1, got {self.probes!r}: pass probes=1, say")

    @property
    def kind(self) -> str:  # noqa: D102
        return f"Sliced(probes={self.probes}, reduced={self.reduced})"

    def of(
        self, net: Network, z: Tensor, eps: Tensor, row: Rows, weighted: bool, generator: torch.Generator, **cond: Any
    ) -> Tensor:
        """Mean loss of a batch."""
        with torch.enable_grad():
            x, g, gain = _score_like(net, z, eps, row, weighted, cond)
            trace, size, n = torch.zeros_like(gain), torch.zeros_like(gain), self.probes
            for _ in range(n):
                v = _signs(g, generator)
                (slope,) = torch.autograd.grad((g * v).sum(), x, create_graph=True)
                trace = trace + (slope * v).flatten(1).sum(1) / n
                if not self.reduced:
                    size = size + (g * v).flatten(1).sum(1).square() / n
            if self.reduced:
                size = g.flatten(1).square().sum(1)
        return (size - 2 * gain * trace).mean() / g[0].numel()


def _score_like(
    net: Network, z: Tensor, eps: Tensor, row: Rows, weighted: bool, cond: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor]:
    """The network's input x = c_in u, g of it, and sqrt(w) k c_in, (B,)."""
    x = (row.a * z + row.b * eps).requires_grad_()
    raw = net(x, row.clock, **cond)
    # p / (alpha c_in); where alpha = 0 the state says nothing of the data, and there is nothing to learn.
    slope = torch.where(row.a == 0, 0.0, row.p / row.a)
    g = (raw * row.root if weighted else raw) - slope * x
    return x, g, (row.q * row.b - slope * row.b**2).reshape(-1)


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    drawn = torch.rand(like.shape, generator=generator, device=generator.device)
    return placed(drawn, like.device, torch.float32).sub(0.5).sign().to(like.dtype)


def maximum_likelihood() -> Denoising:
    """Denoising weighted so that its mean bounds the negative log-likelihood, with times drawn where the bound is made.

    The same expectation as `weight=likelihood, times=Uniform()`, and a gradient of far less variance.

    References:
        Song, Durkan, Murray & Ermon (2021), 2101.09258, theorem 1 and section 4.4; Kingma et al. (2021), 2107.00630.

    Example:
        >>> import sde
        >>> sde.train.maximum_likelihood().times
        LikelihoodTimes()
    """
    return Denoising(likelihood, LikelihoodTimes())


def min_snr_loss(gamma: float = 5.0) -> Denoising:
    """Denoising with the capped weight of `min_snr`, uniform in time.

    References:
        Hang et al. (2023), 2303.09556.

    Example:
        >>> import sde
        >>> sde.train.min_snr_loss(3.0).weight.__name__
        'min_snr(3)'
    """
    return Denoising(min_snr(gamma), Uniform())


def edm_loss() -> Denoising:
    """Denoising with the weight and the times of EDM, at any scale of the data and for any parameterisation.

    References:
        Karras et al. (2022), 2206.00364, table 1: log sigma of mean -1.2 and deviation 1.2 for data of scale .5.

    Example:
        >>> import sde
        >>> sde.train.edm_loss().times
        LogNormal(mean=-0.5068528194400547, std=1.2)
    """
    return Denoising(karras, LogNormal(math.log(2) - 1.2, 1.2))


def flow_matching(coupling: Coupling | None = None) -> Denoising:
    """Flow matching: the error of the velocity, uniform in time. For `sde.Flow()`, or any other scalar SDE.

    Args:
        coupling: None for independent noise, `optimal_transport` for noise matched to data in each batch.

    References:
        Lipman et al. (2023), 2210.02747; Liu, Gong & Liu (2023), 2209.03003; Tong et al. (2024), 2302.00482.

    Example:
        >>> import torch, sde
        >>> model = sde.ScoreModel(sde.nets.MLP(dim=2, width=8), sde.Flow(), "velocity")
        >>> loss = sde.train.flow_matching(sde.train.optimal_transport)
        >>> history = sde.fit(model, torch.randn(200, 2), 10, loss=loss, progress=False)
        >>> model.coupled
        True
    """
    return Denoising(velocity, Uniform(), coupling)
