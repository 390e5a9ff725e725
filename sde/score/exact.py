r"""Targets whose diffusion is known in closed form: the truth beside every approximation.

A forward SDE shows of x0 the statistic y = alpha x0 + sigma n, a pair of numbers at each time. For a Gaussian mixture

    x0 ~ sum_k w_k N(m_k, C_k)    =>    y ~ sum_k w_k N(alpha m_k, alpha^2 C_k + sigma^2 I)

and E[x0 | y] = sum_k r_k(y) (m_k + alpha C_k (alpha^2 C_k + sigma^2 I)^-1 (y - alpha m_k)), with r_k the posterior
weight of component k. One eigendecomposition of each C_k serves all alpha and sigma. `Gaussian` is one component;
`Empirical` is a finite data set, one component of no width to each datum: the ideal denoiser, which a network
approaches as it memorises.

`ExactScore(target, sde)` has the interface of a trained model, and the exact marginal log-density at any t besides. The
part of a matrix SDE's state beyond y does not depend on x0, so that the same two formulas serve it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sde.forward import ForwardSDE, Point
from sde.nodes import Node
from sde.random import Generator, rand, randn
from sde.score.model import Model
from sde.shape import Coefficient

DIRECT = "donot_use_mm_for_euclid_dist"
"""Distances from differences: a product of matrices cancels where two points are near."""


class Target(nn.Module, ABC):
    """A distribution of x0 with its denoiser and its noisy log-density in closed form.

    Attributes:
        event: Shape D of one sample.
    """

    event: torch.Size

    @property
    @abstractmethod
    def mean(self) -> Tensor:
        r"""Mean, \*D."""

    @property
    @abstractmethod
    def scale(self) -> float:
        """Standard deviation of a coordinate, in the mean over them."""

    @abstractmethod
    def sample(self, n: int, generator: Generator = None) -> Tensor:
        r"""N draws, (n, \*D)."""

    @abstractmethod
    def denoise(self, y: Tensor, alpha: Coefficient, sigma: Coefficient) -> Tensor:
        """E[x0 | y] for y = alpha x0 + sigma n; coefficients are numbers or broadcast against y."""

    @abstractmethod
    def log_marginal(self, y: Tensor, alpha: Coefficient, sigma: Coefficient) -> Tensor:
        """Log-density of y: (B,)."""

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density at x: (B,)."""
        return self.log_marginal(x, 1.0, 0.0)

    def _flat(self, y: Tensor) -> Tensor:
        if y.shape[1:] != self.event:
            needs = ", ".join(map(str, self.event))
            raise ValueError(
                f"x has shape {tuple(y.shape)}, this target needs (B, {needs}): reshape x, or make another"
            )
        return y.flatten(1)


def _column(c: Coefficient) -> Coefficient:
    """A coefficient that multiplies (B, K, D)."""
    return c.reshape(-1, 1, 1) if isinstance(c, Tensor) and c.ndim else c


