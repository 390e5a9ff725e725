"""Solvers of matrix SDEs: gDDIM's factor against an ODE solver, one channel against scalar rules, orders, splitting."""

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.linalg import expm

import sde
from sde.forward.transport import carried, noise_root, stationary, whitened
from sde.solvers.exponential.adams import Adams
from sde.solvers.exponential.deis import DEIS
from sde.solvers.matrix.gddim import GDDIM, MatrixAdams
from sde.solvers.matrix.splitting import SSCS

SQUARE = sde.MatrixSDE(F=[[0, 1], [-1, -2]], G=[[0.3, -0.8], [1.1, 0.6]], embed=[1, 0], cov0=[[0, 0], [0, 0.04]])
NOISY_START = sde.MatrixSDE(
    F=[[0, 1, 0.2], [-1, -2, 0.5], [0, -0.5, -1]],
    G=[[0.1, 0, 0], [0.3, 2, 0], [0, 0, 1]],
    embed=[1, 0, 0.5],
    cov0=[[1e-4, 0, 0], [0, 0.04, 0], [0, 0, 0.01]],
)
SDES = {
    "CLD": sde.CLD(),
    "ThirdOrderLangevin": sde.ThirdOrderLangevin(),
    "square": SQUARE,
    "noisy start": NOISY_START,
}
ONE_CHANNEL = sde.MatrixSDE(F=[[-1.0]], G=[[math.sqrt(2)]], embed=[1.0], cov0=[[0.0]], t_max=2.0)
SCALAR = sde.OrnsteinUhlenbeck(t_max=2.0)
POINT, WIDE = sde.Gaussian([0.7, -0.3], 0.0), sde.Gaussian([20.0, -3.0], 0.25)
MODES = sde.Mixture([0.4, 0.35, 0.25], [[1.5, 0.0], [-0.8, 1.2], [-0.7, -1.3]], [0.3, 0.2, 0.25])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def times(*values):
    return torch.tensor(values, dtype=torch.float64)


def flow(model, eta=0.0):
    return sde.ReverseSDE(model, eta)


def starts(model, n=6, dtype=torch.float64):
    return model.prior(torch.zeros(n, *model.target.event, dtype=dtype), generator())


# The factor.


@functools.cache
def fine(forward, target, n=300):
    """A model, states at the end of its flow's grid, and where a fine solve takes them, in equal steps of log t."""
    model, low = sde.ExactScore(target, forward), max(forward.t_min, 0.01)
    x, grid = starts(model), forward.t_max * (low / forward.t_max) ** torch.linspace(0, 1, n + 1, dtype=torch.float64)
    return model, x, low, sde.integrate(flow(model), x, grid, sde.RK4())


@pytest.mark.parametrize(("forward", "eta"), [("CLD", 0.0), ("CLD", 0.7), ("noisy start", 0.0), ("square", 0.7)])
def test_the_propagator_with_x0_held_is_an_ode_solvers(forward, eta):
    """dT/db = (F + (1 + eta^2) / 2 G G' Sigma^-1) T from t = .8 to .01, by DOP853; law 0 looks after Sigma."""
    forward = SDES[forward]
    f, g = np.array(forward.F, float), np.array(forward.G, float)
    k, high, low = len(f), 0.8, 0.01

    def rhs(b, y):
        cov = forward.moments_at(times(b))[1][0].numpy()
        return ((f + (1 + eta**2) / 2 * g @ g.T @ np.linalg.inv(cov)) @ y.reshape(k, k)).ravel()

    clock = forward.beta * np.array([high, low])
    y = solve_ivp(rhs, clock, np.eye(k).ravel(), "DOP853", rtol=1e-9, atol=1e-12).y[:, -1]
    moved = carried(forward, times(high), times(low), eta)[0][0]
    torch.testing.assert_close(moved, torch.from_numpy(y).reshape(k, k), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0, 1.7])
