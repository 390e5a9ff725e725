"""Distances made of mean pairwise terms: maximum mean discrepancy and energy distance.

    MMD²(a, b) = E k(x, x') + E k(y, y') − 2 E k(x, y)                x, x' ~ a, y, y' ~ b, all independent
    D²(a, b)   = 2 E‖x − y‖ − E‖x − x'‖ − E‖y − y'‖

Both are zero only where the two distributions agree (a polynomial kernel: where moments up to its degree do). The means
over one sample's own pairs may leave out the pairs of a point with itself (a U-statistic: unbiased, may be below zero)
or keep them (a V-statistic: biased upwards by O(1/n), never below zero). MMD² here is the first, the energy distance
the second: each docstring says so.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sde.metrics._samples import pair, result, row_chunks
from sde.random import rand


def mmd(a: Tensor, b: Tensor, bandwidth: float | Sequence[float] | None = None) -> Tensor:
    r"""Squared maximum mean discrepancy with Gaussian kernels, the unbiased estimate (it may be below zero).

    k(x, y) = mean over h of exp(−‖x − y‖² / 2h²). With `bandwidth=None`, h is the median distance in the
    pooled sample times ¼, ½, 1, 2, 4, so that structure finer than the whole is seen too.

    Args:
        a: a sample, (n, \*D), n at least 2.
        b: another, (m, \*D), m at least 2.
        bandwidth: h, or several. The default moves with the samples: to compare several models, pass the one
            that `median_distance(data)` gives.

    Returns:
        MMD², a float64 scalar on the device of `a`; at most 2.

    References:
        Gretton et al. (2012), A kernel two-sample test, JMLR 13, equation 3; median heuristic in section 8.

    Example:
        >>> a = torch.randn(500, 2)
        >>> bool(mmd(a, torch.randn(500, 2)) < 0.02 < mmd(a, a + 1))
        True
    """
    x, y = _pairs_of_two(a, b)
    if bandwidth is None:
        median = _median_distance(x, y)
        scales = [median * factor for factor in (0.25, 0.5, 1.0, 2.0, 4.0)]
    else:
        scales = [float(h) for h in bandwidth] if isinstance(bandwidth, Sequence) else [float(bandwidth)]
    if not scales or not all(0 < h < float("inf") for h in scales):
        raise ValueError(f"bandwidth must be positive, got {scales}: all points coincide, or pass bandwidth=1.0, say")

    def kernel(distance: Tensor) -> Tensor:  # summed over the table
        squares = distance.square()
        return torch.stack([(squares * (-0.5 / h**2)).exp().sum() for h in scales]).mean()

    n, m = len(x), len(y)
    # A point with itself counts one: take it out.
    sums = _pair_sum(x, x, kernel) - n, _pair_sum(y, y, kernel) - m, _pair_sum(x, y, kernel)
    return result(_unbiased(*sums, n, m), a)


class KernelDistance(NamedTuple):
    """A squared kernel distance and its standard error.

    Example:
        >>> print(KernelDistance(0.00123, 0.00011))
        0.00123 ± 0.00011
    """

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:.3g} ± {self.error:.2g}"


def kernel_distance(
    a: Tensor, b: Tensor, subsets: int = 20, degree: int = 3, generator: torch.Generator | None = None
) -> KernelDistance:
    r"""Kernel distance of features: MMD² with k(x, y) = (x·y / d + 1)³, unbiased, with its standard error.

    In the features of the FID's Inception it is known as KID. Unlike a Fréchet distance it has no bias at small n, and
    may be below zero. Published figures are means over random subsets of 1000; here all pairs are used, which has the
    same expectation and less variance. The error is the jackknife over disjoint random subsets of both samples, each
    left out in turn: right where the samples differ, and too large (by up to the root of 2) where they do not.

    Args:
        a: Features (n, d).
        b: Features (m, d).
        subsets: How many subsets; at least 2, and each holds at least 1 row of both.
        degree: Of the kernel.
        generator: Which rows go to which subset; the value does not depend on it.

    References:
        Bińkowski et al. (2018), 1801.01401.

    Example:
        >>> x = torch.randn(400, 8)
        >>> value, error = kernel_distance(x[:200], x[200:])
        >>> abs(value) < 5 * error < kernel_distance(x[:200], x[200:] + 1).value
        True
    """
    x, y = _pairs_of_two(a, b)
    if not 2 <= subsets <= min(len(x), len(y)) // 2:
        raise ValueError(
            f"subsets must be at least 2 and leave 2 rows in each, got {subsets} for {len(x)} and {len(y)} rows: pass "
            f"subsets={max(2, min(20, min(len(x), len(y)) // 2))}, or more rows"
        )
    if degree < 1:
        raise ValueError(f"degree must be at least 1, got {degree}: pass degree=3")
    parts = [[s[rows] for rows in _shuffled(len(s), generator).to(s.device).tensor_split(subsets)] for s in (x, y)]

    def table(one: list[Tensor], two: list[Tensor], own: bool) -> Tensor:
        sums = x.new_zeros(subsets, subsets)
        for i, u in enumerate(one):
            for j, v in enumerate(two):
                if own and j < i:
                    sums[i, j] = sums[j, i]
                else:
                    kernel = (u @ v.T / x.shape[1] + 1) ** degree
                    sums[i, j] = kernel.sum() - (kernel.trace() if own and i == j else 0)
        return sums

    tables = table(parts[0], parts[0], True), table(parts[1], parts[1], True), table(parts[0], parts[1], False)
    sizes = [torch.tensor([len(u) for u in part]).to(x) for part in parts]
    whole = _unbiased(*(t.sum() for t in tables), *(size.sum() for size in sizes))
    # The sums of pairs that do not touch subset i.
    left = [t.sum() - t.sum(0) - t.sum(1) + t.diagonal() for t in tables]
    others = _unbiased(left[0], left[1], left[2], *(size.sum() - size for size in sizes))
    error = ((subsets - 1) / subsets * (others - others.mean()).square().sum()).sqrt()
    return KernelDistance(float(whole), float(error))


def energy_distance(a: Tensor, b: Tensor) -> Tensor:
    r"""Energy distance, from all pairs (biased upwards by O(1/n) in its square; never below zero).

    D = (2 E‖x − y‖ − E‖x − x'‖ − E‖y − y'‖)^½; on a line it is (2 ∫ (F_a − F_b)²)^½. No parameter to choose.

    Args:
        a: a sample, (n, \*D).
        b: another, (m, \*D).

    Returns:
        D, a float64 scalar on the device of `a`; its square has the units of the data.

    References:
        Székely and Rizzo (2013), Energy statistics: a class of statistics based on distances.

    Example:
        >>> f"{energy_distance(torch.zeros(1, 1), torch.ones(1, 1)):.4f}"  # sqrt(2)
        '1.4142'
    """
    x, y = pair(a, b)
    n, m = len(x), len(y)
    square = 2 * _pair_sum(x, y) / (n * m) - _pair_sum(x, x) / n**2 - _pair_sum(y, y) / m**2
    return result(square.clamp(min=0).sqrt(), a)  # equal samples may round to just below zero


def median_distance(x: Tensor) -> Tensor:
    r"""The median distance between two points of a sample (n, \*D): the usual bandwidth of a kernel.

    Of a large sample 1000 points are looked at, evenly spread through its order.

    References:
        Gretton et al. (2012), A kernel two-sample test, JMLR 13, section 8.

    Example:
        >>> f"{median_distance(torch.tensor([[0.0], [1.0], [5.0]])):.1f}"  # of 1, 4 and 5
        '4.0'
    """
    return result(torch.as_tensor(_median_distance(pair(x, x)[0]), dtype=torch.float64), x)


def _pairs_of_two(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    x, y = pair(a, b)
    for name, sample in (("a", x), ("b", y)):
        if len(sample) < 2:
            raise ValueError(f"{name} must hold at least 2 points, got 1: an unbiased mean needs a pair")
    return x, y


def _unbiased(xx: Tensor, yy: Tensor, xy: Tensor, n: int | Tensor, m: int | Tensor) -> Tensor:
    """MMD² from sums of the kernel over pairs of two different points."""
    return xx / (n * (n - 1)) + yy / (m * (m - 1)) - 2 * xy / (n * m)


def _shuffled(n: int, generator: torch.Generator | None) -> Tensor:
    return rand((n,), generator, dtype=torch.float32).argsort()


def _median_distance(*samples: Tensor) -> float:
    few = torch.cat([x[:: -(-len(x) // 1000)] for x in samples])
    if len(few) < 2:
        raise ValueError("x must hold at least 2 points, got 1: a distance needs a pair")
    return float(torch.pdist(few).median())


def _pair_sum(x: Tensor, y: Tensor, f: Callable[[Tensor], Tensor] = torch.sum) -> Tensor:
    """The sum `f` makes of the table ‖x_i − y_j‖, a chunk of rows at a time."""
    # |x|² + |y|² − 2xy is ten times as fast for images, but leaves 1e-8 of |x| where the distance is zero.
    mode = f"{'donot_use' if x.shape[1] <= 64 else 'use'}_mm_for_euclid_dist"
    centre = y.mean(0)
    x, y = x - centre, y - centre
    total = x.new_zeros(())
    for rows in row_chunks(x, len(y)):
        distance = torch.cdist(rows, y, compute_mode=mode)
        total = total + f(distance)
    return total
