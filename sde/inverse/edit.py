r"""Images changed: partly noised and made anew, encoded to noise and back, mixed between two.

SDEdit noises a given x0 to a level and samples from there; what is coarser than the noise stays. For Gaussian data
N(m, v) and r^2 = alpha^2 v + sigma^2 at that level, what becomes of x0 has the mean and variance

    flow  (eta = 0)       m + sqrt(v) alpha (x0 - m) / r,            v sigma^2 / r^2
    SDE   (eta = 1)       m + v alpha^2 (x0 - m) / r^2,              v (1 - v^2 alpha^4 / r^4)

so that a strength of 1, where alpha^2 v is small beside sigma^2, forgets x0. (The SDE draws from p(x0' | x_t), at every
level: if x0 is a draw of the data, x0' is another, correlated with it.)

The probability flow is a map between data and noise, one to one. Upwards it makes the code of an image, downwards the
image of a code. Codes are Gaussian, so that they lie near a sphere around their mean, on which two of them, w of the
way apart at an angle omega, are joined by

    slerp(a, b, w) = (sin((1 - w) omega) a + sin(w omega) b) / sin(omega).
"""

from __future__ import annotations

import torch
from torch import Tensor

from sde.forward import ScalarSDE
from sde.inverse.denoising import time_of_noise, times_below
from sde.random import Generator
from sde.score import Model
from sde.shape import as_time, expand
from sde.solvers import Adams, ReverseSDE, SASolver, Solver, default_solver, default_times, grids, integrate, sample
from sde.solvers.integrate import checked_state

PARALLEL = 1e-4
"""An angle of which the sine is not divided by."""


def time_of_strength(model: Model, strength: float) -> float:
    """Time after that share of the default grid of `sample`, from t_min at 0 to t_max at 1, whatever the schedule.

    Half of the way the noise is about 0.4 of the data's standard deviation, 0.7 of the way equal to it.

    Example:
        >>> import sde
        >>> model = sde.ExactScore(sde.Gaussian([0.0], 4.0), sde.EDM())  # standard deviation 2
        >>> [round(sde.inverse.time_of_strength(model, w), 3) for w in (0.0, 0.5, 1.0)]
        [0.002, 0.682, 80.0]
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must lie in [0, 1], got {strength}: 0 keeps the input, 1 keeps nothing of it")
    fine = default_times(model, 1000).flip(0)
    at = 1000 * float(strength)
    i = min(int(at), 999)
    return float(torch.exp(torch.lerp(fine[i].log(), fine[i + 1].log(), at - i)))


def sdedit(
    model: Model,
    x0: Tensor,
    strength: float | None = None,
    noise: float | None = None,
    steps: int = 32,
    solver: Solver | None = None,
    eta: float | None = None,
    generator: Generator = None,
    progress: bool | None = None,
) -> Tensor:
    r"""SDEdit: x0 noised to a level and sampled from there, which keeps what is coarser than the noise.

    Args:
        model: Score model in eval mode; `model.given(label=...)` says what it shall become.
        x0: What to begin from, (B, \*D): a sketch, another class, a crude collage.
        strength: Share of the default sampling grid that is walked, from 0 (x0 itself) to 1 (nothing kept); at .5 the
            noise is 0.4 of the data's standard deviation, at .7 equal. Give either this or noise.
        noise: Or the noise level itself, a standard deviation in the data's units.
        steps: Solver steps from there down.
        solver: Default: as in `posterior_samples`; with eta=0 as in `sample`.
        eta: Noise on the way down: 0 is the flow, 1 the reverse SDE, as in the paper. Default: the solver's own, 1
            where none is given.
        generator: One generator, or one for each sample.
        progress: True for a bar, False for none. Default: one that appears after two seconds.

    Returns:
        (B, \*D).

    Raises:
        ValueError: If strength is outside of [0, 1], both or none of strength and noise are given, or the level is none
            that the model knows.

    References:
        Meng et al. (2022), SDEdit, 2108.01073.

    Example:
        >>> import torch, sde
        >>> model = sde.ExactScore(sde.Mixture([0.5, 0.5], [[-2.0], [2.0]], [0.01, 0.01]), sde.VP())
        >>> x = sde.inverse.sdedit(model, torch.full((100, 1), 1.0), strength=0.3)  # to the nearer of the two
        >>> bool((x > 1.5).all())
        True
    """
    if (strength is None) == (noise is None):
        raise ValueError(f"give either strength or noise, got strength={strength} and noise={noise}: strength=0.5, say")
    checked_state(x0)
    forward = model.sde
    if strength == 0:
        return x0.clone()
    t = time_of_strength(model, strength) if strength is not None else float(time_of_noise(model, float(noise or 0.0)))
    x = forward.perturb(x0, t, generator).x
    if t <= forward.t_min * (1 + 1e-9):
        return forward.unmean(x, t)
    if solver is None:
        eta = 1.0 if eta is None else eta
        solver = SASolver() if eta and isinstance(forward, ScalarSDE) else default_solver(model, eta, steps)
    times = times_below(model, t, steps)
    x = sample(model, x=x, times=times, solver=solver, eta=eta, generator=generator, progress=progress)
    return forward.unmean(x, forward.t_min)


def _walk(model: Model, steps: int, solver: Solver | None) -> tuple[Tensor, Solver]:
    """Grid down and solver of encoding: equal steps in (sigma / alpha)^(1/7), which walks a network's flow up well."""
    if isinstance(model.sde, ScalarSDE):
        return grids.karras(model.sde, steps), solver or Adams(3)
    return grids.quadratic(model.sde, steps), solver or default_solver(model, 0.0, steps)


