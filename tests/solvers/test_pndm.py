"""PNDM and iPNDM: diffusers' schedulers, textbook rules where steps are equal in rho, orders on three kinds of grid."""

import math

import pytest
import torch
from diffusers import IPNDMScheduler, PNDMScheduler

import sde
from sde.checks.convergence import fitted, mixture, ode_order
from sde.solvers.exponential.pndm import IPNDM, PNDM

VP, EDM, FLOW = sde.VP(), sde.EDM(), sde.Flow()


@pytest.fixture
def network():
    torch.manual_seed(0)
    net = sde.nets.MLP(dim=12, width=32, depth=2, time="sinusoidal")
    torch.nn.init.normal_(net.outward.weight, std=0.2)
    return net.double()


def start():
    return torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(("begin", "steps"), [("runge-kutta", 10), ("runge-kutta", 4), ("heun", 10), ("heun", 3)])
def test_diffusers_pndm(network, begin, steps):
    """Entry i of a table stands at t = i + 1, the data at 0; a step of an even length has its middle in the table."""
    model = sde.ScoreModel(network, sde.Tabulated.linear(), "eps")
    theirs = PNDMScheduler(num_train_timesteps=1000, skip_prk_steps=begin == "heun", set_alpha_to_one=True)
    theirs.alphas_cumprod, theirs.final_alpha_cumprod = model.sde._table, torch.tensor(1.0, dtype=torch.float64)
    theirs.set_timesteps(steps)
    x = start()
    for t in theirs.timesteps:
        x = theirs.step(network(x, torch.full((4,), float(t), dtype=torch.float64)), int(t), x).prev_sample
    nodes = [float(t) + 1 for t in reversed(range(0, 1000 // steps * steps, 1000 // steps))] + [0.0]
    states = list(sde.trajectory(sde.ReverseSDE(model), start(), nodes, PNDM(4, begin)))
    torch.testing.assert_close(states[-1].x, x, rtol=1e-9, atol=1e-9)
    assert states[-1].calls == len(theirs.timesteps)


class Trigonometric(sde.ScalarSDE):
    """The schedule of diffusers' iPNDM."""

    def alpha(self, t):
        return torch.cos(math.pi / 2 * t)

    def sigma(self, t):
        return torch.sin(math.pi / 2 * t)


@pytest.mark.parametrize("steps", [2, 3, 12])
def test_diffusers_ipndm(network, steps):
    """They begin at alpha = 0 by dividing by 1e-8, which is left out here, and end at sigma = 0."""
    model = sde.ScoreModel(network, Trigonometric(), "v")
    theirs = IPNDMScheduler()
    theirs.set_timesteps(steps + 1)
    nodes = torch.linspace(1, 0, steps + 2, dtype=torch.float64)[1:]
    theirs.betas = torch.cat([torch.ones(1).double(), model.sde.sigma(nodes)])
    theirs.alphas = torch.cat([torch.zeros(1).double(), model.sde.alpha(nodes)])
    theirs.set_begin_index(1)
    x = start()
    for t in nodes[:-1]:
        point = model(x, t)
        alpha, sigma = model.sde.levels(t)
        x = theirs.step(alpha * point.eps - sigma * point.x0, t, x).prev_sample
    ours = sde.integrate(sde.ReverseSDE(model), start(), nodes, IPNDM())
    torch.testing.assert_close(ours, x, rtol=1e-9, atol=1e-9)


def test_s_pndm_is_heun_and_two_steps_of_adams_bashforth():
    """Written out, on v = x / alpha and rho, for grids of any kind."""
    model, times = sde.ExactScore(mixture(), VP), torch.tensor([0.8, 0.6, 0.5, 0.35], dtype=torch.float64)
    x = sde.ExactScore(mixture(), VP).prior(torch.zeros(5, 2, dtype=torch.float64), torch.Generator().manual_seed(0))
    alpha, sigma = VP.levels(times)
    rho = sigma / alpha
    eps = lambda v, i: model(v * alpha[i], times[i]).eps  # noqa: E731
    v, h = x / alpha[0], rho.diff()
    e0 = eps(v, 0)
    v = v + h[0] * (e0 + eps(v + h[0] * e0, 1)) / 2
    e1 = eps(v, 1)
    v = v + h[1] * (3 * e1 - e0) / 2
    v = v + h[2] * (3 * eps(v, 2) - e1) / 2
    ours = sde.integrate(sde.ReverseSDE(model), x, times, PNDM(2, "heun"))
    torch.testing.assert_close(ours, v * alpha[3], rtol=1e-10, atol=1e-10)


# Orders. Equal steps in rho, steps that grow evenly, and steps of one and three in turn.


def equal(sde_, n):
    return sde_.time_at(-2 * torch.log(torch.linspace(3, 0.3, n + 1, dtype=torch.float64)))


def growing(sde_, n):
    return torch.linspace(*equal(sde_, 1).tolist(), n + 1, dtype=torch.float64)


def in_turn(sde_, n):
    steps = 1.0 + 2.0 * (torch.arange(n) % 2).double()
    u = torch.cat([torch.zeros(1).double(), steps.cumsum(0) / steps.sum()])
    return sde_.time_at(-2 * torch.log(3 - 2.7 * u))


@pytest.fixture(scope="module")
def flow():
    with torch.no_grad():
        reverse, generator = sde.ReverseSDE(sde.ExactScore(mixture(), VP)), torch.Generator().manual_seed(0)
        x = VP.perturb(mixture().sample(16, generator), equal(VP, 1)[0], generator).x
        return reverse, x, sde.integrate(reverse, x, equal(VP, 512), sde.RK4())


@pytest.mark.parametrize(
    ("solver", "grid", "order"),
    [
        (IPNDM(1), equal, 1), (IPNDM(2), equal, 2), (IPNDM(3), equal, 3), (PNDM(3), equal, 3), (PNDM(4), equal, 4),
        (PNDM(2, "heun"), equal, 2), (PNDM(4, "heun"), equal, 4), (IPNDM(2), growing, 2), (PNDM(3), growing, 2),
        (IPNDM(3), in_turn, 1), (PNDM(4), in_turn, 1), (PNDM(2, "heun"), in_turn, 1),
    ],
)  # fmt: skip
def test_order_on_a_grid(solver, grid, order, flow):
    """Its own on equal steps in rho; 2 at most where steps grow evenly; 1 where neighbours differ."""
    reverse, x, end = flow
    error = lambda n: float((sde.integrate(reverse, x, grid(VP, n), solver) - end).norm() / end.norm())  # noqa: E731
    assert fitted(error, last=256, floor=1e-9).value == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize("solver", [IPNDM(1), IPNDM(3), PNDM(3), PNDM(4, "heun")], ids=lambda s: type(s).__name__)
def test_declared_order(solver):
    assert ode_order(solver, VP).value == pytest.approx(solver.order, abs=0.1)


@pytest.mark.parametrize("forward", [EDM, FLOW], ids=lambda s: type(s).__name__)
def test_the_laws_hold(forward):
    sde.checks.solver(PNDM(), forward)


def test_evaluations_are_counted():
    model = sde.ExactScore(mixture(), FLOW)
    x = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def calls(solver, times):
        return [state.calls for state in sde.trajectory(sde.ReverseSDE(model), x, times, solver)]

    inside, ends = [0.9, 0.7, 0.5, 0.3, 0.1], [1.0, 0.6, 0.0]
    assert calls(PNDM(), inside) == [0, 4, 8, 12, 13]
    assert calls(PNDM(2), inside) == [0, 4, 5, 6, 7]
    assert calls(PNDM(4, "heun"), inside) == [0, 2, 3, 4, 5]
    assert calls(IPNDM(), inside) == [0, 1, 2, 3, 4]
    assert calls(PNDM(), ends) == [0, 1, 2]  # from alpha = 0 and to sigma = 0: one evaluation


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"order must be 1, 2, 3 or 4, got 5: .* DEIS goes up to 8"):
        IPNDM(5)
    with pytest.raises(ValueError, match="order must be 2, 3 or 4, got 1: IPNDM takes 1"):
        PNDM(1)
    with pytest.raises(ValueError, match="start must be runge-kutta or heun, got 'ramp': IPNDM has none"):
        PNDM(start="ramp")
    with pytest.raises(ValueError, match=r"PNDM solves the probability flow, got eta=0\.5"):
        PNDM().check(sde.ReverseSDE(sde.ExactScore(mixture(), VP), 0.5))
