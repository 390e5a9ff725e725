r"""Plain denoising: what x0 was, given y = x0 + s n of a known noise level s; `sde.inverse.blind` finds one.

y is what the forward SDE shows of x0 at the time t where its ratio of noise to data is s: the state A(t) y has the
statistic y, and what a matrix SDE's state holds beyond it is noise that can be drawn. So the posterior mean is one call
of the model,

    E[x0 | y] = D(y, s) = x0 estimated at (A(t) y, t),

and x0 | y is drawn by the reverse SDE from there. Only eta = 1 has that law: it is the forward process turned round,
with its joint law of (x0, x_t); other eta share the law of each x_t alone (the flow, eta = 0, takes a y to one x0).
"""

from __future__ import annotations

import torch
from torch import Tensor

from sde.forward import ForwardSDE, ScalarSDE
from sde.random import Generator, randn_like
from sde.score import Model
from sde.shape import as_time
from sde.solvers import Heun, SASolver, Solver, default_times, sample

"""Of an interval of times in float64."""


def noise_range(model: Model) -> tuple[float, float]:
    """Noise levels, in the data's units, that a model knows: those of its forward SDE at t_min and t_max.

    Example:
        >>> import sde
        >>> sde.inverse.noise_range(sde.ExactScore(sde.Gaussian([0.0], 1.0), sde.EDM(0.002, 80.0)))
        (0.002, 80.0)
    """
    alpha, sigma, *_ = model.sde.rates_of_statistic(
        torch.tensor([model.sde.t_min, model.sde.t_max], dtype=torch.float64)
    )
    low, high = (sigma / alpha).tolist()
    return low, high


def time_of_noise(model: Model, noise: float | Tensor) -> Tensor:
    """Time at which the state is the data with noise of that standard deviation, but for a factor: () or (B,).

    Args:
        model: Score model.
        noise: Standard deviation in the data's units, () or (B,).

    Raises:
        ValueError: If a level is none that the model knows.

    Example:
        >>> import sde
        >>> model = sde.ExactScore(sde.Gaussian([0.0], 1.0), sde.EDM())
        >>> sde.inverse.time_of_noise(model, 0.5)
        tensor(0.5000, dtype=torch.float64)
    """
    level = as_time(noise.detach().cpu() if isinstance(noise, Tensor) else noise)
    low, high = noise_range(model)
    inside = (level >= low * (1 - 1e-6)) & (level <= high * (1 + 1e-6)) & torch.isfinite(level)
    if not bool(inside.all()):
        shown = f"{float(level.min()):g}" + (f" to {float(level.max()):g}" if level.numel() > 1 else "")
        raise ValueError(
            f"noise must lie in [{low:.4g}, {high:.4g}], the levels that the model's {type(model.sde).__name__} goes "
            f"through, got {shown}: it is a standard deviation in the data's units"
        )
    return model.sde.time_at(-2 * torch.log(level))


