r"""The variational bound on the reverse SDE's likelihood, in continuous time.

The reverse SDE of a model, from its prior at t_max down to t_min, has a density p of its own. Along forward paths from
a datum x at t_min, with x_t = m_t + sqrt(q_t) z and the score -n = -z / sqrt(q_t) of that transition,

    log p(x) >= E log prior(x_tmax) - 1/2 int g^2 E[|s|^2 + 2 s n] dt + d int f dt,

with equality where s and prior are exact. Both integrals grow without end as g and f do, and 2 s n alone has no finite
variance at t_min. So all is told relative to the Gaussian of the data's mean and scale, whose score r makes the bound
equal to its known density N(x): with s - r = alpha (x0 - x0_r) / sigma^2 and lambda = log(alpha^2 / sigma^2),

    log p(x) >= log N(x) + E log (prior / prior_N)(x_tmax) - 1/2 int alpha E[(x0 - x0_r) (s + r + 2 n)] d lambda.

Times are drawn by importance: uniform in log(1 + snr), one in each of K cells; z comes with -z, which keeps the
variance finite however small q is. The Gaussian itself needs no draw. The flow's likelihood is another density, which
this does not bound: see `log_prob`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sde.forward import ScalarSDE
from sde.random import Generator, rand, randn
from sde.score import ExactScore, Model, Target
from sde.shape import as_time, expand, sum_event

CELLS = 32
REPEATS = 4
Prior = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Elbo:
    r"""Lower bounds on log-likelihoods in nats, and where in time they come from.

    Attributes:
        times: Edges of the K cells of time, from t_min up to t_max, (K + 1,), float64.
        base: log N(x) of the Gaussian of the data's mean and scale at t_min, (B,).
        parts: What each cell adds to it, (B, R, K), for R independent repeats.
        prior: What the prior at t_max adds, (B, R): 0 where it is that Gaussian's.
        evaluations: Of the model for each sample.

    Example:
        >>> import torch, sde
        >>> model = sde.ExactScore(sde.Mixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1]), sde.VP())
        >>> found = elbo(model, torch.zeros(100, 1).double(), generator=torch.Generator().manual_seed(0))
        >>> found.by_time.shape, bool((found.value + 9 * found.error).min() > -5.5)
        (torch.Size([32]), True)
    """

    times: Tensor
    base: Tensor
    parts: Tensor
    prior: Tensor
    evaluations: int

    @property
    def values(self) -> Tensor:
        """Bounds by each repeat, (B, R)."""
        with torch.set_grad_enabled(self.parts.requires_grad):
            return self.base[:, None] + self.prior + self.parts.sum(2)

    @property
    def value(self) -> Tensor:
        """The bound on each sample's log-likelihood, (B,)."""
        with torch.set_grad_enabled(self.parts.requires_grad):
            return self.values.mean(1)

    @property
    def error(self) -> Tensor:
        """Standard error of each by its repeats, (B,): nan for one repeat."""
        repeats = self.parts.shape[1]
        return self.values.std(1) / math.sqrt(repeats) if repeats > 1 else torch.full_like(self.value, math.nan)

    @property
    def mean(self) -> float:
        """The bound in the mean over samples."""
        return float(self.values.double().mean())

    @property
    def mean_error(self) -> float:
        """Standard error of `mean` as one of these samples: from times and noise alone, not from who they are."""
        return float(self.error.double().square().sum().sqrt() / len(self.base))

    @property
    def by_time(self) -> Tensor:
        """What each cell of time adds to the Gaussian's log-density, in the mean over samples, (K,)."""
        return self.parts.mean((0, 1))

    @property
    def by_time_error(self) -> Tensor:
        """Standard error of `by_time` over samples, (K,)."""
        return self.parts.mean(1).std(0) / math.sqrt(len(self.parts))


