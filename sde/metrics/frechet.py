r"""Fréchet distance: how far apart two samples' means and covariances are, in the features of a network.

    F(a, b) = |m_a − m_b|² + tr(C_a + C_b − 2 (C_a^½ C_b C_a^½)^½)

is the squared Wasserstein distance of order 2 between the Gaussians of those moments. With roots C = R Rᵀ from
eigenvalues, R = V diag(λ)^½, the last trace is the sum of the singular values of R_aᵀ R_b. That is exact for singular
covariances too (fewer images than features), and twice as many digits as the eigenvalues of C_a C_b have. "FID" is F in
the features of one network (`sde.metrics.inception`); in those of any other the number is a Fréchet distance and no
FID.

Moments are gathered batch by batch in float64, merged over processes, and kept in a file: images need never lie in
memory together. For counts n and m, means apart by δ, and scatter S = Σ (x − mean)(x − mean)ᵀ (Chan et al. 1979),

    S_ab = S_a + S_b + n m / (n + m) δ δᵀ.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from sde.metrics._samples import result


class Moments:
    r"""Count, mean and scatter of features, accumulated: `update` with batches, `merge` with another's.

    Attributes:
        count: How many rows were seen.
        mean: Their mean, (d,), float64.
        scatter: Sum of (x − mean)(x − mean)ᵀ, (d, d), float64.

    References:
        Chan, Golub and LeVeque (1979), Updating formulae and a pairwise algorithm for computing sample variances.

    Example:
        >>> moments = Moments()
        >>> for batch in torch.randn(1000, 3).split(100):
        ...     moments.update(batch)
        >>> moments
        Moments(count=1000, features=3)
        >>> moments.cov.shape
        torch.Size([3, 3])
    """

    def __init__(self, features: Tensor | None = None) -> None:
        self.count, self.mean, self.scatter = 0, torch.zeros(0, dtype=torch.float64), torch.zeros(0, 0).double()
        if features is not None:
            self.update(features)

    def update(self, features: Tensor) -> None:
        """Take in a batch (n, d), floating; on its own device, without waiting for it."""
        if features.ndim != 2 or not features.is_floating_point():
            raise ValueError(
                f"features must be (n, d) and floating, got {tuple(features.shape)} of {features.dtype}: "
                "pass features.flatten(1).float()"
            )
        if len(features):
            x = (features.detach().cpu() if features.device.type == "mps" else features.detach()).double()
            mean = x.mean(0)
            centred = x - mean
            self._add(len(x), mean, centred.T @ centred)

    def merge(self, other: Moments) -> None:
        """Take in all that another has seen: of another process, or from a file."""
        if other.count:
            self._add(other.count, other.mean, other.scatter)

    def _add(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        if not self.count:
            self.count, self.mean, self.scatter = count, mean.clone(), scatter.clone()
            return
        if len(mean) != len(self.mean):
            raise ValueError(f"features must be {len(self.mean)} wide as before, got {len(mean)}: use one network")
        n, m, total = self.count, count, self.count + count
        shift = mean.to(self.mean.device) - self.mean
        self.scatter = self.scatter + scatter.to(self.mean.device) + torch.outer(shift, shift) * (n * m / total)
        self.mean, self.count = self.mean + shift * (m / total), total

    @property
    def cov(self) -> Tensor:
        """Unbiased covariance, (d, d)."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 rows, got {self.count}: update with more")
        return self.scatter / (self.count - 1)

    def save(self, path: str | Path) -> None:
        """Write them as safetensors: no pickle, so that the file may come from anywhere."""
        from safetensors.torch import save_file

        parts = {"count": torch.tensor(self.count), "mean": self.mean, "scatter": self.scatter}
        save_file({name: x.cpu().contiguous() for name, x in parts.items()}, Path(path), {"format": "sde.Moments"})

    @classmethod
    def load(cls, path: str | Path) -> Moments:
        """Read what `save` wrote.

        Raises:
            ValueError: If the file holds something else.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            parts = load_file(Path(path))
        except SafetensorError as error:
            raise ValueError(f"{path} is no safetensors file: write one with Moments.save") from error
        moments, d = cls(), parts.get("mean", torch.zeros(0)).numel()
        good = set(parts) == {"count", "mean", "scatter"} and parts["count"].shape == ()
        if not good or parts["mean"].shape != (d,) or parts["scatter"].shape != (d, d):
            raise ValueError(f"{path} holds {sorted(parts)} and no moments of features: write it with Moments.save")
        moments.count = int(parts["count"])
        moments.mean, moments.scatter = parts["mean"].double(), parts["scatter"].double()
        return moments

    def __repr__(self) -> str:
        return f"Moments(count={self.count}, features={len(self.mean)})"


def frechet_distance(a: Tensor | Moments, b: Tensor | Moments) -> Tensor:
    r"""Fréchet distance between two samples' features: |m_a − m_b|² + tr(C_a + C_b − 2 (C_a^½ C_b C_a^½)^½).

    Zero only where means and covariances agree. It is biased upwards by O(1/n): compare at equal n, and beside what two
    halves of the data give. Features come from `features`, and are pixels where images are only flattened.

    Args:
        a: Features (n, d), n at least 2; or their `Moments`.
        b: Features (m, d), or `Moments`.

    Returns:
        A float64 scalar on the device of `a`, in squared units of the features.

    References:
        Dowson and Landau (1982), The Fréchet distance between multivariate normal distributions;
        Heusel et al. (2017), 1706.08500.

    Example:
        >>> x = torch.randn(1000, 8)
        >>> f"{frechet_distance(x, x + 1):.3f}"  # a shift by c: |c|²
        '8.000'
    """
    one, two = (x if isinstance(x, Moments) else Moments(_rows(name, x)) for name, x in (("a", a), ("b", b)))
    if one.mean.shape != two.mean.shape:
        raise ValueError(
            f"a and b must have equally many features, got {len(one.mean)} and {len(two.mean)}: use one network"
        )
    for name, moments in (("a", one), ("b", two)):
        if moments.count < 2:
            raise ValueError(f"{name} must hold at least 2 rows, got {moments.count}: a covariance needs a pair")
        if not moments.scatter.isfinite().all():
            raise ValueError(f"{name} must be finite, got features with nan or inf: mend the sampler first")
    device = one.mean.device
    shift = (one.mean - two.mean.to(device)).square().sum()
    cross = torch.linalg.svdvals(_root(one.cov).T @ _root(two.cov.to(device))).sum()
    value = shift + one.cov.trace() + two.cov.to(device).trace() - 2 * cross
    return result(value.clamp(min=0), a if isinstance(a, Tensor) else one.mean)  # rounding may go just below zero


def _rows(name: str, x: Tensor) -> Tensor:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor (n, d) or Moments, got {type(x).__name__}: pass features(net, x)")
    return x


def _root(cov: Tensor) -> Tensor:
    """R with R Rᵀ = cov."""
    values, vectors = torch.linalg.eigh(cov)
    return vectors * values.clamp(min=0).sqrt()
