r"""Likelihood through the probability flow: the change of variables, integrated beside the state.

Along dx/dt = v(x, t) a density obeys d log p_t(x_t) / dt = -div v(x_t, t). Under a scalar SDE, with data of mean m and
scale s and r = hypot(alpha s, sigma), the flow of y = (x - alpha m) / r in the angle u = atan(sigma / (alpha s)) is

    dy/du = p z + q eps,    p = -sigma / (s r),    q = alpha s / r,    z = x0 - m,

and the logarithm of its volume grows by l = int div_y (p z + q eps) du. So a datum moved from t_min to t_max has

    log p_tmin(x) = log p_tmax(x_tmax) + l + d log (r_tmax / r_tmin).

(y, l) is the state of a model in one more dimension: r l beside x, with endpoints that make both the state and the
slope, alpha z + sigma eps = r l and p z + q eps = div. So every solver of a flow solves the likelihood too, and the
rule that samples in few evaluations does this in few as well. The divergence is a closed form where the model is exact,
else a trace by backward passes, exact or estimated: see `sde.solvers.likelihood.traces`. A matrix SDE's state and
divergence are one ODE in t. The result belongs to the marginal at t_min, not to the data at t = 0, where a flow has no
start; on usual settings they differ by 1e-4 to 4e-3 nats.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde.forward import SDE, ForwardSDE, Point, ScalarSDE
from sde.forward.point import Pairs
from sde.nodes import Node, tabulated
from sde.random import Generator
from sde.score import ExactScore, Model, Target
from sde.shape import Coefficient, as_time, expand, lincomb
from sde.solvers import grids
from sde.solvers.exponential.adams import Adams
from sde.solvers.integrate import trajectory
from sde.solvers.likelihood.traces import Drawn, ExactTrace, Hutchinson, Trace
from sde.solvers.onestep import RK4
from sde.solvers.reverse import ReverseSDE
from sde.solvers.solver import SelfPaced, Solver

STEPS = 144
WIDTHS = (0.5, 1.2)
"""Of the grid, see `grids.data_scaled`. On a sampler's, which saves steps at low noise, modes far apart in many
dimensions can make the rule of order 4 unstable."""
EXACT = 256
"""Coordinates up to which the divergence of a network is exact by default."""
PROBES = 4
"""Of the estimate that is taken beyond."""
SAFETY = 2.0
"""Of the estimated error, which is within percents of the true one on fine grids."""
DOUBLINGS = 6
"""How often a tolerance may halve the steps."""


@dataclass(frozen=True)
class LogLikelihood:
    r"""Log-likelihoods in nats, with what is known of their errors.

    Attributes:
        values: Of each sample by each probe, (B, K); K = 1 where the divergence is exact.
        ode_error: Estimated error of the ODE's solution, (B,); None where no tolerance asked for it.
        evaluations: Of the model for each sample.
        estimated: Whether the divergence was.

    Example:
        >>> found = LogLikelihood(torch.tensor([[-1.0, -1.2]]), None, evaluations=128, estimated=True)
        >>> found.value, found.error
        (tensor([-1.1000]), tensor([0.1000]))
    """

    values: Tensor
    ode_error: Tensor | None
    evaluations: int
    estimated: bool = False

    @property
    def value(self) -> Tensor:
        """Mean over probes, (B,)."""
        with torch.set_grad_enabled(self.values.requires_grad):
            return self.values.mean(1)

    @property
    def error(self) -> Tensor:
        """Standard error of the mean by its probes, (B,): 0 for an exact divergence, nan for a single probe."""
        k = self.values.shape[1]
        if k == 1:
            return torch.full_like(self.value, math.nan if self.estimated else 0.0)
        return self.values.std(1) / math.sqrt(k)


class WithVolume(Model):
    r"""A model of the state and the log-volume of its flow: (B, d + K) for (B, \*D), r l in the last K columns.

    Args:
        model: Score model under a scalar SDE.
        event: \*D.
        drawn: The way to the divergence; None for the model's closed form.
        columns: K, values of the divergence.

    Example:
        >>> import torch, sde
        >>> inner = sde.ExactScore(sde.Gaussian([0.0], 1.0), sde.VP())
        >>> WithVolume(inner, torch.Size([1]), None)(torch.ones(3, 2), 0.5).x0.shape
        torch.Size([3, 2])
    """

    def __init__(self, model: Model, event: torch.Size, drawn: Drawn | None, columns: int = 1) -> None:
        super().__init__()
        assert isinstance(model.sde, ScalarSDE)
        self.model, self.sde, self.event, self.drawn, self.columns = model, model.sde, event, drawn, columns
        self.flat = len(event) == 1
        self.tabulates, self.size = model.tabulates, model.data_scale() or 1.0
        mean = model.data_mean()  # asked for at every step, and for a mixture a sum
        if mean is not None:
            mean = torch.cat([mean.expand(event).flatten(), mean.new_zeros(columns)])
        self.mean = mean

    def data_scale(self) -> float:  # noqa: D102
        return self.size

    def data_mean(self) -> Tensor | None:  # noqa: D102
        return self.mean

    def prior(self, x0_like: Tensor, generator: Generator = None, sde: ForwardSDE | None = None) -> Tensor:
        """There is none: a volume begins at 0."""
        raise NotImplementedError

    def prior_log_prob(self, x: Tensor, sde: ForwardSDE | None = None) -> Tensor:
        """There is none."""
        raise NotImplementedError

    @tabulated
    def frame(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """alpha, sigma, r, p, q at a tensor of times."""
        assert isinstance(self.sde, ScalarSDE)
        alpha, sigma = self.sde.levels(t)
        r = torch.hypot(alpha * self.size, sigma)
        return alpha, sigma, r, -sigma / (self.size * r), alpha * self.size / r

    def forward(self, x: Tensor, t: float | Tensor, **cond: Any) -> Point:  # noqa: D102
        raw, pairs = self._raw(x, t)
        return Point.of(self.sde, x, t, x, raw, pairs)

    def move(  # noqa: D102
        self, x: Tensor, t: float | Tensor, c: Coefficient, c0: Coefficient, c1: Coefficient, **cond: Any
    ) -> Tensor:
        raw, (a0, b0, a1, b1) = self._raw(x, t)
        return lincomb(c + c0 * a0 + c1 * a1, x, c0 * b0 + c1 * b1, raw)

    def _raw(self, x: Tensor, t: float | Tensor) -> tuple[Tensor, Pairs]:
        """The slope and r times its divergence, and the pairs that make endpoints of x = alpha z + sigma eps and it."""
        d = self.event.numel()
        state = x[:, :d] if self.flat else x[:, :d].reshape(-1, *self.event)
        alpha, sigma, r, p, q = self.frame(t if type(t) is Node else as_time(t))
        if isinstance(alpha, Tensor):
            alpha, sigma, r, p, q = (expand(c, x) for c in (alpha, sigma, r, p, q))
        slope, divergence = self._slope(state, t, p, q)
        back = self.size / r
        raw = torch.cat([slope if self.flat else slope.flatten(1), r * divergence], 1)
        return raw, (q * back, -sigma * back, -p * back, alpha * back)

    def _slope(self, x: Tensor, t: float | Tensor, p: Any, q: Any) -> tuple[Tensor, Tensor]:
        """P x0 + q eps and its divergence by x."""
        if isinstance(p, Tensor):
            p, q = (c if c.ndim == 0 else expand(c.reshape(-1), x) for c in (p, q))
        if self.drawn is not None:
            return self.drawn(lambda u: self.model.move(u, t, 0.0, p, q), x)
        found = self.model.traced(x, t)
        assert found is not None
        point, trace0, trace1 = found
        flat = lambda c: c.reshape(-1) if isinstance(c, Tensor) else c  # noqa: E731
        return point.combine(p, q), (flat(p) * trace0 + flat(q) * trace1)[:, None].to(x.dtype)


class _MatrixFlow(SDE):
    """The flow of a model under a matrix SDE with the integral of its divergence: (B, d + K)."""

    noisy, direction = False, 0

    def __init__(self, model: Model, event: torch.Size, drawn: Drawn) -> None:
        self.model, self.event, self.drawn, self.tabulates = model, event, drawn, model.tabulates

    def drift(self, x: Tensor, t: float | Tensor) -> Tensor:
        state = x[:, : self.event.numel()].reshape(-1, *self.event)
        v, div = self.drawn(lambda u: self.model(u, t).velocity, state)
        return torch.cat([v.flatten(1), div], 1)

    def diffusion(self, x: Tensor, t: float | Tensor, z: Tensor) -> Tensor:
        return torch.zeros_like(z)


def times_up(model: Model, steps: int = STEPS) -> Tensor:
    """The grid of `log_prob`: from t_min up to t_max, a sampler's the other way.

    Example:
        >>> import sde
        >>> times_up(sde.ExactScore(sde.Gaussian([0.0], 1.0), sde.EDM()), steps=2).round(decimals=3)
        tensor([2.0000e-03, 4.8200e-01, 8.0000e+01], dtype=torch.float64)
    """
    if not isinstance(model.sde, ScalarSDE):
        return grids.quadratic(model.sde, steps).flip(0)
    return grids.data_scaled(model.sde, steps, model.data_scale(), 1.0, WIDTHS).flip(0)


def _checked(model: Model, times: Tensor | Sequence[float]) -> Tensor:
    forward = model.sde
    times = times.detach().cpu().double() if isinstance(times, Tensor) else torch.tensor(times, dtype=torch.float64)
    if times.ndim != 1 or len(times) < 2 or not float(times[0]) < float(times[-1]):
        raise ValueError("times must run up, from t_min to t_max: flip the grid of a sampler with times.flip(0)")
    first, last = float(times[0]), float(times[-1])
    if forward.velocity_singular(times[0]):
        raise ValueError(f"times begin at {first:g}, where the flow has no velocity: begin at t_min={forward.t_min:g}")
    if abs(last - forward.t_max) > 1e-6 * forward.t_max:
        raise ValueError(f"times end at {last:g}, but the prior is known at t_max={forward.t_max:g}: end there")
    return times


def log_prob(
    model: Model,
    x: Tensor,
    times: Tensor | Sequence[float] | None = None,
    solver: Solver | None = None,
    *,
    trace: Trace | None = None,
    tol: float | None = None,
    prior: Target | None = None,
    generator: Generator = None,
    differentiable: bool = False,
) -> Tensor:
    r"""Log-likelihood of data under a model's probability flow, exact up to the solver's error.

    log p(x) = log prior(x_tmax) + the integral of div v along the path of x up the flow, in nats, for x a draw of the
    marginal at the first time. For y = (x - b) / c, data on another scale, log p_y = log p_x + d log c.

    Warning: the default grid is fixed, and whole nats wrong for outliers far between modes, where paths part within a
    narrow band of noise that a step may jump over; nothing tells. Draws of the data do not lie there. For points that
    may, pass tol=1e-4.

    Args:
        model: Score model, exact or trained, in eval mode; a coupled one too, as only its velocity is used.
        x: Data, (B, \*D); for a matrix SDE the state, (B, K, \*D). float64 gives about 1e-6 nats, float32 1e-4.
        times: Grid from t_min up to t_max. Default: 144 steps, densest where noise and data are alike.
        solver: Any solver of flows. Default: `Adams(4)`, one evaluation a step; for a matrix SDE `RK4`.
        trace: `ExactTrace()`, `Hutchinson(probes)`, `HutchPP(probes, sketch)`. Default: the closed form of an exact
            model; else exact up to 256 coordinates; else Hutchinson's estimate by four probes.
        tol: Largest estimated error of the ODE's solution in nats: each sample's steps are halved until it is met.
        prior: What the data are at t_max in place of the model's Gaussian of their mean and scale: a
            `Gaussian(mean, cov)` of theirs, say.
        generator: Of the probes; one generator, or one for each sample.
        differentiable: Keep the graph: for gradients by x, by the model's weights, or both.

    Returns:
        (B,), in the dtype of x; the mean over probes. `log_likelihood` also tells errors.

    Raises:
        TypeError: If x is not float32 or float64.
        ValueError: If the grid does not run up to t_max, x or the solver does not fit, or tol is not met.

    References:
        Chen et al. (2018), 1806.07366; Song et al. (2021), 2011.13456, section 4.3 and appendix D.2.

    Example:
        >>> import torch, sde
        >>> model = sde.ExactScore(sde.Gaussian([1.0, 0.0], 0.25), sde.VP())
        >>> x = torch.tensor([[1.0, 0.0], [2.0, 0.5]], dtype=torch.float64)
        >>> torch.allclose(sde.log_prob(model, x), model.log_prob(x, model.sde.t_min), atol=1e-5)
        True
    """
    return log_likelihood(
        model, x, times, solver,
        trace=trace, tol=tol, prior=prior, generator=generator, differentiable=differentiable,
    ).value  # fmt: skip


def log_likelihood(
    model: Model,
    x: Tensor,
    times: Tensor | Sequence[float] | None = None,
    solver: Solver | None = None,
    *,
    trace: Trace | None = None,
    tol: float | None = None,
    prior: Target | None = None,
    generator: Generator = None,
    differentiable: bool = False,
) -> LogLikelihood:
    r"""As `log_prob`, with the errors: that of the probes, and with `tol` that of the ODE's solution.

    A solution on n steps and one on 2 n differ by the error of the finer one times 2^k - 1, k the solver's order: that
    is the estimate, for each sample by itself, with the same probes; or, if it is larger, 2^-k of the estimate for n.
    It is doubled for safety. From 36 on, steps are doubled up to six times.

    Example:
        >>> import torch, sde
        >>> model = sde.ExactScore(sde.Gaussian([1.0, 0.0], 0.25), sde.VP())
        >>> found = sde.log_likelihood(model, torch.zeros(1, 2).double(), tol=1e-6)
        >>> error = (found.value - model.log_prob(torch.zeros(1, 2).double(), model.sde.t_min)).abs()
        >>> bool(error <= 1e-6), bool(found.ode_error <= 1e-6)
        (True, True)
    """
    _check_data(x)
    grid = None if times is None else _checked(model, times)
    if prior is not None:
        prior_of = ExactScore(prior, model.sde).prior_log_prob
    else:
        prior_of = model.prior_log_prob
    solver = solver or (Adams(4) if isinstance(model.sde, ScalarSDE) else RK4())
    way = trace or _default(model, x)
    if differentiable and not x.requires_grad:
        x = x.detach().requires_grad_()
    with torch.enable_grad() if differentiable else torch.no_grad():
        run = _Run(model, way.draw(x, generator) if way else None, way.columns if way else 1, solver, prior_of)
        estimated = way is not None and not isinstance(way, ExactTrace)
        if tol is None:
            return LogLikelihood(*run(x, times_up(model) if grid is None else grid), estimated)
        _check_tolerance(tol, grid, solver)
        return LogLikelihood(*_refined(run, x, tol), estimated)


def _check_data(x: Tensor) -> None:
    if x.ndim < 2 or x.shape[0] == 0:
        raise ValueError(f"x must be (B, *D) with B at least 1, got shape {tuple(x.shape)}")
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"x must be float32 or float64, got {x.dtype}: use x.float(); fewer digits lose whole nats")


def _check_tolerance(tol: float, grid: Tensor | None, solver: Solver) -> None:
    if not (math.isfinite(tol) and tol > 0):
        raise ValueError(f"tol must be positive, got {tol}: it is the largest error in nats, 1e-4 say")
    if grid is not None:
        raise ValueError("tol chooses the steps, and times give them: leave one out")
    if isinstance(solver, SelfPaced):
        raise ValueError(
            f"tol halves the steps of a grid, and {type(solver).__name__} chooses its own: pass its rtol, and no tol"
        )


def _default(model: Model, x: Tensor) -> Trace | None:
    """What is said of `trace` in `log_prob`; None for a closed form."""
    if model.traced(x[:1].detach(), model.sde.t_max) is not None:
        return None
    return ExactTrace() if x[0].numel() <= EXACT else Hutchinson(PROBES)


class _Run:
    """From data and a grid to their log-likelihoods (B, K), no estimate of the error, and the evaluations."""

    def __init__(
        self, model: Model, drawn: Drawn | None, columns: int, solver: Solver, prior: Callable[[Tensor], Tensor]
    ) -> None:
        self.model, self.drawn, self.columns, self.solver, self.prior = model, drawn, columns, solver, prior

    def __call__(self, x: Tensor, times: Tensor) -> tuple[Tensor, None, int]:
        d, event, scale, growth = x[0].numel(), x.shape[1:], 1.0, 0.0
        if isinstance(self.model.sde, ScalarSDE):
            wide = WithVolume(self.model, event, self.drawn, self.columns)
            first, scale = (float(r) for r in wide.frame(times[[0, -1]])[2])
            flow, growth = ReverseSDE(wide), d * math.log(scale / first)
        else:
            assert self.drawn is not None
            flow = _MatrixFlow(self.model, event, self.drawn)
        state = None
        begin = torch.cat([x.flatten(1), x.new_zeros(len(x), self.columns)], 1)
        for state in trajectory(flow, begin, times, self.solver):  # noqa: B007
            pass
        assert state is not None
        end = state.x[:, :d].reshape(x.shape)
        return self.prior(end)[:, None] + state.x[:, d:] / scale + growth, None, state.calls


def _refined(run: _Run, x: Tensor, tol: float) -> tuple[Tensor, Tensor, int]:
    """Values of each sample at the first grid whose estimated error is within tol, so that no batch matters."""
    steps, rate = STEPS // 4, 2**run.solver.order
    values, _, calls = run(x, times_up(run.model, steps))
    kept, error = values, torch.full_like(values[:, 0], math.inf).detach()
    before = error  # one difference may vanish by accident: the one before has a say too
    for _ in range(DOUBLINGS):
        steps *= 2
        finer, _, more = run(x, times_up(run.model, steps))
        change = SAFETY * (finer - values).mean(1).abs().detach() / (rate - 1)
        found, open_ = torch.maximum(change, before / rate), error > tol
        kept, error = torch.where(open_[:, None], finer, kept), torch.where(open_, found, error)
        values, calls, before = finer, calls + more, change
        if not bool((error > tol).any()):
            return kept, error, calls
    raise ValueError(
        f"tol={tol:g} nats is not met in {steps} steps: the worst sample is {float(error.max()):.2g} off; pass a "
        "larger tol, x in float64, or another solver"
    )