@torch.no_grad()
def encode(model: Model, x0: Tensor, steps: int = 64, solver: Solver | None = None) -> Tensor:
    r"""The code of x0: where the probability flow carries it, a state of noise at t_max.

    Args:
        model: Score model in eval mode; with a condition closed over, the code need not hold what that says.
        x0: Data, (B, \*D).
        steps: Solver steps up; the error of the round trip through `decode` falls at the solver's order.
        solver: Default: `Adams` of order 3, one evaluation a step.

    Returns:
        (B, \*D); for a matrix SDE the state, (B, K, \*D). Codes have the law of noise if the model is exact.

    References:
        Song et al. (2021), 2011.13456, section 4.3; Song, Meng & Ermon (2021), 2010.02502, section 5.4.

    Example:
        >>> import torch, sde
        >>> model = sde.ExactScore(sde.Gaussian([0.0], 4.0), sde.VP())
        >>> sde.inverse.encode(model, torch.tensor([[2.0]])).round(decimals=2)  # one standard deviation stays one
        tensor([[1.]])
    """
    times, solver = _walk(model, steps, solver)
    return integrate(ReverseSDE(model), model.sde.mean(checked_state(x0), model.sde.t_min), times.flip(0), solver)


@torch.no_grad()
def decode(
    model: Model, code: Tensor, steps: int = 64, solver: Solver | None = None, progress: bool | None = None
) -> Tensor:
    r"""What a code stands for: where the probability flow carries a state of noise at t_max.

    Args:
        model: Score model in eval mode; another condition than in `encode` makes something else of the code.
        code: State at t_max, (B, \*D), from `encode`, `slerp` or `model.prior`.
        steps: Solver steps down.
        solver: Default: as in `encode`.
        progress: True for a bar, False for none. Default: one that appears after two seconds.

    Returns:
        (B, \*D).

    Example:
        >>> import torch, sde
        >>> model, x0 = sde.ExactScore(sde.Gaussian([0.0], 4.0), sde.VP()), torch.tensor([[3.0]])
        >>> sde.inverse.decode(model, sde.inverse.encode(model, x0)).round(decimals=3)
        tensor([[3.]])
    """
    times, solver = _walk(model, steps, solver)
    x = sample(model, x=code, times=times, solver=solver, eta=0.0, progress=progress)
    return model.sde.unmean(x, model.sde.t_min)


