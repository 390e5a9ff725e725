r"""Matrix SDEs: K channels to each coordinate, mixed by one linear system.

    dU = beta(t) F U dt + sqrt(beta(t)) G dW,    U_0 = embed x0 + noise of covariance cov0

On the clock b(t), the integral of beta, the moments follow m' = F m and Sigma' = F Sigma + Sigma F' + G G', so that
with Phi = exp(F b)

    A = Phi embed,    Sigma = Phi cov0 Phi' + Q(b),    exp([[F, G G'], [0, -F']] b) = [[Phi, Q Phi'^-1], [0, Phi'^-1]]

(Van Loan 1978). L is the Cholesky factor of Sigma. All that U says of x0 is the statistic x^ = r' U with
r = tau^2 Sigma^-1 A, which is x0 plus noise of variance tau^2 = 1 / (A' Sigma^-1 A): a network sees this scalar pair
(1, tau), and its estimate of x0 determines the whole score, -Sigma^-1 (U - A E[x0 | U]).

Channels lie in axis 1 of the state, (B, K, \*D); nothing outside this file knows of K.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sde.forward.base import ForwardSDE
from sde.forward.point import Point
from sde.forward.transport import carried, noise_root
from sde.nodes import Node
from sde.shape import Coefficient, as_time, expand, placed, sum_event

Matrix = Sequence[Sequence[float]]

MESH = 4096
"""Cells in which `MatrixSDE.inverse` looks for times."""


def act(m: Tensor, x: Tensor) -> Tensor:
    r"""Matrix (K, J) or (B, K, J) on the channels of x: (B, J, \*D) to (B, K, \*D)."""
    return (placed(m, x.device, x.dtype) @ x.flatten(2)).reshape(x.shape[0], m.shape[-2], *x.shape[2:])


def van_loan(f: Tensor, noise: Tensor, b: Tensor, longest: float) -> tuple[Tensor, Tensor]:
    r"""Phi = exp(f b) and Q, the covariance that white noise of covariance `noise` leaves over b: (\*b, K, K) each.

    An interval is halved as often as the longest one needs: exp(-f' b) grows as exp(f b) falls, and both lose digits.

    Example:
        >>> f, b = -torch.eye(1).double(), torch.ones(1).double()
        >>> phi, q = van_loan(f, -2 * f, b, longest=1.0)  # Ornstein-Uhlenbeck: e^-1 and 1 - e^-2
        >>> round(phi.item(), 4), round(q.item(), 4)
        (0.3679, 0.8647)
    """
    k, reach = len(f), float(f.abs().sum(1).max()) * longest
    halvings = max(0, math.ceil(math.log2(reach / 8))) if reach else 0
    block = torch.cat([torch.cat([f, noise], 1), torch.cat([torch.zeros_like(f), -f.T], 1)])
    # A lone matrix of norm .01 to .05 gets too short a Taylor series, wrong by 1e-12, and Q is as small: take two.
    lengths = torch.cat([b.reshape(-1), b.new_zeros(1)])
    e = torch.matrix_exp(block * (lengths / 2**halvings)[:, None, None])[:-1].reshape(*b.shape, 2 * k, 2 * k)
    phi = e[..., :k, :k]
    q = e[..., :k, k:] @ phi.mT
    for _ in range(halvings):
        q, phi = q + phi @ q @ phi.mT, phi @ phi
    return phi, q


def check_clock(beta: float, t_min: float, t_max: float) -> None:
    """Raise ValueError unless beta > 0 and 0 <= t_min < t_max."""
    if not (math.isfinite(beta) and beta > 0):
        raise ValueError(f"beta must be positive and finite, got {beta}: it is the speed of the clock")
    if not (math.isfinite(t_max) and 0 <= t_min < t_max):
        raise ValueError(f"t_min and t_max must satisfy 0 <= t_min < t_max, got {t_min} and {t_max}: data are at t = 0")


class MatrixSDE(ForwardSDE):
    r"""dU = beta F U dt + sqrt(beta) G dW on K channels per coordinate.

    Args:
        F: Drift matrix, K × K.
        G: Noise matrix, K × K.
        embed: How x0 enters at t = 0, K numbers.
        cov0: Covariance of the channels at t = 0 given x0, K × K; 0 where a channel starts exactly.
        beta: Constant speed of the clock, b = beta t.
        t_min: Where sampling stops.
        t_max: Time of the prior.

    Raises:
        ValueError: If the shapes do not fit.

    References:
        Dockhorn, Vahdat & Kreis (2022), 2112.07068; Van Loan (1978), IEEE Trans. Automat. Contr. 23, 395.

    Example:
        >>> import torch, sde
        >>> oscillator = sde.MatrixSDE(F=[[0, 1], [-1, -2]], G=[[0, 0], [0, 2]], embed=[1, 0], cov0=[[0, 0], [0, 0.04]])
        >>> oscillator.perturb(torch.zeros(4, 2), t=0.5).x.shape
        torch.Size([4, 2, 2])
    """

    def __init__(
        self,
        F: Matrix,
        G: Matrix,
        embed: Sequence[float],
        cov0: Matrix,
        beta: float = 1.0,
        t_min: float = 1e-3,
        t_max: float = 1.0,
    ) -> None:
        self.F, self.G, self.embed, self.cov0, self.beta = F, G, embed, cov0, beta
        self.t_min, self.t_max = t_min, t_max
        k = len(embed)
        check_clock(beta, t_min, t_max)
        for name, m in {"F": F, "G": G, "cov0": cov0}.items():
            if len(m) != k or any(len(row) != k for row in m):
                raise ValueError(f"{name} must be {k} × {k}, as embed has {k} numbers, got {m}")
        noise = torch.tensor(cov0, dtype=torch.float64)
        if not (torch.allclose(noise, noise.T) and float(torch.linalg.eigvalsh(noise).min()) > -1e-12):
            raise ValueError(
                f"cov0 must be symmetric positive semi-definite, got {cov0}: 0 where a channel starts exactly"
            )

    @property
    def channels(self) -> int:
        """K."""
        return len(self.embed)

    def matrix(self, m: Matrix, like: Tensor) -> Tensor:
        """F, G or cov0 as a tensor, in the dtype and on the device of another."""
        return torch.tensor(m, dtype=like.dtype, device=like.device)

    def clock_of(self, t: Tensor) -> Tensor:
        """b(t), the integral of beta."""
        return self.beta * t

    def _van_loan(self, b: Tensor) -> tuple[Tensor, Tensor]:
        r"""Phi and Q over an interval of length b on the clock: (\*b, K, K) each."""
        f, g = self.matrix(self.F, b), self.matrix(self.G, b)
        return van_loan(f, g @ g.T, b, float(self.clock_of(as_time(self.t_max))))

    def moments(self, t: Tensor) -> tuple[Tensor, Tensor]:
        r"""A and Sigma at times t of shape (\*n): (\*n, K) and (\*n, K, K), float64."""
        return self.moments_at(self.clock_of(t))

    def moments_at(self, b: Tensor) -> tuple[Tensor, Tensor]:
        """The same at readings b of the clock."""
        phi, q = self._van_loan(b)
        return phi @ self.matrix([self.embed], b)[0], phi @ self.matrix(self.cov0, b) @ phi.mT + q

    def _factors(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """A, L, L^-1, the row r of the statistic and its deviation tau."""
        a, cov = self.moments(t)
        try:
            chol = torch.linalg.cholesky(cov)
        except RuntimeError as error:
            low = float(t.min())
            raise ValueError(
                f"the covariance of {type(self).__name__} is not positive definite at t = {low:g}: give every channel "
                f"noise, by G or cov0, and ask at t_min = {self.t_min:g} or later"
            ) from error
        inverse = torch.linalg.solve_triangular(chol, torch.eye(self.channels).to(cov).expand_as(cov), upper=False)
        w = (inverse @ a[..., None])[..., 0]  # L^-1 A
        tau2 = 1 / (w**2).sum(-1)
        r = tau2[..., None] * (inverse.mT @ w[..., None])[..., 0]
        return a, chol, inverse, r, torch.sqrt(tau2)

    def factors(self, x: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Coefficient]:
        """`A` (K, 1), L, L^-1, r (1, K) and tau at t, in the dtype and on the device of x; batched where t is."""
        if type(t) is Node:
            column = t.table.column(self, ("factors", x.dtype, x.device), lambda u: self._factors_like(x, u))
            a, chol, inverse, r, tau = column[t.index]
        else:
            t = as_time(t)
            expand(t, x)  # refuses a wrong shape by name
            a, chol, inverse, r, tau = self._factors(t)
        return a[..., :, None], chol, inverse, r[..., None, :], tau

    def _factors_like(self, x: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        *matrices, tau = self._factors(t)
        return *(placed(m, x.device, x.dtype) for m in matrices), tau

    def covariance(self, t: float | Tensor) -> Tensor:
        """Sigma at t."""
        if type(t) is Node:
            return t.table.column(self, "covariance", lambda u: self.moments(u)[1])[t.index]
        return self.moments(as_time(t))[1]

    def _rate(self, name: str, x: Tensor, t: float | Tensor) -> Tensor:
        """beta F, sqrt(beta) G or beta G G' in the dtype and on the device of x, made once for a grid."""

        def make(_: object = None) -> Tensor:
            f, g = (torch.tensor(m, dtype=torch.float64) for m in (self.F, self.G))
            made = {"drift": self.beta * f, "noise": math.sqrt(self.beta) * g, "gain": self.beta * g @ g.T}[name]
            return placed(made, x.device, x.dtype)

        return t.table.made(self, (name, x.dtype, x.device), make) if type(t) is Node else make()

    # The actions.

    def state(self, x0: Tensor) -> Tensor:  # noqa: D102
        return x0.new_zeros(x0.shape[0], self.channels, *x0.shape[1:])

    def mean(self, x0: Tensor, t: float | Tensor) -> Tensor:  # noqa: D102
        return act(self.factors(x0, t)[0], x0[:, None])

    def unmean(self, r: Tensor, t: float | Tensor) -> Tensor:  # noqa: D102
        return act(self.factors(r, t)[3], r)[:, 0]

    def color(self, eps: Tensor, t: float | Tensor) -> Tensor:  # noqa: D102
        return act(self.factors(eps, t)[1], eps)

    def whiten(self, r: Tensor, t: float | Tensor) -> Tensor:  # noqa: D102
        return act(self.factors(r, t)[2], r)

    def score(self, eps: Tensor, t: float | Tensor) -> Tensor:  # noqa: D102
        return -act(self.factors(eps, t)[2].mT, eps)

    def tilt(self, g: Tensor, t: float | Tensor) -> Tensor:  # noqa: D102
        return act(self.factors(g, t)[1].mT, g)

    def gain(self, s: Tensor, t: float | Tensor) -> Tensor:  # noqa: D102
        return act(self._rate("gain", s, t), s)

    def drift(self, x: Tensor, t: float | Tensor) -> Tensor:  # noqa: D102
        return act(self._rate("drift", x, t), x)

    def diffusion(self, x: Tensor, t: float | Tensor, z: Tensor) -> Tensor:  # noqa: D102
        return act(self._rate("noise", z, t), z)

    def velocity(self, point: Point) -> Tensor:  # noqa: D102
        return self.drift(point.x, point.t) - self.gain(self.score(point.eps, point.t), point.t) / 2

    def logdet(self, t: float | Tensor, x: Tensor) -> Coefficient:  # noqa: D102
        chol = self.factors(x, t)[1]
        return x[0, 0].numel() * torch.log(chol.diagonal(dim1=-2, dim2=-1)).sum(-1)

    def _kernel(self, x: Tensor, s: float | Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """Phi and Q of U_t | U_s ~ N(Phi U_s, Q)."""
        if type(s) is Node and type(t) is Node and s.table is t.table and t.index + 1 == s.index:
            return t.table.column(self, "kernel", lambda u: self._neighbours(u))[t.index]
        return self._van_loan(self.clock_of(as_time(t)) - self.clock_of(as_time(s)))

    def _neighbours(self, times: Tensor) -> tuple[Tensor, Tensor]:
        b = self.clock_of(times)
        return self._van_loan(torch.cat([b[:-1] - b[1:], b.new_zeros(1)]))

    def _noise(self, q: Tensor, z: Tensor) -> Tensor:
        """A root of Q on z; Q may be singular, where a channel takes no noise of its own."""
        return act(noise_root(q, self.matrix(self.G, q)), z)

    def transition(self, x: Tensor, s: float | Tensor, t: float | Tensor, z: Tensor) -> Tensor:  # noqa: D102
        phi, q = self._kernel(x, s, t)
        return act(phi, x) + self._noise(q, z)

    def transition_gain(self, r: Tensor, s: float | Tensor, t: float | Tensor) -> Tensor:  # noqa: D102
        return act(self._kernel(r, s, t)[1], r)

    def bridge(self, x0: Tensor, x: Tensor, t: float | Tensor, s: float | Tensor, z: Tensor) -> Tensor:  # noqa: D102
        phi, q = self._kernel(x, s, t)
        cov_s = self.covariance(s)
        cov_t = phi @ cov_s @ phi.mT + q
        back = torch.linalg.solve(cov_t, phi @ cov_s).mT  # Sigma_s Phi' Sigma_t^-1
        keep = torch.eye(self.channels).to(phi) - back @ phi
        v = keep @ cov_s @ keep.mT + back @ q @ back.mT  # Joseph's form: positive by construction
        return self.mean(x0, s) + act(back, x - self.mean(x0, t)) + self._noise(v, z)

    def held(
        self, x0: Tensor, x: Tensor, t: float | Tensor, s: float | Tensor, eta: float, z: Tensor | None = None
    ) -> Tensor:
        """State at s < t of the reverse SDE from x at t while x0 stands still, from the standard normal z if eta > 0.

        eta = 0 is gDDIM: on the probability flow. eta = 1 is `bridge`.
        """
        moved, kept, root = self._held(x, t, s, eta)
        y = act(moved, x) + act(kept, x0[:, None])
        return y if z is None else y + act(root, z)

    def _held(self, x: Tensor, t: float | Tensor, s: float | Tensor, eta: float) -> tuple[Tensor, Tensor, Tensor]:
        if type(t) is Node and type(s) is Node and s.table is t.table and t.index + 1 == s.index <= t.table.steps:
            table = t.table
            key = "held", eta, x.dtype, x.device
            return table.column(self, key, lambda u: self._held_along(x, u[: table.steps + 1], len(u), eta))[t.index]
        begin, end = torch.broadcast_tensors(as_time(t), as_time(s))
        expand(begin, x)  # refuses a wrong shape by name
        pairs = torch.stack([begin, end], -1).cpu().reshape(-1, 2)
        steps, which = torch.unique(pairs, dim=0, return_inverse=True)
        made = carried(self, steps[:, 0], steps[:, 1], eta)
        moved, kept, root = (placed(m[which], x.device, x.dtype) for m in made)
        return (moved, kept, root) if begin.ndim else (moved[0], kept[0], root[0])

    def _held_along(self, x: Tensor, times: Tensor, rows: int, eta: float) -> tuple[Tensor, ...]:
        # One row to each step; those of the last node and of times inside steps are not asked for.
        made = carried(self, times[:-1], times[1:], eta)
        rowed = (torch.cat([m, m.new_zeros(rows - len(m), *m.shape[1:])]) for m in made)
        return tuple(placed(m, x.device, x.dtype) for m in rowed)

    def rates_of_statistic(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # noqa: D102
        with torch.enable_grad():
            u = t.detach().requires_grad_()
            tau = self._factors(u)[4]
            (dtau,) = torch.autograd.grad(tau.sum(), u)
        return torch.ones_like(dtau), tau.detach(), torch.zeros_like(dtau), dtau

    def log_snr(self, t: float | Tensor) -> Tensor:  # noqa: D102
        return -2 * torch.log(self._factors(as_time(t))[4])

    def inverse(self, log_snr: Tensor) -> Tensor:
        """Inverse of `log_snr`: many values by three secants within the cells of a mesh, which leave 1e-12."""
        if log_snr.numel() < MESH:
            return super().inverse(log_snr)
        mesh = self.t_min + (self.t_max - self.t_min) * torch.linspace(0, 1, MESH + 1).to(log_snr) ** 3
        value = self.log_snr(mesh)
        i = torch.searchsorted(-value, -log_snr.contiguous()).clamp(1, MESH)
        low, high = mesh[i - 1], mesh[i]
        (t, off), (t1, off1) = (low, value[i - 1] - log_snr), (high, value[i] - log_snr)
        for _ in range(3):
            t2 = torch.where(off1 == off, t1, t1 - off1 * (t1 - t) / (off1 - off)).clamp(low, high)
            (t, off), (t1, off1) = (t1, off1), (t2, self.log_snr(t2) - log_snr)
        return t1

    def clock(self, t: Tensor) -> Tensor:
        """log(tau) / 4, the noise of the statistic: see `ScalarSDE.clock`."""
        return torch.log(self._factors(as_time(t))[4]) / 4

    def statistic(self, x: Tensor, t: float | Tensor) -> tuple[Tensor, Coefficient, Coefficient]:  # noqa: D102
        y, tau = self.unmean(x, t), self.factors(x, t)[4]
        return y, 1.0, expand(tau, y)

    def log_residual(self, x: Tensor, t: float | Tensor) -> Coefficient:  # noqa: D102
        y = self.unmean(x, t)
        eps = self.whiten(x - self.mean(y, t), t)
        tau = self.factors(x, t)[4]
        log_tau = torch.log(tau) if isinstance(tau, Tensor) else math.log(tau)
        normal = y[0].numel() * (self.channels - 1) * math.log(2 * math.pi) / 2
        log_p = -sum_event(eps**2) / 2 - self.logdet(t, x) + y[0].numel() * log_tau - normal
        return log_p.to(x.dtype)
