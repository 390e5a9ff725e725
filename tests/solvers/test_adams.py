"""Exponential Adams rules: textbook weights, exactness on Gaussians, fitted orders, both coefficient paths."""

import math

import pytest
import torch
from scipy.integrate import quad
from scipy.interpolate import lagrange

import sde
from sde.nodes import Table
from sde.solvers.exponential.adams import COORDINATES, PREDICTIONS
from sde.solvers.exponential.base import Along, lagrange_integrals

SCALAR = [sde.VP(), sde.SubVP(), sde.VE(), sde.EDM(), sde.Cosine(), sde.Flow(), sde.OrnsteinUhlenbeck()]
RING = sde.Mixture(
    [0.4, 0.35, 0.25],
    [[1.5, 0.0], [-0.8, 1.2], [-0.7, -1.3]],
    [0.3, 0.2, 0.25],
)
EVERY = [(predict, coordinate) for predict in PREDICTIONS for coordinate in COORDINATES]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def on_unit_step(nodes):
    """Weights of the rule through these nodes, for the step from 0 to 1."""
    x, w = (
        torch.tensor(c) for c in torch.tensor([[-(0.6**0.5), 0, 0.6**0.5], [5 / 9, 8 / 9, 5 / 9]]).double().tolist()
    )
    return lagrange_integrals(torch.tensor([nodes]).double(), (x[None] + 1) / 2, w[None] / 2)[0]


@pytest.mark.parametrize(
    ("nodes", "textbook"),
    [
        ([0.0], [1]),
        ([0.0, -1.0], [3 / 2, -1 / 2]),
        ([0.0, -1.0, -2.0], [23 / 12, -16 / 12, 5 / 12]),
        ([0.0, -1.0, -2.0, -3.0], [55 / 24, -59 / 24, 37 / 24, -9 / 24]),
        ([1.0, 0.0], [1 / 2, 1 / 2]),
        ([1.0, 0.0, -1.0, -2.0], [9 / 24, 19 / 24, -5 / 24, 1 / 24]),
        ([0.0, -1.0, math.nan], [3 / 2, -1 / 2, 0]),
    ],
)
def test_weights_on_equal_steps_are_the_textbooks(nodes, textbook):
    torch.testing.assert_close(on_unit_step(nodes), torch.tensor(textbook, dtype=torch.float64))