class Mixture(Target):
    r"""Mixture of Gaussians with full covariances in any dimension.

    Args:
        weights: K positive numbers; normalised.
        means: (K, \*D).
        covs: (K, d, d) with d the number of coordinates in \*D; or (K, d) variances; or (K,) isotropic variances.

    Raises:
        ValueError: If shapes disagree, a weight is negative or a covariance is not positive semi-definite.

    Example:
        >>> import torch, sde
        >>> two = sde.Mixture([0.5, 0.5], means=[[-1.0, 0.0], [1.0, 0.0]], covs=[0.04, 0.04])
        >>> two.sample(5).shape, two.log_prob(torch.zeros(5, 2)).shape
        (torch.Size([5, 2]), torch.Size([5]))
    """

    weights: Tensor
    means: Tensor
    covs: Tensor
    axes: Tensor
    variances: Tensor

    def __init__(self, weights: Sequence[float] | Tensor, means: Sequence | Tensor, covs: Sequence | Tensor) -> None:
        super().__init__()
        w, m, c = (torch.as_tensor(v, dtype=torch.float64).detach().clone() for v in (weights, means, covs))
        if m.ndim < 2 or w.ndim != 1 or len(w) != len(m) or len(c) != len(m):
            raise ValueError(
                f"weights {tuple(w.shape)}, means {tuple(m.shape)} and covs {tuple(c.shape)} must agree in their first "
                "axis: pass (K,), (K, *D) and (K, d, d), (K, d) or (K,)"
            )
        for name, v in {"weights": w, "means": m, "covs": c}.items():
            if not bool(torch.isfinite(v).all()):
                raise ValueError(f"{name} must be finite, got {v.tolist()}: clean them first")
        if not bool((w >= 0).all()) or not float(w.sum()) > 0:
            raise ValueError(
                f"weights must be non-negative with a positive sum, got {w.tolist()}: they are probabilities, up to a "
                "factor"
            )
        d = m[0].numel()
        if c.ndim == 1:
            c = c[:, None].expand(-1, d)
        if c.ndim == 2:
            c = torch.diag_embed(c)
        if c.shape != (len(m), d, d):
            raise ValueError(f"covs must be ({len(m)}, {d}, {d}), ({len(m)}, {d}) or ({len(m)},), got {tuple(c.shape)}")
        variances, axes = torch.linalg.eigh(c)
        if float(variances.min()) < -1e-10 * float(variances.abs().max()) or not torch.allclose(c, c.mT):
            raise ValueError(
                f"covs must be symmetric positive semi-definite, got {c.tolist()} with eigenvalues down to "
                f"{float(variances.min()):.3g}: pass B @ B.T for a square root B, or variances of at least 0"
            )
        self.event = m.shape[1:]
        self.register_buffer("weights", w / w.sum())
        self.register_buffer("means", m.flatten(1))
        self.register_buffer("covs", c)
        self.register_buffer("axes", axes)
        self.register_buffer("variances", variances.clamp_min(0))

    @property
    def mean(self) -> Tensor:
        r"""Mean, \*D."""
        return (self.weights @ self.means).reshape(self.event)

    @property
    def cov(self) -> Tensor:
        """Covariance over all coordinates, (d, d)."""
        r = self.means - self.weights @ self.means
        return torch.einsum("k,kij->ij", self.weights, self.covs) + torch.einsum("k,ki,kj->ij", self.weights, r, r)

    @property
    def scale(self) -> float:
        """Standard deviation of a coordinate, in the mean over them."""
        return math.sqrt(float(self.cov.diagonal().mean()))

    def sample(self, n: int, generator: Generator = None) -> Tensor:  # noqa: D102
        dtype, device = self.means.dtype, self.means.device
        u = rand((n,), generator, dtype=dtype, device=device)
        k = torch.searchsorted(self.weights.cumsum(0), u).clamp_max(len(self.weights) - 1)
        z = randn((n, self.means.shape[1]), generator, dtype=dtype, device=device) * self.variances[k].sqrt()
        return (self.means[k] + (self.axes[k] @ z[..., None])[..., 0]).reshape(n, *self.event)

    def _components(self, y: Tensor, alpha: Coefficient, sigma: Coefficient) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Log w_k N_k(y): (B, K); the residuals along each component's axes and their variances: (B, K, d); axes."""
        weights, means, axes, d = (c.to(y) for c in (self.weights, self.means, self.axes, self.variances))
        a, s = _column(alpha), _column(sigma)
        r = torch.einsum("bki,kij->bkj", self._flat(y)[:, None] - (a * means).to(y.dtype), axes)
        v = (a**2 * d + s**2).to(y.dtype)
        log_p = -0.5 * (r**2 / v + torch.log(2 * math.pi * v)).sum(-1)
        return torch.log(weights) + log_p, r, v, axes

    def log_marginal(self, y: Tensor, alpha: Coefficient, sigma: Coefficient) -> Tensor:  # noqa: D102
        return torch.logsumexp(self._components(y, alpha, sigma)[0], 1)

    def denoise(self, y: Tensor, alpha: Coefficient, sigma: Coefficient) -> Tensor:  # noqa: D102
        log_r, r, v, axes = self._components(y, alpha, sigma)
        shift = (_column(alpha) * self.variances.to(y)).to(y.dtype) / v * r
        weights = torch.softmax(log_r, 1)
        # Two factors at a time: einsum of all three would make a matrix for every sample and component.
        x0 = weights @ self.means.to(y) + torch.einsum("kij,bkj->bi", axes, weights[..., None] * shift)
        return x0.reshape(y.shape)


