r"""Orders of convergence, fitted: what a solver's `order`, `weak` and `strong` promise.

An error C h^p (1 + c h + ...) on grids of n, 2n, 4n steps has the slopes p_k = log2(e_k / e_{k+1}) = p + O(h), so that
2 p_{k+1} - p_k = p + O(h^2). Grids are refined until this estimate settles. All runs are in float64 between the times
where log SNR is -3 and 3, away from the ends, where coefficients are infinite or nearly so.

    ode_order      paths of a mixture's probability flow against a fine solve: nonlinear, so all order conditions count
    weak_order     mean and covariance of a Gaussian, propagated without samples, against the exact marginal
    strong_order   paths of a mixture's reverse SDE along one Brownian path, against a fine solve on that path

A Gaussian's score is linear, and a rule may do better there than it does in general: a weak order is a lower bound. So
is a strong order beyond 1, as the error of order 1.5 comes from the curvature of the score alone, and is small beside
that of order 2 until steps are short: such rules get a target that is more curved, and finer grids.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sde.checks.propagation import affine
from sde.forward import ForwardSDE, ScalarSDE, Tabulated
from sde.random import BrownianPath, Noise
from sde.score import ExactScore, Gaussian, Mixture, Target
from sde.solvers import RK4, ReverseSDE, Solver, integrate
from sde.solvers.stochastic.runge_kutta import SRA3

FINE = 1024
SETTLED = 0.05


class Order(NamedTuple):
    """A fitted order with the errors that it was fitted to.

    Example:
        >>> print(Order(1.98, (8, 16), (4e-3, 1e-3)))
        1.98 (8 steps: 0.004, 16 steps: 0.001)
    """

    value: float
    steps: tuple[int, ...]
    errors: tuple[float, ...]

    def __str__(self) -> str:
        errors = ", ".join(f"{n} steps: {e:.2g}" for n, e in zip(self.steps, self.errors, strict=True))
        return f"{self.value:.2f} ({errors})"


def fitted(error: Callable[[int], float], first: int = 4, last: int = 512, floor: float = 1e-11) -> Order:
    """Order of error(n steps) as n doubles from `first`; infinite if errors are below the floor from the start.

    Stops where two estimates agree to .05, and their slopes to .1, at an error below .05, or where rounding is met.

    Example:
        >>> round(fitted(lambda n: n**-2 + n**-3).value, 2)
        2.00
    """
    steps, errors, estimates, slope, n = [first], [error(first)], [], math.inf, first
    while n < last and errors[-1] > floor:
        n *= 2
        steps.append(n)
        errors.append(error(n))
        if errors[-1] <= floor:
            break
        before, slope = slope, math.log2(errors[-2] / errors[-1])
        if math.isinf(before):
            continue
        estimates.append(2 * slope - before)
        settled = len(estimates) > 1 and abs(estimates[-1] - estimates[-2]) < SETTLED
        if settled and abs(slope - before) < 2 * SETTLED and errors[-1] < SETTLED:
            break
    return Order(estimates[-1] if estimates else slope, tuple(steps), tuple(errors))


def gaussian() -> Gaussian:
    """The target of `weak_order`: two correlated coordinates off the origin."""
    return Gaussian([0.7, -0.4], [[0.5, 0.3], [0.3, 0.6]])


def mixture() -> Mixture:
    """The target of `ode_order` and `strong_order`: two modes that overlap, so that no path sits on a ridge between."""
    return Mixture([0.4, 0.6], [[-0.5, 0.3], [0.4, -0.4]], [[[0.3, 0.1], [0.1, 0.25]], [[0.3, -0.1], [-0.1, 0.2]]])


def modes() -> Mixture:
    """The target of `strong_order` beyond 1: two modes further apart, so that the score curves where paths go."""
    return Mixture([0.4, 0.6], [[-0.6, 0.36], [0.6, -0.36]], [0.1, 0.1])


def window(sde: ForwardSDE, steps: int) -> Tensor:
    """Grid uniform in log SNR from -3 to 3 or as far as the SDE goes; a matrix SDE's in sqrt(t), .4 to .15 of t_max."""
    if isinstance(sde, ScalarSDE):
        low, high = sde.log_snr(torch.tensor([sde.t_max, sde.t_min], dtype=torch.float64)).clamp(-3, 3).tolist()
        return sde.time_at(torch.linspace(low, high, steps + 1, dtype=torch.float64))
    u = torch.linspace(0.4**0.5, 0.15**0.5, steps + 1, dtype=torch.float64)
    return float(sde.t_max) * u**2


def _floor(solver: Solver, sde: ForwardSDE) -> float:
    # A table's interpolant is once differentiable, and its knots end the fourth order of RK4 at small errors.
    return 5e-6 if isinstance(sde, Tabulated) and len(sde.alphas_cumprod) > 2 and solver.order > 2 else 1e-11


