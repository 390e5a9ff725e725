r"""EDM's churn: an ODE solver that adds a little noise of its own before each step, and removes it with the step.

On y = x / alpha and the ratio rho = sigma / alpha (for EDM x itself and t) a step from rho to rho_s is

    rho^ = (1 + gamma) rho,   y^ = y + S_noise sqrt(rho^^2 - rho^2) z,          gamma = min(S_churn / N, sqrt 2 - 1)
    y_s = y^ + (rho_s - rho^) (eps^ + eps_s) / 2,           eps_s = eps where the Euler step ends, at rho_s

since dy / d rho = eps. The way up is the forward SDE's own transition and leaves marginals exact; the way down
contracts, and what was wrong with a sample shrinks with it. The Euler step is DDIM's, alpha_s x0 + sigma_s eps, and is
all of the step where rho_s = 0 or alpha = 0.
"""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import torch
from torch import Tensor, add

from sde.forward import SDE, ScalarSDE
from sde.nodes import Node
from sde.random import Noise
from sde.solvers.ratio import TimeOfRatio
from sde.solvers.reverse import ReverseSDE
from sde.solvers.solver import Solver, needs_model

Row = tuple[float, float, float, float, float]


def needs_flow(solver: Solver, sde: SDE) -> ReverseSDE:
    """The SDE as a `ReverseSDE` with eta = 0 and a score, for a solver that adds noise of its own."""
    reverse, name = needs_model(solver, sde), type(solver).__name__
    if reverse.eta > 0:
        raise ValueError(f"{name} adds noise of its own to the probability flow, got eta={reverse.eta}: use eta=0")
    if reverse.model.coupled:
        raise ValueError(
            f"{name} adds noise that is independent of the data, and this model was trained with a coupling that ties "
            "eps to x0: use Heun, or train with coupling=None"
        )
    return reverse


