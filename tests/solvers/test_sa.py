"""SA-Solver: diffusers' scheduler on the same noise, its integrals by quadrature, its moments, orders with noise."""

import math

import numpy as np
import pytest
import torch
from diffusers import SASolverScheduler
from scipy.integrate import quad
from scipy.interpolate import lagrange

import sde
from sde.checks import LawViolation, samples
from sde.checks.convergence import fitted, ode_order, weak_order
from sde.solvers.exponential.sa import SASolver

VP, EDM, FLOW = sde.VP(), sde.EDM(), sde.Flow()
MIXTURE = sde.Mixture([0.2, 0.3, 0.5], [[-1.5, 0.0], [1.0, 1.0], [0.5, -1.0]], [[0.15, 0.05], [0.05, 0.05], [0.1, 0.3]])


def levels(t):
    alpha, sigma = VP.levels(torch.as_tensor(t, dtype=torch.float64))
    return float(alpha), float(sigma)


@pytest.mark.parametrize(
    ("predictor", "corrector", "tau", "steps"),
    [(1, 1, 1.0, 6), (2, 2, 1.0, 8), (2, 3, 0.5, 8), (3, 3, 0.0, 8), (3, 4, 0.7, 9), (2, 2, 0.3, 1), (3, 4, 1.0, 2)],
)
@pytest.mark.parametrize("lower_order_final", [True, False])
def test_diffusers(predictor, corrector, tau, steps, lower_order_final, given_noise, monkeypatch):
    torch.manual_seed(0)
    net = sde.nets.MLP(dim=12, width=32, depth=2, time="sinusoidal")
    torch.nn.init.normal_(net.outward.weight, std=0.2)
    model = sde.ScoreModel(net, sde.Tabulated.linear(), "eps").double()
    solver = SASolver(predictor, corrector, rescaled=True, lower_order_final=lower_order_final)
    ours, theirs = both(model, solver, tau, lambda t: tau, steps, given_noise, monkeypatch)
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-6  # theirs loses digits in powers of lambda


def test_noise_in_an_interval_is_diffusers_tau(given_noise, monkeypatch):
    """A step takes the tau of the time at which it begins: theirs from 200 to 800, by default."""
    model = sde.ExactScore(MIXTURE, sde.Tabulated.linear())
    low, high = (float(torch.exp(-model.sde.log_snr(t + 1.0) / 2)) for t in (199.5, 800.5))
    solver = SASolver(2, 2, (low, high), rescaled=True)
    default = SASolverScheduler().tau_func
    ours, theirs = both(model, solver, 1.0, default, 10, given_noise, monkeypatch, event=(2,))
    torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-7)


