r"""Laws of a forward SDE's actions: laws 1 and 2, and the rates of law 3.

The actions are linear, so that bases probe them (`sde.checks.probe`): inverses are products of matrices, densities are
those of `torch.distributions`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from sde.checks.agree import agree, violated
from sde.checks.probe import Probe, matrix_of, times_of
from sde.forward import ForwardSDE, ScalarSDE
from sde.random import randn
from sde.shape import sum_event


def _draw(shape: Sequence[int], seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return randn(shape, torch.Generator().manual_seed(seed), dtype=dtype)


def actions(sde: ForwardSDE, event: Sequence[int] = (2,), rtol: float = 1e-9) -> None:
    """Law 1: x = A x0 + L eps, the inverses and transposes of A and L, the statistic, and the densities they imply.

    Args:
        sde: Forward SDE.
        event: Shape of one datum.
        rtol: Relative tolerance, in float64.

    Raises:
        LawViolation: If the SDE breaks it.

    Example:
        >>> import sde
        >>> sde.checks.actions(sde.Flow())
    """
    for t in times_of(sde):
        at = Probe(sde, t, event)
        _inverses(sde, at, rtol)
        _point(sde, at, rtol)
        _statistic(sde, at, rtol)
        _densities(sde, at, rtol)
    _prior(sde, event, rtol)


def _inverses(sde: ForwardSDE, at: Probe, rtol: float) -> None:
    def say(what: str, got: Tensor, expected: Tensor, size: Tensor) -> None:
        agree("1", sde, what, got, expected, size, t=at.t, rtol=rtol)

    eye = torch.eye(len(at.L), dtype=torch.float64)
    say("whiten(color(e))", at.W @ at.L, eye, at.W.abs() @ at.L.abs())
    say("<score(eps), color(e)>", at.S.T @ at.L, -eye, at.S.T.abs() @ at.L.abs())
    say("tilt, the transpose of color,", at.T, at.L.T, at.L.T.abs())
    white = at.W @ at.A
    information = white.T @ white
    if not bool(at.A.any()):
        return say("unmean where A = 0", at.U, torch.zeros_like(at.U), torch.zeros_like(at.U))
    data = torch.eye(len(at.U), dtype=torch.float64)
    say("unmean(mean(x0))", at.U @ at.A, data, at.U.abs() @ at.A.abs())
    say("unmean in the metric of Sigma", information @ at.U, white.T @ at.W, white.T.abs() @ at.W.abs())
    return None


def _point(sde: ForwardSDE, at: Probe, rtol: float) -> None:
    x0, eps = _draw((3, *at.data.shape[1:]), 1), _draw((3, *at.state.shape[1:]), 2)
    point = sde.at(x0, at.t, eps)
    parts = (x0.flatten(1) @ at.A.T).reshape(eps.shape), (eps.flatten(1) @ at.L.T).reshape(eps.shape)
    agree("1", sde, "x of a point", point.x, sum(parts), sum(p.abs() for p in parts), t=at.t, rtol=rtol)


def _statistic(sde: ForwardSDE, at: Probe, rtol: float) -> None:
    """y has mean alpha x0 and variance sigma^2, and holds all that x says of x0: A' Sigma^-1 = alpha / sigma^2 Y."""

    def say(what: str, got: Tensor, expected: Tensor, size: Tensor) -> None:
        agree("1", sde, f"the statistic's {what}", got, expected, size, t=at.t, rtol=rtol)

    alpha, sigma = (_number(c) for c in sde.statistic(at.state, at.t)[1:])
    row = matrix_of(lambda x: sde.statistic(x, at.t)[0], at.state)
    eye = torch.eye(len(row), dtype=torch.float64)
    say("mean", row @ at.A, alpha * eye, row.abs() @ at.A.abs())
    say("variance", row @ at.cov @ row.T, sigma**2 * eye, (row.abs() @ at.L.abs()) @ (row.abs() @ at.L.abs()).T)
    information = at.A.T @ at.W.T @ at.W
    say("sufficiency", alpha / sigma**2 * row, information, at.A.T.abs() @ at.W.T.abs() @ at.W.abs())


def _number(c: float | Tensor) -> float:
    return float(torch.as_tensor(c).flatten()[0])


def _densities(sde: ForwardSDE, at: Probe, rtol: float) -> None:
    """log N(x; A x0, Sigma) by torch, against the statistic's density and the residual's."""
    x0, other = (_draw((3, *at.data.shape[1:]), seed) for seed in (3, 4))
    x = sde.at(x0, at.t, _draw((3, *at.state.shape[1:]), 5)).x
    logdet = torch.as_tensor(sde.logdet(at.t, x)).double().expand(3)
    expected = torch.linalg.slogdet(at.L)[1]
    agree("1", sde, "logdet", logdet, expected, float(at.L.diagonal().log().abs().sum()) + 1, t=at.t, rtol=rtol)
    y, alpha, sigma = sde.statistic(x, at.t)
    r = (y - alpha * other) / sigma
    log_p = -sum_event(r**2) / 2 - y[0].numel() * (math.log(_number(sigma)) + math.log(2 * math.pi) / 2)
    normal = _normal(other.flatten(1) @ at.A.T, at.cov)
    size = sum_event(r**2) + logdet.abs() + 10
    got = log_p + sde.log_residual(x, at.t)
    agree(
        "1", sde, "log p(x | x0), from log_residual,", got, normal.log_prob(x.flatten(1)), size, t=at.t, rtol=1e3 * rtol
    )


