"""UniPC: diffusers' scheduler, the authors' varying coefficients, fitted orders, what a wrong argument is told."""

import itertools
import math

import pytest
import torch
from diffusers import UniPCMultistepScheduler

import sde
from sde.checks.convergence import ode_order
from sde.solvers.exponential.unipc import UniPC

VP = sde.VP()


@pytest.fixture
def model():
    """An untrained eps network told integer timesteps, float64, on the linear table of 1000."""
    torch.manual_seed(0)
    net = sde.nets.MLP(dim=12, width=32, depth=2, time="sinusoidal")
    torch.nn.init.normal_(net.outward.weight, std=0.2)
    return sde.ScoreModel(net, sde.Tabulated.linear(), "eps").double()


def start(event=(3, 2, 2)):
    return torch.randn(4, *event, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def theirs(model, steps, last, **options):
    """A run of diffusers' scheduler in float64, and its nodes: entry i of a table stands at t = i + 1."""
    made = UniPCMultistepScheduler(num_train_timesteps=1000, final_sigmas_type=last, **options)
    made.set_timesteps(steps)
    table = model.sde._table
    ratios = torch.sqrt((1 - table) / table)
    made.sigmas = torch.cat([ratios[made.timesteps], ratios[:1] * (last != "zero")])
    x = start()
    for t in made.timesteps:
        eps = model.net(x, torch.full((4,), float(t), dtype=torch.float64))
        x = made.step(eps, t, x).prev_sample
    return x, [float(t) + 1 for t in made.timesteps] + [0.0 if last == "zero" else 1.0]


EVERY = itertools.product([1, 2, 3], ["bh1", "bh2"], ["x0", "eps"], [True, False], [7])


@pytest.mark.parametrize(
    ("order", "variant", "predict", "lower_order_final", "steps"),
    [*EVERY, *[(4, "bh2", "x0", True, 20), (2, "bh1", "eps", True, 1), (3, "bh1", "x0", False, 2)]],
)
def test_diffusers(model, order, variant, predict, lower_order_final, steps):
    x, nodes = theirs(
        model, steps, "sigma_min",
        solver_order=order, solver_type=variant, predict_x0=predict == "x0", lower_order_final=lower_order_final,
    )  # fmt: skip
    solver = UniPC(order, variant, predict, lower_order_final=lower_order_final)
    ours = sde.integrate(sde.ReverseSDE(model), start(), nodes, solver)
    torch.testing.assert_close(ours, x, rtol=1e-8, atol=1e-8)


def test_diffusers_to_sigma_zero_and_without_a_corrector(model):
    """Their last step divides infinities in all but this variant."""
    x, nodes = theirs(model, 10, "zero", solver_order=3, solver_type="bh2", disable_corrector=list(range(10)))
    ours = sde.integrate(sde.ReverseSDE(model), start(), nodes, UniPC(3, corrector=False))
    torch.testing.assert_close(ours, x, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("predict", ["x0", "eps"])
def test_varying_coefficients_are_the_authors(predict):
    """Derivatives h^n E^(n) from differences by the inverse of C, each times its phi function."""
    forward, times = sde.VP(), torch.tensor([0.9, 0.75, 0.6, 0.42, 0.3], dtype=torch.float64)
    model = sde.ExactScore(sde.Gaussian([0.3], 0.5), forward)
    *_, w = UniPC(3, "vary", predict, corrector=False, lower_order_final=False).columns(model, 0.0, times)
    alpha, sigma = forward.levels(times)
    lam = torch.log(alpha / sigma)
    h = lam[4] - lam[3]
    r = (lam[[2, 1]] - lam[3]) / h
    c = torch.stack([r ** (n - 1) / math.factorial(n) for n in (1, 2)], 1)
    z = -h if predict == "x0" else h
    phi = [torch.expm1(z) / z]
    for n in (1, 2):
        phi.append((phi[-1] - 1 / math.factorial(n)) / z)
    unit = alpha[4] if predict == "x0" else sigma[4]
    # int e^{..} E dlambda = -unit z sum_n phi_{n+1} h^n E^(n), E^(n) h^n = sum_k inverse_nk (E_k - E_0) / r_k
    on_differences = -unit * z * torch.stack([phi[1], phi[2]]) @ torch.linalg.inv(c) / r
    expected = torch.cat([(-unit * z * phi[0] - on_differences.sum())[None], on_differences])
    torch.testing.assert_close(w[3], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("predict", ["x0", "eps"])
def test_varying_coefficients_are_an_adams_rule(predict):
    model = sde.ExactScore(sde.Mixture([0.4, 0.6], [[-0.6], [0.6]], [0.2, 0.15]), sde.VP())
    x = model.prior(torch.zeros(20, 1, dtype=torch.float64), torch.Generator().manual_seed(0))
    times = sde.grids.data_scaled(model.sde, 12)
    ours = UniPC(3, "vary", predict, lower_order_final=False)
    adams = sde.Adams(3, predict, "log_snr")
    a, b = (sde.integrate(sde.ReverseSDE(model), x, times, solver) for solver in (ours, adams))
    torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("solver", "order"),
    [
        (UniPC(1, corrector=False), 1),
        (UniPC(1, "bh1"), 2),
        (UniPC(2, corrector=False), 2),
        (UniPC(2, "bh2", lower_order_final=False), 3),
        (UniPC(2, "bh1", lower_order_final=False), 3),
        (UniPC(2, "bh2", "eps", lower_order_final=False), 3),
        (UniPC(3), 2),
        (UniPC(3, "bh1", lower_order_final=False), 3),
        (UniPC(3, "bh2", "eps", lower_order_final=False), 3),
    ],
)
def test_observed_order(solver, order):
    """In lambda a rule on x0 or eps is the same for every SDE: what is left are the ends, and the laws."""
    assert solver.order == order
    assert ode_order(solver, VP).value == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("forward", [sde.EDM(), sde.Flow()], ids=lambda s: type(s).__name__)
def test_the_laws_hold(forward):
    fits = sde.checks.solver(UniPC(2, lower_order_final=False), forward)
    assert fits["order"].value == pytest.approx(3, abs=0.1)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="predict must be x0 or eps, got 'edm': Adams takes edm"):
        UniPC(predict="edm")
    with pytest.raises(ValueError, match="variant must be one of bh1, bh2, vary, got 'bh3'"):
        UniPC(variant="bh3")
    with pytest.raises(ValueError, match="order must be a whole number from 1 to 8, got 0"):
        UniPC(0)
    with pytest.raises(ValueError, match=r"UniPC solves the probability flow, got eta=1.0: use eta=0"):
        UniPC().check(sde.ReverseSDE(sde.ExactScore(sde.Gaussian([0.0], 1.0), sde.VP()), 1.0))
