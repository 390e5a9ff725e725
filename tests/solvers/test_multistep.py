"""Adams–Bashforth in the angle: textbook weights, exactness on Gaussians, fitted orders, both coefficient paths."""

import functools
import math

import pytest
import torch
from scipy.interpolate import lagrange

import sde
from sde.solvers.multistep import adams_bashforth_weights

SCALAR = [sde.VP(), sde.SubVP(), sde.VE(), sde.EDM(), sde.Cosine(), sde.Flow(), sde.OrnsteinUhlenbeck()]
RING = sde.Mixture(
    [0.4, 0.35, 0.25],
    [[1.5, 0.0], [-0.8, 1.2], [-0.7, -1.3]],
    [0.3, 0.2, 0.25],
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("k", "textbook"),
    [
        (1, [1]),
        (2, [3 / 2, -1 / 2]),
        (3, [23 / 12, -16 / 12, 5 / 12]),
        (4, [55 / 24, -59 / 24, 37 / 24, -9 / 24]),
    ],
)
def test_weights_on_equal_steps_are_the_textbooks(k, textbook):
    nodes = -torch.arange(k, dtype=torch.float64)[None]
    w = adams_bashforth_weights(nodes, torch.ones(1, dtype=torch.float64))
    torch.testing.assert_close(w[0], torch.tensor(textbook, dtype=torch.float64))


def test_weights_on_unequal_steps_integrate_the_lagrange_polynomial():
    nodes = torch.tensor([[0.3, 0.1, -0.5, -0.6]], dtype=torch.float64)
    w = adams_bashforth_weights(nodes, torch.tensor([0.7], dtype=torch.float64))[0]
    for j in range(4):
        values = [float(i == j) for i in range(4)]
        area = lagrange(nodes[0].numpy(), values).integ()
        assert w[j].item() == pytest.approx(area(0.7) - area(0.3), rel=1e-8)


