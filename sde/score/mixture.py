r"""Gaussian mixtures: under noise, and given a linear observation, they are mixtures again.

    x0 ~ sum_k w_k N(m_k, C_k)    =>    y = alpha x0 + sigma n ~ sum_k w_k N(alpha m_k, alpha^2 C_k + sigma^2 I)

and E[x0 | y] = sum_k r_k(y) (m_k + alpha C_k (alpha^2 C_k + sigma^2 I)^-1 (y - alpha m_k)), with r_k the posterior
weight of component k. One eigendecomposition C_k = V D V' serves all alpha and sigma.

Given y = A x0 + noise n, write x0 = m_k + V D^1/2 z with z ~ N(0, I) and A V D^1/2 = U S W'. Along each axis of W one
number is seen through the gain s with noise, so z | y has there mean s / (s^2 + noise^2) times U'(y - A m_k), and
variance noise^2 / (s^2 + noise^2); and w_k is multiplied by N(y; A m_k, U (S S' + noise^2 I) U'). With noise = 0 an
axis that is seen has no variance left, a y outside a component's range has weight 0 there, and of components of
different dimension that can make y the lowest takes all: that is the limit of noise -> 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sde.random import Generator, rand, randn
from sde.score.target import Seen, Target, column, linear
from sde.shape import Coefficient


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
        self._keep(m.shape[1:], w, m.flatten(1), axes, variances.clamp_min(0), c)

    def _keep(self, event: torch.Size, w: Tensor, m: Tensor, axes: Tensor, variances: Tensor, c: Tensor) -> None:
        self.event = event
        self.register_buffer("weights", w / w.sum())
        self.register_buffer("means", m)
        self.register_buffer("covs", c)
        self.register_buffer("axes", axes)
        self.register_buffer("variances", variances)

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

    def _components(self, y: Tensor, alpha: Coefficient, sigma: Coefficient) -> Tensor:
        """Log w_k N_k(y): (B, K)."""
        weights, means, axes, d = (c.to(y) for c in (self.weights, self.means, self.axes, self.variances))
        a, s = column(alpha), column(sigma)
        r = torch.einsum("bki,kij->bkj", self._flat(y)[:, None] - (a * means).to(y.dtype), axes)
        v = torch.as_tensor((a**2 * d + s**2).to(y.dtype)).clamp_min(torch.finfo(y.dtype).tiny)
        return torch.log(weights) - 0.5 * (r**2 / v + torch.log(2 * math.pi * v)).sum(-1)

    def log_marginal(self, y: Tensor, alpha: Coefficient, sigma: Coefficient) -> Tensor:  # noqa: D102
        if not isinstance(sigma, Tensor) and sigma == 0 and bool((self.variances[self.weights > 0] == 0).any()):
            raise ValueError("a component without width in some direction has no density: ask at t > 0")
        return torch.logsumexp(self._components(y, alpha, sigma), 1)

    def _weighed(self, y: Tensor, alpha: Coefficient, sigma: Coefficient) -> tuple[Any, Any, Tensor, Tensor, Tensor]:
        """Numbers a and s, residuals r along axes (K, d, B), 1 / v (K, d, 1 or B), and components' weights (K, B).

        Samples come last, where sums over few numbers are fast.
        """
        weights, means, axes, d = (c.to(y) for c in (self.weights, self.means, self.axes, self.variances[..., None]))
        a, s = (c.to(y).reshape(-1) if isinstance(c, Tensor) else c for c in (alpha, sigma))
        r = axes.mT @ (self._flat(y).T - a * means[..., None])
        # A direction of no width at no noise: x0 does not move along it, and only the nearest component can be meant.
        steepness = 1 / (a**2 * d + s**2).clamp_min(torch.finfo(y.dtype).tiny)
        log_c = torch.log(weights)[:, None] + 0.5 * torch.log(steepness).sum(1)
        return a, s, r, steepness, torch.softmax(torch.sub(log_c, (r * r * steepness).sum(1), alpha=0.5), 0)

    def _denoised(self, y: Tensor, r: Tensor, gain: Tensor, w: Tensor) -> Tensor:
        """Sum of the components' x0 by their weights: m_k + V gain r."""
        across = self.axes.to(y).transpose(0, 1).reshape(self.means.shape[1], -1)
        return (self.means.to(y).T @ w + across @ (w[:, None] * gain * r).flatten(0, 1)).T.reshape(y.shape)

    def denoise(self, y: Tensor, alpha: Coefficient, sigma: Coefficient) -> Tensor:  # noqa: D102
        a, _, r, steepness, w = self._weighed(y, alpha, sigma)
        return self._denoised(y, r, a * self.variances.to(y)[..., None] * steepness, w)

    def traced(self, y: Tensor, alpha: Coefficient, sigma: Coefficient) -> tuple[Tensor, Tensor, Tensor]:
        """By the spread S of the components' scores: traces a E[tr d / v] + s^2 S / a and s (E[tr 1 / v] - S).

        No two large numbers cancel at either end.
        """
        a, s, r, steepness, w = self._weighed(y, alpha, sigma)
        inside, eps = self.variances.to(y)[..., None] * steepness, torch.finfo(y.dtype).eps
        scores = self.axes.to(y) @ (r * steepness)
        apart = scores - (w[:, None] * scores).sum(0)
        spread = (w * (apart * apart).sum(1)).sum(0)
        # Where a = 0 all scores are alike but for rounding, whose square over a rounding is none.
        least = a.clamp_min(eps) if isinstance(a, Tensor) else max(a, eps)
        gain = a * (w * inside.sum(1)).sum(0) + (s**2 / least) * spread
        return self._denoised(y, r, a * inside, w), gain, s * ((w * steepness.sum(1)).sum(0) - spread)

    def posterior(self, matrix: Tensor | Sequence, y: Tensor | Sequence, noise: float) -> Mixture:
        r"""Distribution of x0 given y = A x0 + noise n, n ~ N(0, I): a mixture again.

        Args:
            matrix: A over flattened samples, (m, d).
            y: What was observed: m numbers in any shape.
            noise: Standard deviation of n. 0: samples x0 have A x0 = y, and no width where y tells all.

        Raises:
            ValueError: If shapes disagree, noise is negative, or noise is 0 and no component can make y.

        References:
            Petersen & Pedersen (2012), The Matrix Cookbook, section 8.1.3.

        Example:
            >>> import sde
            >>> prior = sde.Mixture([0.5, 0.5], means=[[-1.0, -1.0], [1.0, 1.0]], covs=[0.1, 0.1])
            >>> posterior = prior.posterior([[1.0, 0.0]], y=[1.0], noise=0.0)
            >>> posterior.mean, posterior.cov
            (tensor([1.0000, 1.0000], dtype=torch.float64), tensor([[0.0000, 0.0000],
                    [0.0000, 0.1000]], dtype=torch.float64))
        """
        seen = linear(matrix, y, noise, self.means.shape[1])
        weights, means, axes, variances = (
            v.detach().cpu().double() for v in (self.weights, self.means, self.axes, self.variances)
        )
        root = axes * variances.sqrt()[:, None]  # V D^1/2
        scale = variances.amax(1).sqrt()
        u, s, wt = torch.linalg.svd(seen.matrix @ root, full_matrices=True)
        s, w = _cut(s, scale * torch.linalg.matrix_norm(seen.matrix), max(seen.matrix.shape)), wt.mT
        r = torch.einsum("kij,ki->kj", u, seen.y - means @ seen.matrix.T)
        size = s.shape[1]
        total = s**2 + seen.noise**2
        log_w = torch.log(weights) + _log_evidence(s, r, means, seen)
        if not bool(log_w.max() > -math.inf):
            raise ValueError(
                f"no component can make y without noise: the nearest is {float(r.abs().amax(1).min()):.3g} off; pass "
                "the noise that y has"
            )
        gain = torch.where(total > 0, s / total, 0.0)
        left = torch.ones_like(variances)
        left[:, :size] = torch.where(total > 0, seen.noise**2 / total, 1.0)
        moved = torch.einsum("kij,kj->ki", w[..., :size], gain * r[:, :size])
        roots = root @ w * left.sqrt()[:, None]
        # Axes come from the roots themselves: in the covariance, widths below 1e-8 would drown in rounding.
        axes, widths, _ = torch.linalg.svd(roots)
        variances = _cut(widths, scale, root.shape[1]) ** 2
        means = means + (root @ moved[..., None])[..., 0]
        kept = log_w > -math.inf
        mixture = Mixture.__new__(Mixture)
        Target.__init__(mixture)
        parts = torch.softmax(log_w, 0), means, axes, variances, roots @ roots.mT
        mixture._keep(self.event, *(v[kept] for v in parts))
        return mixture.to(self.means)


def _cut(s: Tensor, size: Tensor, n: int) -> Tensor:
    """Singular values (K, r), 0 where they are what rounding leaves of 0 beside numbers of a size (K,)."""
    return torch.where(s > 1e-15 * n * size[:, None], s, 0.0)


def _log_evidence(s: Tensor, r: Tensor, means: Tensor, seen: Seen) -> Tensor:
    """Log N(y; A m_k, A C_k A' + noise^2 I) (K,), or its limit as noise -> 0, up to what all components share."""
    gains = torch.zeros_like(r)
    gains[:, : s.shape[1]] = s
    total = gains**2 + seen.noise**2
    log_p = torch.where(total > 0, -(r**2) / total - torch.log(2 * math.pi * total), 0.0).sum(1) / 2
    if seen.noise > 0:
        return log_p
    size = torch.linalg.vector_norm(seen.y) + torch.linalg.vector_norm(means @ seen.matrix.T, dim=1)
    possible = torch.linalg.vector_norm(torch.where(gains > 0, 0.0, r), dim=1) <= seen.rounding * size
    rank = (s > 0).sum(1)
    lowest = rank[possible].min() if bool(possible.any()) else 0
    return torch.where(possible & (rank == lowest), log_p, -math.inf)


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