def _normal(mean: Tensor, cov: Tensor) -> MultivariateNormal:
    # Variances of a matrix SDE near t_min differ by orders of magnitude: factor the correlations.
    scale = cov.diagonal().sqrt()
    correlation = cov / torch.outer(scale, scale)
    return MultivariateNormal(mean, scale_tril=scale[:, None] * torch.linalg.cholesky(correlation))


def _prior(sde: ForwardSDE, event: Sequence[int], rtol: float) -> None:
    """The prior is N(A mean, scale^2 A A' + Sigma) at t_max, in its log-density and in its draws."""
    mean, scale, n = 0.3, 0.5, 4000
    end = Probe(sde, float(sde.t_max), event)
    centre, cov = end.A @ torch.full((end.A.shape[1],), mean).double(), scale**2 * end.A @ end.A.T + end.cov
    x = sde.prior(torch.zeros(n, *event, dtype=torch.float64), mean, scale, torch.Generator().manual_seed(6))
    if x.shape[1:] != end.state.shape[1:]:
        raise violated("1", sde, f"prior has shape {tuple(x.shape)}, expected ({n}, *{tuple(end.state.shape[1:])})")
    log_p = _normal(centre, cov).log_prob(x.flatten(1))
    agree(
        "1", sde, "prior_log_prob", sde.prior_log_prob(x, mean, scale), log_p, log_p.abs() + 1, t=end.t, rtol=1e3 * rtol
    )
    spread = cov.diagonal().sqrt()
    flat = x.flatten(1)
    agree("1", sde, "mean of prior draws", flat.mean(0), centre, spread, t=end.t, rtol=5 / n**0.5)
    size = torch.outer(spread, spread)
    agree("1", sde, "covariance of prior draws", flat.T.cov(), cov, size, t=end.t, rtol=5 * (2 / n) ** 0.5)


def velocity(sde: ForwardSDE, event: Sequence[int] = (2,), rtol: float = 1e-9) -> None:
    """Law 2: velocity = drift - gain(score) / 2, and with noise the drift of the reverse SDE.

    Args:
        sde: Forward SDE.
        event: Shape of one datum.
        rtol: Relative tolerance, in float64.

    Raises:
        LawViolation: If the SDE breaks it.

    Example:
        >>> import sde
        >>> sde.checks.velocity(sde.SubVP())
    """
    for t in times_of(sde):
        at = Probe(sde, t, event)
        if at.singular():
            continue
        eps = _draw((3, *at.state.shape[1:]), 2)
        point = sde.at(_draw((3, *event), 1), t, eps)
        drift, pull = sde.drift(point.x, t), sde.gain(point.score, t)
        size = point.x.flatten(1).abs() @ at.D.abs().T + eps.flatten(1).abs() @ (at.C @ at.S).abs().T
        size = size.reshape(eps.shape) + 1e-300
        agree("2", sde, "velocity", point.velocity, drift - pull / 2, size, t=t, rtol=rtol)
        for eta in (0.0, 0.5, 1.0):
            expected = drift - (1 + eta**2) / 2 * pull
            agree(
                "2", sde, f"reverse_drift(eta={eta:g})", sde.reverse_drift(point, eta), expected, size, t=t, rtol=rtol
            )


def rates(sde: ForwardSDE, rtol: float = 1e-8) -> None:
    """Law 3: rates are the derivatives of alpha and sigma; log SNR falls, and `time_at` inverts it.

    Args:
        sde: Forward SDE; of one that is not scalar, the derivatives of its statistic are checked.
        rtol: Relative tolerance, in float64.

    Raises:
        LawViolation: If the SDE breaks it.

    Example:
        >>> import sde
        >>> sde.checks.rates(sde.Cosine())
    """
    t = torch.tensor(times_of(sde), dtype=torch.float64)
    if not isinstance(sde, ScalarSDE):
        return _statistic_rates(sde, t[1:-1])
    u = t.clone().requires_grad_()
    made = [f(u) + 0 * u for f in (sde.alpha, sde.sigma)]
    slopes = [torch.autograd.grad(c.sum(), u)[0] for c in made]
    names = ("alpha", "sigma", "alpha'", "sigma'")
    for who in ("rates", "rates_of_statistic"):
        for name, got, expected in zip(names, getattr(sde, who)(t), [*made, *slopes], strict=True):
            size = expected.abs() + expected.abs().max() * 1e-3
            agree("3", sde, f"{name} of {who}, time", got.expand_as(t), expected, size, t=t, rtol=rtol)
    snr = sde.log_snr(torch.linspace(sde.t_min, sde.t_max, 400, dtype=torch.float64))
    if not bool((snr.diff() < 0).all()):
        raise violated("3", sde, "log_snr does not fall from t_min to t_max", hint="sigma / alpha must grow with t")
    agree("3", sde, "time_at(log_snr(t)), time", sde.time_at(sde.log_snr(t)), t, float(sde.t_max), t=t, rtol=1e-7)
    return None


def _statistic_rates(sde: ForwardSDE, t: Tensor) -> None:
    """Derivatives of the statistic's alpha and sigma, against differences of fourth order."""
    h = 1e-3 * (t - 0.9 * sde.t_min).clamp_max(1e-3 * (sde.t_max - sde.t_min))
    level = lambda k: torch.stack(sde.rates_of_statistic(t + k * h)[:2])  # noqa: E731
    slope = (8 * (level(1) - level(-1)) - (level(2) - level(-2))) / (12 * h)
    got = torch.stack(sde.rates_of_statistic(t)[2:])
    size = slope.abs() + level(0) / t
    for k, name in enumerate(("alpha'", "sigma'")):
        agree("3", sde, f"{name} of rates_of_statistic, time", got[k], slope[k], size[k], t=t, rtol=1e-4)
