"""DPM-Solver and DPM-Solver++: fitted orders, the ends, and equality with diffusers and with published formulas."""

import math
from itertools import pairwise

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, DPMSolverSinglestepScheduler, KDPM2DiscreteScheduler
from scipy.integrate import quad

import sde
from sde.checks import ode_order, samples, strong_order, weak_order
from sde.checks.convergence import window
from sde.solvers.exponential.dpm import DPMSolver, DPMSolverPP
from sde.solvers.exponential.logsnr import moments, through

SDES = {"VP": sde.VP(), "EDM": sde.EDM(), "Flow": sde.Flow()}
MIXTURE = sde.Mixture([0.2, 0.3, 0.5], [[-1.5, 0.0], [1.0, 1.0], [0.5, -1.0]], [[0.15, 0.05], [0.05, 0.05], [0.1, 0.3]])
RULES = {
    "1S": DPMSolver(1),
    "2S": DPMSolver(2),
    "2S heun": DPMSolver(2, solver_type="heun"),
    "3S": DPMSolver(3),
    "3S heun": DPMSolver(3, solver_type="heun"),
    "2M": DPMSolver(2, multistep=True),
    "2M heun": DPMSolver(2, multistep=True, solver_type="heun"),
    "3M": DPMSolver(3, multistep=True),
    "3M full": DPMSolver(3, multistep=True, start="full"),
    "++1": DPMSolverPP(1),
    "++2S": DPMSolverPP(2, multistep=False),
    "++2S heun": DPMSolverPP(2, multistep=False, solver_type="heun"),
    "++3S": DPMSolverPP(3, multistep=False),
    "++2M": DPMSolverPP(2),
    "++2M heun": DPMSolverPP(2, solver_type="heun"),
    "++2M lower": DPMSolverPP(2, lower_order_final=True),
    "++3M": DPMSolverPP(3),
    "++3M full": DPMSolverPP(3, start="full"),
    "++3M as published": DPMSolverPP(3, start="full", as_published=True),
}
ORDERS = {name: 1.0 if "1" in name else 2.0 for name in RULES} | dict.fromkeys(
    ("3S", "3S heun", "3M full", "++3S", "++3M full"), 3.0
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def exact(name, target=MIXTURE):
    return sde.ExactScore(target, SDES[name])


def start(batch=4, event=(3,), seed=0):
    return torch.randn(batch, *event, generator=generator(seed), dtype=torch.float64)


# The coefficients.


@pytest.mark.parametrize("z", [-30.0, -1.001, -0.999, -1e-3, 1e-9, 0.5, 0.999, 1.001, 12.0])
def test_moments_are_the_integrals(z):
    found = moments(torch.tensor([z], dtype=torch.float64))[0]
    for k in range(3):
        area = quad(lambda u: z * math.exp(z * (1 - u)) * u**k, 0, 1, epsabs=0, epsrel=1e-12)[0]  # noqa: B023
        assert found[k].item() == pytest.approx(area, rel=1e-11)


@pytest.mark.parametrize("u", [[], [-0.7], [0.4], [-0.7, -2.0], [0.3, 0.6]])
def test_weights_integrate_every_polynomial_through_the_nodes(u):
    j = moments(torch.tensor([0.8], dtype=torch.float64))
    w = through([torch.tensor([v], dtype=torch.float64) for v in u], j)[0]
    for degree in range(len(u) + 1):
        values = torch.tensor([v**degree for v in [0.0, *u]], dtype=torch.float64)
        assert (w @ values).item() == pytest.approx(j[0, degree].item(), rel=1e-12)


# Orders.


def test_what_is_declared():
    assert {name: rule.order for name, rule in RULES.items()} == ORDERS
    assert {name: rule.weak for name, rule in RULES.items()} == {name: 1.0 if "1" in name else 2.0 for name in RULES}
    assert {rule.strong for rule in RULES.values()} == {1.0}
    assert [RULES[name].calls for name in ("1S", "2S", "3S", "++3S", "++2M", "++3M full")] == [1, 2, 3, 3, 1, 1]
    assert [RULES[name].nominal for name in ("++3M", "++3M as published", "++2M", "3S")] == [3.0, 2.0, 2.0, 3.0]


@pytest.mark.parametrize("name", RULES)
def test_order_on_the_flow(name):
    assert ode_order(RULES[name], SDES["VP"]).value == pytest.approx(ORDERS[name], abs=0.1)


@pytest.mark.parametrize(
    ("name", "eta"), [("2S", 1.0), ("2M", 0.5), ("3S", 0.5), ("++2S", 0.5), ("++2M", 1.0), ("++3M full", 1.0)]
)
def test_weak_order(name, eta):
    assert weak_order(RULES[name], SDES["VP"], eta).value == pytest.approx(RULES[name].weak, abs=0.1)


@pytest.mark.parametrize("name", ["2S", "++2M"])
def test_strong_order(name):
    """Where memory's error of higher order leads at few steps the slope is steeper there than in the limit, 1."""
    slope = strong_order(RULES[name], SDES["VP"], 1.0, batch=32).value
    assert 0.8 <= slope <= (1.4 if RULES[name].multistep else 1.2)


@pytest.mark.nightly
@pytest.mark.parametrize("forward", SDES)
@pytest.mark.parametrize("name", RULES)
def test_orders_on_every_sde(name, forward):
    rule = RULES[name]
    assert ode_order(rule, SDES[forward]).value == pytest.approx(ORDERS[name], abs=0.1)
    for eta in (0.3, 1.5):
        assert weak_order(rule, SDES[forward], eta).value == pytest.approx(rule.weak, abs=0.15)
    assert 0.8 <= strong_order(rule, SDES[forward], 1.0, batch=64).value <= (1.45 if rule.multistep else 1.2)


def difference_of_means(solver, eta, batch, steps=(8, 16, 32)):
    """Differences of E phi between step counts, over one set of Brownian paths, with their standard errors."""
    model = sde.ExactScore(sde.Mixture([0.4, 0.6], [[-0.6], [0.6]], [0.2, 0.15]), SDES["VP"])
    fine = model.sde.time_at(torch.linspace(-2, 2, steps[-1] + 1, dtype=torch.float64))
    x, path = torch.full((batch, 1), 0.3, dtype=torch.float64), sde.BrownianPath(generator(1))
    flow = sde.ReverseSDE(model, eta)
    ends = [sde.integrate(flow, x, fine[:: steps[-1] // n], solver, noise=path) for n in steps]
    phi = [torch.sin(y) + 0.3 * torch.cos(1.5 * y) for y in ends]
    gaps = [a - b for a, b in pairwise(phi)]
    return [(float(g.mean().abs()), float(g.std()) / math.sqrt(batch)) for g in gaps]


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["++2M", "++3M", "++2S", "3M"])
def test_weak_order_with_a_score_that_is_not_linear(name):
    (coarse, wide), (fine, narrow) = difference_of_means(RULES[name], 1.0, 200_000)
    assert fine - 3 * narrow < (coarse + 3 * wide) / 4
    assert fine < coarse / 2.6  # an order of 1.4 at least


def test_a_full_start_is_of_third_order_only():
    flow, times = sde.ReverseSDE(exact("VP")), window(SDES["VP"], 5)
    full, ramp = (sde.integrate(flow, start(event=(2,)), times, DPMSolverPP(2, start=s)) for s in ("full", "ramp"))
    assert torch.equal(full, ramp)


def test_a_full_start_costs_one_evaluation_and_is_counted():
    flow = sde.ReverseSDE(exact("VP"))
    counts = [
        [state.calls for state in sde.trajectory(flow, start(event=(2,)), window(SDES["VP"], 4), rule)]
        for rule in (RULES["++3M full"], RULES["++3M"], RULES["3S"])
    ]
    assert counts == [[0, 2, 3, 4, 5], [0, 1, 2, 3, 4], [0, 3, 6, 9, 12]]


@pytest.mark.parametrize("rule", [RULES["3S"], RULES["++2S"], RULES["++3M full"]], ids=["3S", "++2S", "++3M full"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_calls_are_those_made(rule, eta):
    model = Counting(exact("Flow"))
    times = sde.grids.uniform(SDES["Flow"], 5)
    times = torch.cat([torch.ones(1), torch.tensor([0.8, 0.5, 0.2, 0.0])]).double()
    *_, last = sde.trajectory(sde.ReverseSDE(model, eta), start(event=(2,)), times, rule, generator())
    assert model.count == last.calls == {3: 1 + 3 + 3 + 1, 2: 1 + 2 + 2 + 1, 1: 1 + 2 + 1 + 1}[rule.calls]


class Counting(sde.Wrapper):
    """The same model on the tensor path, counted."""

    count = 0

    def forward(self, x, t, **cond):
        self.count += 1
        return self.model(x, t, **cond)


# The same as others'.


@pytest.fixture
def network():
    """An untrained eps network on VP, float64."""
    torch.manual_seed(0)
    net = sde.nets.MLP(dim=3, width=32, depth=2)
    torch.nn.init.normal_(net.outward.weight, std=0.3)
    return sde.ScoreModel(net, SDES["VP"], "eps").double()


def scheduler(kind, forward, times, **options):
    """A scheduler of diffusers on the grid of a run."""
    theirs = kind(num_train_timesteps=1000, **options)
    theirs.set_timesteps(len(times) - 1)
    alpha, sigma = forward.levels(times)
    theirs.sigmas = sigma / alpha
    theirs.set_begin_index(0)
    return theirs


def run(theirs, model, x, times, draws=None):
    for i, (t, node) in enumerate(zip(theirs.timesteps, times, strict=False)):
        eps = model(x, float(node)).eps
        x = theirs.step(eps, t, x, **({} if draws is None else {"variance_noise": draws[i]})).prev_sample
    return x


def assert_equal(ours, theirs, rtol):
    assert float((ours - theirs).norm() / theirs.norm()) < rtol


MULTISTEP = [
    (algorithm, order, solver_type, to_zero)
    for algorithm in ("dpmsolver++", "sde-dpmsolver++", "dpmsolver", "sde-dpmsolver")
    for order in ((1, 2) if algorithm.startswith("sde") else (1, 2, 3))
    for solver_type in ("midpoint", "heun")
    for to_zero in ((False, True) if algorithm.endswith("++") else (False,))
]


@pytest.mark.parametrize(("algorithm", "order", "solver_type", "to_zero"), MULTISTEP)
def test_diffusers_multistep(network, given_noise, algorithm, order, solver_type, to_zero):
    """diffusers works in float32. Its SDE version of order 3 has a sign of its own: see the next test."""
    noisy, plus = algorithm.startswith("sde"), algorithm.endswith("++")
    times = window(SDES["VP"], 11)  # under 15 steps: the last two of lower order
    times = torch.cat([times, times.new_zeros(1)]) if to_zero else times
    theirs = scheduler(
        DPMSolverMultistepScheduler, SDES["VP"], times, algorithm_type=algorithm, solver_order=order,
        solver_type=solver_type, final_sigmas_type="zero" if to_zero else "sigma_min",
    )  # fmt: skip
    x, *draws = start(batch=4 * 13).chunk(13)
    expected = run(theirs, network, x, times, draws if noisy else None)
    kind = DPMSolverPP if plus else DPMSolver
    rule = kind(order, multistep=True, solver_type=solver_type, lower_order_final=True, as_published=True)
    flow = sde.ReverseSDE(network, float(noisy))
    assert_equal(sde.integrate(flow, x, times, rule, noise=given_noise(*draws)), expected, 5e-6)


def test_diffusers_third_order_sde_has_a_wrong_sign(network):
    """Its coefficient of the second difference is H/6 - 1 where the published formula has H/6."""
    times = window(SDES["VP"], 9)
    theirs = scheduler(DPMSolverMultistepScheduler, SDES["VP"], times, algorithm_type="sde-dpmsolver++", solver_order=3)
    theirs._step_index = 4
    x, a, b, c, z = start(batch=20).chunk(5)
    given = theirs.multistep_dpm_solver_third_order_update([c, b, a], sample=x, noise=z)
    half = SDES["VP"].log_snr(times) / 2
    r0, r1 = ((half[k + 1] - half[k]) / (half[5] - half[4]) for k in (3, 2))
    second = ((a - b) / r0 - (b - c) / r1) / (r0 + r1)
    rule = DPMSolverPP(3, as_published=True)
    columns = [column[4] for column in rule.columns(network, 1.0, times)]
    ours = columns[2] * x + columns[3][0] * a + columns[3][1] * b + columns[3][2] * c + columns[5] * z
    torch.testing.assert_close(given, ours - SDES["VP"].levels(times[5])[0] * second, rtol=1e-9, atol=1e-9)


def with_stages(rule, forward, times):
    """The grid with the times inside its steps, as one row."""
    inner = rule.stages(sde.ReverseSDE(exact("VP")), times)
    return torch.cat([torch.stack([times[:-1], *inner], 1).flatten(), times[-1:]])


@pytest.mark.parametrize(("order", "solver_type"), [(1, "midpoint"), (2, "midpoint"), (2, "heun"), (3, "heun")])
@pytest.mark.parametrize("algorithm", ["dpmsolver++", "dpmsolver"])
def test_diffusers_singlestep(network, algorithm, order, solver_type):
    """Its grid holds the stages. Its third order "midpoint" has another second stage than the paper's algorithm."""
    rule = (DPMSolverPP if algorithm.endswith("++") else DPMSolver)(order, multistep=False, solver_type=solver_type)
    times = window(SDES["VP"], 7)
    spread = with_stages(rule, SDES["VP"], times)
    theirs = scheduler(
        DPMSolverSinglestepScheduler, SDES["VP"], spread, algorithm_type=algorithm, solver_order=order,
        solver_type=solver_type, final_sigmas_type="sigma_min",
    )  # fmt: skip
    ours = sde.integrate(sde.ReverseSDE(network), start(), times, rule)
    assert_equal(ours, run(theirs, network, start(), spread), 1e-9)


def test_the_papers_third_order(network):
    """Algorithm 2 of Lu et al. (2022), 2206.00927."""
    times, vp = window(SDES["VP"], 6), SDES["VP"]
    x, r1, r2 = start(), 1 / 3, 2 / 3
    for t, s in pairwise(times):
        lam, h = vp.log_snr(t) / 2, (vp.log_snr(s) - vp.log_snr(t)) / 2
        t1, t2 = vp.time_at(2 * (lam + r1 * h)), vp.time_at(2 * (lam + r2 * h))
        (a, _), (a1, s1), (a2, s2), (a3, s3) = (vp.levels(v) for v in (t, t1, t2, s))
        eps = network(x, t).eps
        u1 = a1 / a * x - s1 * torch.expm1(r1 * h) * eps
        d1 = network(u1, t1).eps - eps
        u2 = a2 / a * x - s2 * torch.expm1(r2 * h) * eps - s2 * r2 / r1 * (torch.expm1(r2 * h) / (r2 * h) - 1) * d1
        d2 = network(u2, t2).eps - eps
        x = a3 / a * x - s3 * torch.expm1(h) * eps - s3 / r2 * (torch.expm1(h) / h - 1) * d2
    assert_equal(sde.integrate(sde.ReverseSDE(network), start(), times, DPMSolver(3)), x, 1e-10)


class ScaledNetwork:
    """EDM's convention: x0 of x + sigma z."""

    def __init__(self):
        self.model = exact("EDM")

    def __call__(self, x, sigma):
        return self.model(x, sigma).x0


def karras(steps, to_zero=True):
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    sigmas = (10 ** (1 / 7) + ramp * (0.05 ** (1 / 7) - 10 ** (1 / 7))) ** 7
    return torch.cat([sigmas, sigmas.new_zeros(1)]) if to_zero else sigmas


def k_diffusion_2m_sde(denoise, x, sigmas, draws, eta, solver_type):
    old, h_last = None, None
    for i, (a, b) in enumerate(pairwise(sigmas)):
        d = denoise(x, a)
        if b == 0:
            x = d
            continue
        h = (a / b).log()
        eta_h = eta * h
        x = b / a * torch.exp(-eta_h) * x - torch.expm1(-h - eta_h) * d
        if old is not None:
            r = h_last / h
            if solver_type == "heun":
                x = x + (-torch.expm1(-h - eta_h) / (-h - eta_h) + 1) * (1 / r) * (d - old)
            else:
                x = x + 0.5 * -torch.expm1(-h - eta_h) * (1 / r) * (d - old)
        x = x + draws[i] * b * (-torch.expm1(-2 * eta_h)).sqrt()
        old, h_last = d, h
    return x


def k_diffusion_3m_sde(denoise, x, sigmas, draws, eta):
    past, steps = [], []
    for i, (a, b) in enumerate(pairwise(sigmas)):
        d = denoise(x, a)
        if b == 0:
            x = d
            continue
        h = (a / b).log()
        h_eta = h * (eta + 1)
        x = torch.exp(-h_eta) * x - torch.expm1(-h_eta) * d
        phi_2 = torch.expm1(-h_eta) / h_eta + 1
        if len(past) > 1:
            r0, r1 = steps[0] / h, steps[1] / h
            d1_0, d1_1 = (d - past[0]) / r0, (past[0] - past[1]) / r1
            d1 = d1_0 + (d1_0 - d1_1) * r0 / (r0 + r1)
            d2 = (d1_0 - d1_1) / (r0 + r1)
            x = x + phi_2 * d1 - (phi_2 / h_eta - 0.5) * d2
        elif past:
            x = x + phi_2 * (d - past[0]) / (steps[0] / h)
        x = x + draws[i] * b * (-torch.expm1(-2 * h * eta)).sqrt()
        past, steps = [d, *past], [h, *steps]
    return x


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
def test_k_diffusion_2m(given_noise, eta, solver_type):
    """sample_dpmpp_2m and sample_dpmpp_2m_sde; its eta is the square of ours."""
    sigmas = karras(12)
    x, *draws = 10 * start(batch=4 * 13, event=(2,)).chunk(13)
    expected = k_diffusion_2m_sde(ScaledNetwork(), x, sigmas, draws, eta, solver_type)
    flow = sde.ReverseSDE(exact("EDM"), math.sqrt(eta))
    ours = sde.integrate(flow, x, sigmas, DPMSolverPP(2, solver_type=solver_type), noise=given_noise(*draws))
    assert_equal(ours, expected, 1e-11)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_k_diffusion_3m_sde(given_noise, eta):
    sigmas = karras(12)
    x, *draws = 10 * start(batch=4 * 13, event=(2,)).chunk(13)
    expected = k_diffusion_3m_sde(ScaledNetwork(), x, sigmas, draws, eta)
    flow, rule = sde.ReverseSDE(exact("EDM"), math.sqrt(eta)), DPMSolverPP(3, solver_type="heun", as_published=True)
    assert_equal(sde.integrate(flow, x, sigmas, rule, noise=given_noise(*draws)), expected, 1e-11)


def test_k_diffusion_sde(given_noise):
    """sample_dpmpp_sde at its eta = 1, r = 1/2: both noises of a step are of one path there as here."""
    sigmas, denoise = karras(9), ScaledNetwork()
    first, *draws = 10 * start(batch=4 * 19, event=(2,)).chunk(19)
    x, used = first, iter(draws)
    for a, b in pairwise(sigmas):
        d = denoise(x, a)
        if b == 0:
            x = d
            continue
        m = (a * b).sqrt()
        downs = [low * low / a for low in (m, b)]  # sigma_down of an ancestral step, and sigma_up beside it
        up_m, up = ((low**2 - down**2).sqrt() for low, down in zip((m, b), downs, strict=True))
        z_m, z_rest = next(used), next(used)
        # The step's unit increment from those of its halves, in the path's own clock.
        z = (b**2 / m**2 * up_m * z_m + (b**2 - b**4 / m**2).sqrt() * z_rest) / up
        y = downs[0] / a * x + (1 - downs[0] / a) * d + up_m * z_m
        x = downs[1] / a * x + (1 - downs[1] / a) * denoise(y, m) + up * z
    flow = sde.ReverseSDE(exact("EDM"), 1.0)
    ours = sde.integrate(flow, first, sigmas, DPMSolverPP(2, multistep=False), noise=given_noise(*draws))
    assert_equal(ours, x, 1e-11)


def test_k_diffusion_dpm_2_and_diffusers_kdpm2():
    """sample_dpm_2 is DPM-Solver-2 on EDM."""
    sigmas, denoise = karras(10), ScaledNetwork()
    x = first = 10 * start(event=(2,))
    for a, b in pairwise(sigmas):
        slope = (x - denoise(x, a)) / a
        if b == 0:
            x = x - a * slope
            continue
        m = (a * b).sqrt()
        y = x + slope * (m - a)
        x = x + (y - denoise(y, m)) / m * (b - a)
    ours = sde.integrate(sde.ReverseSDE(exact("EDM")), first, sigmas, DPMSolver(2))
    assert_equal(ours, x, 1e-11)
    theirs = KDPM2DiscreteScheduler()
    theirs.set_timesteps(10)
    mid = (sigmas[:-1] * sigmas[1:]).sqrt()
    theirs.sigmas = torch.stack([sigmas, sigmas], 1).flatten()[1:]
    theirs.sigmas_interpol = torch.stack([torch.cat([sigmas[:1], mid]), torch.cat([sigmas[:1], mid])], 1).flatten()[1:]
    theirs.set_begin_index(0)
    model, y = exact("EDM"), first
    for i, node in enumerate(torch.stack([sigmas[:-1], mid], 1).flatten()[:-1]):
        eps = (y - model(y, node).x0) / node
        y = theirs.step(eps, theirs.timesteps[i], y).prev_sample
    assert_equal(ours, y, 1e-9)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_first_orders_are_ddim_and_ancestral(given_noise, eta):
    x, *draws = start(batch=4 * 9, event=(2,)).chunk(9)
    for name, forward in SDES.items():
        times = window(forward, 8)
        flow = sde.ReverseSDE(exact(name), eta)
        ours = sde.integrate(flow, x, times, DPMSolverPP(1), noise=given_noise(*draws))
        torch.testing.assert_close(ours, sde.integrate(flow, x, times, sde.DDIM(), noise=given_noise(*draws)))
        if not eta:
            torch.testing.assert_close(sde.integrate(flow, x, times, DPMSolver(1)), ours)


@pytest.mark.parametrize("predict", ["x0", "eps"])
def test_heun_with_memory_is_the_exponential_adams_rule(predict):
    kind = DPMSolverPP if predict == "x0" else DPMSolver
    for k in (2, 3):
        flow, times = sde.ReverseSDE(exact("VP")), window(SDES["VP"], 9)
        ours = sde.integrate(flow, start(event=(2,)), times, kind(k, multistep=True, solver_type="heun"))
        theirs = sde.Adams(k, predict=predict, coordinate="log_snr", corrector=False)
        torch.testing.assert_close(ours, sde.integrate(flow, start(event=(2,)), times, theirs), rtol=1e-8, atol=1e-9)


# The ends, any number of steps, and everything that calls.

TO_ZERO = {
    "VP": [1.0, 0.9, 0.6, 0.35, 0.1, 0.02, 0.0],
    "EDM": [80.0, 30.0, 8.0, 2.0, 0.5, 0.1, 0.0],
    "Flow": [1.0, 0.9, 0.6, 0.4, 0.2, 0.05, 0.0],
}
MANY = ["2S", "3S", "3S heun", "2M", "3M full", "++2S", "++3S", "++2M", "++3M", "++3M full"]


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", MANY)
@pytest.mark.parametrize("forward", SDES)
def test_the_step_to_the_data_is_the_denoiser(forward, name, eta):
    """x_0 is the model's x0 at the last node before it, whatever the order; and all before is finite."""
    model, times = exact(forward), torch.tensor(TO_ZERO[forward], dtype=torch.float64)
    x = model.prior(torch.zeros(6, 2, dtype=torch.float64), generator())
    states = sde.trajectory(sde.ReverseSDE(model, eta), x, times, RULES[name], generator(1))
    *_, before, last = states
    assert before.x.isfinite().all()
    torch.testing.assert_close(last.x, model(before.x, before.t).x0, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", MANY)
def test_from_alpha_zero_the_first_step_is_exact(given_noise, name):
    """At Flow's t = 1 x tells nothing of x0: to alpha m + sigma x on the flow, to alpha m + sigma z with noise."""
    model = exact("Flow")
    x, z = start(batch=12, event=(2,)).chunk(2)
    times = torch.tensor([1.0, 0.7], dtype=torch.float64)
    for eta, noise in ((0.0, x), (0.5, z), (1.0, z)):
        y = sde.integrate(sde.ReverseSDE(model, eta), x, times, RULES[name], noise=given_noise(z))
        torch.testing.assert_close(y, 0.3 * MIXTURE.mean.double() + 0.7 * noise, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
@pytest.mark.parametrize("name", ["3S", "2M", "++2S", "++3M full"])
def test_any_number_of_steps_is_finite_and_leaves_no_memory(name, steps):
    for forward in SDES:
        draws = [
            sde.sample(exact(forward), (8, 2), steps=steps, solver=RULES[name], eta=eta, generator=generator(4))
            for eta in (0.0, 1.0)
            for _ in range(2)
        ]
        assert all(x.isfinite().all() for x in draws)
        assert torch.equal(draws[0], draws[1])
        assert torch.equal(draws[2], draws[3])
        assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("name", ["2S", "++2M", "++3M full"])
@pytest.mark.parametrize("forward", ["VP", "Flow"])
def test_encoding_and_decoding_is_the_identity(forward, name):
    """Up from sigma = 0 and down again."""
    model = exact(forward)
    x = MIXTURE.sample(10, generator(5)).double()
    down = torch.cat([sde.grids.data_scaled(SDES[forward], 120), torch.zeros(1, dtype=torch.float64)])
    code = sde.integrate(sde.ReverseSDE(model), x, down.flip(0), RULES[name])
    back = sde.integrate(sde.ReverseSDE(model), code, down, RULES[name])
    assert float((back - x).abs().median()) < 5e-3
    assert code.isfinite().all()


@pytest.mark.parametrize("name", ["3S", "++3M full", "++2S"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_tensor_path_agrees(given_noise, name, eta):
    x, *draws = start(batch=4 * 31, event=(2,)).chunk(31)
    times = torch.tensor(TO_ZERO["Flow"], dtype=torch.float64)
    a = sde.integrate(sde.ReverseSDE(exact("Flow"), eta), x, times, RULES[name], noise=given_noise(*draws))
    counting = Counting(exact("Flow"))
    b = sde.integrate(sde.ReverseSDE(counting, eta), x, times, RULES[name], noise=given_noise(*draws))
    torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_a_single_step_by_hand_leaves_the_solver_as_it_was():
    rule, flow = DPMSolver(3), sde.ReverseSDE(exact("EDM"))
    x = rule.step(flow, start(event=(2,)), 1.0, 0.5, sde.WhiteNoise())
    grid = torch.tensor([1.0, 0.5], dtype=torch.float64)
    torch.testing.assert_close(x, sde.integrate(flow, start(event=(2,)), grid, rule), rtol=1e-11, atol=1e-11)
    rule.step(flow, start(event=(2,)), 1.0, 0.0, sde.WhiteNoise())
    assert rule.calls == 3


def test_grids_below_t_min_keep_their_stages():
    """EDM's t_min is .002: stages of a step below it are where they belong."""
    edm, times = SDES["EDM"], torch.tensor([1e-3, 1e-4], dtype=torch.float64)
    inner = DPMSolver(3).stages(sde.ReverseSDE(exact("EDM")), times)
    torch.testing.assert_close(
        torch.cat(inner), 1e-3 * 0.1 ** torch.tensor([1 / 3, 2 / 3], dtype=torch.float64), rtol=1e-9, atol=0
    )
    assert edm.t_min == 0.002


def test_laws():
    for rule, name in ((DPMSolver(2), "EDM"), (DPMSolverPP(2), "VP")):
        sde.checks.solvers.calls(rule, SDES[name])
        sde.checks.solvers.finite_samples(rule, SDES[name])


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["2S", "3S", "++1", "++2S", "++3S", "++2M", "++3M full"])
def test_all_laws(name):
    sde.checks.solver(RULES[name], sde.Cosine())


@pytest.mark.parametrize(
    ("name", "forward", "steps", "eta"),
    [("3S", "Flow", 16, 0.0), ("++2M", "EDM", 64, 1.0), ("++2S", "VP", 40, 0.7)],
)
def test_samples_of_a_mixture(name, forward, steps, eta):
    samples(exact(forward), RULES[name], steps, eta=eta)


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"order must be 1, 2 or 3, got 4: for higher ones use Adams"):
        DPMSolverPP(4)
    with pytest.raises(ValueError, match=r"solver_type must be midpoint or heun, got 'bh2'"):
        DPMSolver(2, solver_type="bh2")
    with pytest.raises(ValueError, match=r"start must be ramp or full, got 'exact'"):
        DPMSolverPP(3, start="exact")
    with pytest.raises(ValueError, match=r"lower_order_final=True is for multistep=True"):
        DPMSolver(2, lower_order_final=True)
    with pytest.raises(ValueError, match=r"DPMSolverPP needs a scalar SDE, got CLD: use Heun or RK4"):
        sde.sample(sde.ExactScore(MIXTURE, sde.CLD()), (4, 2), solver=DPMSolverPP())
    with pytest.raises(ValueError, match=r"wrap a model in ReverseSDE"):
        sde.integrate(sde.BrownianMotion(), torch.zeros(3, 1), torch.linspace(0, 1, 3), DPMSolver())
