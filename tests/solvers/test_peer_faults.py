"""What other packages got wrong, or lost, measured with them: none of it here.

The import that costs seconds is in `tests/test_imports.py`.
"""

import importlib
import inspect
import itertools
import math
import pkgutil

import pytest
import torch

import sde
from sde.checks.convergence import mixture, ode_order, weak_order, window
from sde.solvers.exponential.deis import DEIS
from sde.solvers.exponential.sa import SASolver
from sde.solvers.exponential.unipc import UniPC

CORNERS = [[1.5 * math.cos(u), 1.5 * math.sin(u)] for u in torch.linspace(0, 2 * math.pi, 9)[:-1].tolist()]
RING = sde.Mixture([0.30, 0.20, 0.15, 0.12, 0.09, 0.07, 0.05, 0.02], CORNERS, [0.15**2] * 8)
VP = sde.VP()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def errors(model, grids, solver, batch=100):
    """RMS against a fine solve, of each grid."""
    x = model.prior(torch.zeros(batch, 2, dtype=torch.float64), generator())
    reverse = sde.ReverseSDE(model)
    fine = sde.integrate(reverse, x, sde.grids.data_scaled(model.sde, 600, model.data_scale()), sde.Adams(5))
    return [float((sde.integrate(reverse, x, grid, solver) - fine).square().mean().sqrt()) for grid in grids]


# A sampler of exponential Adams–Bashforth type of order 1 whatever its order: sigma_t where sigma_s belongs.


class OldScale(sde.Adams):
    """The fault: the integral of a step scaled for the time it begins at."""

    def columns(self, model, eta, times):
        p, q, c, shift, w = super().columns(model, eta, times)
        return p, q, c, shift, w / c[:, None]


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_the_data_scaled_split_keeps_its_order(order):
    options = {"predict": "edm", "coordinate": "log_snr", "corrector": False, "start": "full"}
    assert ode_order(sde.Adams(order, **options), VP).value == pytest.approx(order, abs=0.15)
    assert ode_order(OldScale(order, **options), VP).value < 1.3


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_multistep_on_the_reverse_sde_keeps_its_order(eta):
    class Old(SASolver):
        def columns(self, model, eta, times):
            *rest, level, w = super().columns(model, eta, times)
            sigma = model.sde.levels(times)[1]
            return *rest, level * (sigma[:-1] / sigma[1:]), w

    assert weak_order(SASolver(3, 0), VP, eta).value == pytest.approx(2, abs=0.1)
    assert weak_order(Old(3, 0), VP, eta).value < 1.3


# An adaptive solver that evaluates beyond the end of its interval, where a network or a schedule is anything.


class Watched(sde.Wrapper):
    """A model that writes down the times it is evaluated at."""

    def __init__(self, model):
        super().__init__(model)
        self.tabulates, self.seen = model.tabulates, []

    def forward(self, x, t, **cond):
        self.seen += torch.as_tensor(t, dtype=torch.float64).flatten().tolist()
        return self.model(x, t, **cond)


def concrete(kind):
    return (
        inspect.isclass(kind)
        and issubclass(kind, sde.Solver)
        and not inspect.isabstract(kind)
        and kind.__name__ not in ("EmbeddedPair",)
        and not kind.__name__.startswith("_")
    )


def all_solvers():
    """Every solver class of the room that is made without arguments."""
    found = {}
    for module in pkgutil.walk_packages(sde.solvers.__path__, "sde.solvers."):
        for name, kind in vars(importlib.import_module(module.name)).items():
            if concrete(kind) and all(p.default is not p.empty for p in inspect.signature(kind).parameters.values()):
                found[name] = kind
    return found


SOLVERS = {
    **all_solvers(),
    "PredictorCorrector": lambda: sde.PredictorCorrector(sde.EulerMaruyama(), sde.Langevin()),
}
CLIMB = {"Churn", "Restart"}
"""Solvers that raise the noise level by design; never above t_max."""


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("inside", [True, False])
def test_nothing_is_evaluated_outside_of_the_interval(name, inside):
    model, solver = Watched(sde.ExactScore(mixture(), VP)), SOLVERS[name]()
    reverse = sde.ReverseSDE(model, solver.eta)
    try:
        solver.check(reverse)
    except ValueError as error:
        pytest.skip(str(error))
    times = window(VP, 6) if inside else sde.grids.data_scaled(VP, 6)
    x = model.prior(torch.zeros(3, 2, dtype=torch.float64), generator())
    y = sde.integrate(reverse, x, times, solver, generator())
    assert y.isfinite().all()
    high, low = times[[0, -1]].tolist()
    top = VP.t_max if name in CLIMB else high
    assert model.seen, "no evaluation was seen"
    assert low * (1 - 1e-9) <= min(model.seen)
    assert max(model.seen) <= top * (1 + 1e-9)