class Gaussian(Mixture):
    r"""Gaussian with full covariance in any dimension.

    Args:
        mean: \*D.
        cov: (d, d), or (d,) variances, or one variance.

    Example:
        >>> import torch, sde
        >>> sde.Gaussian(mean=[1.0, 2.0], cov=[[1.0, 0.5], [0.5, 1.0]]).sample(3).shape
        torch.Size([3, 2])
    """

    def __init__(self, mean: Sequence | Tensor, cov: float | Sequence | Tensor) -> None:
        super().__init__(
            [1.0],
            torch.as_tensor(mean, dtype=torch.float64)[None],
            torch.as_tensor(cov, dtype=torch.float64)[None],
        )


class Empirical(Target):
    r"""A finite data set as a distribution; its denoiser is the ideal one for that set.

    Args:
        data: (N, \*D).
        chunk: States handled at a time, to bound memory at chunk × N numbers.

    Example:
        >>> import torch, sde
        >>> data = torch.randn(100, 1, 8, 8)
        >>> model = sde.ExactScore(sde.Empirical(data), sde.EDM())
        >>> torch.allclose(model(data[:5], 0.002).x0, data[:5], atol=1e-4)
        True
    """

    data: Tensor

    def __init__(self, data: Tensor, chunk: int = 4096) -> None:
        super().__init__()
        if data.ndim < 2 or not len(data):
            raise ValueError(f"data must be (N, *D) with N at least 1, got {tuple(data.shape)}: a row to each datum")
        if not data.is_floating_point():
            raise TypeError(f"data must be floating, got {data.dtype}: use data.float()")
        if not bool(torch.isfinite(data).all()):
            bad = int((~torch.isfinite(data)).sum())
            raise ValueError(f"data holds {bad} values that are not finite: clean it first")
        if chunk < 1:
            raise ValueError(f"chunk must be at least 1, got {chunk}: keep 4096")
        self.chunk, self.event = chunk, data.shape[1:]
        self.register_buffer("data", data.detach().clone())

    @property
    def mean(self) -> Tensor:
        r"""Mean, \*D."""
        return self.data.mean(0)

    @property
    def scale(self) -> float:
        """Standard deviation of a coordinate, in the mean over them."""
        return float((self.data - self.mean).square().mean().sqrt())

    def sample(self, n: int, generator: Generator = None) -> Tensor:  # noqa: D102
        u = rand((n,), generator, dtype=torch.float64 if self.data.device.type != "mps" else None)
        return self.data[(u * len(self.data)).long().clamp_max(len(self.data) - 1).to(self.data.device)]

    def _logits(self, y: Tensor, alpha: Coefficient, sigma: Coefficient) -> Tensor:
        """-|y - alpha x_i|^2 / (2 sigma^2): (B, N), from differences, as a product of matrices would cancel."""
        a, s = (c.reshape(-1, 1) if isinstance(c, Tensor) and c.ndim else c for c in (alpha, sigma))
        data = self.data.to(y).flatten(1)
        if isinstance(a, Tensor) and a.ndim:
            scaled_data = (_column(a) * data).to(y.dtype)
            distance = torch.cdist(self._flat(y)[:, None], scaled_data, compute_mode=DIRECT)[:, 0]
        else:
            distance = torch.cdist(self._flat(y), (a * data).to(y.dtype), compute_mode=DIRECT)
        return (-(distance**2) / (2 * s**2)).to(y.dtype)

    def _chunks(
        self, y: Tensor, alpha: Coefficient, sigma: Coefficient
    ) -> list[tuple[Tensor, Coefficient, Coefficient]]:
        starts = range(0, len(y), self.chunk)
        cut = lambda c, i: c[i : i + self.chunk] if isinstance(c, Tensor) and c.ndim and len(c) > 1 else c  # noqa: E731
        return [(cut(y, i), cut(alpha, i), cut(sigma, i)) for i in starts]

    def log_marginal(self, y: Tensor, alpha: Coefficient, sigma: Coefficient) -> Tensor:  # noqa: D102
        if not isinstance(sigma, Tensor) and sigma == 0:
            raise ValueError("a finite data set has no density: ask for its log-density at t > 0")
        d = self.data[0].numel()
        pieces = [torch.logsumexp(self._logits(*part), 1) for part in self._chunks(y, alpha, sigma)]
        log_s = torch.log(sigma).reshape(-1) if isinstance(sigma, Tensor) else math.log(sigma)
        log_p = torch.cat(pieces) - math.log(len(self.data)) - d * (log_s + math.log(2 * math.pi) / 2)
        return log_p.to(y.dtype)

    def denoise(self, y: Tensor, alpha: Coefficient, sigma: Coefficient) -> Tensor:  # noqa: D102
        data = self.data.to(y).flatten(1)
        pieces = [torch.softmax(self._logits(*part), 1) @ data for part in self._chunks(y, alpha, sigma)]
        return torch.cat(pieces).reshape(y.shape)