def marginal(target: Gaussian, sde: ForwardSDE, t: float | Tensor) -> tuple[Tensor, Tensor]:
    """Mean (n,) and covariance (n, n) of the flattened state at time t, for a Gaussian target."""
    d = target.means.shape[1]
    data = torch.eye(d, dtype=torch.float64).reshape(d, *target.event)
    state = sde.state(data[:1])
    n = state[0].numel()
    a = sde.mean(data, t).flatten(1).T
    root = sde.color(torch.eye(n, dtype=torch.float64).reshape(n, *state.shape[1:]), t).flatten(1).T
    return a @ target.means[0], a @ target.covs[0] @ a.T + root @ root.T


def weak_order(solver: Solver, sde: ForwardSDE, eta: float = 1.0) -> Order:
    """Order in distribution on a Gaussian target: the relative error of mean and covariance.

    Args:
        solver: Affine in state and noise.
        sde: Forward SDE.
        eta: Noise of the reverse SDE; 0 gives the flow's error in distribution.

    Raises:
        NotAffineError: If the solver is not.

    Example:
        >>> import sde
        >>> round(weak_order(sde.Ancestral(), sde.VP()).value, 1)
        1.0
    """
    target = gaussian()
    reverse, ends = ReverseSDE(ExactScore(target, sde), eta), window(sde, 1)
    event = sde.state(torch.zeros(1, *target.event)).shape[1:]
    start, (mean, cov) = marginal(target, sde, ends[0]), marginal(target, sde, ends[1])

    def error(steps: int) -> float:
        got_mean, got_cov = affine(reverse, event, window(sde, steps), solver).moments(*start)
        wrong = (got_mean - mean).square().sum() + (got_cov - cov).square().sum()
        return math.sqrt(float(wrong / (mean.square().sum() + cov.square().sum())))

    return fitted(error, floor=_floor(solver, sde))


def _start(target: Target, sde: ForwardSDE, batch: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return sde.perturb(target.sample(batch, generator), window(sde, 1)[0], generator).x


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


_kept: dict[object, Any] = {}


def _once(key: tuple, make: Callable[[], Any]) -> Any:
    """The last few fine solves, so that many solvers can be held against one; SDEs are told apart by identity."""
    if key not in _kept:
        while len(_kept) >= 4:
            _kept.pop(next(iter(_kept)))
        _kept[key] = make()
    return _kept[key]


def _fine_flow(sde: ForwardSDE) -> tuple[ReverseSDE, Tensor, Tensor]:
    """The flow of the mixture, states at the start of the window, and where a fine solve takes them."""
    flow = ReverseSDE(ExactScore(mixture(), sde))
    x = _start(mixture(), sde, 32)
    return flow, x, integrate(flow, x, window(sde, FINE), RK4())


def ode_order(solver: Solver, sde: ForwardSDE) -> Order:
    """Order on the probability flow of a mixture: the relative error of 32 paths against a fine solve.

    Args:
        solver: Any.
        sde: Forward SDE.

    Example:
        >>> import sde
        >>> round(ode_order(sde.Heun(), sde.EDM()).value, 1)
        2.0
    """
    flow, x, end = _once(("flow", id(sde)), lambda: _fine_flow(sde))
    return fitted(
        lambda steps: _distance(integrate(flow, x, window(sde, steps), solver), end), floor=_floor(solver, sde)
    )


def _fine_path(target: Mixture, sde: ForwardSDE, eta: float, batch: int) -> tuple[ReverseSDE, Tensor, Noise, Tensor]:
    """The reverse SDE of a mixture, states at the start, a path, and where a fine solve takes them along it."""
    reverse, path = ReverseSDE(ExactScore(target, sde), eta), BrownianPath(torch.Generator().manual_seed(1))
    x = _start(target, sde, batch)
    return reverse, x, path, integrate(reverse, x, window(sde, FINE), SRA3(), noise=path)


def strong_order(solver: Solver, sde: ForwardSDE, eta: float = 1.0, batch: int = 256) -> Order:
    """Order along one Brownian path: the relative error of paths of a mixture's reverse SDE against a fine solve.

    Args:
        solver: Any that draws its noise from the path: `increment`, `normal`, `increment_and_area`.
        sde: Forward SDE.
        eta: Noise of the reverse SDE.
        batch: Paths. The slope is a least-squares fit over 16 to 128 steps, with an error of about .05 at 256; over 32
            to 256 steps where more than order 1 is declared.

    Example:
        >>> import sde
        >>> round(strong_order(sde.Euler(), sde.Flow(), batch=64).value)
        1
    """
    target, first = (modes, 32) if (solver.strong or 0.0) > 1 else (mixture, 16)
    reverse, x, path, end = _once(("path", target, id(sde), eta, batch), lambda: _fine_path(target(), sde, eta, batch))
    fine, steps = window(sde, FINE), tuple(first * 2**k for k in range(4))
    errors = [_distance(integrate(reverse, x, fine[:: FINE // n], solver, noise=path), end) for n in steps]
    log_h, log_e = -torch.tensor(steps).double().log(), torch.tensor(errors).double().clamp_min(1e-300).log()
    slope = ((log_h - log_h.mean()) * log_e).sum() / (log_h - log_h.mean()).square().sum()
    return Order(float(slope), steps, tuple(errors))
