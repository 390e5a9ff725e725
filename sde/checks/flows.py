r"""Laws of the probability flow and of samples: 6c, 7 and 9.

samples       sliced W2 between a solver's samples and the truth, beside the floor that two draws of the truth leave
round_trip    up the flow from t_min to t_max and down again is the identity
likelihood    log p through the flow is the closed form of the marginal at t_min, and integrates to one
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sde.checks.agree import violated
from sde.forward import ScalarSDE
from sde.metrics import floor, sliced_wasserstein
from sde.score import ExactScore, Model
from sde.solvers import RK4, ReverseSDE, Solver, grids, integrate, log_prob, sample
from sde.solvers.likelihood.log_prob import STEPS, times_up


def _wide(model: Model) -> Tensor:
    """A grid that runs up, wider than a sampler's: a rule in t has to follow the state where noise is all there is."""
    if not isinstance(model.sde, ScalarSDE):
        return times_up(model)
    return grids.data_scaled(model.sde, STEPS, model.data_scale(), 0.6, (2.0, 2.0)).flip(0)


def samples(
    model: ExactScore,
    solver: Solver,
    steps: int = 64,
    n: int = 2000,
    eta: float | None = None,
    generator: torch.Generator | None = None,
) -> float:
    """Law 6c: sliced W2 between n samples and n draws of the exact marginal at t_min is that of two draws, within 5 sd.

    Args:
        model: Exact score of a target.
        solver: Any.
        steps: Steps of the solver.
        n: Size of each sample.
        eta: Noise of the reverse SDE; the solver's own by default.
        generator: Default: a CPU generator of seed 0.

    Returns:
        The excess over the floor, in standard deviations of the floor.

    Raises:
        LawViolation: If it is 5 or more.

    Example:
        >>> import sde
        >>> model = sde.ExactScore(sde.Mixture([0.3, 0.7], [[-1.0], [1.0]], [0.04, 0.04]), sde.VP())
        >>> samples(model, sde.Heun(), steps=20, n=500) < 5
        True
    """
    generator = generator or torch.Generator().manual_seed(0)
    forward = model.sde

    def truth(count: int, generator: torch.Generator | None = None) -> Tensor:
        return forward.perturb(model.target.sample(count, generator), forward.t_min, generator).x

    mean, sd = floor(sliced_wasserstein, truth, n, generator=generator)
    x = sample(model, (n, *model.target.event), steps, solver, eta=eta, generator=generator, progress=False)
    distance = float(sliced_wasserstein(x, truth(n, generator), generator=generator))
    excess = (distance - mean) / sd
    if not excess < 5:
        what = (
            f"sliced W2 is {distance:.4f}, two draws of the truth leave {mean:.4f} ± {sd:.4f} ({excess:.0f} sd above)"
        )
        who = f"{type(solver).__name__} on {type(forward).__name__}"
        raise violated("6c", who, what, hint=f"with more than {steps} steps, or a bias that no step removes")
    return excess


def round_trip(
    model: Model,
    x: Tensor,
    solver: Solver | None = None,
    times: Tensor | Sequence[float] | None = None,
    rtol: float = 1e-4,
) -> float:
    r"""Law 7: integrating the probability flow up from t_min to t_max and down again returns to x.

    Args:
        model: Any score model in eval mode.
        x: States at t_min, (B, \*D), or (B, K, \*D) for a matrix SDE: data, as errors grow where no data are.
        solver: Default: `RK4`.
        times: Grid that runs up. Default: 144 steps, densest where noise and data are alike.
        rtol: Root mean square error allowed, relative to that of x.

    Returns:
        The relative root mean square error.

    Raises:
        LawViolation: If it is above rtol.

    Example:
        >>> import torch, sde
        >>> model = sde.ExactScore(sde.Mixture([0.3, 0.7], [[-1.0], [1.0]], [0.04, 0.04]), sde.VP())
        >>> round_trip(model, torch.tensor([[-1.2], [0.8], [1.1]])) < 1e-5
        True
    """
    flow, solver = ReverseSDE(model), solver or RK4()
    up = _wide(model) if times is None else torch.as_tensor(times, dtype=torch.float64)
    with torch.no_grad():
        top = integrate(flow, x, up, solver)
        back = integrate(flow, top, up.flip(0), solver)
    error = float((back - x).double().norm() / x.double().norm())
    if not error <= rtol:
        who = f"{type(model).__name__} under {type(model.sde).__name__}"
        what = (
            f"up and down by {type(solver).__name__} in {len(up) - 1} steps ends {error:.2g} away, allowed {rtol:.2g}"
        )
        raise violated("7", who, what, hint="a velocity that differs on the way back, or too few steps")
    return error


def likelihood(
    model: ExactScore,
    n: int = 32,
    times: Tensor | Sequence[float] | None = None,
    solver: Solver | None = None,
    atol: float = 1e-3,
) -> float:
    """Law 9: `log_prob` equals the exact log-density of the marginal at t_min; in one dimension it integrates to one.

    Args:
        model: Exact score of a target with a density.
        n: Draws of the marginal to compare at.
        times: Grid that runs up. Default: that of `log_prob`.
        solver: Default: that of `log_prob`.
        atol: Largest error allowed, in nats.

    Returns:
        The largest error, in nats.

    Raises:
        LawViolation: If it is above atol.

    Example:
        >>> import sde
        >>> likelihood(sde.ExactScore(sde.Gaussian([1.0], 0.25), sde.VP())) < 1e-5
        True
    """
    forward, generator = model.sde, torch.Generator().manual_seed(0)
    x = forward.perturb(model.target.sample(n, generator).double(), forward.t_min, generator).x
    got, exact = log_prob(model, x, times, solver), model.log_prob(x, forward.t_min)
    worst, who = (got - exact).abs(), f"log_prob under {type(forward).__name__}"
    if not float(worst.max()) <= atol:
        at = int(torch.nan_to_num(worst, nan=torch.inf).argmax())
        what = f"log p is {float(got[at]):.6f} nats, the closed form {float(exact[at]):.6f}, allowed {atol:.2g} apart"
        raise violated("9", who, what, hint="a wrong divergence or prior, or too few steps")
    if x.shape[1:] == (1,):
        centre, width = float(x.mean()), float(x.std())
        line = torch.linspace(centre - 8 * width, centre + 8 * width, 2001, dtype=torch.float64)
        mass = float(torch.trapezoid(log_prob(model, line[:, None], times, solver).exp(), line))
        if not abs(mass - 1) <= atol:
            raise violated("9", who, f"the density integrates to {mass:.6f} over {line[0]:.2f} .. {line[-1]:.2f}")
    return float(worst.max())