class Churn(Solver):
    """EDM's stochastic sampler: raise the noise a little, then Heun's step in sigma / alpha.

    For `EDM` it is the paper's algorithm 2, but that noise is never raised beyond t_max. With `s_churn=0` it is Heun's
    method in sigma / alpha, of order 2; with churn it follows no path, and is of order 2 in distribution.

    Args:
        s_churn: Amount of churn, spread over the steps of a run; none is raised by more than sqrt 2 - 1.
        s_min: Least sigma / alpha to raise, in units of the data.
        s_max: Largest.
        s_noise: Standard deviation of the noise that is added; 1 is right for an exact score, and 1.003 to 1.007 made
            up in the paper for networks that remove too much.

    The defaults are the paper's for ImageNet-64, but for `s_noise`.

    References:
        Karras, Aittala, Aila & Laine (2022), 2206.00364, algorithm 2 and table 5.

    Example:
        >>> import torch, sde
        >>> model = sde.ExactScore(sde.Gaussian([0.0], 1.0), sde.VP())
        >>> sde.sample(model, (8, 1), steps=10, solver=Churn(s_churn=5)).shape
        torch.Size([8, 1])
    """

    weak = 2.0
    calls = 2
    ends = True

    def __init__(self, s_churn: float = 40.0, s_min: float = 0.05, s_max: float = 50.0, s_noise: float = 1.0) -> None:
        if not (math.isfinite(s_churn) and s_churn >= 0):
            raise ValueError(f"s_churn must be 0 or more, got {s_churn}: 0 is Heun's method, the paper takes 30 to 80")
        if not 0 <= s_min <= s_max:
            raise ValueError(f"s_min and s_max must be 0 <= s_min <= s_max, got {s_min} and {s_max}: .05 and 50, say")
        if not (math.isfinite(s_noise) and s_noise > 0):
            raise ValueError(f"s_noise must be positive, got {s_noise}: 1 is right for an exact score")
        self.s_churn, self.s_min, self.s_max, self.s_noise = s_churn, s_min, s_max, s_noise
        self._rows: dict[tuple[float, float], tuple[Tensor, Row]] = {}

    @property
    def order(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """2 without churn; with it no path is followed."""
        return 0.0 if self.s_churn else 2.0

    def check(self, sde: SDE) -> None:  # noqa: D102
        forward = needs_flow(self, sde).model.sde
        if not isinstance(forward, ScalarSDE):
            raise ValueError(f"Churn needs a scalar SDE, got {type(forward).__name__}: use Restart, or Heun")

    def start(self, sde: SDE, times: Tensor) -> Solver:  # noqa: D102
        if times[-1] > times[0]:
            raise ValueError(
                f"Churn goes down in time, got times from {float(times[0]):g} up to {float(times[-1]):g}: use Heun"
            )
        fresh = copy.copy(self)
        (raised,) = self.stages(sde, times)
        rows = zip(raised, self._coefficients(sde, times, raised), strict=True)
        fresh._rows = dict(zip(pairwise(times.tolist()), rows, strict=True))
        return fresh

    def stages(self, sde: SDE, times: Tensor) -> list[Tensor]:
        """Times to which each step first raises the noise."""
        forward, t = needs_model(self, sde).model.sde, times[:-1]
        assert isinstance(forward, ScalarSDE)
        rho = ratio(forward, t)
        gamma = min(self.s_churn / len(t), math.sqrt(2) - 1)
        slack = 1 + 1e-6  # a grid in float32 may miss s_min or s_max by a rounding
        touched = (rho * slack >= self.s_min) & (rho <= self.s_max * slack) & rho.isfinite()
        if not gamma or not bool(touched.any()):
            return [t]
        time = TimeOfRatio(forward, float(times.min()), forward.t_max)
        return [torch.where(touched, torch.maximum(time((1 + gamma) * rho), t), t)]

    def _coefficients(self, sde: SDE, times: Tensor, raised: Tensor) -> list[Row]:
        """(a, b, alpha_s, sigma_s, c) of x^ = a x + b z and x_s = alpha_s x0^ + sigma_s eps^ + c (eps_s - eps^)."""
        forward = needs_model(self, sde).model.sde
        assert isinstance(forward, ScalarSDE)
        alpha, sigma = (torch.as_tensor(c) for c in forward.levels(times))
        top, low, high = torch.as_tensor(forward.levels(raised)[0]), ratio(forward, times[:-1]), ratio(forward, raised)
        still = high <= low
        a = torch.where(still, 1.0, top / alpha[:-1])
        b = torch.where(still, 0.0, self.s_noise * top * ((high - low) * (high + low)).clamp_min(0).sqrt())
        euler = (sigma[1:] == 0) | ~high.isfinite()
        c = torch.where(euler, 0.0, (sigma[1:] - alpha[1:] * high) / 2)
        return list(zip(*(v.tolist() for v in (a, b, alpha[1:], sigma[1:], c)), strict=True))

    def step(self, sde: SDE, x: Tensor, t: float, s: float, noise: Noise) -> Tensor:  # noqa: D102
        if (float(t), float(s)) not in self._rows:  # a step alone, of no run
            return self.start(sde, torch.tensor([float(t), float(s)], dtype=torch.float64)).step(sde, x, t, s, noise)
        model, (raised, (a, b, alpha, sigma, c)) = needs_model(self, sde).model, self._rows[float(t), float(s)]
        at = self.stage(sde, t, s, 0) if type(t) is Node else raised
        if b:
            x = add(x * a, noise.fresh(x), alpha=b)
        point = model(x, at)
        self.calls = 2 if c else 1
        y = point.combine(alpha, sigma)
        return point.combine(alpha, sigma - c) + model(y, s).combine(0.0, c) if c else y


def ratio(forward: ScalarSDE, times: Tensor) -> Tensor:
    """Sigma / alpha at times.

    Example:
        >>> import torch, sde
        >>> ratio(sde.Flow(), torch.tensor([0.5, 0.75]))
        tensor([1., 3.], dtype=torch.float64)
    """
    alpha, sigma = (torch.as_tensor(c) for c in forward.levels(times))
    return sigma / alpha