class ExactScore(Model):
    """The exact score model of a target under a forward SDE, scalar or matrix.

    Args:
        target: `Gaussian`, `Mixture` or `Empirical`.
        sde: Forward SDE.

    Example:
        >>> import torch, sde
        >>> model = sde.ExactScore(sde.Gaussian([0.0, 0.0], 1.0), sde.VP())
        >>> torch.allclose(model(torch.ones(1, 2), 0.3).score, -torch.ones(1, 2))
        True
    """

    tabulates = True

    def __init__(self, target: Target, sde: ForwardSDE) -> None:
        super().__init__()
        self.target, self.sde = target, sde

    def data_scale(self) -> float:  # noqa: D102
        return self.target.scale

    def data_mean(self) -> Tensor | None:  # noqa: D102
        return self.target.mean

    def forward(self, x: Tensor, t: float | Tensor, **cond: Any) -> Point:  # noqa: D102
        if type(t) is not Node:
            self.sde.check_time(t)
        return Point(self.sde, x, t, self.target.denoise(*self.sde.statistic(x, t)))

    def log_prob(self, x: Tensor, t: float | Tensor, sde: ForwardSDE | None = None) -> Tensor:
        """Exact log p_t(x): (B,)."""
        sde = sde or self.sde
        return self.target.log_marginal(*sde.statistic(x, t)) + sde.log_residual(x, t)

    def prior(self, x0_like: Tensor, generator: Generator = None, sde: ForwardSDE | None = None) -> Tensor:
        """Draw from the exact marginal at t_max.

        Raises:
            ValueError: If x0_like is not shaped as this target's samples.
        """
        sde, event = sde or self.sde, self.target.event
        if x0_like.shape[1:] != event:
            needed = ", ".join(["B", *map(str, event)])
            raise ValueError(
                f"shape is {tuple(x0_like.shape)}, this target needs ({needed}): its samples have one shape"
            )
        return sde.perturb(self.target.sample(len(x0_like), generator).to(x0_like), sde.t_max, generator).x

    def prior_log_prob(self, x: Tensor, sde: ForwardSDE | None = None) -> Tensor:
        """Exact log-density at t_max: (B,)."""
        return self.log_prob(x, (sde or self.sde).t_max, sde)
