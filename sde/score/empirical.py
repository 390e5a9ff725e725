r"""A finite data set as a target: one component of no width to each datum, the ideal denoiser.

    E[x0 | y] = sum_i r_i(y) x_i,        r_i = softmax_i(log w_i - |y - alpha x_i|^2 / (2 sigma^2)),

which a network approaches as it memorises. An observation of x0, linear or not, only weighs the data anew.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sde.random import Generator, rand
from sde.score.target import Target, column, linear
from sde.shape import Coefficient

DIRECT = "donot_use_mm_for_euclid_dist"
"""Distances from differences: a product of matrices cancels where two points are near."""


def single(y: Tensor) -> Tensor:
    """States in single precision at least: distances need digits, and `cdist` knows no half."""
    return y if y.dtype.itemsize >= 4 else y.float()


class Empirical(Target):
    r"""A finite data set as a distribution; its denoiser is the ideal one for that set.

    Args:
        data: (N, \*D).
        chunk: States handled at a time, to bound memory at chunk × N numbers.
        weights: N numbers of at least 0, normalised. Default: equal.

    Raises:
        TypeError: If data is not floating.
        ValueError: If shapes disagree, data is not finite, or a weight is negative.

    Example:
        >>> import torch, sde
        >>> data = torch.randn(100, 1, 8, 8)
        >>> model = sde.ExactScore(sde.Empirical(data), sde.EDM())
        >>> torch.allclose(model(data[:5], 0.002).x0, data[:5], atol=1e-4)
        True
    """

    data: Tensor
    weights: Tensor | None

    def __init__(self, data: Tensor, chunk: int = 4096, weights: Sequence[float] | Tensor | None = None) -> None:
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
        if weights is not None:
            weights = torch.as_tensor(weights, dtype=data.dtype, device=data.device).detach()
            if (
                weights.shape != (len(data),)
                or not bool((weights >= 0).all())
                or not 0 < float(weights.sum()) < math.inf
            ):
                raise ValueError(
                    f"weights must be {len(data)} numbers of at least 0 with a positive sum, one to each datum, got "
                    f"shape {tuple(weights.shape)}, smallest {weights.min() if weights.numel() else None}"
                )
            weights = weights / weights.sum()
        self.register_buffer("weights", weights)

    @property
    def mean(self) -> Tensor:
        r"""Mean, \*D."""
        return self.data.mean(0) if self.weights is None else torch.tensordot(self.weights, self.data, 1)

    @property
    def scale(self) -> float:
        """Standard deviation of a coordinate, in the mean over them."""
        square = (self.data - self.mean).square().flatten(1).mean(1)
        return math.sqrt(float(square.mean() if self.weights is None else self.weights @ square))

    def sample(self, n: int, generator: Generator = None) -> Tensor:  # noqa: D102
        u = rand((n,), generator, dtype=torch.float64 if self.data.device.type != "mps" else None)
        if self.weights is None:
            i = (u * len(self.data)).long()
        else:  # right=True: a datum of weight 0 is never drawn
            i = torch.searchsorted(self.weights.cumsum(0).to(u), u, right=True)
        return self.data[i.clamp_max(len(self.data) - 1).to(self.data.device)]

    def _logits(self, y: Tensor, alpha: Coefficient, sigma: Coefficient) -> Tensor:
        """Log w_i - |y - alpha x_i|^2 / (2 sigma^2): (B, N), by differences, as a product of matrices would cancel."""
        a, s = (c.reshape(-1, 1) if isinstance(c, Tensor) and c.ndim else c for c in (alpha, sigma))
        data = self.data.to(y).flatten(1)
        if isinstance(a, Tensor) and a.ndim:
            scaled_data = (column(a) * data).to(y.dtype)
            distance = torch.cdist(self._flat(y)[:, None], scaled_data, compute_mode=DIRECT)[:, 0]
        else:
            distance = torch.cdist(self._flat(y), (a * data).to(y.dtype), compute_mode=DIRECT)
        logits = (-(distance**2) / (2 * s**2)).to(y.dtype)
        return logits if self.weights is None else logits + torch.log(self.weights).to(y)

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
        pieces = [torch.logsumexp(self._logits(*part), 1) for part in self._chunks(single(y), alpha, sigma)]
        log_s = torch.log(sigma).reshape(-1) if isinstance(sigma, Tensor) else math.log(sigma)
        count = 0.0 if self.weights is not None else math.log(len(self.data))
        log_p = torch.cat(pieces) - count - d * (log_s + math.log(2 * math.pi) / 2)
        return log_p.to(y.dtype)

    def denoise(self, y: Tensor, alpha: Coefficient, sigma: Coefficient) -> Tensor:  # noqa: D102
        wide = single(y)
        data = self.data.to(wide).flatten(1)
        pieces = [torch.softmax(self._logits(*part), 1) @ data for part in self._chunks(wide, alpha, sigma)]
        return torch.cat(pieces).reshape(y.shape).to(y.dtype)

    def traced(self, y: Tensor, alpha: Coefficient, sigma: Coefficient) -> tuple[Tensor, Tensor, Tensor]:  # noqa: D102
        kept, y = y, single(y)
        data, size = self.data.to(y).flatten(1), self.data[0].numel()
        means, spreads = [], []
        for part in self._chunks(y, alpha, sigma):
            weights = torch.softmax(self._logits(*part), 1)
            means.append(weights @ data)
            spreads.append((weights * torch.cdist(means[-1], data, compute_mode=DIRECT).square()).sum(1))
        a, s = (torch.as_tensor(c, dtype=y.dtype, device=y.device).reshape(-1) for c in (alpha, sigma))
        gain = a * torch.cat(spreads) / s**2
        return torch.cat(means).reshape(y.shape).to(kept.dtype), gain, (size - a * gain) / s

    def reweighted(self, log_likelihood: Tensor) -> Empirical:
        """The same data with weights times exp(log_likelihood) (N,): the posterior under any likelihood at all.

        Raises:
            ValueError: If log_likelihood is not (N,), or leaves no datum.

        Example:
            >>> import torch, sde
            >>> three = sde.Empirical(torch.tensor([[0.0], [1.0], [2.0]]))
            >>> three.reweighted(torch.tensor([0.0, 0.0, -torch.inf])).mean
            tensor([0.5000])
        """
        if log_likelihood.shape != (len(self.data),):
            raise ValueError(
                f"log_likelihood must be ({len(self.data)},), one to each datum, got {tuple(log_likelihood.shape)}"
            )
        logits = log_likelihood.to(self.data)
        if self.weights is not None:
            logits = logits + torch.log(self.weights)
        if not bool((logits.max() > -math.inf) & ~torch.isnan(logits).any()):
            raise ValueError("no datum can have made this observation: pass the noise that it has")
        weights = torch.softmax(logits, 0)
        kept = weights > 0
        return Empirical(self.data[kept], self.chunk, weights[kept])

    def posterior(self, matrix: Tensor | Sequence, y: Tensor | Sequence, noise: float) -> Empirical:
        r"""Distribution of x0 given y = A x0 + noise n, n ~ N(0, I): the same data, weighted by p(y | x0).

        Args:
            matrix: A over flattened samples, (m, d).
            y: What was observed: m numbers in any shape.
            noise: Standard deviation of n. 0: the data that make y, to rounding.

        Raises:
            ValueError: If shapes disagree, noise is negative, or no datum can have made y.

        Example:
            >>> import torch, sde
            >>> three = sde.Empirical(torch.tensor([[0.0, 1.0], [0.0, 2.0], [1.0, 5.0]]))
            >>> three.posterior([[1.0, 0.0]], y=[0.0], noise=0.0).mean
            tensor([0.0000, 1.5000])
        """
        seen = linear(matrix, y, noise, self.data[0].numel())
        made = self.data.flatten(1).to(seen.matrix) @ seen.matrix.T
        return self.reweighted(matching(made, seen.y, seen.noise, seen.rounding))


def matching(made: Tensor, y: Tensor, noise: float, rounding: float) -> Tensor:
    r"""Log p(y | x_i) up to a constant, (N,), of data that make (N, \*E), y (\*E,); noise = 0: 0 where equal."""
    r = (made - y).flatten(1)
    if noise > 0:
        return -(r**2).sum(1) / (2 * noise**2)
    near = torch.linalg.vector_norm(r, dim=1) <= rounding * (torch.linalg.vector_norm(y) + made.abs().max())
    return torch.where(near, 0.0, -math.inf).to(y)
