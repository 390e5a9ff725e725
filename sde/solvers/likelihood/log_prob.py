r"""Likelihood through the probability flow: the change of variables, integrated beside the state.

Along dx/dt = v(x, t) a density obeys d log p_t(x_t) / dt = -div v(x_t, t); so a datum moved from t_min to t_max has

    log p_tmin(x) = log p_tmax(x_tmax) + int_tmin^tmax div v(x_t, t) dt.

State and integral are one ODE with one more column, solved by the one loop. The divergence is exact, the trace of the
Jacobian by one backward pass for each coordinate, many of them at once; or, where coordinates are too many,
Hutchinson's estimate from probes z of random signs, held fixed along the path so that the ODE stays smooth,

    div v = E z' (dv/dx) z,    with variance sum_{i<j} (J_ij + J_ji)^2 for each probe,

a column and a backward pass for each. The result belongs to the marginal at t_min, not to the data at t = 0, where a
flow has no start; on usual settings they differ by 1e-4 to 4e-3 nats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sde.forward import SDE, ScalarSDE
from sde.random import Generator, rand
from sde.score import Model
from sde.shape import as_time
from sde.solvers import grids
from sde.solvers.adaptive.coordinate import Angle
from sde.solvers.integrate import trajectory
from sde.solvers.onestep import RK4
from sde.solvers.solver import Solver

CHUNK = 2**22
"""Numbers that the gradients of one batch of backward passes may hold."""
STEPS = 128


def divergence(field: Callable[[Tensor], Tensor], x: Tensor, chunk: int | None = None) -> tuple[Tensor, Tensor]:
    r"""A vector field at x and its exact divergence, d backward passes for d coordinates.

    Args:
        field: From (B, \*D) to (B, \*D), each sample by itself.
        x: States, (B, \*D).
        chunk: Backward passes at a time. Default: as many as keep their gradients within 4 million numbers.

    Returns:
        field(x), (B, \*D), and its divergence, (B,), both detached.

    Example:
        >>> v, div = divergence(lambda x: x**2, torch.tensor([[1.0, 2.0]]))
        >>> v, div
        (tensor([[1., 4.]]), tensor([6.]))
    """
    batch, d = x.shape[0], x[0].numel()
    chunk = chunk or max(1, CHUNK // x.numel())
    total = x.new_zeros(batch)
    with torch.enable_grad():
        u = x.detach().requires_grad_()
        v = field(u) + 0 * u  # a field that ignores x has a gradient as well: 0
        for first in range(0, d, chunk):
            last = min(first + chunk, d)
            rows = torch.arange(first, last, device=x.device)
            pick = torch.nn.functional.one_hot(rows, d).to(v).reshape(-1, 1, *x.shape[1:]).expand(-1, *x.shape)
            (g,) = torch.autograd.grad(v, u, pick, retain_graph=last < d, is_grads_batched=True)
            total += (g * pick).flatten(2).sum((0, 2))
    return v.detach(), total


def hutchinson(field: Callable[[Tensor], Tensor], x: Tensor, probes: Tensor) -> tuple[Tensor, Tensor]:
    r"""A vector field at x and estimates of its divergence, one evaluation and K backward passes.

    Args:
        field: From (B, \*D) to (B, \*D), each sample by itself.
        x: States, (B, \*D).
        probes: z, (K, B, \*D), of independent coordinates with mean 0 and variance 1.

    Returns:
        field(x), (B, \*D), and z' (dv/dx) z, (B, K), both detached.

    References:
        Hutchinson (1990), Commun. Stat. Simul. Comput. 19, 433; Grathwohl et al. (2019), 1810.01367.

    Example:
        >>> signs = torch.tensor([[[1.0, -1.0]], [[1.0, 1.0]]])
        >>> hutchinson(lambda x: x**2, torch.tensor([[1.0, 2.0]]), signs)[1]
        tensor([[6., 6.]])
    """
    estimates = []
    with torch.enable_grad():
        u = x.detach().requires_grad_()
        v = field(u) + 0 * u  # a field that ignores x has a gradient as well: 0
        for k, z in enumerate(probes):
            (g,) = torch.autograd.grad(v, u, z.to(v), retain_graph=k < len(probes) - 1)
            estimates.append((g * z).flatten(1).sum(1))
    return v.detach(), torch.stack(estimates, 1)


def signs(shape: Sequence[int], k: int, generator: Generator, like: Tensor) -> Tensor:
    r"""K probes of random signs for each sample of a shape (B, \*D): (K, B, \*D), placed as `like`.

    Example:
        >>> signs((4, 2), 3, torch.Generator().manual_seed(0), torch.zeros(1)).unique()
        tensor([-1.,  1.])
    """
    u = rand((shape[0], k, *shape[1:]), generator, dtype=torch.float32, device=like.device)
    return (2 * (u < 0.5) - 1).to(like.dtype).transpose(0, 1).contiguous()


class _FlowAndDivergence(SDE):
    """The probability flow of a model with the integral of its divergence as last columns: (B, d + 1), or d + K."""

    noisy, direction = False, 0

    def __init__(self, model: Model, event: torch.Size, probes: Tensor | None = None) -> None:
        self.model, self.event, self.probes, self.tabulates = model, event, probes, model.tabulates

    def drift(self, x: Tensor, t: float | Tensor) -> Tensor:
        state = x[:, : self.event.numel()].reshape(-1, *self.event)
        field = self.field(t, state)
        if self.probes is None:
            v, div = divergence(field, state)
            return torch.cat([v.flatten(1), div[:, None]], 1)
        v, estimates = hutchinson(field, state, self.probes)
        return torch.cat([v.flatten(1), estimates], 1)

    def field(self, t: float | Tensor, state: Tensor) -> Callable[[Tensor], Tensor]:
        """What the state and the density move by at time t."""
        return lambda u: self.model(u, t).velocity

    def diffusion(self, x: Tensor, t: float | Tensor, z: Tensor) -> Tensor:
        return torch.zeros_like(z)


def times_up(model: Model, steps: int = STEPS) -> Tensor:
    """The grid of `log_prob`: from t_min up to t_max, densest where noise and data are alike.

    Wider than a sampler's, as the divergence does not fade where the noise is far above or below the data; for a matrix
    SDE quadratic in t.

    Example:
        >>> import sde
        >>> times_up(sde.ExactScore(sde.Gaussian([0.0], 1.0), sde.EDM()), steps=2).round(decimals=3)
        tensor([2.0000e-03, 5.2000e-01, 8.0000e+01], dtype=torch.float64)
    """
    if not isinstance(model.sde, ScalarSDE):
        return grids.quadratic(model.sde, steps).flip(0)
    return grids.data_scaled(model.sde, steps, model.data_scale(), 0.6, (2.0, 2.0)).flip(0)


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


@torch.no_grad()
def log_prob(
    model: Model,
    x: Tensor,
    times: Tensor | Sequence[float] | None = None,
    solver: Solver | None = None,
    probes: int = 0,
    generator: Generator = None,
) -> Tensor:
    r"""Log-likelihood of data under a model's probability flow, exact up to the solver's error.

    log p(x) = log prior(x_tmax) + the integral of div v along the path of x up the flow, in nats, for x a draw of the
    marginal at the first time.

    Args:
        model: Score model, exact or trained, in eval mode; a coupled one too, as only its velocity is used.
        x: Data, (B, \*D); for a matrix SDE the state, (B, K, \*D). float64 gives about 1e-6 nats, float32 1e-4.
        times: Grid from t_min up to t_max. Default: 128 steps, densest where noise and data are alike.
        solver: Default: `RK4`, four evaluations a step. One of small order asks for more steps.
        probes: 0 for the exact divergence, d backward passes for each evaluation; or how many probes estimate it, one
            backward pass each: unbiased in log p, and the way for images (`bits_per_dim`).
        generator: Of the probes; one generator, or one for each sample.

    Returns:
        (B,), in the dtype of x, detached; the mean over probes.

    Raises:
        ValueError: If the grid does not run up to t_max, or x or the solver does not fit.

    References:
        Chen et al. (2018), 1806.07366; Song et al. (2021), 2011.13456, section 4.3 and appendix D.2.

    Example:
        >>> import torch, sde
        >>> model = sde.ExactScore(sde.Gaussian([1.0, 0.0], 0.25), sde.VP())
        >>> x = torch.tensor([[1.0, 0.0], [2.0, 0.5]], dtype=torch.float64)
        >>> torch.allclose(sde.log_prob(model, x), model.log_prob(x, model.sde.t_min), atol=1e-5)
        True
    """
    if probes < 0:
        raise ValueError(f"probes must be 0, for the exact divergence, or more, got {probes}")
    drawn = signs(x.shape, probes, generator, x) if probes and x.ndim > 1 else None
    return flow_log_prob(model, x, times, solver, drawn)[0].mean(1)


class _AlongAngle(_FlowAndDivergence):
    """The same in the time and the state of `coordinate.Angle`: no more to bend than the network's own output has."""

    def __init__(self, model: Model, line: Angle, event: torch.Size, probes: Tensor | None) -> None:
        super().__init__(model, event, probes)
        self.line, self.tabulates = line, False

    def field(self, t: float | Tensor, state: Tensor) -> Callable[[Tensor], Tensor]:
        return self.line.fields(as_time(t).reshape(1), state)[0]


