r"""How a matrix SDE carries noise along its reverse SDE while x0 stands still: gDDIM's factor, for a grid at once.

With x0 held, r = U - A x0 follows, on the clock b, the linear equation

    dr = (F + (1 + eta^2) / 2 G G' Sigma^-1) r db + eta G dW

whose propagator T(s, t) has no closed form where F and G G' Sigma^-1 do not commute: the factor R of gDDIM is a
solution of it for eta = 0. In the whitened noise e = L^-1 r that solution is a rotation, which stays tame where Sigma
is all but singular, near t = 0:

    T(s, t) = L_s V L_t^-1,    dV/db = (Omega + eta^2 / 2 C) V,    C = L^-1 G G' L^-T,    V(t) = 1,
    Omega = B + C / 2 above its diagonal and skew,  B = L^-1 F L,    e_s = V e_t + (1 - V V')^1/2 z.

Near t = 0 entries behave as powers of b, so that the equation is solved in log b, by Gauss-Legendre collocation of
order 20 (Butcher 1964), which keeps the rotations orthogonal. For eta = 1 the step is the exact bridge.

Zhang, Tao & Chen (2022), 2206.05564, for the factor; L is the Cholesky factor of Sigma.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from sde.forward.matrix import MatrixSDE

STAGES = 10
LONGEST = 0.4
"""Longest piece in log b; and in b itself, over the norm of F, five times that."""


@functools.cache
def collocation(stages: int = STAGES) -> tuple[Tensor, Tensor, Tensor]:
    """Nodes c in [0, 1], weights b and matrix a of the Gauss–Legendre rule.

    Example:
        >>> collocation(1)[0].tolist(), collocation(1)[2].tolist()  # the implicit midpoint rule
        ([0.5], [[0.5]])
    """
    nodes, weights = (torch.from_numpy(c) for c in np.polynomial.legendre.leggauss(stages))
    c, n = (nodes + 1) / 2, torch.arange(stages, dtype=torch.float64)
    a = torch.linalg.solve(c[:, None] ** n, c[:, None] ** (n + 1) / (n + 1), left=False)
    return c, weights / 2, a


class Whitened(NamedTuple):
    r"""A matrix SDE seen in its whitened noise at clocks b: each (\*b, K, K), and A (\*b, K, 1).

    Args:
        mean: A.
        root: L.
        inverse: L^-1.
        noise: L^-1 G.
        turn: Omega.
        cov: Sigma = L L'.
    """

    mean: Tensor
    root: Tensor
    inverse: Tensor
    noise: Tensor
    turn: Tensor
    cov: Tensor


def whitened(sde: MatrixSDE, b: Tensor, scale: float = 0.0) -> Whitened:
    """The SDE in its whitened noise; with a scale, in the whitened state of data of that standard deviation."""
    a, cov = sde.moments_at(b)
    a, f, g = a[..., None], sde.matrix(sde.F, b), sde.matrix(sde.G, b)
    cov = cov + scale**2 * a @ a.mT
    root = torch.linalg.cholesky(cov)
    inverse = torch.linalg.solve_triangular(root, torch.eye(sde.channels).to(cov).expand_as(cov), upper=False)
    noise = inverse @ g
    above = torch.triu(inverse @ f @ root + noise @ noise.mT / 2, 1)
    return Whitened(a, root, inverse, noise, above - above.mT, cov)


class Path:
    """Gauss–Legendre nodes between two times of each of n steps, and linear equations solved along the steps.

    Args:
        sde: Matrix SDE.
        begin: Where the steps begin, (n,).
        end: Where they end, (n,).

    Attributes:
        b: Clocks of the nodes, (P, m): m to each of the pieces that the steps are cut into.
        step: Which step a piece lies in, (P,).
    """

    def __init__(self, sde: MatrixSDE, begin: Tensor, end: Tensor) -> None:
        near, norm = self._near(sde), max(sum(map(abs, row)) for row in sde.F)
        b, length = sde.clock_of(begin), sde.clock_of(end) - sde.clock_of(begin)
        u = torch.log(b + near)
        far = torch.log(b + length + near) - u
        pieces = torch.maximum(far.abs() / LONGEST, length.abs() * norm / (5 * LONGEST))
        self.pieces = pieces.ceil().long().clamp_min(1)
        self.first = self.pieces.cumsum(0) - self.pieces
        self.step = torch.repeat_interleave(torch.arange(len(b)), self.pieces)
        width = (far / self.pieces)[self.step]
        start = u[self.step] + width * (torch.arange(len(self.step)) - self.first[self.step])
        shifted = torch.exp(start[:, None] + width[:, None] * collocation()[0])
        self.b, self.width = shifted - near, (width[:, None] * shifted)[..., None, None]

    @staticmethod
    def _near(sde: MatrixSDE) -> float:
        """Clock at which the noise has grown as large as the least that is there at first: 0 where none is."""
        least = float(torch.linalg.eigvalsh(torch.tensor(sde.cov0, dtype=torch.float64))[0])
        most = float(torch.linalg.matrix_norm(torch.tensor(sde.G, dtype=torch.float64), 2)) ** 2
        return least / (least + most) if least > 1e-12 else 0.0

    def solve(self, rate: Tensor, source: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Solutions of dV/db = rate V, V = 1 at first, and dY/db = rate Y + source, Y = 0 at first.

        Args:
            rate: At the nodes, (P, m, K, K).
            source: At the nodes, (P, m, K, J).

        Returns:
            V (n, K, K) and Y (n, K, J) at the ends of the steps, and V at the nodes, (P, m, K, K).
        """
        _, weights, a = collocation()
        pieces, m, k, _ = rate.shape
        one, rate, source = torch.eye(k).to(rate), self.width * rate, self.width * source
        # Slopes s_i = rate_i (y + sum_j a_ij s_j) + source_i of all stages of a piece at once.
        coupled = torch.einsum("ij,pikl->pikjl", a, rate).reshape(pieces, m * k, m * k)
        right = torch.cat([rate, source], -1).reshape(pieces, m * k, -1)
        slopes = torch.linalg.solve(torch.eye(m * k).to(rate) - coupled, right).reshape(pieces, m, k, -1)
        ends = torch.einsum("i,pikl->pkl", weights, slopes)
        inside = one + torch.einsum("ij,pjkl->pikl", a, slopes[..., :k])
        v = one.expand(len(self.pieces), k, k).clone()
        y = v.new_zeros(len(v), k, source.shape[-1])
        for j in range(int(self.pieces.max())):
            rows = self.pieces > j
            piece = (self.first + j)[rows]
            inside[piece] = inside[piece] @ v[rows][:, None]
            y[rows] = y[rows] + ends[piece][..., :k] @ y[rows] + ends[piece][..., k:]
            v[rows] = v[rows] + ends[piece][..., :k] @ v[rows]
        return v, y, inside


