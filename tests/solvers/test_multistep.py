"""What holds for every published multistep rule: both ends, any number of steps, offsets, both paths, runs apart."""

import itertools

import pytest
import torch

import sde
from sde.solvers.exponential.deis import DEIS, RhoRK
from sde.solvers.exponential.pndm import IPNDM, PNDM
from sde.solvers.exponential.sa import SASolver
from sde.solvers.exponential.unipc import UniPC

TARGET = sde.Mixture([0.4, 0.35, 0.25], [[1.5, 0.0], [-0.8, 1.2], [-0.7, -1.3]], [0.3, 0.2, 0.25])
RULES = {
    "UniPC": UniPC(),
    "UniPC(2, bh1, eps)": UniPC(2, "bh1", "eps", lower_order_final=False),
    "UniPC(3, vary)": UniPC(3, "vary", corrector=False),
    "DEIS": DEIS(),
    "DEIS(3, ratio, full)": DEIS(3, "ratio", "full"),
    "DEIS(2, log_snr)": DEIS(2, "log_snr"),
    "RhoRK": RhoRK(),
    "RhoRK(rk4)": RhoRK("rk4"),
    "IPNDM": IPNDM(),
    "PNDM": PNDM(),
    "PNDM(4, heun)": PNDM(4, "heun"),
    "SASolver": SASolver(),
    "SASolver(3, 4, rescaled)": SASolver(3, 4, rescaled=True),
    "SASolver(2, 2, interval)": SASolver(2, 2, (0.1, 2.0), lower_order_final=False),
}
NOISY = [name for name in RULES if name.startswith("SASolver")]
FORWARD = {
    "VP": sde.VP(),
    "EDM": sde.EDM(),
    "Flow": sde.Flow(),
    "table": sde.Tabulated.linear(),
}
every_rule = pytest.mark.parametrize("rule", RULES)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def run(model, rule, times, x=None, eta=None, seed=1, **options):
    x = model.prior(torch.zeros(8, 2, dtype=torch.float64), generator()) if x is None else x
    eta = RULES[rule].eta if eta is None else eta
    return sde.integrate(sde.ReverseSDE(model, eta), x, times, RULES[rule], generator(seed), **options)


def to_zero(forward, steps):
    """From t_max, where alpha may be 0, to sigma = 0."""
    times = sde.grids.data_scaled(forward, max(steps - 1, 1))
    return torch.cat([times, torch.zeros(1).double()]) if steps > 1 else torch.tensor([forward.t_max, 0.0]).double()


@every_rule
@pytest.mark.parametrize("forward", FORWARD)
def test_any_number_of_steps_from_end_to_end(rule, forward):
    model = sde.ExactScore(TARGET, FORWARD[forward])
    for steps, eta in itertools.product((1, 2, 3, 7), (0.0, 1.0) if rule in NOISY else (0.0,)):
        y = run(model, rule, to_zero(model.sde, steps), eta=eta)
        assert y.isfinite().all()
        assert torch.equal(y, run(model, rule, to_zero(model.sde, steps), eta=eta)), "a run left something behind"


@every_rule
@pytest.mark.parametrize("forward", FORWARD)
def test_one_step_to_sigma_zero_is_the_mean_of_the_data_given_x(rule, forward):
    model = sde.ExactScore(TARGET, FORWARD[forward])
    x = model.prior(torch.zeros(8, 2, dtype=torch.float64), generator())
    y = run(model, rule, [model.sde.t_max, 0.0], x)
    torch.testing.assert_close(y, model(x, model.sde.t_max).x0, rtol=1e-6, atol=1e-6)


@every_rule
@pytest.mark.parametrize("forward", ["Flow", "EDM"])
def test_the_whole_way_nears_a_fine_solve(rule, forward):
    """Flow begins at alpha = 0, and both end at sigma = 0: what is off at an end stays off."""
    model = sde.ExactScore(TARGET, FORWARD[forward])
    exact = sde.integrate(
        sde.ReverseSDE(model), model.prior(torch.zeros(8, 2, dtype=torch.float64), generator()),
        to_zero(model.sde, 400), sde.Adams(5),
    )  # fmt: skip
    # The module of PNDM says why it wants steps that are nearly equal in rho.
    steps, within = (200, 0.03) if "PNDM" in rule else (60, 0.02)
    assert float((run(model, rule, to_zero(model.sde, steps), eta=0.0) - exact).abs().max()) < within


@every_rule
def test_grid_and_tensors_agree(rule):
    """Times as nodes of a table, and as tensors, which guidance and other wrappers see."""
    for forward in (FORWARD["VP"], FORWARD["Flow"]):
        model = sde.ExactScore(TARGET, forward)
        times = to_zero(forward, 6)
        a, b = (run(m, rule, times) for m in (model, ThroughTensors(model)))
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


class ThroughTensors(sde.Wrapper):
    def forward(self, x, t, **cond):
        assert isinstance(t, torch.Tensor)
        return self.model(x, t, **cond)


@every_rule
def test_data_far_from_the_origin_is_data_moved(rule):
    offset = torch.tensor([20.0, -5.0], dtype=torch.float64)
    here = sde.ExactScore(TARGET, FORWARD["VP"])
    there = sde.ExactScore(sde.Mixture(TARGET.weights, TARGET.means + offset, TARGET.covs), FORWARD["VP"])
    times = sde.grids.data_scaled(here.sde, 9)
    x = here.prior(torch.zeros(8, 2, dtype=torch.float64), generator())
    alpha, _ = here.sde.levels(times)
    moved = run(there, rule, times, x + alpha[0] * offset)
    torch.testing.assert_close(moved - alpha[-1] * offset, run(here, rule, times, x), rtol=1e-6, atol=1e-6)


@every_rule
def test_up_and_down_again(rule):
    """From data to noise and back, on the probability flow."""
    model = sde.ExactScore(TARGET, FORWARD["VP"])
    down = sde.grids.log_snr(model.sde, 150)
    x = TARGET.sample(8, generator(3))
    back = run(model, rule, down, run(model, rule, down.flip(0), x, eta=0.0), eta=0.0)
    torch.testing.assert_close(back, x, rtol=0, atol=0.01)


@every_rule
def test_two_runs_at_once_keep_apart(rule):
    """One object, two runs, step by step in turn."""
    model, solver = sde.ExactScore(TARGET, FORWARD["EDM"]), RULES[rule]
    reverse = sde.ReverseSDE(model, solver.eta)
    x, times = model.prior(torch.zeros(4, 2, dtype=torch.float64), generator()), sde.grids.karras(model.sde, 6)
    one, two = (sde.trajectory(reverse, c * x, times, solver, generator(5)) for c in (1.0, 0.5))
    for a, _ in zip(one, two, strict=True):
        last = a.x
    assert torch.equal(last, run(model, rule, times, x, seed=5))


@pytest.mark.parametrize("rule", NOISY)
def test_a_sample_is_its_generators_own(rule):
    model = sde.ExactScore(TARGET, FORWARD["VP"])
    times = sde.grids.log_snr(model.sde, 5)

    def draw(*seeds):
        generators = [generator(seed) for seed in seeds]
        return sde.sample(model, (len(seeds), 2), solver=RULES[rule], times=times, generator=generators)

    torch.testing.assert_close(draw(4, 5, 6)[1:2], draw(5), rtol=1e-5, atol=1e-5)