def both(model, solver, eta, tau, steps, given_noise, monkeypatch, event=(3, 2, 2)):
    """Our run and diffusers', on the same draws; entry i of a table stands at t = i + 1."""
    from diffusers.schedulers import scheduling_sasolver

    scheduler = SASolverScheduler(
        num_train_timesteps=1000, predictor_order=solver.k, corrector_order=solver.corrector_order, tau_func=tau,
        lower_order_final=solver.lower_order_final,
    )  # fmt: skip
    scheduler.set_timesteps(steps)
    table = model.sde._table
    ratios = torch.sqrt((1 - table) / table)
    scheduler.sigmas = torch.cat([ratios[scheduler.timesteps], ratios[:1]])
    draws = torch.randn(steps + 1, 4, *event, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x, left = draws[0], list(draws[1:])
    monkeypatch.setattr(scheduling_sasolver, "randn_tensor", lambda *args, **options: left.pop(0))
    nodes = [float(t) + 1 for t in scheduler.timesteps] + [1.0]
    used = [draw for t, draw in zip(scheduler.timesteps, draws[1:], strict=True) if eta and tau(float(t))]
    for t in scheduler.timesteps:
        x = scheduler.step(model(x, float(t) + 1).eps, t, x).prev_sample
    ours = sde.integrate(sde.ReverseSDE(model, eta), draws[0], nodes, solver, noise=given_noise(*used))
    return ours, x


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_weights_are_the_papers_integrals(eta):
    """(1 + tau^2) sigma_s e^(-tau^2 lambda_s) int e^((1 + tau^2) lambda) L_j dlambda."""
    times = [0.9, 0.7, 0.65, 0.4, 0.3]
    model = sde.ExactScore(sde.Gaussian([0.3], 0.5), VP)

    def row(solver, i):
        return [column[i] for column in solver.columns(model, eta, torch.tensor(times, dtype=torch.float64))]

    def integral(i, nodes, j):  # over the step from times[i], through the nodes
        lam = [math.log(levels(t)[0] / levels(t)[1]) for t in times]
        polynomial = lagrange([lam[n] for n in nodes], [float(n == nodes[j]) for n in nodes])
        inside = lambda u: (1 + eta**2) * math.exp((1 + eta**2) * u - eta**2 * lam[i + 1]) * polynomial(u)  # noqa: E731
        return levels(times[i + 1])[1] * quad(inside, lam[i], lam[i + 1], epsrel=1e-12)[0]

    _, _, c, _, level, w = row(SASolver(3, 0, lower_order_final=False), 3)
    for j in range(3):
        assert w[j].item() == pytest.approx(integral(3, [3, 2, 1], j), rel=1e-9)
    shrink = math.log(levels(0.4)[0] / levels(0.4)[1]) - math.log(levels(0.3)[0] / levels(0.3)[1])
    assert level.item() == pytest.approx(levels(0.3)[1] * math.sqrt(1 - math.exp(2 * eta**2 * shrink)), rel=1e-9)
    assert c.item() == pytest.approx(levels(0.3)[1] / levels(0.4)[1] * math.exp(eta**2 * shrink), rel=1e-9)
    # With a corrector, what each value changes in the state it was made at goes through the step as well.
    *_, mended = row(SASolver(2, 3, lower_order_final=False), 3)
    for j, node in enumerate([3, 2, 1]):
        predicted = integral(3, [3, 2], j) if j < 2 else 0.0
        removed = integral(2, [2, 1], [2, 1].index(node)) if node < 3 else 0.0
        change = integral(2, [3, 2, 1], j) - removed
        assert mended[j].item() == pytest.approx(predicted + c.item() * change, rel=1e-8)


def test_without_noise_it_is_an_adams_rule():
    model = sde.ExactScore(MIXTURE, EDM)
    x = model.prior(torch.zeros(10, 2, dtype=torch.float64), torch.Generator().manual_seed(0))
    times = sde.grids.data_scaled(EDM, 11)
    for ours, theirs in [
        (SASolver(3, 4, lower_order_final=False), sde.Adams(3, "x0", "log_snr")),
        (SASolver(3, 0, lower_order_final=False), sde.Adams(3, "x0", "log_snr", corrector=False)),
        (SASolver(3, 4, (1e-9, 1e-8), lower_order_final=False), sde.Adams(3, "x0", "log_snr")),
    ]:
        a = sde.integrate(sde.ReverseSDE(model, float(ours.interval is not None)), x, times, ours)
        b = sde.integrate(sde.ReverseSDE(model), x, times, theirs)
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("forward", [VP, EDM, FLOW], ids=lambda s: type(s).__name__)
def test_order_one_with_all_noise_is_ancestral(forward, given_noise):
    """At eta = 1 the exact integral of a held x0 is the bridge, from alpha = 0 and to sigma = 0 as well."""
    model, times = sde.ExactScore(MIXTURE, forward), [forward.t_max, 0.5 * forward.t_max, 0.1 * forward.t_max, 0.0]
    draws = torch.randn(4, 6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a, b = (
        sde.integrate(sde.ReverseSDE(model, 1.0), forward.t_max * draws[0], times, s, noise=given_noise(*draws[1:]))
        for s in (SASolver(1, 0), sde.Ancestral())
    )
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("corrector", [1, 2, 3])
def test_a_step_from_alpha_zero_is_not_corrected(corrector):
    """It is infinitely long in lambda, and no polynomial goes across."""
    model, times = sde.ExactScore(MIXTURE, FLOW), torch.tensor([1.0, 0.5, 0.2], dtype=torch.float64)
    for eta in (0.0, 1.0):
        plain, mended = (SASolver(1, k).columns(model, eta, times)[-1] for k in (0, corrector))
        torch.testing.assert_close(mended[:, :1], plain)
        assert not mended[:, 1:].any()


@pytest.mark.parametrize(
    ("solver", "order"),
    [
        (SASolver(1, 0), 1), (SASolver(3, 1), 1), (SASolver(1, 2), 2), (SASolver(2, 0), 2), (SASolver(2, 2), 2),
        (SASolver(3, 4), 2), (SASolver(2, 3, lower_order_final=False), 3), (SASolver(3, 3, lower_order_final=False), 3),
    ],
)  # fmt: skip
def test_order_without_noise(solver, order):
    assert solver.order == order
    assert ode_order(solver, VP).value == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize(
    ("solver", "order"),
    [(SASolver(1, 0), 1), (SASolver(1, 2), 2), (SASolver(2, 0, rescaled=True), 2), (SASolver(3, 4), 2)],
)
@pytest.mark.parametrize("eta", [0.5, 1.5])
def test_order_in_distribution(solver, order, eta):
    assert solver.weak == order
    assert weak_order(solver, VP, eta).value == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize(("forward", "eta"), [(EDM, 0.5), (FLOW, 1.0)])
def test_the_laws_hold(forward, eta):
    fits = sde.checks.solver(SASolver(), forward, etas=(eta,))
    assert 0.9 <= fits[f"strong order at eta={eta:g}"].value <= 1.4
    assert fits[f"weak order at eta={eta:g}"].value == pytest.approx(2, abs=0.1)


# The weak order with a score that is not linear. At eta = 1 the reverse SDE is the forward one, turned round, so that
# E phi(x_s) | x_t is known for a mixture. The rule's state is x with the value before, of which the expectation is a
# function on a grid of two dimensions, taken back step by step by Gauss–Hermite quadrature. No samples.


def on_chebyshev(half_width, n):
    k = torch.arange(n + 1, dtype=torch.float64)
    weights = (-1.0) ** k
    weights[0], weights[-1] = weights[0] / 2, weights[-1] / 2
    grid = half_width * torch.cos(math.pi * k / n)

    def basis(x):
        gap = x[:, None] - grid
        exact = gap.abs() < 1e-13
        c = weights / torch.where(exact, 1.0, gap)
        return torch.where(exact.any(1, keepdim=True), exact.double(), c / c.sum(1, keepdim=True))

    return grid, basis


def expectation(solver, model, times, starts, width=5.0):
    z, weights = (torch.tensor(c) for c in np.polynomial.hermite_e.hermegauss(10))
    (grid, on_x), (values, on_e) = on_chebyshev(width, 40), on_chebyshev(8.0, 20)
    rows = solver.start(sde.ReverseSDE(model, 1.0), times).rows
    mean = float(model.data_mean())
    u = (torch.sin(grid) + 0.3 * torch.cos(1.5 * grid))[:, None].expand(-1, len(values))
    for t in reversed(times[:-1].tolist()):
        p, q, c, shift, level, w = rows[t]
        value = model(grid[:, None], t).combine(p, q)[:, 0] - p * mean
        y = c * grid[:, None] + shift * mean + w[0] * value[:, None] + (w[1] * values if len(w) > 1 else 0 * values)
        y = (y[..., None] + level * z).clamp(-width, width)
        following = on_e(value) @ u.T
        u = torch.einsum("akx,ax->ak", on_x(y.flatten()).reshape(len(grid), -1, len(grid)), following)
        u = (u.reshape(y.shape) * weights).sum(2) / weights.sum()
    return on_x(starts) @ u[:, 0]


@pytest.mark.parametrize(("solver", "order"), [(SASolver(1, 0), 1), (SASolver(2, 0), 2), (SASolver(1, 2), 2)])
def test_order_in_distribution_of_a_mixture(solver, order):
    weight, mean, var = torch.tensor([[0.4, 0.6], [-0.6, 0.6], [0.2, 0.15]], dtype=torch.float64)
    model = sde.ExactScore(sde.Mixture(weight.tolist(), mean[:, None].tolist(), var.tolist()), VP)
    times = lambda n: VP.time_at(torch.linspace(-1.5, 1.5, n + 1, dtype=torch.float64))  # noqa: E731
    starts = torch.tensor([-0.8, 0.1, 1.0], dtype=torch.float64)
    (a_t, a_s), (s_t, s_s) = (c.tolist() for c in VP.levels(times(1)))
    # x_s | x_t: each component's Gaussian, given the step x_t | x_s ~ N(a x_s, q) of the forward SDE.
    a, prior, total = a_t / a_s, a_s**2 * var + s_s**2, a_t**2 * var + s_t**2
    gain = prior * a / total
    gap = starts[:, None] - a_t * mean
    share = torch.softmax(weight.log() - total.log() / 2 - gap**2 / (2 * total), 1)
    m, v = a_s * mean + gain * gap, prior - gain * a * prior
    phi = torch.exp(-v / 2) * torch.sin(m) + 0.3 * torch.exp(-(1.5**2) * v / 2) * torch.cos(1.5 * m)
    exact = (share * phi).sum(1)
    fit = fitted(lambda n: float((expectation(solver, model, times(n), starts) - exact).norm()), first=8, last=32)
    assert fit.value == pytest.approx(order, abs=0.2), fit


@pytest.mark.parametrize(
    ("solver", "forward", "eta"),
    [(SASolver(), FLOW, 1.0), (SASolver(3, 4), EDM, 0.5), (SASolver(2, 2, (0.05, 1.0)), VP, 1.0)],
)
def test_samples(solver, forward, eta):
    samples(sde.ExactScore(MIXTURE, forward), solver, 48, eta=eta)


def test_samples_see_noise_that_is_wrong():
    class Louder(SASolver):
        def columns(self, model, eta, times):
            *rest, level, w = super().columns(model, eta, times)
            return *rest, 1.3 * level, w

    with pytest.raises(LawViolation, match="law 6c is broken by Louder on VP"):
        samples(sde.ExactScore(MIXTURE, VP), Louder(), 48, eta=1.0)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="predictor_order must be a whole number from 1 to 8, got 0"):
        SASolver(0)
    with pytest.raises(ValueError, match="corrector_order must be a whole number from 0 to 9, got 10"):
        SASolver(2, 10)
    with pytest.raises(ValueError, match=r"interval must be \(low, high\) with 0 <= low < high, got \(1.0, 0.05\)"):
        SASolver(interval=(1.0, 0.05))
    with pytest.raises(ValueError, match="SASolver needs a scalar SDE, got CLD"):
        SASolver().check(sde.ReverseSDE(sde.ExactScore(MIXTURE, sde.CLD()), 1.0))