def times_below(model: Model, t: float, steps: int) -> Tensor:
    """Grid of so many steps from time t down to t_min, spaced as the default grid of `sample` is below t.

    Example:
        >>> import sde
        >>> model = sde.ExactScore(sde.Gaussian([0.0], 1.0), sde.EDM())
        >>> sde.inverse.times_below(model, 1.0, 3).round(decimals=3)
        tensor([1.0000, 0.3150, 0.0540, 0.0020], dtype=torch.float64)
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps must be a whole number of at least 1, got {steps!r}: pass steps=32, say")
    fine = default_times(model, max(2000, 20 * steps)).flip(0)
    end = float(torch.searchsorted(fine, torch.tensor(t, dtype=torch.float64)))
    at = torch.linspace(end, 0.0, steps + 1, dtype=torch.float64)
    below = at.floor().long().clamp_max(len(fine) - 2)
    grid = torch.exp(torch.lerp(fine[below].log(), fine[below + 1].log(), at - below))
    grid[0], grid[-1] = t, model.sde.t_min
    return grid


@torch.no_grad()
def denoise(model: Model, y: Tensor, noise: float | Tensor) -> Tensor:
    r"""Posterior mean E[x0 | y] of y = x0 + noise n: the model's denoiser, one call.

    Args:
        model: Score model, exact or trained, in eval mode; `model.given(...)` closes over a condition.
        y: Noisy data, (B, \*D), in the data's units.
        noise: Standard deviation of the noise in the data's units, one number or one for each sample, (B,);
            `estimate_noise` estimates it.

    Returns:
        (B, \*D). No other guess has a smaller mean squared error, and none looks less like a sample: see
        `posterior_samples`.

    Raises:
        ValueError: If y or noise does not fit, or a level is none that the model knows.

    References:
        Robbins (1956); Miyasawa (1961); Efron (2011), JASA 106, 1602.

    Example:
        >>> import torch, sde
        >>> model = sde.ExactScore(sde.Gaussian([1.0], 1.0), sde.VP())
        >>> sde.inverse.denoise(model, torch.tensor([[3.0]]), noise=1.0)  # half of the way to the mean
        tensor([[2.]])
    """
    t = checked(model, y, noise)
    return model(model.sde.mean(y, t), t).x0


def posterior_samples(
    model: Model,
    y: Tensor,
    noise: float | Tensor,
    k: int = 1,
    steps: int = 32,
    solver: Solver | None = None,
    generator: Generator = None,
    progress: bool | None = None,
) -> Tensor:
    r"""Draws of x0 | y for y = x0 + noise n: the reverse SDE with eta = 1 from that noise level.

    Exact for an exact score, up to the solver's error and the noise of t_min.

    Args:
        model: As in `denoise`.
        y: Noisy data, (B, \*D), in the data's units.
        noise: Standard deviation of the noise in the data's units, one number or one for each sample, (B,). Samples of
            one level run together; each other level is a run of its own.
        k: Draws for each y.
        steps: Solver steps from the noise level down.
        solver: One that takes eta = 1. Default: `SASolver`, one evaluation a step; `Heun`, two, for a matrix SDE.
        generator: One generator, or k B of them, draw i of sample b at i B + b.
        progress: True for a bar, False for none. Default: one that appears after two seconds.

    Returns:
        (k, B, \*D): their mean over the first axis estimates `denoise`, their standard deviation is the spread that
        the noise leaves.

    Raises:
        ValueError: As `denoise`; if k is less than 1; if the model has no score.

    References:
        Anderson (1982), Stoch. Proc. Appl. 12, 313; Ohayon et al. (2021), 2103.04192, and Kawar et al. (2021),
        2103.05610, for denoising by samples.

    Example:
        >>> import torch, sde
        >>> model = sde.ExactScore(sde.Gaussian([1.0], 1.0), sde.VP())
        >>> y, generator = torch.tensor([[3.0]]), torch.Generator().manual_seed(0)
        >>> x0 = sde.inverse.posterior_samples(model, y, noise=1.0, k=10_000, generator=generator)
        >>> round(x0.mean().item(), 1), round(x0.var().item(), 1)
        (2.0, 0.5)
    """
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ValueError(f"k must be a whole number of at least 1, got {k!r}: how many draws for each y")
    if isinstance(generator, list | tuple) and len(generator) != k * len(y):
        raise ValueError(
            f"generator holds {len(generator)} generators for {k} draws of {len(y)} samples: pass {k * len(y)}, draw i "
            "of sample b at i B + b, or a single one"
        )
    t = checked(model, y, noise).expand(len(y)).repeat(k)
    many = y.repeat(k, *[1] * (y.ndim - 1))
    found = torch.empty_like(many)
    for level in t.unique().tolist():
        rows = (t == level).nonzero()[:, 0]
        own = [generator[i] for i in rows.tolist()] if isinstance(generator, list | tuple) else generator
        rows = rows.to(y.device)
        found[rows] = _drawn(model, many[rows], level, steps, solver, own, progress)
    return found.reshape(k, *y.shape)


@torch.no_grad()
def _drawn(
    model: Model,
    y: Tensor,
    t: float,
    steps: int,
    solver: Solver | None,
    generator: Generator,
    progress: bool | None,
) -> Tensor:
    """One draw for each y at time t."""
    forward = model.sde
    x = state_of(forward, y, t, generator)
    if t <= forward.t_min * (1 + 1e-9):
        return model(x, t).x0
    times = times_below(model, t, steps)
    solver = solver or (SASolver() if isinstance(forward, ScalarSDE) else Heun())
    x = sample(model, x=x, times=times, solver=solver, eta=1.0, generator=generator, progress=progress)
    return forward.unmean(x, forward.t_min)


def state_of(forward: ForwardSDE, y: Tensor, t: float, generator: Generator = None) -> Tensor:
    """Draw of a state whose statistic is y: A y, and for a matrix SDE the noise that says nothing of x0.

    Example:
        >>> import torch, sde
        >>> x = state_of(sde.CLD(), torch.ones(1, 1), 0.5)
        >>> x.shape, round(sde.CLD().unmean(x, 0.5).item(), 5)
        (torch.Size([1, 2, 1]), 1.0)
    """
    x = forward.mean(y, t)
    if isinstance(forward, ScalarSDE):
        return x
    r = forward.color(randn_like(x, generator), t)  # L eps, without what it adds to the statistic
    return x + r - forward.mean(forward.unmean(r, t), t)


def checked(model: Model, y: Tensor, noise: float | Tensor) -> Tensor:
    """The times of the noise levels, () or (B,), if all fits."""
    if not y.is_floating_point():
        raise TypeError(f"y must be floating, got {y.dtype}: use y.float(), or sde.data.from_uint8(y)")
    if y.ndim < 2 or not len(y):
        raise ValueError(f"y must be (B, *D) with B at least 1, got shape {tuple(y.shape)}: y[None] for one sample")
    if not bool(torch.isfinite(y).all()):
        raise ValueError(f"y holds {int((~torch.isfinite(y)).sum())} values that are not finite: clean it first")
    if isinstance(noise, Tensor) and noise.ndim and noise.shape != y.shape[:1]:
        raise ValueError(
            f"noise has shape {tuple(noise.shape)} and y {tuple(y.shape)}: pass one number, or one for each of "
            f"{len(y)} samples"
        )
    if model.coupled:
        raise ValueError(
            "model was trained with a coupling that ties eps to x0: it holds no posterior. Train with coupling=None"
        )
    return time_of_noise(model, noise)
