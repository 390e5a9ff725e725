r"""The variational bound of a DDPM: what its N steps of ancestral sampling cost, one by one.

A table's sampler is a Markov chain x_N ~ prior, x_{t-1} ~ N(mu(x_t), v_t I), with a density of x_0. By Jensen,

    -log p(x_0) <= L_N + sum_{t = 2}^N L_{t-1} + L_0,
    L_N     = KL(q(x_N | x_0) || prior),
    L_{t-1} = E KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)),
    L_0     = -E log p(x_0 | x_1).

With beta_t = 1 - abar_t / abar_{t-1} and the bridge's variance b_t = beta_t (1 - abar_{t-1}) / (1 - abar_t), both
sides of L_{t-1} are Gaussians whose means lie sqrt(abar_{t-1}) beta_t / (1 - abar_t) times the error of x0 apart, so
that with v_t = b_t

    L_{t-1} = (snr_{t-1} - snr_t) / 2 E |x_0 - x0(x_t)|^2,

and with v_t = beta_t this times r = b_t / beta_t, and d / 2 (r - 1 - log r) more. The last step has no bridge. It is
N(x0(x_1), beta_1 I), a density, or for data on levels the probability of the level's cell under it, of which the
outermost reach to infinity.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sde.forward import Tabulated
from sde.random import Generator, rand, randn
from sde.score import Model, Target
from sde.shape import sum_event


@dataclass(frozen=True)
class TableBound:
    r"""Upper bounds on -log p(x_0) under a table's ancestral sampler, in nats, by steps.

    Attributes:
        t: Steps that were measured, increasing from 2, (K,).
        parts: L_{t-1} at each, times the number of steps it stands for, (B, K).
        prior: L_N, (B,).
        last: L_0, (B,).
        size: d, the coordinates of a sample.

    Example:
        >>> found = TableBound(
        ...     torch.tensor([2, 3]), torch.tensor([[0.5, 0.25]]), torch.tensor([0.01]), torch.tensor([1.0]), 2
        ... )
        >>> float(found.value), round(float(found.bits), 3)
        (1.7599999904632568, 1.27)
    """

    t: Tensor
    parts: Tensor
    prior: Tensor
    last: Tensor
    size: int

    @property
    def value(self) -> Tensor:
        """The bound on -log p of each sample, (B,)."""
        return self.prior + self.parts.sum(1) + self.last

    @property
    def bits(self) -> Tensor:
        """In bits for each coordinate, (B,): bits per dimension where x had levels."""
        return self.value / (math.log(2) * self.size)

    @property
    def mean(self) -> float:
        """The bound in the mean over samples."""
        return float(self.value.double().mean())

    @property
    def error(self) -> float:
        """Standard error of the mean over samples."""
        return float(self.value.double().std() / math.sqrt(len(self.last))) if len(self.last) > 1 else math.nan

    @property
    def by_step(self) -> Tensor:
        """The parts in the mean over samples, (K,)."""
        return self.parts.mean(0)


@torch.no_grad()
def table_bound(
    model: Model,
    x: Tensor,
    *,
    steps: int | None = None,
    large: bool = False,
    levels: int | None = None,
    low: float = -1.0,
    high: float = 1.0,
    prior: Target | None = None,
    generator: Generator = None,
) -> TableBound:
    r"""Discrete variational bound of a DDPM table: upper bounds on -log p(x_0) of its own N steps.

    x belongs to t = 0, other than in `log_prob` and `elbo`. One evaluation for each step and one for the last; each
    draws its noise anew.

    Args:
        model: Score model under `Tabulated`, in eval mode.
        x: Data at t = 0, (B, \*D), float32 or float64.
        steps: How many of the N - 1 steps are measured: one, drawn for the whole batch, in each of as many stretches of
            about equal length in log(1 + snr), which leaves the mean unbiased. Default: all.
        large: The chain's variances: b_t, the bridge's (False), as `Ancestral` has, or beta_t (True). b_t is best for
            data in one point, beta_t for data whose density is smooth at the table's least noise.
        levels: Where x lies on levels, how many: then L_0 is a probability, and `bits` bits per dimension.
        low: The first level's value.
        high: The last's.
        prior: What the chain begins with, a `Gaussian(mean, cov)` of data, noised to t_max. Default: N(0, I), DDPM's.
        generator: Of steps and noise; one generator, or one for each sample.

    Raises:
        TypeError: If the model's SDE is not a table, or x is not float32 or float64.
        ValueError: If the model has no score, or an argument does not fit.

    References:
        Sohl-Dickstein et al. (2015), 1503.03585; Ho, Jain & Abbeel (2020), 2006.11239, eq. 5, 8 and 13.

    Example:
        >>> import torch, sde
        >>> model = sde.ExactScore(sde.Gaussian([0.0], 0.25), sde.Tabulated.linear(100, 1e-3, 0.2))
        >>> x = model.target.sample(1000, torch.Generator().manual_seed(0))
        >>> found = sde.solvers.table_bound(model, x, large=True, generator=torch.Generator().manual_seed(1))
        >>> round(found.mean, 1), round(-float(model.target.log_prob(x).mean()), 1)  # a hundred steps cost a little
        (0.7, 0.7)
    """
    table = _checked(model, x, steps, levels)
    last = int(table.t_max)
    abar = torch.cat([torch.ones(1, dtype=torch.float64), table.levels(torch.arange(1.0, last + 1))[0].double() ** 2])
    chain = _Chain(model, x, abar, large, generator)
    t, stands_for = _steps(abar, steps, generator)
    parts = torch.stack([chain.step(k) for k in t], 1) * stands_for.to(x)
    tail = chain.last(None if levels is None else (low, high, levels))
    return TableBound(torch.tensor(t), parts, _prior(x, abar, prior), tail, x[0].numel())


def _checked(model: Model, x: Tensor, steps: int | None, levels: int | None) -> Tabulated:
    if not isinstance(model.sde, Tabulated):
        raise TypeError(f"table_bound needs a Tabulated SDE, got {type(model.sde).__name__}: use elbo(model, x)")
    if model.coupled:
        raise ValueError("table_bound: this model was trained with a coupling, so it has no score: use log_prob")
    if x.ndim < 2 or not len(x):
        raise ValueError(f"x must be (B, *D) with B at least 1, got shape {tuple(x.shape)}")
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"x must be float32 or float64, got {x.dtype}: use x.float(); fewer digits lose whole nats")
    most = int(model.sde.t_max) - 1
    if steps is not None and not 1 <= steps <= most:
        raise ValueError(f"steps must be 1 to {most}, the steps of the table that have a bridge, got {steps}")
    if levels is not None and levels < 2:
        raise ValueError(f"levels must be at least 2, got {levels}: 256 for bytes, or None for data without levels")
    return model.sde


def _steps(abar: Tensor, steps: int | None, generator: Generator) -> tuple[list[int], Tensor]:
    """Steps 2 .. N, or one of each of some stretches, and how many each stands for."""
    last = len(abar) - 1
    if steps is None:
        return list(range(2, last + 1)), torch.ones(last - 1)
    v = -torch.log1p(-abar[1:])  # log(1 + snr), falling
    wanted = torch.linspace(float(v[0]), float(v[-1]), steps + 1, dtype=torch.float64)
    edges = (torch.searchsorted(-v, -wanted) + 2).tolist()
    edges[0], edges[-1] = 2, last + 1
    for i in range(1, steps):  # every stretch has a step
        edges[i] = min(max(edges[i], edges[i - 1] + 1), last + 1 - steps + i)
    counts = torch.tensor(edges).diff()
    one = generator if generator is None or isinstance(generator, torch.Generator) else generator[0]
    u = rand((steps,), one, dtype=torch.float64, device="cpu")
    return (torch.tensor(edges[:-1]) + (u * counts).long().minimum(counts - 1)).tolist(), counts


class _Chain:
    """The steps of one batch; abar (N + 1,) from 1 at t = 0."""

    def __init__(self, model: Model, x: Tensor, abar: Tensor, large: bool, generator: Generator) -> None:
        self.model, self.x, self.abar, self.large, self.generator = model, x, abar.tolist(), large, generator

    def error(self, t: int) -> Tensor:
        """x_0 - x0(x_t) for a draw of x_t."""
        z = randn(self.x.shape, self.generator, dtype=self.x.dtype, device=self.x.device)
        a = self.abar[t]
        return self.x - self.model(math.sqrt(a) * self.x + math.sqrt(1 - a) * z, float(t)).x0

    def step(self, t: int) -> Tensor:
        a, b = self.abar[t], self.abar[t - 1]
        found = (b / (1 - b) - a / (1 - a)) / 2 * sum_event(self.error(t) ** 2)
        if not self.large:
            return found
        ratio = (1 - b) / (1 - a)
        return ratio * found + self.x[0].numel() / 2 * (ratio - 1 - math.log(ratio))

    def last(self, levels: tuple[float, float, int] | None) -> Tensor:
        variance, off = 1 - self.abar[1], self.error(1)
        if levels is None:
            return sum_event(off**2 / (2 * variance) + math.log(2 * math.pi * variance) / 2)
        low, high, n = levels
        half = (high - low) / (n - 1) / 2
        level = (self.x - low) / (2 * half)
        off_level = float((level - level.round()).abs().max())
        if off_level > 0.05 or float(level.min()) < -0.5 or float(level.max()) > n - 0.5:
            raise ValueError(
                f"x must lie on {n} levels from {low:g} to {high:g}, got values from {float(self.x.min()):g} to "
                f"{float(self.x.max()):g}: say which levels, low and high it has"
            )
        first, final = self.x < low + half, self.x > high - half
        up = torch.where(final, math.inf, (off + half) / math.sqrt(variance))
        down = torch.where(first, -math.inf, (off - half) / math.sqrt(variance))
        return -sum_event(_log_between(down, up))


def _log_between(a: Tensor, b: Tensor) -> Tensor:
    """log(Phi(b) - Phi(a)) for a < b, right far out in the tails: both are mirrored to the left one."""
    right = a + b > 0
    a, b = torch.where(right, -b, a).double(), torch.where(right, -a, b).double()
    top, bottom = torch.special.log_ndtr(b), torch.special.log_ndtr(a)
    return top + torch.log(-torch.expm1(torch.minimum(bottom - top, torch.tensor(-1e-300).to(top))))


def _prior(x: Tensor, abar: Tensor, prior: Target | None) -> Tensor:
    """KL(q(x_N | x) || prior): of two Gaussians."""
    a, d = float(abar[-1]), x[0].numel()
    if prior is None:
        return sum_event(a * x**2 - a - math.log(1 - a)) / 2
    covs = getattr(prior, "covs", None)
    if covs is None or len(covs) != 1:
        raise ValueError(f"prior must be a Gaussian(mean, cov), got {type(prior).__name__}: only its KL is known")
    cov = a * covs[0].to(x) + (1 - a) * torch.eye(d, dtype=x.dtype, device=x.device)
    off = math.sqrt(a) * (x - prior.mean.to(x)).flatten(1)
    solved = torch.linalg.solve(cov, off.T).T
    trace = (1 - a) * torch.linalg.inv(cov).trace()
    return (trace - d + torch.linalg.slogdet(cov)[1] - d * math.log(1 - a) + (off * solved).sum(1)) / 2
