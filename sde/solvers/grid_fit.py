r"""A time grid fitted to a model: short steps where its own trajectories bend.

A rule of order p that steps by h in the angle theta makes the local error C |d^p F / dtheta^p| h^(p+1), with F the
right side of the flow there (`solvers.exponential`). The sum of errors over a given number of steps is least where
every step makes the same one, that is, where nodes have the density

    |d^p F / dtheta^p|^(1 / (p + 1)),

the derivative in the root mean square over a few trajectories. The derivative is that of the polynomial through p + 1
neighbours on a fine grid, smoothed over neighbours, and the density is mixed with that of the default grid, so that a
stretch where few trajectories happened to bend is not left empty: in the share that serves those trajectories best.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sde.forward import ScalarSDE
from sde.random import Generator
from sde.score import Model
from sde.solvers.defaults import default_solver, default_times
from sde.solvers.exponential.adams import Adams
from sde.solvers.integrate import integrate, trajectory
from sde.solvers.reverse import ReverseSDE

MIXES = (0.25, 0.5, 0.75)
CLEARLY = 0.8
"""A fitted grid is taken where its error is this many times that of the default, or less."""


@torch.no_grad()
def fitted_times(
    model: Model,
    shape: tuple[int, ...],
    steps: int,
    order: int = 3,
    fine: int = 128,
    mix: float | None = None,
    generator: Generator = None,
) -> Tensor:
    r"""Grid of `steps` steps fitted to a model from a few of its own trajectories.

    Args:
        model: Score model of a scalar SDE; put it in eval mode first.
        shape: (B, \*D) of the trajectories; B of 256 tells grids apart that differ for few of them.
        steps: Number of steps of the grid that is made.
        order: p, the derivative whose size is made even; 3 serves well for rules of higher order too.
        fine: Steps of the solve that is looked at: so many evaluations of B samples, paid once.
        mix: Weight of the default grid's density, between 0 and 1. Without one .25, .5, .75 and 1 (the default grid)
            are tried, and the grid is taken on which `sample`'s default ends nearest to the fine solve: 4 `steps` more
            evaluations.
        generator: For the starts.

    Returns:
        (steps + 1,) times from t_max to t_min, for `sample(times=...)`; keep them, as they serve every later run.

    Raises:
        ValueError: If the SDE is not scalar or a number is out of range.

    References:
        Equidistribution: de Boor (1974), Lect. Notes Math. 363, 12; grids from trajectories of diffusion models: Chen
        et al. (2024), 2405.11326 (GITS), and Sabour, Fidler & Kreis (2024), 2404.14507 (align your steps).

    Example:
        >>> import torch, sde
        >>> model = sde.ExactScore(sde.Mixture([0.5, 0.5], [[-1.0], [1.0]], [0.01, 0.01]), sde.EDM())
        >>> times = sde.fitted_times(model, (16, 1), steps=10, generator=torch.Generator().manual_seed(0))
        >>> len(times), times[0].item()
        (11, 80.0)
    """
    forward = model.sde
    if not isinstance(forward, ScalarSDE):
        raise ValueError(f"fitted_times needs a scalar SDE, got {type(forward).__name__}: use grids.uniform")
    if steps < 1 or order not in (1, 2, 3, 4) or not 0 <= (mix or 0) <= 1 or fine < 4 * order:
        raise ValueError(
            f"steps must be at least 1, order 1 to 4, mix 0 to 1 and fine at least 4 order, got steps={steps}, "
            f"order={order}, mix={mix}, fine={fine}"
        )
    device, dtype = model.placement()
    x = model.prior(torch.empty(shape, device=device, dtype=dtype), generator)
    times = default_times(model, fine)
    alpha, sigma = forward.levels(times)
    a = model.data_scale()
    theta = torch.atan2(sigma, alpha * a)
    end, values = _looked_at(model, x, times, theta, a)
    bend = _derivative(values, theta[:fine], order)
    # Nodes of the derivative lie at the means of p + 1 neighbours; carry it back to the fine grid's steps.
    density = _interpolate(theta[:-1] + theta.diff() / 2, *bend) ** (1 / (order + 1))
    share = density * theta.diff().abs()
    share = share / share.sum()

    def grid(weight: float) -> Tensor:
        mixed = (1 - weight) * share + weight / fine  # in the default grid every step has an equal share
        reached = torch.cat([torch.zeros(1, dtype=torch.float64), mixed.cumsum(0)])
        wanted, count = torch.linspace(0, 1, steps + 1, dtype=torch.float64), torch.arange(fine + 1).double()
        angle = _interpolate(_interpolate(wanted, reached / reached[-1], count), count, theta)
        result = forward.time_at(-2 * (torch.log(torch.tan(angle)) + math.log(a)))
        result[0], result[-1] = times[0], times[-1]
        return result

    if mix is not None:
        return grid(mix)
    # What few trajectories cannot tell apart is left as it is.
    made = [default_times(model, steps), *map(grid, MIXES)]
    solver = default_solver(model, steps=steps)
    missed = [float((integrate(ReverseSDE(model), x, t, solver) - end).double().square().mean()) for t in made]
    missed[0] *= CLEARLY**2
    return made[min(range(len(made)), key=missed.__getitem__)]


def _looked_at(model: Model, x: Tensor, times: Tensor, theta: Tensor, a: float) -> tuple[Tensor, Tensor]:
    """End of a fine solve, and F at its nodes but the last, which may lie at sigma = 0, where eps cannot be told."""
    mean, values, state = model.data_mean(), [], None
    at = zip(theta.sin().tolist(), theta.cos().tolist(), strict=True)
    for state, (s, c) in zip(trajectory(ReverseSDE(model), x, times, Adams(4)), at, strict=True):
        if len(values) < len(times) - 1:
            z, eps = (point := model(state.x, state.t)).x0, point.eps
            z = z if mean is None else z - mean.to(z)
            values.append(s / a * z - c * eps)
    assert state is not None
    return state.x, torch.stack(values).flatten(1).double().cpu()


def _derivative(values: Tensor, at: Tensor, order: int) -> tuple[Tensor, Tensor]:
    """Root mean square of the derivative of that order along the first axis: where, and how large, smoothed."""
    for k in range(1, order + 1):  # divided differences: Newton's table
        values = values.diff(dim=0) / ((at[k:] - at[:-k]) / k)[:, None]
    where = at.unfold(0, order + 1, 1).mean(1)
    size = values.square().mean(1).sqrt()
    window = max(3, len(size) // 16 * 2 + 1)
    padded = torch.nn.functional.pad(size[None, None], (window // 2, window // 2), mode="replicate")
    return where, torch.nn.functional.avg_pool1d(padded, window, 1)[0, 0]


def _interpolate(x: Tensor, at: Tensor, values: Tensor) -> Tensor:
    """Piecewise linear through (at, values), held beyond the ends; `at` runs up or down."""
    if at[0] > at[-1]:
        at, values = at.flip(0), values.flip(0)
    i = torch.searchsorted(at, x.contiguous()).clamp(1, len(at) - 1)
    w = ((x - at[i - 1]) / (at[i] - at[i - 1])).clamp(0, 1)
    return torch.lerp(values[i - 1], values[i], w)