def elbo(
    model: Model,
    x: Tensor,
    times: Tensor | Sequence[float] | None = None,
    *,
    cells: int = CELLS,
    repeats: int = REPEATS,
    prior: Target | None = None,
    generator: Generator = None,
    differentiable: bool = False,
) -> Elbo:
    r"""Variational bound: lower bounds on the log-likelihood of data under a model's reverse SDE (eta = 1).

    Unbiased, whatever the number of cells and repeats, for x draws of the marginal at t_min, as `log_prob`'s; in nats.
    Two evaluations for each cell and repeat, no backward pass. Equal to log p(x) where the model is exact. It bounds
    what samples of the reverse SDE follow, not the flow's: that one's likelihood can be lower.

    Args:
        model: Score model under a scalar SDE, in eval mode.
        x: Data, (B, \*D), float32 or float64.
        times: Edges of the cells, from t_min up to t_max; `sde.train.LogNormal().quantile(model.sde, u)` say. Default:
            `cells` cells of equal width in log(1 + snr), by importance. Any choice is unbiased.
        cells: K, how many of these: a time is drawn from each.
        repeats: R, independent repeats, which tell each sample's error.
        prior: What the data are at t_max in place of the model's Gaussian of their mean and scale.
        generator: Of times and noise; one generator, or one for each sample.
        differentiable: Keep the graph: then -value.mean() is a training objective, likelihood-weighted.

    Raises:
        TypeError: If x is not float32 or float64, or the SDE is not scalar.
        ValueError: If the model has no score (trained with a coupling), or an argument does not fit.

    References:
        Song, Durkan, Murray & Ermon (2021), 2101.09258, theorem 3; Huang, Lim & Courville (2021), 2106.02808;
        Kingma, Salimans, Poole & Ho (2021), 2107.00630.

    Example:
        >>> import torch, sde
        >>> model = sde.ExactScore(sde.Gaussian([1.0, 0.0], 0.25), sde.EDM())
        >>> x = torch.tensor([[1.0, 0.5]], dtype=torch.float64)
        >>> torch.allclose(sde.elbo(model, x).value, model.log_prob(x, model.sde.t_min))
        True
    """
    _check(model, x, cells, repeats)
    if differentiable and not x.requires_grad:
        x = x.detach().requires_grad_()
    with torch.enable_grad() if differentiable else torch.no_grad():
        bound = _Bound(model, x, prior)
        edges = bound.edges(times, cells)
        parts, extra = [], []
        for _ in range(repeats):
            at = bound.inside(edges, rand((len(x), len(edges) - 1), generator, dtype=torch.float64, device="cpu"))
            noises = (randn(x.shape, generator, dtype=x.dtype, device=x.device) for _ in range(len(edges)))
            last = bound.prior(next(noises))
            drawn = [bound.slope(t, z) for t, z in zip(at.unbind(1), noises, strict=True)]
            widths = edges.diff().abs().to(x)
            parts.append(torch.stack(drawn, 1) * widths)
            extra.append(last)
        stacked = torch.stack(parts, 1)
        calls = 2 * repeats * (len(edges) - 1)
        return Elbo(bound.time_of(edges), bound.log_start(), stacked, torch.stack(extra, 1), calls)


def _check(model: Model, x: Tensor, cells: int, repeats: int) -> None:
    if not isinstance(model.sde, ScalarSDE):
        raise TypeError(
            f"elbo needs a scalar SDE, got the matrix SDE {type(model.sde).__name__}: use log_prob, which has both"
        )
    if model.coupled:
        raise ValueError(
            "elbo: this model was trained with a coupling that ties eps to x0, so it has no score and no reverse SDE: "
            "use log_prob, or train with coupling=None"
        )
    if x.ndim < 2 or not len(x):
        raise ValueError(f"x must be (B, *D) with B at least 1, got shape {tuple(x.shape)}")
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"x must be float32 or float64, got {x.dtype}: use x.float(); fewer digits lose whole nats")
    for name, value in (("cells", cells), ("repeats", repeats)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}: keep {CELLS} and {REPEATS}")


