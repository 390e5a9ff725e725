r"""Laws of the moments: law 0, and the second half of law 3.

An SDE states its moments A, Sigma = L L' and, apart from them, the coefficients that its source prints. Law 0 ties the
two:

    A' = F A,        Sigma' = F Sigma + Sigma F' + G G',        from A, Sigma at t = 0,

solved here by an accurate Runge-Kutta method from the printed coefficients alone. A wrong integral of beta passes every
law that derives F and G from the moments; it does not pass this one.

Transition x_t | x_s ~ N(P x_s, Q) and bridge x_s | x_t, x0 are affine in what they are given, so that bases probe them:

    P A_s = A_t,    P Sigma_s P' + Q = Sigma_t,    B Sigma_t = Sigma_s P',    B Sigma_t B' + V = Sigma_s.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

from sde.checks.agree import agree, violated
from sde.checks.probe import Probe, matrix_of, times_of
from sde.forward import ForwardSDE, MatrixSDE, ScalarSDE, Tabulated


def moments(sde: ForwardSDE, event: Sequence[int] = (1,), rtol: float = 1e-6) -> None:
    r"""Law 0: the moments follow the published coefficients, and so do drift, diffusion and gain.

    Where an SDE publishes nothing, its own drift and diffusion are integrated from t_min: then the law says that they
    and the moments fit each other. A `Tabulated` is held against the recursion of its betas.

    Args:
        sde: Forward SDE.
        event: Shape of one datum; (1,) will do wherever all coordinates are treated alike.
        rtol: Relative tolerance of the moments, in float64.

    Raises:
        LawViolation: If the SDE breaks it.

    Example:
        >>> import sde
        >>> sde.checks.moments(sde.VP())
    """
    if isinstance(sde, Tabulated):
        return _table(sde)
    _coefficients(sde, event)
    start = _start(sde, event)
    probes = [p for p in (Probe(sde, t, event) for t in times_of(sde)) if not p.singular()]
    hint = "A differs from what the coefficients integrate to: check mean, or alpha and the integral behind it"
    hint2 = "Sigma differs from what the coefficients integrate to: check color, or sigma and the integral behind it"
    for probe, (a, cov) in zip(probes, _solve(sde, start, probes), strict=True):
        spread = cov.diagonal().clamp_min(0).sqrt()
        agree("0", sde, "A", probe.A, a, float(a.norm()) + 1e-8, t=probe.t, rtol=rtol, hint=hint)
        agree("0", sde, "Sigma", probe.cov, cov, torch.outer(spread, spread), t=probe.t, rtol=rtol, hint=hint2)


def published(sde: ForwardSDE, t: float, n: int) -> tuple[Tensor, Tensor] | None:
    """F and G G' as the source prints them, (n, n) for a flat state of n, or None if not stated."""
    stated = sde.published(torch.tensor(t, dtype=torch.float64))
    if stated is None and isinstance(sde, MatrixSDE):
        f, g = (torch.tensor(m, dtype=torch.float64) for m in (sde.F, sde.G))
        stated = sde.beta * f, sde.beta**0.5 * g
    if stated is None:
        return None
    f, g = (c.double().reshape(1, 1) if c.ndim == 0 else c.double() for c in stated)
    rest = torch.eye(n // len(f), dtype=torch.float64)
    return torch.kron(f, rest), torch.kron(g @ g.T, rest)


def _coefficients(sde: ForwardSDE, event: Sequence[int]) -> None:
    """Drift, diffusion and gain are those that are published, and each other's."""
    for t in times_of(sde):
        probe = Probe(sde, t, event)
        if probe.singular():
            continue
        noise = probe.N @ probe.N.T
        hint = "where sigma / alpha falls, g^2 is negative and there is no such SDE"
        agree("0", sde, "G G', from gain,", probe.C, noise, float(noise.abs().max()), t=t, rtol=1e-9, hint=hint)
        stated = published(sde, t, len(probe.D))
        if stated is not None:
            f, gg = stated
            size, hint = (
                float(f.abs().max()) + 1e-12,
                "a scalar SDE derives its drift from alpha: check the integral there",
            )
            agree("0", sde, "F, from drift,", probe.D, f, size, t=t, rtol=1e-9, hint=hint)
            size, hint = float(gg.abs().max()) + 1e-12, "a scalar SDE derives g from alpha and sigma: check sigma"
            agree("0", sde, "G G', from diffusion,", noise, gg, size, t=t, rtol=1e-9, hint=hint)


def _start(sde: ForwardSDE, event: Sequence[int]) -> tuple[float, Tensor, Tensor]:
    """Time, A and Sigma from which to integrate: t = 0 where the coefficients are printed, else t_min."""
    first = Probe(sde, 0.0, event)
    n, d = len(first.state[0].flatten()), first.data[0].numel()
    eye = torch.eye(d, dtype=torch.float64)
    if isinstance(sde, ScalarSDE):
        alpha, sigma = sde.initial
        a, cov = alpha * eye, sigma**2 * eye
        agree("0", sde, "alpha, against `initial`,", first.A, a, 1.0, t=0.0, rtol=1e-9, hint="state `initial`")
        agree(
            "0", sde, "sigma, against `initial`,", first.L, sigma * eye, 1.0, t=0.0, rtol=1e-9, hint="state `initial`"
        )
    elif isinstance(sde, MatrixSDE):
        a = torch.kron(torch.tensor(sde.embed, dtype=torch.float64)[:, None], eye)
        cov = torch.kron(torch.tensor(sde.cov0, dtype=torch.float64), eye)
    else:
        low = Probe(sde, sde.t_min, event)
        return low.t, low.A, low.cov
    if published(sde, 0.5 * (sde.t_min + sde.t_max), n) is None:
        low = Probe(sde, sde.t_min, event)
        return low.t, low.A, low.cov
    return 0.0, a, cov


def _solve(
    sde: ForwardSDE, start: tuple[float, Tensor, Tensor], probes: Sequence[Probe]
) -> list[tuple[Tensor, Tensor]]:
    """A and Sigma at the probes' times, from the coefficients alone."""
    from scipy.integrate import solve_ivp

    t0, a, cov = start
    n, d = a.shape

    def slope(t: float, y: object) -> object:
        stated = published(sde, t, n)
        if stated is None:
            probe = Probe(sde, t, probes[0].data.shape[1:])
            stated = probe.D, probe.N @ probe.N.T
        m, s = torch.as_tensor(y).split([n * d, n * n])
        fs = stated[0] @ s.reshape(n, n)
        return torch.cat([(stated[0] @ m.reshape(n, d)).flatten(), (fs + fs.T + stated[1]).flatten()]).numpy()

    times = [p.t for p in probes]
    y0 = torch.cat([a.flatten(), cov.flatten()]).numpy()
    run = solve_ivp(slope, (t0, times[-1]), y0, "DOP853", t_eval=times, rtol=1e-11, atol=1e-18)
    if not run.success or run.y.shape[1] != len(times):
        raise violated("0", sde, f"its coefficients cannot be integrated: {run.message}")
    rows = torch.from_numpy(run.y.T.copy())
    return [(r[: n * d].reshape(n, d), r[n * d :].reshape(n, n)) for r in rows]


def _table(sde: Tabulated) -> None:
    """m_i = sqrt(1 - b_i) m_{i-1}, v_i = (1 - b_i) v_{i-1} + b_i at the integers, exact data at 0."""
    table = torch.as_tensor(sde.alphas_cumprod, dtype=torch.float64)
    keep = table / torch.cat([table.new_ones(1), table[:-1]])
    m, v, rows = 1.0, 0.0, [(1.0, 0.0)]
    for k in keep.tolist():
        m, v = k**0.5 * m, k * v + 1 - k
        rows.append((m, v))
    means, variances = torch.tensor(rows, dtype=torch.float64).unbind(1)
    alpha, sigma = sde.levels(torch.arange(len(rows), dtype=torch.float64))
    assert isinstance(alpha, Tensor)
    assert isinstance(sigma, Tensor)
    agree("0", sde, "alpha, entry", alpha, means, rtol=1e-9, hint="alpha^2 at t = 1 .. N is the table, 1 at 0")
    agree("0", sde, "sigma^2, entry", sigma**2, variances, rtol=1e-9, hint="sigma^2 at t = 1 .. N is 1 - the table")


def transitions(sde: ForwardSDE, event: Sequence[int] = (1,), rtol: float = 1e-7) -> None:
    """Law 3: transition and bridge have the mean, the covariance and the joint law of the SDE.

    Args:
        sde: Forward SDE.
        event: Shape of one datum.
        rtol: Relative tolerance, in float64.

    Raises:
        LawViolation: If the SDE breaks it.

    Example:
        >>> import sde
        >>> sde.checks.transitions(sde.CLD())
    """
    probes = [Probe(sde, t, event) for t in times_of(sde, (0.0, 0.01, 0.3, 0.301, 0.9, 1.0))]
    for at_s, at_t in combinations(probes, 2):
        _transition_and_bridge(sde, at_s, at_t, rtol)


def _transition_and_bridge(sde: ForwardSDE, at_s: Probe, at_t: Probe, rtol: float) -> None:
    s, t = at_s.t, at_t.t
    zero = torch.zeros_like(at_s.state)
    x0 = torch.zeros_like(at_s.data)

    def say(what: str, got: Tensor, expected: Tensor, size: Tensor) -> None:
        agree("3", sde, f"{what}, from s = {s:.6g},", got, expected, size, t=t, rtol=rtol)

    def still(like: Tensor) -> Tensor:
        return zero.expand(len(like), *zero.shape[1:])

    p = matrix_of(lambda x: sde.transition(x, s, t, still(x)), zero)
    root = matrix_of(lambda z: sde.transition(still(z), s, t, z), zero)
    q = root @ root.T
    ends = at_s.cov.diagonal().sqrt(), at_t.cov.diagonal().sqrt()
    square = torch.outer(ends[1], ends[1])
    say("mean of transition", p @ at_s.A, at_t.A, p.abs() @ at_s.A.abs())
    say("covariance of transition", p @ at_s.cov @ p.T + q, at_t.cov, square)
    say("transition_gain", matrix_of(lambda r: sde.transition_gain(r, s, t), zero), q, square)
    mean = matrix_of(lambda d: sde.bridge(d, sde.mean(d, t), t, s, still(d)), x0)
    b = matrix_of(lambda x: sde.bridge(x0.expand(len(x), *x0.shape[1:]), x, t, s, still(x)), zero)
    noise = matrix_of(lambda z: sde.bridge(x0.expand(len(z), *x0.shape[1:]), still(z), t, s, z), zero)
    inner = b.abs() @ square @ b.abs().T + torch.outer(ends[0], ends[0])
    say("mean of bridge", mean, at_s.A, at_s.A.abs() + b.abs() @ at_t.A.abs())
    say("covariance of bridge", b @ at_t.cov @ b.T + noise @ noise.T, at_s.cov, inner)
    say("covariance of bridge with x_t", b @ at_t.cov, at_s.cov @ p.T, torch.outer(*ends) + b.abs() @ square)