def carried(sde: MatrixSDE, begin: Tensor, end: Tensor, eta: float) -> tuple[Tensor, Tensor, Tensor]:
    """Steps with x0 held from the times begin to end, (n,) each: T (n, K, K), c (n, K, 1), S (n, K, K).

    A step is U_s = T U_t + c x0 + S z; S is a root of the noise's covariance, in the limit of a short step that of the
    SDE's own increment.

    Example:
        >>> import torch, sde
        >>> grid = torch.tensor([0.5, 0.3, 0.1], dtype=torch.float64)
        >>> t, c, s = carried(sde.CLD(), grid[:-1], grid[1:], eta=0.0)
        >>> t.shape, c.shape, bool((s == 0).all())
        (torch.Size([2, 2, 2]), torch.Size([2, 2, 1]), True)
    """
    before, after = (whitened(sde, sde.clock_of(t)) for t in (begin, end))
    path = Path(sde, begin, end)
    inside = whitened(sde, path.b)
    rate = inside.turn + eta**2 / 2 * inside.noise @ inside.noise.mT
    v = path.solve(rate, rate[..., :0])[0]
    moved = after.root @ v @ before.inverse
    kept = after.mean - moved @ before.mean
    if not eta:
        return moved, kept, torch.zeros_like(moved)
    fresh = torch.eye(sde.channels).to(v) - v @ v.mT
    return moved, kept, noise_root(after.root @ fresh @ after.root.mT, sde.matrix(sde.G, v))


def noise_root(cov: Tensor, g: Tensor) -> Tensor:
    r"""Root of covariances (\*n, K, K) that is in line with G (K, K): of b G G' it is b^1/2 G.

    So that a step that draws its noise exactly follows the path whose increments the drawn numbers are.

    Example:
        >>> g = torch.tensor([[0.0, 0.0], [0.0, -2.0]])
        >>> noise_root(9 * g @ g.T, g)
        tensor([[ 0.,  0.],
                [ 0., -6.]])
    """
    left, size, right = torch.linalg.svd(g)
    if bool((size == 0).all()):
        return symmetric_root(cov)
    # G = (G G')^1/2 U; where G leaves the orthogonal U open it is the one nearest to 1.
    open_ = size <= 1e-12 * size[0]
    inside, null = (left * ~open_) @ right, (left * open_) @ left.T @ (right.T * open_) @ right
    first, _, last = torch.linalg.svd(inside + null)
    return symmetric_root(cov) @ first @ last


def symmetric_root(cov: Tensor) -> Tensor:
    r"""Symmetric root of positive semi-definite matrices (\*n, K, K), rounding below 0 clipped.

    Example:
        >>> symmetric_root(torch.tensor([[4.0, 0.0], [0.0, 0.0]]))
        tensor([[2., 0.],
                [0., 0.]])
    """
    # Unlike vectors * root it does not depend on the signs of eigenvectors, which differ from device to device.
    values, vectors = torch.linalg.eigh(cov)
    return (vectors * values.clamp_min(0).sqrt()[..., None, :]) @ vectors.mT


def stationary(sde: MatrixSDE) -> Tensor:
    """Covariance S of the stationary law, F S + S F' + G G' = 0: (K, K), float64.

    Raises:
        ValueError: If there is none, or it is singular.

    Example:
        >>> import sde
        >>> stationary(sde.CLD())
        tensor([[1.0000, 0.0000],
                [0.0000, 0.2500]], dtype=torch.float64)
    """
    f, g = (torch.tensor(m, dtype=torch.float64) for m in (sde.F, sde.G))
    slowest = float(torch.linalg.eigvals(f).real.max())
    if slowest >= 0:
        raise ValueError(
            f"{type(sde).__name__} has no stationary law: an eigenvalue of its F has the real part {slowest:.3g}, and "
            "all must be negative"
        )
    k, one = sde.channels, torch.eye(sde.channels, dtype=torch.float64)
    cov = torch.linalg.solve(torch.kron(f, one) + torch.kron(one, f), -(g @ g.T).reshape(-1)).reshape(k, k)
    cov = (cov + cov.T) / 2
    least = float(torch.linalg.eigvalsh(cov)[0])
    if least <= 1e-12 * math.sqrt(float(cov.square().sum())):
        raise ValueError(f"the stationary law of {type(sde).__name__} is singular: its noise must reach every channel")
    return cov