# A predictor with a corrector that gives NaN in 10 steps and fewer, and one that fails on sub-VP.


@pytest.mark.parametrize(
    "forward", [sde.VP(), sde.SubVP(), sde.VE(), sde.EDM(), sde.Flow()], ids=lambda s: type(s).__name__
)
@pytest.mark.parametrize("corrector", [sde.Langevin, sde.AnnealedLangevin])
@pytest.mark.parametrize("predictor", [sde.ReverseDiffusion, sde.EulerMaruyama, sde.Ancestral])
def test_correctors_stay_finite_in_few_steps(predictor, corrector, forward):
    model = sde.ExactScore(RING, forward)
    solver = sde.PredictorCorrector(predictor(), corrector())
    for steps in (1, 2, 3, 5, 10):
        x = sde.sample(model, (4, 2), steps=steps, solver=solver, generator=generator(), progress=False)
        assert x.isfinite().all(), f"{steps} steps"


# DEIS of order 3 on equal steps in time, worse with 20 evaluations than with 10.


@pytest.mark.parametrize("grid", ["uniform", "data_scaled"])
@pytest.mark.parametrize(("order", "coordinate"), [(2, "t"), (3, "t"), (3, "ratio"), (4, "t")])
def test_deis_gains_from_every_step(order, coordinate, grid):
    model = sde.ExactScore(RING, VP)
    grids = [getattr(sde.grids, grid)(VP, n) for n in (5, 10, 20, 40, 80)]
    found = errors(model, grids, DEIS(order, coordinate))
    assert all(later < 0.8 * former for former, later in itertools.pairwise(found)), found


def test_a_polynomial_in_log_rho_is_what_loses_there():
    model = sde.ExactScore(RING, VP)
    found = errors(model, [sde.grids.uniform(VP, n) for n in (5, 10)], DEIS(4, "log_snr"))
    assert found[1] > found[0]


# Times rounded to the table's integers.


def test_times_are_not_rounded():
    table = sde.Tabulated.linear()
    model = Watched(sde.ExactScore(RING, table))
    times = sde.grids.data_scaled(table, 100, model.data_scale())
    sde.integrate(sde.ReverseSDE(model), torch.randn(2, 2, generator=generator()), times, UniPC(3))
    assert model.seen == times[:-1].tolist()
    assert float((times[1:-1] - times[1:-1].round()).abs().median()) > 0.1
    exact, rounded = errors(model, [times, torch.unique(times.round()).flip(0)], UniPC(3))
    assert rounded > 2.5 * exact


# A likelihood that fails in float64.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("forward", [sde.VP(), sde.Flow()], ids=lambda s: type(s).__name__)
def test_likelihood_in_both_precisions(forward, dtype):
    model = sde.ExactScore(sde.Gaussian([0.5, -1.0], 0.3), forward)
    x = torch.tensor([[0.5, -1.0], [1.0, 0.0]], dtype=dtype)
    found = sde.log_prob(model, x)
    assert found.dtype == dtype
    truth = model.log_prob(x.double(), forward.t_min)
    torch.testing.assert_close(found.double(), truth, rtol=0, atol=2e-6 if dtype == torch.float64 else 1e-3)


def test_likelihood_of_a_network_in_float64():
    net = sde.nets.MLP(dim=2, width=16, depth=2)
    found = sde.log_prob(sde.ScoreModel(net, sde.VP()).double(), torch.zeros(3, 2, dtype=torch.float64))
    assert found.dtype == torch.float64
    assert found.isfinite().all()


# A terminal marginal that still holds the data: sampling from N(0, 1) there begins at the wrong place.


@pytest.mark.parametrize("forward", [sde.VP(), sde.EDM(), sde.VE(), sde.Cosine(), sde.Flow(), sde.Tabulated.linear()])
def test_little_of_the_data_is_left_at_t_max(forward):
    alpha, sigma = forward.levels(torch.tensor(forward.t_max, dtype=torch.float64))
    assert float(alpha / sigma) < 0.025


def test_a_table_that_is_too_short_begins_at_its_own_marginal():
    """50 steps of betas meant for 1000 leave alpha = .78; the prior is that marginal in mean and scale."""
    table = sde.Tabulated.linear(50)
    alpha, sigma = (float(c) for c in table.levels(torch.tensor(table.t_max)))
    assert alpha / sigma > 1
    model = sde.ExactScore(sde.Gaussian([3.0], 0.25), table)
    x = model.prior(torch.zeros(20_000, 1, dtype=torch.float64), generator())
    assert x.mean().item() == pytest.approx(3 * alpha, abs=0.02)
    assert x.std().item() == pytest.approx(math.hypot(0.5 * alpha, sigma), abs=0.02)
    y = sde.sample(model, x=x, steps=20, progress=False)
    assert y.mean().item() == pytest.approx(3, abs=0.02)
    assert y.std().item() == pytest.approx(0.5, abs=0.02)
