"""DEIS: the authors' coefficients by quadrature, diffusers' scheduler, Runge–Kutta rules in rho written out, orders."""

import math

import pytest
import torch
from diffusers import DEISMultistepScheduler
from scipy.integrate import quad
from scipy.interpolate import lagrange

import sde
from sde.checks.convergence import ode_order
from sde.solvers.exponential.deis import DEIS, RHO_RK, RhoRK

VP, EDM, FLOW = sde.VP(), sde.EDM(), sde.Flow()
MIXTURE = sde.Mixture([0.4, 0.6], [[-1.0, 0.2], [0.8, -0.3]], [0.1, 0.2])


def state(model, seed=0):
    return model.prior(torch.zeros(20, 2, dtype=torch.float64), torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("coordinate", ["t", "ratio"])
def test_coefficients_are_the_authors(order, coordinate):
    """C_ij = int 1/2 Psi(u, t_end) G^2 / L prod (u - t_k) / (t_j - t_k) du in t; in rho on x / alpha."""
    times = [0.9, 0.7, 0.65, 0.4, 0.3]
    model = sde.ExactScore(MIXTURE, VP)
    *_, c, shift, w = DEIS(order, coordinate).columns(model, 0.0, torch.tensor(times, dtype=torch.float64))

    def bar(t):  # alpha^2, in the authors' closed form
        return math.exp(-0.1 * t - (20 - 0.1) * t * t / 2)

    def rho(t):
        return math.sqrt(1 / bar(t) - 1)

    def kernel(t, end):
        beta, psi = 0.1 + (20 - 0.1) * t, math.sqrt(bar(end) / bar(t))
        return psi * beta / 2 / math.sqrt(1 - bar(t))

    for i in (0, 2, 3):
        nodes, end = times[max(0, i - order + 1) : i + 1][::-1], times[i + 1]
        at = nodes if coordinate == "t" else [rho(t) for t in nodes]
        for j in range(order):
            if j >= len(nodes):
                assert w[i, j] == 0
                continue
            polynomial = lagrange(at, [float(n == j) for n in range(len(nodes))])
            if coordinate == "t":
                truth = quad(lambda u, p=polynomial, e=end: p(u) * kernel(u, e), times[i], end, epsrel=1e-11)[0]
            else:
                truth = math.sqrt(bar(end)) * quad(polynomial, rho(times[i]), rho(end), epsrel=1e-11)[0]
            assert w[i, j].item() == pytest.approx(truth, rel=1e-6, abs=1e-9)
        assert c[i].item() == pytest.approx(math.sqrt(bar(end) / bar(times[i])), rel=1e-9)
    assert float(shift.abs().max()) == pytest.approx(0.0, abs=1e-15)


@pytest.mark.parametrize(("order", "steps"), [(1, 5), (2, 7), (3, 20), (3, 2)])
def test_diffusers_integrates_in_log_rho(order, steps):
    torch.manual_seed(0)
    net = sde.nets.MLP(dim=12, width=32, depth=2, time="sinusoidal")
    torch.nn.init.normal_(net.outward.weight, std=0.2)
    model = sde.ScoreModel(net, sde.Tabulated.linear(), "eps").double()
    theirs = DEISMultistepScheduler(num_train_timesteps=1000, solver_order=order, lower_order_final=False)
    theirs.set_timesteps(steps)
    ratios = torch.sqrt((1 - model.sde._table) / model.sde._table)
    theirs.sigmas = torch.cat([ratios[theirs.timesteps], ratios[:1]])
    start = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = start
    for t in theirs.timesteps:
        x = theirs.step(net(x, torch.full((4,), float(t), dtype=torch.float64)), t, x).prev_sample
    nodes = [float(t) + 1 for t in theirs.timesteps] + [1.0]
    ours = sde.integrate(sde.ReverseSDE(model), start, nodes, DEIS(order, "log_snr"))
    torch.testing.assert_close(ours, x, rtol=1e-8, atol=1e-8)


def test_order_one_is_ddim():
    model = sde.ExactScore(MIXTURE, VP)
    times = sde.grids.uniform(VP, 6)
    a, b = (sde.integrate(sde.ReverseSDE(model), state(model), times, s) for s in (DEIS(1), sde.DDIM()))
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("solver", "order"),
    [
        (DEIS(1), 1), (DEIS(2, "t"), 2), (DEIS(2, "ratio"), 2), (DEIS(4, "t"), 2), (DEIS(4, "log_snr"), 2),
        (DEIS(3, "t", "full"), 3), (DEIS(3, "ratio", "full"), 3), (DEIS(4, "t", "full"), 4),
        (RhoRK("heun2"), 2), (RhoRK("kutta3"), 3), (RhoRK("rk4"), 4),
    ],
)  # fmt: skip
def test_observed_order(solver, order):
    assert solver.order == order
    assert ode_order(solver, VP).value == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("forward", [EDM, FLOW], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("solver", [DEIS(), RhoRK("kutta3")], ids=lambda s: type(s).__name__)
def test_the_laws_hold(solver, forward):
    sde.checks.solver(solver, forward)


@pytest.mark.parametrize("rule", RHO_RK)
def test_rho_rk_is_the_rule_on_the_equation_in_rho(rule):
    """The textbooks' rules, written out for dv / drho = eps, v = x / alpha."""
    model = sde.ExactScore(MIXTURE, VP)
    x, (t, s) = state(model), (0.8, 0.55)
    ends = VP.levels(torch.tensor([t, s], dtype=torch.float64))
    alpha, rho = ends[0], ends[1] / ends[0]

    def f(v, r):
        time = VP.time_at(-2 * torch.log(r))
        return model(v * VP.levels(time)[0], time).eps

    v, r, h = x / alpha[0], rho[0], rho[1] - rho[0]
    k1 = f(v, r)
    if rule == "heun2":
        v = v + h / 2 * (k1 + f(v + h * k1, r + h))
    elif rule == "kutta3":
        k2 = f(v + h / 2 * k1, r + h / 2)
        v = v + h / 6 * (k1 + 4 * k2 + f(v + h * (2 * k2 - k1), r + h))
    else:
        k2 = f(v + h / 2 * k1, r + h / 2)
        k3 = f(v + h / 2 * k2, r + h / 2)
        v = v + h / 6 * (k1 + 2 * k2 + 2 * k3 + f(v + h * k3, r + h))
    ours = sde.integrate(sde.ReverseSDE(model), x, [t, s], RhoRK(rule))
    torch.testing.assert_close(ours, alpha[1] * v, rtol=1e-10, atol=1e-10)


def test_heun_in_rho_is_edm_s_sampler():
    model = sde.ExactScore(MIXTURE, EDM)
    times = sde.grids.karras(EDM, 9)
    a, b = (sde.integrate(sde.ReverseSDE(model), state(model), times, s) for s in (RhoRK("heun2"), sde.Heun()))
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_a_step_to_sigma_zero_evaluates_once():
    model = sde.ExactScore(MIXTURE, FLOW)
    states = sde.trajectory(sde.ReverseSDE(model), state(model), [1.0, 0.6, 0.3, 0.0], RhoRK("rk4"))
    assert [s.calls for s in states] == [0, 1, 5, 6]


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="coordinate must be one of t, ratio, log_snr, got 'angle'"):
        DEIS(coordinate="angle")
    with pytest.raises(ValueError, match="rule must be one of heun2, kutta3, rk4, got 'euler'"):
        RhoRK("euler")
    with pytest.raises(ValueError, match=r"RhoRK solves the probability flow, got eta=1\.0"):
        RhoRK().check(sde.ReverseSDE(sde.ExactScore(MIXTURE, VP), 1.0))
    with pytest.raises(ValueError, match="DEIS needs a scalar SDE, got CLD"):
        DEIS().check(sde.ReverseSDE(sde.ExactScore(MIXTURE, sde.CLD())))