@pytest.mark.parametrize("forward", [sde.VP(), sde.Flow(), sde.EDM()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize(("predict", "coordinate"), EVERY)
def test_weights_integrate_the_lagrange_polynomial(forward, predict, coordinate):
    """C int L_j dkappa of the module's table, by scipy's quadrature in time, on unequal steps."""
    times = torch.tensor([0.9, 0.7, 0.65, 0.4, 0.3], dtype=torch.float64)
    a, k = 0.7, 3
    along = Along(forward, a, times, predict, coordinate)
    w = along.integrals(torch.tensor([3]), torch.tensor([[3, 2, 1]]))[0]

    def levels(t):
        return [float(c) for c in forward.rates(torch.tensor([t], dtype=torch.float64))]

    def u(t):
        alpha, sigma, *_ = levels(t)
        rho = sigma / alpha
        return {"t": t, "ratio": rho, "log_snr": -math.log(rho), "angle": math.atan(rho / a)}[coordinate]

    def density(t):  # C dkappa/dt at t, for the step that ends at times[4]
        alpha, sigma, dalpha, dsigma = levels(t)
        rho, drho = sigma / alpha, (dsigma * alpha - sigma * dalpha) / alpha**2
        alpha, sigma, *_ = levels(float(times[4]))
        r = math.hypot(alpha * a, sigma)
        return {"eps": alpha * drho, "x0": -sigma * drho / rho**2, "edm": -r * a * drho / (a * a + rho * rho)}[predict]

    nodes = [u(float(t)) for t in times[[3, 2, 1]]]
    for j in range(k):
        polynomial = lagrange(nodes, [float(i == j) for i in range(k)])
        truth = quad(lambda t, p=polynomial: p(u(t)) * density(t), 0.4, 0.3, epsabs=1e-13, epsrel=1e-12)[0]
        assert w[j].item() == pytest.approx(truth, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("forward", SCALAR, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize(("predict", "coordinate"), EVERY)
def test_constant_values_are_integrated_exactly(forward, predict, coordinate):
    """The weights of a step add up to that of the first-order rule: DDIM in the prediction."""
    times = sde.grids.karras(forward, 30)
    along = Along(forward, 0.6, times, predict, coordinate)
    steps = torch.arange(30)
    w = along.integrals(steps, steps[:, None] - torch.arange(3))
    torch.testing.assert_close(w.sum(1), along.first, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("forward", SCALAR, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("solver", [sde.Adams(1), sde.Adams(3), sde.Adams(3, start="full")], ids=["1", "3", "full"])
def test_one_step_is_exact_on_a_gaussian_of_the_models_scale(forward, solver):
    """F = 0 there, so that a single step from t_max to t_min is the exact flow."""
    model = sde.ExactScore(sde.Gaussian([20.0, -3.0], 0.25), forward)
    x = model.prior(torch.zeros(50, 2, dtype=torch.float64), generator())
    times = torch.tensor([forward.t_max, forward.t_min], dtype=torch.float64)
    y = sde.integrate(sde.ReverseSDE(model), x, times, solver)
    alpha, sigma = (c.double() for c in forward.levels(times))
    r = torch.hypot(alpha * 0.5, sigma)
    mean = torch.tensor([20.0, -3.0], dtype=torch.float64)
    torch.testing.assert_close(y, alpha[1] * mean + (x - alpha[0] * mean) * r[1] / r[0], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("forward", [sde.VP(), sde.Flow()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("corrector", [False, True])
@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_a_full_start_keeps_the_order_of_the_rule(forward, k, corrector):
    solver = sde.Adams(k, corrector=corrector, start="full")
    assert solver.order == solver.nominal == k + corrector
    assert sde.checks.ode_order(solver, forward).value == pytest.approx(k + corrector, abs=0.2)


@pytest.mark.parametrize(("k", "corrector", "order"), [(2, False, 2), (4, False, 2), (2, True, 3), (5, True, 3)])
def test_a_ramp_caps_the_order(k, corrector, order):
    solver = sde.Adams(k, corrector=corrector)
    assert (solver.order, solver.nominal) == (order, k + corrector)
    assert sde.checks.ode_order(solver, SCALAR[0]).value == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize(("predict", "coordinate"), EVERY)
@pytest.mark.parametrize("corrector", [False, True])
def test_every_prediction_and_coordinate_has_its_order(predict, coordinate, corrector):
    solver = sde.Adams(2, predict, coordinate, corrector)
    assert sde.checks.ode_order(solver, SCALAR[0]).value == pytest.approx(2 + corrector, abs=0.2)


@pytest.mark.parametrize(("k", "corrector", "extra"), [(2, False, 0), (2, True, 1), (3, True, 4), (4, True, 9)])
def test_evaluations_of_a_full_start_are_counted(k, corrector, extra):
    """1 + (R - 1)(R - 3) more where the rule has order R >= 3."""
    seen = []

    class Watching(sde.ExactScore):
        def forward(self, x, t, **cond):
            seen.append(type(t).__name__)
            return super().forward(x, t, **cond)

    flow = sde.ReverseSDE(Watching(RING, sde.VP()))
    times, solver = sde.grids.karras(sde.VP(), 12), sde.Adams(k, corrector=corrector, start="full")
    states = list(sde.trajectory(flow, torch.zeros(2, 2), times, solver))
    assert len(seen) == states[-1].calls == 12 + extra
    assert set(seen) == {"Node"}
    assert [state.t for state in states] == times.tolist()


def test_higher_order_is_more_accurate_at_the_default_steps():
    model = sde.ExactScore(RING, sde.EDM())
    x = model.prior(torch.zeros(200, 2, dtype=torch.float64), generator(2))
    reference = sde.integrate(sde.ReverseSDE(model), x, sde.grids.data_scaled(model.sde, 400, 1.2), sde.RK4())
    times = sde.grids.data_scaled(model.sde, 32, model.data_scale())
    errors = [
        float((sde.integrate(sde.ReverseSDE(model), x, times, solver) - reference).square().mean())
        for solver in (sde.Adams(1, corrector=False), sde.Adams(1), sde.Adams(2), sde.Adams(3), sde.Adams(4))
    ]
    assert errors[0] > 4 * errors[1] > 16 * errors[2] > 64 * errors[3] > 64 * errors[4]


class ThroughTensors(sde.Wrapper):
    """The same model on the tensor path."""

    def forward(self, x, t, **cond):
        return self.model(x, t, **cond)


@pytest.mark.parametrize("start", ["ramp", "full"])
@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_nodes_and_tensors_agree(k, start):
    model = sde.ExactScore(RING, sde.VP())
    x = model.prior(torch.zeros(20, 2, dtype=torch.float64), generator(3))
    times = sde.grids.data_scaled(model.sde, 9)
    runs = [
        sde.integrate(sde.ReverseSDE(m), x, times, sde.Adams(k, start=start)) for m in (model, ThroughTensors(model))
    ]
    torch.testing.assert_close(*runs, rtol=1e-10, atol=1e-10)


def test_a_step_alone_is_of_first_order_and_needs_no_grid():
    flow = sde.ReverseSDE(sde.ExactScore(RING, sde.VP()))
    x = torch.ones(3, 2, dtype=torch.float64)
    noise = sde.WhiteNoise()
    table = Table(torch.tensor([0.5, 0.4, 0.1]))
    once = sde.Adams(1, "eps").step(flow, x, 0.5, 0.4, noise)
    torch.testing.assert_close(once, sde.DDIM().step(flow, x, *table.nodes[:2], noise), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
@pytest.mark.parametrize("forward", [*SCALAR, sde.Tabulated.linear()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("solver", [sde.Adams(), sde.Adams(4, start="full")], ids=["default", "full"])
def test_any_number_of_steps_is_finite_and_leaves_no_memory(forward, steps, solver):
    model = sde.ExactScore(RING, forward)
    draws = [sde.sample(model, (8, 2), steps=steps, solver=solver, generator=generator(4)) for _ in range(2)]
    assert draws[0].isfinite().all()
    assert torch.equal(*draws)


@pytest.mark.parametrize(("predict", "coordinate"), EVERY)
@pytest.mark.parametrize("forward", [sde.VP(), sde.EDM(), sde.Flow()], ids=lambda s: type(s).__name__)
def test_the_last_step_is_right_at_sigma_0(forward, predict, coordinate):
    """To t = 0 itself, and from alpha = 0 with Flow: as near as E[x0 | x] of the node before, or nearer."""
    model = sde.ExactScore(RING, forward)
    x = model.prior(torch.zeros(50, 2, dtype=torch.float64), generator(5))
    times = sde.grids.data_scaled(sde.Flow(t_min=1e-5) if isinstance(forward, sde.Flow) else forward, 80)
    times = torch.cat([times[times > 0.03], torch.zeros(1, dtype=torch.float64)])
    fine = torch.cat([sde.grids.log_snr(forward, 300)[:-1], times[-1:]])
    truth = sde.integrate(sde.ReverseSDE(model), x, fine, sde.Adams(6))
    states = sde.record(sde.trajectory(sde.ReverseSDE(model), x, times, sde.Adams(2, predict, coordinate)))
    end, before = states.x[-1], model(states.x[-2], float(times[-2])).x0
    assert end.isfinite().all()
    assert float((end - truth).norm()) < 1.2 * float((before - truth).norm()) < 0.2


def test_encoding_and_decoding_is_the_identity():
    model = sde.ExactScore(RING, sde.VP())
    x = RING.sample(30, generator(5))
    down = sde.grids.data_scaled(model.sde, 400)
    code = sde.integrate(sde.ReverseSDE(model), x, down.flip(0), sde.Adams(4))
    back = sde.integrate(sde.ReverseSDE(model), code, down, sde.Adams(4))
    torch.testing.assert_close(back, x, rtol=0, atol=1e-5)


def test_it_refuses_by_name():
    model = sde.ExactScore(RING, sde.VP())
    with pytest.raises(ValueError, match=r"Adams solves the probability flow, got eta=1.0: use eta=0"):
        sde.sample(model, (4, 2), solver=sde.Adams(), eta=1.0)
    with pytest.raises(ValueError, match=r"needs a scalar SDE, got CLD: use Heun"):
        sde.sample(sde.ExactScore(RING, sde.CLD()), (4, 2), solver=sde.Adams())
    for order in (0, 9, 2.5, True):
        with pytest.raises(ValueError, match=r"order must be a whole number from 1 to 8, got"):
            sde.Adams(order)
    with pytest.raises(ValueError, match=r"predict must be one of edm, eps, x0, got 'v'"):
        sde.Adams(2, "v")
    with pytest.raises(ValueError, match=r"coordinate must be one of angle, log_snr, ratio, t, got 'sigma'"):
        sde.Adams(2, coordinate="sigma")
    with pytest.raises(ValueError, match=r"start must be one of ramp, full, got 'slow'"):
        sde.Adams(2, start="slow")


def test_sample_takes_it_by_default_where_it_can():
    from sde.solvers import default_solver

    scalar, matrix = (sde.ExactScore(RING, forward) for forward in (sde.VP(), sde.CLD()))
    assert isinstance(default_solver(scalar), sde.Adams)
    assert isinstance(default_solver(scalar, eta=1.0), sde.Heun)
    assert isinstance(default_solver(matrix), sde.MatrixAdams)
    assert isinstance(default_solver(matrix, eta=1.0), sde.Heun)
