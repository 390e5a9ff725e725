"""Wasserstein distances between two samples: exact, and averaged over projections.

    W_p(a, b)^p  = min over couplings π of Σ π_ij ‖a_i − b_j‖^p
    SW_p(a, b)^p = E_θ W_p(θ·a, θ·b)^p,    θ uniform on the unit sphere

In one dimension the best coupling matches quantiles, W_p^p = ∫₀¹ abs(F_a⁻¹(u) − F_b⁻¹(u))^p du: a sort, not a
linear program. Directions come in orthonormal blocks: each is uniform, so the mean is unbiased, and together
they cover the sphere better than independent ones. (A shift c has SW_2 = ‖c‖/√d, and a whole block says so
exactly.)
"""

import math

import torch
from torch import Tensor

from sde.metrics._samples import at_least, pair, result, row_chunks


def sliced_wasserstein(
    a: Tensor, b: Tensor, n_projections: int = 128, p: float = 2.0, generator: torch.Generator | None = None
) -> Tensor:
    r"""Sliced Wasserstein distance: the mean over directions of the distance between projections.

    SW_p = (1/n_projections Σ_θ W_p(θ·a, θ·b)^p)^(1/p), each W_p exact, for samples of any two sizes.

    Args:
        a: a sample, (n, \*D).
        b: another, (m, \*D).
        n_projections: how many directions. The error falls as their root; multiples of the dimension are
            best.
        p: the power; 1 or more.
        generator: where the directions come from; the same one for every row of a table compares like with
            like.

    Returns:
        A float64 scalar on the device of `a`, in the units of the data.

    References:
        Rabin et al. (2011), Wasserstein barycenter and its application to texture mixing;
        Bonneel et al. (2015), Sliced and Radon Wasserstein barycenters of measures;
        Rowland et al. (2019), Orthogonal estimation of Wasserstein distances, arXiv:1903.03784.

    Example:
        >>> a = torch.randn(500, 2)
        >>> f"{sliced_wasserstein(a, a + torch.tensor([3.0, 4.0])):.3f}"  # 5 / sqrt(2)
        '3.536'
    """
    at_least("n_projections", n_projections, 1)
    at_least("p", p, 1)
    x, y = pair(a, b)
    directions = _directions(x.shape[1], n_projections, generator).to(x)
    chunks = row_chunks(directions, len(x) + len(y))
    total = sum(_quantile_cost(x @ part.T, y @ part.T, p).sum() for part in chunks)
    return result((total / n_projections) ** (1 / p), a)


def wasserstein(a: Tensor, b: Tensor, p: float = 2.0, max_pairs: int = 5000**2) -> Tensor:
    r"""Exact Wasserstein distance between two samples, by the network simplex of POT.

    W_p = (min_π Σ π_ij ‖a_i − b_j‖^p)^(1/p), over couplings π with uniform marginals.

    Cost: the n × m table in float64, and time that grows about as its 3/2 power (2000 against 2000 points: a
    second).

    Args:
        a: a sample, (n, \*D).
        b: another, (m, \*D).
        p: the power; 1 or more.
        max_pairs: refuse more than this many pairs; 5000² pairs are 200 MB and some five seconds.

    Returns:
        A float64 scalar on the device of `a`, in the units of the data.

    References:
        Bonneel et al. (2011), Displacement interpolation using Lagrangian mass transport;
        Flamary et al. (2021), POT: Python Optimal Transport, JMLR 22(78).

    Example:
        >>> a = torch.randn(100, 2)
        >>> f"{wasserstein(a, a + torch.tensor([3.0, 4.0])):.3f}"  # a shift by 5
        '5.000'
    """
    at_least("p", p, 1)
    x, y = pair(a, b)
    if len(x) * len(y) > max_pairs:
        side = math.isqrt(max_pairs)
        raise ValueError(
            f"a and b make {len(x)} x {len(y)} pairs, more than max_pairs={max_pairs}: "
            f"pass a[:{side}], b[:{side}], or use sliced_wasserstein, which only sorts"
        )
    if x.shape[1] == 1:
        return result(_quantile_cost(x, y, p)[0] ** (1 / p), a)
    import ot

    cost = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist") ** p
    value, log = ot.emd2([], [], cost.detach().cpu().numpy(), numItermax=10_000_000, log=True)
    if log["warning"] is not None:
        raise RuntimeError(f"no coupling of {len(x)} x {len(y)} points: {log['warning']}; pass fewer points")
    return result(torch.as_tensor(value, dtype=torch.float64) ** (1 / p), a)


def _directions(d: int, count: int, generator: torch.Generator | None) -> Tensor:
    """`count` unit vectors of dimension d as rows, orthonormal in blocks of d; float64, on the CPU."""
    device = "cpu" if generator is None else generator.device
    width = min(d, count)
    blocks = -(-count // width)
    z = torch.randn(blocks, d, width, generator=generator, device=device).cpu().double()
    q = torch.linalg.qr(z).Q  # a column's sign is LAPACK's whim, and W_p does not see it
    return q.mT.reshape(blocks * width, d)[:count]


def _quantile_cost(x: Tensor, y: Tensor, p: float) -> Tensor:
    """W_p^p between the columns of x (n, k) and of y (m, k): the integral over both quantile functions."""
    x, y = x.sort(dim=0).values, y.sort(dim=0).values
    n, m = len(x), len(y)
    if n == m:
        return (x - y).abs().pow(p).mean(0)
    # Both quantile functions are constant between the multiples of 1/n and 1/m. Counted in units of 1/(nm)
    # these are whole numbers, so that equal breakpoints meet exactly.
    ends = torch.cat([m * torch.arange(1, n + 1), n * torch.arange(1, m + 1)]).unique()
    widths = torch.diff(ends, prepend=ends.new_zeros(1)).to(x) / (n * m)
    i, j = ((ends - 1) // m).to(x.device), ((ends - 1) // n).to(x.device)
    return ((x[i] - y[j]).abs().pow(p) * widths[:, None]).sum(0)