@torch.no_grad()
def flow_log_prob(
    model: Model,
    x: Tensor,
    times: Tensor | Sequence[float] | None = None,
    solver: Solver | None = None,
    probes: Tensor | None = None,
    angle: bool = False,
) -> tuple[Tensor, int]:
    r"""As `log_prob` for each probe by itself, (B, K) for probes (K, B, \*D) and (B, 1) for none; and the evaluations.

    With `angle`, the flow of a scalar SDE is solved in u = atan(sigma / (alpha s)) for y = (x - alpha m) / r, with m, s
    the data's mean and scale and r^2 = alpha^2 s^2 + sigma^2, of which log p_x = log p_y - d log r. There it is smooth
    under every schedule, and a grid of 16 steps does what 16 (VP) to 64 (EDM) do in t.

    Example:
        >>> import torch, sde
        >>> model, x = sde.ExactScore(sde.Gaussian([1.0, 0.0], 0.25), sde.VP()), torch.zeros(3, 2)
        >>> values, calls = flow_log_prob(model, x, probes=signs(x.shape, 2, None, x))
        >>> values.shape, calls  # RK4: four in each of 128 steps
        (torch.Size([3, 2]), 512)
    """
    if x.ndim < 2 or x.shape[0] == 0:
        raise ValueError(f"x must be (B, *D) with B at least 1, got shape {tuple(x.shape)}")
    grid = times_up(model) if times is None else _checked(model, times)
    d = x[0].numel()
    columns, growth = x.new_zeros(len(x), 1 if probes is None else len(probes)), 0.0
    line = Angle(model, grid, x) if angle and isinstance(model.sde, ScalarSDE) else None
    flow, times, y = _FlowAndDivergence(model, x.shape[1:], probes), grid, x
    if line is not None:
        flow, times, y = _AlongAngle(model, line, x.shape[1:], probes), line.of(grid), line.enter(x, grid[0])
        growth = d * float(torch.log(line.size(grid[-1]) / line.size(grid[0])))
    state = None
    for state in trajectory(flow, torch.cat([y.flatten(1), columns], 1), times, solver or RK4()):  # noqa: B007
        pass
    assert state is not None
    end = state.x[:, :d].reshape(x.shape)
    end = end if line is None else line.leave(end, grid[-1])
    return model.prior_log_prob(end)[:, None] + state.x[:, d:] + growth, state.calls
