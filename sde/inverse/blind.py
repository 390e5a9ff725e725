r"""Blind denoising: the noise level s of y = x0 + s n by maximum likelihood, under a score model's law of x0.

With d numbers in y and D(y, s) = E[x0 | y] (`sde.inverse.denoising`), heat's equation for the density of y gives

    d log p_s(y) / d log s = |y - D(y, s)|^2 / s^2 + div D(y, s) - d,

which needs no density: at the maximum the squared residual is what is expected of it, s^2 (d - div D). (One step of EM
sets s^2 to (|y - D|^2 + s^2 div D) / d, which stands still there.)
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sde.inverse.denoising import checked, noise_range, time_of_noise
from sde.random import Generator
from sde.score import Model
from sde.shape import expand
from sde.solvers.likelihood.traces import divergence, hutchinson, signs


def estimate_noise(
    model: Model,
    y: Tensor,
    shared: bool = False,
    probes: int | None = None,
    levels: int = 24,
    generator: Generator = None,
) -> Tensor:
    r"""Noise level of y = x0 + s n by maximum likelihood under the model, s unknown: (B,).

    The integral of d log p_s(y) / d log s over a grid of levels finds the highest peak, and its zero is sought there.
    Levels outside of the model's come out at the end of its range.

    Args:
        model: As in `denoise`.
        y: Noisy data, (B, \*D), in the data's units.
        shared: True where all samples have one level: their likelihoods are multiplied, and each gets the same s.
        probes: Random signs that estimate the divergence, a backward pass each; 0 for the exact one, a backward pass
            for each coordinate. Default: exact up to 64 coordinates, else 1, whose error is small beside what y leaves
            open.
        levels: Levels of the grid, equal in log s. Their evaluations, and `ROUNDS` more, have gradients.
        generator: Of the probes; one generator, or one for each sample.

    Returns:
        (B,), on the device of y. For a Gaussian of covariance v I it is sqrt(|y - mean|^2 / d - v).

    Raises:
        ValueError: If y does not fit, or the model has no score.

    References:
        Stein (1981), Ann. Stat. 9, 1135, for the residual's expectation.

    Example:
        >>> import torch, sde
        >>> model = sde.ExactScore(sde.Gaussian([0.0, 0.0], 1.0), sde.VP())
        >>> sde.inverse.estimate_noise(model, torch.tensor([[3.0, 1.0]]))  # (9 + 1) / 2 - 1 = 2^2
        tensor([2.])
    """
    if levels < 3:
        raise ValueError(f"levels must be at least 3, got {levels}: keep 24")
    low, high = noise_range(model)
    checked(model, y, low)
    d = y[0].numel()
    probes = (0 if d <= 64 else 1) if probes is None else probes
    z = signs(y.shape, probes, generator, y) if probes else None
    top = min(high, 100 * model.data_scale() + float(y.abs().max()))  # y holds no more; the range may be infinite
    u = torch.linspace(math.log(low), math.log(top), levels, dtype=torch.float64)

    def slope(log_s: Tensor) -> Tensor:
        """d log p / d log s at (B,), float64 on the CPU; of all samples together where they share s."""
        found = _slope(model, y, log_s.exp(), z).cpu().double()
        return found.mean().expand(len(y)) if shared else found

    found = _highest(slope, u, len(y)).exp()
    return found.to(y.device, y.dtype)


def _slope(model: Model, y: Tensor, s: Tensor, z: Tensor | None) -> Tensor:
    """d log p_s(y) / d log s, (B,), for levels s (B,)."""
    t = time_of_noise(model, s).to(y.device)

    def field(v: Tensor) -> Tensor:
        return model(model.sde.mean(v, t), t).x0

    x0, div = divergence(field, y) if z is None else hutchinson(field, y, z)
    div = div if z is None else div.mean(1)
    residual = (y - x0) / expand(s.to(y.device, y.dtype), y)
    return (residual**2).flatten(1).sum(1) + div - y[0].numel()


ROUNDS = 8
"""Evaluations that narrow down the peak."""


def _highest(slope: Callable[[Tensor], Tensor], u: Tensor, batch: int) -> Tensor:
    """Where the integral of a slope is highest: (B,). The grid's best node, then regula falsi (Illinois) beside it."""
    values = torch.stack([slope(v.expand(batch)) for v in u])  # (levels, B)
    rises = (values[1:] + values[:-1]) / 2 * (u[1] - u[0])
    best = torch.cat([rises.new_zeros(1, batch), rises.cumsum(0)]).argmax(0)
    column = torch.arange(batch)
    up = values[best, column] > 0  # the peak lies above the best node where the slope still rises there
    left = torch.where(up, best, best - 1).clamp(0, len(u) - 2)
    a, b, fa, fb = u[left], u[left + 1], values[left, column], values[left + 1, column]
    inside = (fa > 0) & (fb < 0)
    c = ends = u[best]
    side = torch.zeros(batch)
    for _ in range(ROUNDS):
        c = torch.where(inside, (a * fb - b * fa) / torch.where(inside, fb - fa, 1.0), ends)
        fc = slope(c)
        rise = fc > 0
        # The value at an end that stays for the second time is halved, so that it comes nearer, too.
        fa, fb = (
            torch.where(rise, fc, torch.where(side < 0, fa / 2, fa)),
            torch.where(rise, torch.where(side > 0, fb / 2, fb), fc),
        )
        a, b, side = torch.where(rise, c, a), torch.where(rise, b, c), torch.where(rise, 1.0, -1.0)
    return c