class _Bound:
    """The bound of one batch, by parts; v = log(1 + (alpha c / sigma)^2) is the coordinate of time."""

    def __init__(self, model: Model, x: Tensor, prior: Target | None) -> None:
        assert isinstance(model.sde, ScalarSDE)
        self.model, self.x, self.sde, self.c = model, x, model.sde, model.data_scale() or 1.0
        mean = model.data_mean()
        self.m: Tensor | float = 0.0 if mean is None else mean.to(x)
        self.first, self.noise = (float(c) for c in self.sde.levels(self.sde.t_min))
        self.prior_of: Prior = model.prior_log_prob if prior is None else ExactScore(prior, self.sde).prior_log_prob

    def edges(self, times: Tensor | Sequence[float] | None, cells: int) -> Tensor:
        """v at the edges, falling from that of t_min."""
        ends = self.coordinate(torch.tensor([self.sde.t_min, self.sde.t_max], dtype=torch.float64))
        if not math.isfinite(float(ends[0])):
            raise ValueError(f"t_min={self.sde.t_min:g} has no noise, so that no path is left: pass the SDE t_min=1e-3")
        if times is None:
            return torch.lerp(ends[0], ends[1], torch.linspace(0, 1, cells + 1, dtype=torch.float64))
        t = torch.as_tensor(times, dtype=torch.float64).detach().cpu()
        off = 1e-6 * self.sde.t_max
        if t.ndim != 1 or len(t) < 2 or bool((t.diff() <= 0).any()) or abs(float(t[-1]) - self.sde.t_max) > off:
            raise ValueError(f"times must run up from t_min={self.sde.t_min:g} to t_max={self.sde.t_max:g}, got {t}")
        if abs(float(t[0]) - self.sde.t_min) > 1e-6 * self.sde.t_min:
            raise ValueError(f"times begin at {float(t[0]):g}, but x belongs to t_min={self.sde.t_min:g}: begin there")
        return torch.cat([ends[:1], self.coordinate(t[1:-1]), ends[1:]])

    def coordinate(self, t: Tensor) -> Tensor:
        alpha, sigma = self.sde.levels(t)
        return torch.log1p((alpha * self.c / sigma) ** 2)

    def time_of(self, v: Tensor) -> Tensor:
        return self.sde.time_at(torch.log(torch.expm1(v)) - 2 * math.log(self.c))

    def inside(self, edges: Tensor, u: Tensor) -> Tensor:
        """A time for each sample in each cell, uniform in v: (B, K)."""
        u = u.clamp_min(1e-6)  # v = 0 may be alpha = 0
        return self.time_of(torch.lerp(edges[1:].expand_as(u), edges[:-1].expand_as(u), u))

    def log_start(self) -> Tensor:
        variance = (self.first * self.c) ** 2 + self.noise**2
        r = self.x - self.first * self.m
        return sum_event(-(r**2) / (2 * variance) - math.log(2 * math.pi * variance) / 2)

    def prior(self, z: Tensor) -> Tensor:
        """log prior / prior_N at t_max, by an antithetic pair."""
        alpha, sigma = (float(c) for c in self.sde.levels(self.sde.t_max))
        a = alpha / self.first
        step = math.sqrt(max(sigma**2 - (a * self.noise) ** 2, 0.0)) * z
        variance = (alpha * self.c) ** 2 + sigma**2
        found = self.x.new_zeros(len(self.x))
        for y in (a * self.x + step, a * self.x - step):
            normal = sum_event(-((y - alpha * self.m) ** 2) / (2 * variance) - math.log(2 * math.pi * variance) / 2)
            found = found + (self.prior_of(y) - normal) / 2
        return found

    def slope(self, t: Tensor, z: Tensor) -> Tensor:
        """What the bound gains for each unit of v at times (B,), by an antithetic pair: (B,)."""
        t = as_time(t.to(self.x.device))
        alpha, sigma = self.sde.levels(t)
        a = alpha / self.first
        # In float64 up to the last: sigma^2 and (a sigma_0)^2 are nearly equal beside t_min.
        q = torch.sqrt((sigma**2 - (a * self.noise) ** 2).clamp_min(1e-12 * sigma**2))
        kappa = alpha * self.c**2 / ((alpha * self.c) ** 2 + sigma**2)
        weight = alpha * (1 + (sigma / (alpha * self.c)) ** 2) / 2  # of d lambda = (1 + S) / S dv, S = snr c^2
        on = lambda c: torch.as_tensor(expand(c, self.x)).to(self.x.dtype)  # noqa: E731
        found = self.x.new_zeros(len(self.x))
        for noise in (z, -z):
            y = on(a) * self.x + on(q) * noise
            x0 = self.model(y, t).x0
            reference = self.m + on(kappa) * (y - on(alpha) * self.m)
            scores = (on(alpha) * (x0 + reference) - 2 * y) * on(sigma**-2) + 2 * on(1 / q) * noise
            found = found - sum_event((x0 - reference) * scores) / 2
        return on(weight).reshape(-1) * found