@pytest.mark.parametrize("forward", SCALAR, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("k", [1, 3])
def test_one_step_is_exact_on_a_gaussian_of_the_models_scale(forward, k):
    """F = 0 there, so that a single step from t_max to t_min is the exact flow."""
    model = sde.ExactScore(sde.Gaussian([20.0, -3.0], 0.25), forward)
    x = model.prior(torch.zeros(50, 2, dtype=torch.float64), generator())
    times = torch.tensor([forward.t_max, forward.t_min], dtype=torch.float64)
    y = sde.integrate(sde.ReverseSDE(model), x, times, sde.AdamsBashforth(k))
    alpha, sigma = (c.double() for c in forward.levels(times))
    r = torch.hypot(alpha * 0.5, sigma)
    mean = torch.tensor([20.0, -3.0], dtype=torch.float64)
    torch.testing.assert_close(y, alpha[1] * mean + (x - alpha[0] * mean) * r[1] / r[0], rtol=1e-8, atol=1e-8)


def by_angle(model, n):
    s = torch.tensor(model.data_scale()).double()
    return sde.grids.by_ratio(model.sde, n, lambda r: torch.atan2(r, s), lambda u: s * torch.tan(u))


@functools.cache
def fine_solve(forward):
    model = sde.ExactScore(RING, forward)
    x = model.prior(torch.zeros(20, 2, dtype=torch.float64), generator(1))
    return model, x, sde.integrate(sde.ReverseSDE(model), x, by_angle(model, 800), sde.RK4())


@pytest.mark.parametrize("forward", [sde.VP(), sde.EDM(), sde.Flow(t_min=1e-3)], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize(("k", "order"), [(1, 1.0), (2, 2.0), (3, 2.0)])
def test_observed_order_is_the_declared_one(forward, k, order):
    """On a grid uniform in the angle, where the Euler start of a multistep rule caps the order at 2."""
    solver = sde.AdamsBashforth(k)
    assert solver.order == order
    model, x, reference = fine_solve(forward)
    errors = [
        (sde.integrate(sde.ReverseSDE(model), x, by_angle(model, n), solver) - reference).square().mean().sqrt()
        for n in (100, 400)
    ]
    fitted = math.log(errors[0] / errors[1]) / math.log(4)
    if k == 3:  # between the order of the start-up and that of the rule, which leads at practical counts
        assert order - 0.2 <= fitted <= 3.2
    else:
        assert fitted == pytest.approx(order, abs=0.2)


def test_higher_order_is_more_accurate_at_the_default_steps():
    model = sde.ExactScore(RING, sde.EDM())
    x = model.prior(torch.zeros(200, 2, dtype=torch.float64), generator(2))
    reference = sde.integrate(
        sde.ReverseSDE(model), x, sde.grids.data_scaled(model.sde, 400, 1.2), sde.AdamsBashforth(5)
    )
    times = sde.grids.data_scaled(model.sde, 32, model.data_scale())
    errors = [
        float((sde.integrate(sde.ReverseSDE(model), x, times, sde.AdamsBashforth(k)) - reference).square().mean())
        for k in (1, 2, 3)
    ]
    assert errors[0] > 4 * errors[1] > 16 * errors[2]


class ThroughTensors(sde.Wrapper):
    """The same model on the tensor path."""

    def forward(self, x, t, **cond):
        return self.model(x, t, **cond)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_grid_and_single_step_coefficients_agree(k):
    model = sde.ExactScore(RING, sde.VP())
    x = model.prior(torch.zeros(20, 2, dtype=torch.float64), generator(3))
    times = sde.grids.data_scaled(model.sde, 9)
    a = sde.integrate(sde.ReverseSDE(model), x, times, sde.AdamsBashforth(k))
    b = sde.integrate(sde.ReverseSDE(ThroughTensors(model)), x, times, sde.AdamsBashforth(k))
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
@pytest.mark.parametrize("forward", [*SCALAR, sde.Tabulated.linear()], ids=lambda s: type(s).__name__)
def test_any_number_of_steps_is_finite_and_leaves_no_memory(forward, steps):
    model, solver = sde.ExactScore(RING, forward), sde.AdamsBashforth()
    draws = [sde.sample(model, (8, 2), steps=steps, solver=solver, generator=generator(4)) for _ in range(2)]
    assert draws[0].isfinite().all()
    assert torch.equal(*draws)


def test_encoding_and_decoding_is_the_identity():
    model = sde.ExactScore(RING, sde.VP())
    x = RING.sample(30, generator(5))
    down = sde.grids.data_scaled(model.sde, 400)
    code = sde.integrate(sde.ReverseSDE(model), x, down.flip(0), sde.AdamsBashforth(4))
    back = sde.integrate(sde.ReverseSDE(model), code, down, sde.AdamsBashforth(4))
    torch.testing.assert_close(back, x, rtol=0, atol=1e-4)


def test_it_refuses_noise_and_matrix_sdes_by_name():
    with pytest.raises(ValueError, match=r"AdamsBashforth solves the probability flow, got eta=1.0: use eta=0"):
        sde.sample(sde.ExactScore(RING, sde.VP()), (4, 2), solver=sde.AdamsBashforth(), eta=1.0)
    with pytest.raises(ValueError, match=r"needs a scalar SDE, got CLD: use Heun"):
        sde.sample(sde.ExactScore(RING, sde.CLD()), (4, 2), solver=sde.AdamsBashforth())
    with pytest.raises(ValueError, match=r"order must lie between 1 and 8, got 0"):
        sde.AdamsBashforth(0)


def test_sample_takes_it_by_default_where_it_can():
    from sde.solvers import default_solver

    scalar, matrix = (sde.ExactScore(RING, forward) for forward in (sde.VP(), sde.CLD()))
    assert isinstance(default_solver(scalar), sde.AdamsBashforth)
    assert isinstance(default_solver(scalar, eta=1.0), sde.Heun)
    assert isinstance(default_solver(matrix), sde.Heun)
