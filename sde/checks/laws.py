r"""Every law that applies, in one call: what third parties run on their own, and what marks an exercise.

    sde.checks.forward_sde(MySDE())         laws 0 to 4, 6a and 10
    sde.checks.target(MyTarget())           law 5 for the target alone, its moments and its draws
    sde.checks.model(MyModel())             laws 4, 5, 8, 10 and 11

Each raises a `LawViolation` at the first law that is broken, and returns the names of the laws where all hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sde.checks.agree import agree, violated
from sde.checks.laws_finite import finite
from sde.checks.laws_forward import actions, rates, velocity
from sde.checks.laws_moments import moments, transitions
from sde.checks.laws_random import randomness, reproducible
from sde.checks.laws_score import coupled, exact, guidance, params
from sde.checks.probe import FEW, Probe, times_of
from sde.forward import ForwardSDE
from sde.nodes import Table
from sde.random import randn
from sde.score import ExactScore, Model, Target

FORWARD: dict[str, Callable[[ForwardSDE], None]] = {
    "3 rates": rates,  # first, as the moments' coefficients are made of them
    "0 moments": moments,
    "1 actions": actions,
    "2 velocity": velocity,
    "3 transitions": transitions,
    "4 finite": finite,
    "6a params": params,
    "10 randomness": randomness,
}


def forward_sde(sde: ForwardSDE) -> list[str]:
    """All laws of a forward SDE.

    Args:
        sde: Yours.

    Returns:
        The names of the laws, all of which hold.

    Raises:
        TypeError: If it is not a `ForwardSDE`.
        LawViolation: If it breaks one; the message says which, where and by how much.

    Example:
        >>> import sde
        >>> class Mine(sde.ScalarSDE):
        ...     def alpha(self, t):
        ...         return 1 / (1 + t)
        ...
        ...     def sigma(self, t):
        ...         return t / (1 + t)
        >>> sde.checks.forward_sde(Mine())[0]
        '3 rates'
    """
    if not isinstance(sde, ForwardSDE):
        what = f"the class {sde.__name__}" if isinstance(sde, type) else f"a {type(sde).__name__}"
        raise TypeError(f"sde must be a ForwardSDE object, got {what}: pass MySDE(), derived from sde.ScalarSDE, say")
    if not (math.isfinite(sde.t_max) and 0 <= sde.t_min < sde.t_max):
        raise violated("4", sde, f"[t_min, t_max] is [{sde.t_min}, {sde.t_max}]", hint="state 0 <= t_min < t_max")
    for law in FORWARD.values():
        law(sde)
    return list(FORWARD)


def target(target: Target, rtol: float = 1e-8) -> list[str]:
    """Law 5 for a target alone: its denoiser is Tweedie's formula on its density, which is normalised; its draws fit.

    Args:
        target: Yours.
        rtol: Relative tolerance, in float64.

    Returns:
        The names of what holds.

    Raises:
        LawViolation: If something does not.

    Example:
        >>> import sde
        >>> sde.checks.target(sde.Mixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.2]))[0]
        '5 draws'
    """
    laws = {"5 draws": _draws, "5 denoiser": _tweedie, "5 density": _normalised}
    for law in laws.values():
        law(target, rtol)
    return list(laws)


def _tweedie(target: Target, rtol: float) -> None:
    """E[x0 | y] = (y + sigma^2 grad log p(y)) / alpha, for numbers and for a pair to each sample."""
    x0 = target.sample(3, torch.Generator().manual_seed(0)).double()
    n = randn(x0.shape, torch.Generator().manual_seed(1), dtype=torch.float64)
    ones = torch.ones(3, *[1] * (x0.ndim - 1), dtype=torch.float64)
    for alpha, sigma in ((1.0, 0.3), (0.7, 0.7), (0.1, 1.0)):
        y = (alpha * x0 + sigma * n).requires_grad_()
        log_p = target.log_marginal(y, alpha, sigma)
        (slope,) = torch.autograd.grad(log_p.sum(), y)
        got, tweedie = target.denoise(y.detach(), alpha, sigma), (y.detach() + sigma**2 * slope) / alpha
        where = f"for alpha = {alpha}, sigma = {sigma}"
        size = (y.detach().abs() + sigma**2 * slope.abs()) / alpha + 1
        hint = "expected: (y + sigma^2 autograd of log_marginal) / alpha"
        agree("5", target, f"denoise {where}", got, tweedie, size, rtol=rtol, hint=hint)
        each = target.denoise(y.detach(), alpha * ones, sigma * ones)
        agree("5", target, f"denoise {where} given for each sample", each, got, size, rtol=rtol)
        each = target.log_marginal(y.detach(), alpha * ones, sigma * ones)
        agree("5", target, f"log_marginal {where} given for each sample", each, log_p, log_p.abs() + 1, rtol=rtol)


def _normalised(target: Target, rtol: float) -> None:
    """In one or two dimensions, where a grid can tell."""
    d = target.event.numel()
    if d > 2:
        return
    alpha, sigma, n = 0.8, 0.6, 1001 if d == 1 else 301
    centre = alpha * target.mean.double().flatten()
    draws = target.sample(2000, torch.Generator().manual_seed(2)).double().flatten(1)
    reach = alpha * (draws - target.mean.double().flatten()).abs().amax(0) + 8 * sigma
    axes = [torch.linspace(-float(r), float(r), n, dtype=torch.float64) + c for r, c in zip(reach, centre, strict=True)]
    grid = torch.cartesian_prod(*axes).reshape(-1, *target.event)
    cell = math.prod(float(a[1] - a[0]) for a in axes)
    total = target.log_marginal(grid, alpha, sigma).exp().sum() * cell
    agree("5", target, f"integral of the density at alpha = {alpha}, sigma = {sigma}", total, 1.0, rtol=1e-5)


def _draws(target: Target, rtol: float) -> None:
    """Shape, mean and scale of draws, within five standard errors; law 10."""
    n = 4000
    x = target.sample(n, torch.Generator().manual_seed(3))
    if x.shape != (n, *target.event):
        raise violated("5", target, f"sample({n}) has shape {tuple(x.shape)}, expected ({n}, *{tuple(target.event)})")
    x, mean = x.double(), target.mean.double()
    if mean.shape != target.event:
        raise violated("5", target, f"mean has shape {tuple(mean.shape)}, expected {tuple(target.event)}")
    error = x.std(0) / n**0.5
    agree("5", target, "mean of draws", x.mean(0), mean, error + 1e-12, rtol=5)
    square = (x - mean).square().flatten(1).mean(1)
    got, expected = square.mean(), torch.tensor(target.scale**2, dtype=torch.float64)
    agree("5", target, "scale^2 of draws", got, expected, float(square.std()) / n**0.5 + 1e-12, rtol=5)
    if bool((x != x[0]).any()):  # one datum is drawn alike by every seed
        reproducible(lambda size, generator: target.sample(size, generator), target)


def model(model: Model, event: Sequence[int] | None = None) -> list[str]:
    r"""All laws of a score model: points, prior and, where they apply, exactness, guidance and coupling.

    Args:
        model: Yours, in eval mode; its parameters and states are taken in their own dtype.
        event: Shape \*D of one datum. Default: that of the model's target, else (2,).

    Returns:
        The names of the laws, all of which hold.

    Raises:
        LawViolation: If it breaks one.

    Example:
        >>> import sde
        >>> sde.checks.model(sde.ScoreModel(sde.nets.MLP(dim=2, width=8), sde.VP()))
        ['4 points', '10 prior', '8 guidance']
    """
    event = tuple(event or getattr(getattr(model, "target", None), "event", (2,)))
    laws: dict[str, Callable[[], None]] = {
        "4 points": lambda: _points(model, event),
        "10 prior": lambda: _model_prior(model, event),
    }
    if model.coupled:
        laws["11 coupled"] = lambda: coupled(model, event)
    else:
        loose = 1e-9 if model.placement()[1] == torch.float64 else 1e-4
        laws["8 guidance"] = lambda: guidance(model, event, loose)
    if isinstance(model, ExactScore):
        laws["5 exact"] = lambda: exact(model)
    for law in laws.values():
        law()
    return list(laws)


@torch.no_grad()
def _points(model: Model, event: Sequence[int]) -> None:
    """x = A x0 + L eps of the estimate; every spelling of t; no sample sees its neighbours."""
    sde, dtype = model.sde, model.placement()[1]
    nodes = Table(torch.tensor(times_of(sde, FEW), dtype=torch.float64).flip(0)).nodes
    x0 = model.data_scale() * randn((3, *event), torch.Generator().manual_seed(0), dtype=dtype)
    for node in nodes:
        t = float(node)
        x = sde.perturb(x0, t, torch.Generator().manual_seed(1)).x
        point = model(x, t)
        parts = sde.mean(point.x0, t), sde.color(point.eps, t)
        for name, c, like in (("x0", point.x0, x0), ("eps", point.eps, x), ("velocity", point.velocity, x)):
            if c.shape != like.shape or c.dtype != dtype or not bool(torch.isfinite(c).all()):
                what = f"{name} has shape {tuple(c.shape)} and dtype {c.dtype}, or is not finite"
                raise violated("4", model, f"{what}; expected {tuple(like.shape)} and {dtype}", t)
        at = Probe(sde, t, event)
        terms = (x.abs() + parts[0].abs()).double().flatten(1)
        size = (terms @ at.W.abs().T @ at.L.abs().T).reshape(x.shape)
        agree(
            "4", model, "x against A x0 + L eps of its estimate", parts[0] + parts[1], x, size, t=t, rtol=_loose(dtype)
        )
        number = torch.tensor(t, dtype=torch.float64)
        spelled: dict[str, object] = {"of shape ()": number, "of shape (B,)": number.expand(3)}
        if model.tabulates:
            spelled["as a node"] = node
        for words, u in spelled.items():
            _close(model, f"x0 for t {words}", model(x, u).x0, point.x0, t)
        for i in range(3):
            _close(model, f"x0 of sample {i} alone, not in a batch,", model(x[i : i + 1], t).x0, point.x0[i : i + 1], t)


def _loose(dtype: torch.dtype) -> float:
    return 2000 * torch.finfo(dtype).eps


def _close(model: Model, what: str, got: Tensor, expected: Tensor, t: float) -> None:
    agree("4", model, what, got, expected, float(expected.abs().max()) + 1, t=t, rtol=_loose(got.dtype))


def _model_prior(model: Model, event: Sequence[int]) -> None:
    """Draws of the prior are reproducible, and have a log-density."""
    dtype = model.placement()[1]
    reproducible(lambda n, g: model.prior(torch.zeros(n, *event, dtype=dtype), g), model)
    x = model.prior(torch.zeros(5, *event, dtype=dtype), torch.Generator().manual_seed(0))
    log_p = model.prior_log_prob(x)
    if log_p.shape != (5,) or not bool(torch.isfinite(log_p).all()):
        raise violated("10", model, f"prior_log_prob of 5 draws is {log_p}, expected 5 finite numbers")