def slerp(a: Tensor, b: Tensor, w: float | Tensor) -> Tensor:
    r"""The point w of the way from a to b on a great circle, each sample by itself; of equal norms it keeps the norm.

    A straight line between two noises in many dimensions passes through states that are too short to be noise.

    Args:
        a: (B, \*D).
        b: (B, \*D).
        w: 0 for a, 1 for b: one number or (B,).

    Returns:
        (B, \*D); on a straight line where a and b are parallel or opposite.

    References:
        Shoemake (1985), SIGGRAPH; White (2016), 1609.04468.

    Example:
        >>> import torch, sde
        >>> sde.inverse.slerp(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), 0.5)
        tensor([[0.7071, 0.7071]])
    """
    if a.shape != b.shape or a.ndim < 2:
        raise ValueError(f"a and b must both be (B, *D), got {tuple(a.shape)} and {tuple(b.shape)}: repeat one of them")
    u, v = as_time(a.flatten(1)), as_time(b.flatten(1))  # in the best precision of the device
    across = u.norm(dim=1) * v.norm(dim=1)
    omega = torch.acos(((u * v).sum(1) / across.clamp_min(torch.finfo(u.dtype).tiny)).clamp(-1, 1))
    sine, w = torch.sin(omega), as_time(w).to(a.device).expand(len(a))
    flat = (sine < PARALLEL) | (across == 0)
    below = torch.where(flat, 1.0, sine)
    share_a = torch.where(flat, 1 - w, torch.sin((1 - w) * omega) / below)
    share_b = torch.where(flat, w, torch.sin(w * omega) / below)
    return expand(share_a.to(a.dtype), a) * a + expand(share_b.to(a.dtype), a) * b


def interpolate(
    model: Model, a: Tensor, b: Tensor, n: int = 9, steps: int = 64, solver: Solver | None = None
) -> Tensor:
    r"""Images between two: encoded, joined on the great circle of their codes, decoded.

    Args:
        model: As in `encode`.
        a: Data, (B, \*D).
        b: As many others.
        n: How many, the two ends (as they come back from their codes) among them.
        steps: Solver steps up, and down.
        solver: As in `encode`.

    Returns:
        (n, B, \*D).

    References:
        Song, Meng & Ermon (2021), 2010.02502, section 5.3; Ho, Jain & Abbeel (2020), 2006.11239, section 4.3.

    Example:
        >>> import torch, sde
        >>> model = sde.ExactScore(sde.Mixture([0.5, 0.5], [[-2.0], [2.0]], [0.01, 0.01]), sde.VP())
        >>> x = sde.inverse.interpolate(model, torch.tensor([[-2.0]]), torch.tensor([[2.1]]), n=3)
        >>> x.shape, bool(x.abs().min() > 1)  # nothing in the middle, where there is no data
        (torch.Size([3, 1, 1]), True)
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 2:
        raise ValueError(f"n must be a whole number of at least 2, got {n!r}: the two ends are counted")
    if a.shape != b.shape:
        raise ValueError(f"a and b must be as many, of one shape, got {tuple(a.shape)} and {tuple(b.shape)}")
    one, other = encode(model, torch.cat([a, b]), steps, solver).chunk(2)
    mean = model.data_mean()
    centre = torch.zeros_like(a) if mean is None else mean.to(a).expand_as(a)
    centre = model.sde.mean(centre, model.sde.t_max)
    codes = [centre + slerp(one - centre, other - centre, w) for w in torch.linspace(0, 1, n).tolist()]
    return decode(model, torch.cat(codes), steps, solver).reshape(n, *a.shape)