@pytest.mark.parametrize("forward", SDES.values(), ids=SDES)
def test_steps_compose_and_keep_the_marginals(forward, eta):
    grid = times(forward.t_max, 0.9, 0.3, 0.29, 0.01, forward.t_min)
    moved, kept, root = carried(forward, grid[:-1], grid[1:], eta)
    a, cov = forward.moments(grid)
    torch.testing.assert_close(moved @ cov[:-1] @ moved.mT + root @ root.mT, cov[1:], rtol=1e-9, atol=1e-14)
    torch.testing.assert_close(moved @ a[:-1, :, None] + kept, a[1:, :, None], rtol=1e-12, atol=1e-12)
    whole = carried(forward, grid[:1], grid[-1:], eta)[0][0]
    ends = whitened(forward, forward.clock_of(grid))
    in_noise = lambda m: ends.inverse[-1] @ m @ ends.root[0]  # noqa: E731
    torch.testing.assert_close(in_noise(torch.linalg.multi_dot([*moved.flip(0)])), in_noise(whole), rtol=0, atol=1e-10)
    if eta == 0:
        turned = in_noise(whole)
        torch.testing.assert_close(turned @ turned.T, torch.eye(forward.channels).double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("forward", SDES.values(), ids=SDES)
def test_a_held_x0_at_eta_1_is_the_bridge(forward):
    x0 = torch.randn(5, 3, dtype=torch.float64, generator=generator())
    x, z = torch.randn(2, 5, forward.channels, 3, dtype=torch.float64, generator=generator(1))
    for t, s in ((forward.t_max, 0.2), (0.2, 0.19), (0.1, forward.t_min)):
        torch.testing.assert_close(
            forward.held(x0, x, t, s, 1.0, z), forward.bridge(x0, x, t, s, z), rtol=1e-7, atol=1e-8
        )


def test_each_sample_may_have_its_own_times():
    forward, x0 = sde.CLD(), torch.randn(4, 3, generator=generator())
    x, z = torch.randn(2, 4, 2, 3, generator=generator(1))
    t, s = times(0.9, 0.5, 0.9, 0.1), times(0.2, 0.4, 0.2, 0.05)
    together = forward.held(x0, x, t, s, 0.5, z)
    for i in range(4):
        one = slice(i, i + 1)
        alone = forward.held(x0[one], x[one], float(t[i]), float(s[i]), 0.5, z[one])
        torch.testing.assert_close(together[one], alone)
    with pytest.raises(ValueError, match=r"t has shape \(3,\)"):
        forward.held(x0, x, t[:3], s[:3], 0.0)


def test_noise_that_is_there_at_first_lets_steps_go_to_0():
    moved, _, _ = carried(NOISY_START, times(0.1, 0.01), times(0.01, 0.0), 0.0)
    cov = NOISY_START.moments(times(0.1, 0.01, 0.0))[1]
    torch.testing.assert_close(moved @ cov[:-1] @ moved.mT, cov[1:], rtol=1e-10, atol=1e-15)
    with pytest.raises(ValueError, match="not positive definite at t = 0"):
        sde.integrate(flow(sde.ExactScore(MODES, sde.CLD())), torch.zeros(1, 2, 2), [0.1, 0.0], sde.DDIM())


def test_noise_of_a_short_step_is_in_line_with_g():
    for forward in SDES.values():
        g = torch.tensor(forward.G, dtype=torch.float64)
        torch.testing.assert_close(noise_root(0.25 * g @ g.T, g), g / 2, rtol=0, atol=1e-12)
        root = carried(forward, times(0.5), times(0.5 - 1e-7), 1.0)[2][0]
        torch.testing.assert_close(root / math.sqrt(1e-7 * forward.beta), g, rtol=0, atol=2e-3)
    zero = torch.zeros(2, 2)
    assert torch.equal(noise_root(zero, zero), zero)


@pytest.mark.parametrize("solver", [sde.DDIM(), SSCS()], ids=lambda s: type(s).__name__)
def test_strong_order_where_g_is_not_symmetric(solver):
    assert sde.checks.strong_order(solver, SQUARE, batch=64).value == pytest.approx(1.0, abs=0.15)


# Rules.


@pytest.mark.parametrize("forward", SDES.values(), ids=SDES)
@pytest.mark.parametrize("solver", [sde.DDIM(), GDDIM(1), GDDIM(2), GDDIM(4)], ids=["DDIM", "1", "2", "4"])
def test_gddim_is_exact_in_one_step_where_x0_is_known(forward, solver):
    """Data in one point: eps_R stands still, and the flow is U = A x0 + R eps_R."""
    model, x, low, end = fine(forward, POINT)
    for grid in (times(forward.t_max, low), times(forward.t_max, 0.8, 0.5, 0.1, low)):
        torch.testing.assert_close(sde.integrate(flow(model), x, grid, solver), end, rtol=1e-3, atol=1e-3)
    many = sde.integrate(flow(model), x, grid, solver)
    once = sde.integrate(flow(model), x, times(forward.t_max, low), sde.DDIM())
    torch.testing.assert_close(many, once, rtol=1e-7, atol=1e-9)


def test_gddims_weights_are_the_papers_integrals():
    """R by DOP853 and int Psi G G' R^-T / 2 l_j db by quadrature, over the second of two steps."""
    forward = sde.CLD()
    f, g = np.array(forward.F), np.array(forward.G)
    high, mid, low = 4 * 0.8, 4 * 0.5, 4 * 0.2

    def slope(b, r):
        cov = forward.moments_at(times(b))[1][0].numpy()
        return ((f + g @ g.T @ np.linalg.inv(cov) / 2) @ r.reshape(2, 2)).ravel()

    first = np.linalg.cholesky(forward.moments_at(times(high))[1][0].numpy())
    r = solve_ivp(slope, (high, low), first.ravel(), "DOP853", rtol=1e-10, atol=1e-12, dense_output=True).sol
    nodes, weights = np.polynomial.legendre.leggauss(20)
    w = np.zeros((2, 2, 2))
    for b, h in zip((mid + low) / 2 + (low - mid) / 2 * nodes, (low - mid) / 2 * weights, strict=True):
        term = h * expm(f * (low - b)) @ g @ g.T @ np.linalg.inv(r(b).reshape(2, 2)).T / 2
        w += np.stack([term * (b - high) / (mid - high), term * (b - mid) / (high - mid)])
    grid = times(0.8, 0.5, 0.2)
    step, value = GDDIM(2).columns(flow(sde.ExactScore(MODES, forward)), grid)
    torch.testing.assert_close(
        step[1], torch.from_numpy(np.concatenate([expm(f * (low - mid)), *w], 1)), rtol=1e-7, atol=1e-9
    )
    whiten = torch.from_numpy(np.linalg.inv(r(mid).reshape(2, 2)))
    mean = forward.moments(grid[1:2])[0].T
    torch.testing.assert_close(value[1], torch.cat([whiten, -whiten @ mean], 1), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_one_channel_is_the_scalar_rule(k):
    """Coefficients by collocation in log b against those of the scalar rules by quadrature."""
    x = starts(sde.ExactScore(MODES, SCALAR), 20)
    one, scalar = flow(sde.ExactScore(MODES, ONE_CHANNEL)), flow(sde.ExactScore(MODES, SCALAR))
    grid = torch.linspace(2.0, 0.2, 10, dtype=torch.float64)
    pairs = [
        (GDDIM(k), DEIS(k, "t")),
        (MatrixAdams(k, corrector=False), Adams(k, corrector=False)),
        (MatrixAdams(k), Adams(k)),
    ]
    for ours, theirs in [*pairs, (GDDIM(1), sde.DDIM())]:
        got = sde.integrate(one, x[:, None], grid, ours)[:, 0]
        torch.testing.assert_close(got, sde.integrate(scalar, x, grid, theirs), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("forward", SDES.values(), ids=SDES)
@pytest.mark.parametrize("solver", [MatrixAdams(1), MatrixAdams(3), MatrixAdams(2, corrector=False)])
def test_adams_is_exact_in_one_step_on_gaussians_of_the_models_scale(forward, solver):
    model, x, low, end = fine(forward, WIDE)
    once, many = (
        sde.integrate(flow(model), x, grid, solver)
        for grid in (times(forward.t_max, low), times(forward.t_max, 0.3, 0.1, low))
    )
    torch.testing.assert_close(once, end, rtol=2e-4, atol=2e-4)
    torch.testing.assert_close(once, many, rtol=1e-8, atol=1e-8)


def test_adams_needs_a_fraction_of_the_steps_of_heun():
    model = sde.ExactScore(MODES, sde.CLD())
    x, flow_ = starts(model, 50), flow(model)
    end = sde.integrate(flow_, x, sde.grids.quadratic(sde.CLD(), 200), MatrixAdams(5))
    error = lambda solver, n: float(  # noqa: E731
        (sde.integrate(flow_, x, sde.grids.quadratic(sde.CLD(), n), solver) - end).square().mean().sqrt()
    )
    best = error(MatrixAdams(), 40)
    assert best < 3e-3
    assert best < error(sde.Heun(), 20) / 100
    assert best < error(GDDIM(2), 40) / 10


ORDERS = [GDDIM(1), GDDIM(2), MatrixAdams(1, corrector=False), MatrixAdams(2), MatrixAdams(4), SSCS(), SSCS(2)]


def name(solver):
    return (
        f"{type(solver).__name__} {vars(solver).get('k', vars(solver).get('inner'))}" if hasattr(solver, "made") else ""
    )


@pytest.mark.parametrize("solver", ORDERS, ids=name)
def test_orders_of_the_flow(solver):
    fit = sde.checks.ode_order(solver, SDES["CLD"])
    low, high = solver.order, max(solver.order, solver.nominal or 0.0)
    assert low - 0.2 <= fit.value <= high + 0.2, fit


@pytest.mark.parametrize("eta", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("solver", [GDDIM(1), SSCS(), SSCS(2)], ids=name)
def test_weak_orders(solver, eta):
    assert sde.checks.weak_order(solver, SDES["CLD"], eta).value == pytest.approx(solver.weak, abs=0.2)


@pytest.mark.nightly
@pytest.mark.parametrize("forward", SDES.values(), ids=SDES)
@pytest.mark.parametrize("solver", [sde.DDIM(), GDDIM(1), GDDIM(3), MatrixAdams(), SSCS(), SSCS(2)], ids=name)
def test_every_law_on_every_matrix_sde(solver, forward):
    sde.checks.solver(solver, forward, (0.3, 1.0, 1.5))


@pytest.mark.parametrize("solver", [GDDIM(1), GDDIM(3), MatrixAdams(), SSCS(2)], ids=name)
def test_laws_that_need_no_fit(solver):
    sde.checks.calls(solver, SDES["CLD"])
    sde.checks.finite_samples(solver, SDES["CLD"])
    model = sde.ExactScore(MODES, sde.CLD())
    sde.checks.reproducible(lambda n, g: sde.sample(model, (n, 2), 5, solver, generator=g, progress=False), solver)


class ThroughTensors(sde.Wrapper):
    """The same model, at times that are tensors."""

    def forward(self, x, t, **cond):
        assert isinstance(t, torch.Tensor)
        return self.model(x, t, **cond)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("solver", [sde.DDIM(), GDDIM(1), GDDIM(3), MatrixAdams(), SSCS(2)], ids=name)
def test_models_that_see_tensors_give_the_same(solver, eta):
    model = sde.ExactScore(MODES, sde.CLD())
    if eta and (vars(solver).get("k", 1) > 1):
        pytest.skip("refused")
    x, grid = starts(model), sde.grids.quadratic(sde.CLD(), 5)
    runs = [sde.integrate(flow(m, eta), x, grid, solver, generator()) for m in (model, ThroughTensors(model))]
    torch.testing.assert_close(*runs, rtol=1e-9, atol=1e-9)
    single = sde.integrate(flow(model, eta), x.float(), grid, solver, generator())
    torch.testing.assert_close(single.double(), runs[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("solver", [GDDIM(3), MatrixAdams()], ids=name)
def test_an_object_serves_many_runs_and_single_steps(solver):
    model = sde.ExactScore(MODES, sde.CLD())
    x, grid = starts(model), sde.grids.quadratic(sde.CLD(), 6)
    first = sde.integrate(flow(model), x, grid, solver)
    sde.integrate(flow(model), x + 1, grid[1:], solver)
    assert torch.equal(first, sde.integrate(flow(model), x, grid, solver))
    begun = solver.start(flow(model), grid)
    begun.step(flow(model), x, float(grid[0]), float(grid[1]), None)
    again, y = begun.start(flow(model), grid), x
    for t, s in itertools.pairwise(grid.tolist()):
        y = again.step(flow(model), y, t, s, None)
    torch.testing.assert_close(y, first, rtol=1e-12, atol=1e-12)
    # A step that is not of the grid is the first of a run of its own.
    alone = begun.step(flow(model), x, 0.5, 0.4, None)
    torch.testing.assert_close(alone, sde.integrate(flow(model), x, times(0.5, 0.4), solver))


# Splitting.


def test_the_stationary_law():
    law = stationary(sde.ThirdOrderLangevin())
    torch.testing.assert_close(law, torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(stationary(sde.CLD(mass=0.5)), torch.diag(times(1.0, 0.5)))
    law, f, g = stationary(SQUARE), torch.tensor(SQUARE.F, dtype=law.dtype), torch.tensor(SQUARE.G, dtype=law.dtype)
    torch.testing.assert_close(f @ law + law @ f.T + g @ g.T, torch.zeros(2, 2).double(), rtol=0, atol=1e-14)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("forward", SDES.values(), ids=SDES)
def test_both_halves_leave_the_stationary_law(forward, eta):
    reverse = flow(sde.ExactScore(MODES, forward), eta)
    first, _, back = SSCS().columns(reverse, times(0.6, 0.4, 0.1))
    k, law = forward.channels, stationary(forward)
    for half in (first, torch.cat([back[..., :k], back[..., 2 * k + 1 :]], -1)):
        moved, root = half[..., :k], half[..., k:]
        torch.testing.assert_close(moved @ law @ moved.mT + root @ root.mT, law.expand(2, k, k), rtol=0, atol=1e-12)


def test_the_analytic_half_is_the_authors():
    """Dockhorn, Vahdat & Kreis: mean and covariance of A at M = 1/4, Gamma = 1, over beta dt = B."""
    first, half, _ = SSCS().columns(flow(sde.ExactScore(MODES, sde.CLD()), 1.0), times(0.6, 0.5))
    b = 4.0 * 0.05
    mean = math.exp(-2 * b) * times(1 + 2 * b, -4 * b, b, 1 - 2 * b).reshape(2, 2)
    xx = 1 - math.exp(-4 * b) * (1 + 4 * b + 8 * b**2)
    vv = 0.25 - math.exp(-4 * b) * (0.25 - b + 2 * b**2)
    cov = times(xx, -4 * b**2 * math.exp(-4 * b), -4 * b**2 * math.exp(-4 * b), vv).reshape(2, 2)
    torch.testing.assert_close(first[0, :, :2], mean)
    torch.testing.assert_close(first[0, :, 2:] @ first[0, :, 2:].T, cov, rtol=1e-9, atol=1e-12)
    # S: v += 2 Gamma (s(u) + v / M) B over the whole step, here half of it.
    point = sde.ExactScore(MODES, sde.CLD())(x := torch.randn(3, 2, 2, generator=generator()).double(), 0.55)
    pushed = x.clone()
    pushed[:, 1] += 2 * (point.score[:, 1] + 4 * x[:, 1]) * 4.0 * 0.1 / 2
    torch.testing.assert_close(half[0] @ torch.cat([x, point.x0[:, None]], 1), pushed)


# Refusals.


def test_what_they_refuse():
    x, model = torch.zeros(1, 2, 2), sde.ExactScore(MODES, sde.CLD())
    for solver in (GDDIM(), MatrixAdams(), SSCS()):
        with pytest.raises(ValueError, match=f"{type(solver).__name__} needs a matrix SDE, got VP: use "):
            sde.integrate(flow(sde.ExactScore(MODES, sde.VP())), x[:, 0], [0.5, 0.4], solver)
        with pytest.raises(ValueError, match="cannot solve a OrnsteinUhlenbeck"):
            sde.integrate(SCALAR, x, [0.4, 0.5], solver)
    for solver in (GDDIM(), MatrixAdams(1)):
        with pytest.raises(ValueError, match=r"solves the probability flow, got eta=0.5: use eta=0, or GDDIM"):
            sde.integrate(flow(model, 0.5), x, [0.5, 0.4], solver)
    for wrong in (0, 9, 1.5, True):
        with pytest.raises(ValueError, match="order must be a whole number from 1 to 8, got"):
            GDDIM(wrong)
        with pytest.raises(ValueError, match="order must be a whole number from 1 to 8, got"):
            MatrixAdams(wrong)
    with pytest.raises(ValueError, match="inner must be 1 for Euler's rule or 2 for the midpoint rule, got 3"):
        SSCS(3)


def test_splitting_needs_a_stationary_law():
    spreading = sde.MatrixSDE(F=[[0, 1], [0, 0]], G=[[0, 0], [0, 1]], embed=[1, 0], cov0=[[0, 0], [0, 0.04]])
    reverse = flow(sde.ExactScore(MODES, spreading), 1.0)
    with pytest.raises(ValueError, match="SSCS splits off the stationary law, and MatrixSDE has no stationary law"):
        sde.integrate(reverse, torch.zeros(1, 2, 2), [0.5, 0.4], SSCS())
    still = sde.MatrixSDE(F=[[-1, 0], [0, -1]], G=[[1, 0], [0, 0]], embed=[1, 0], cov0=[[0, 0], [0, 0.04]])
    with pytest.raises(ValueError, match="the stationary law of MatrixSDE is singular: its noise must reach"):
        SSCS().check(flow(sde.ExactScore(MODES, still)))
    assert sde.integrate(reverse, torch.zeros(1, 2, 2), [0.5, 0.4], GDDIM(1), generator()).isfinite().all()
