"""Churn: the published algorithm to rounding, order 2 in distribution, and what it refuses."""

import math
from itertools import pairwise

import pytest
import torch

import sde
from sde.checks import affine
from sde.checks.convergence import gaussian, marginal, window
from sde.solvers.stochastic.churn import Churn, ratio

SDES = {"VP": sde.VP(), "EDM": sde.EDM(), "Flow": sde.Flow(), "VE": sde.VE()}
ENDS = {**SDES, "Cosine": sde.Cosine(), "SubVP": sde.SubVP(), "Tabulated": sde.Tabulated.linear()}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class ThroughTensors(sde.Wrapper):
    """The same model on the tensor path."""

    def forward(self, x, t, **cond):
        return self.model(x, t, **cond)


def published(denoise, y, levels, draws, s_churn, s_min, s_max, s_noise):
    """Algorithm 2 of Karras et al. (2022) as printed, with noise drawn where gamma > 0."""
    draws, n = list(draws), len(levels) - 1
    for t, s in pairwise(levels):
        gamma = min(s_churn / n, math.sqrt(2) - 1) if s_min <= t <= s_max else 0.0
        t_hat = t + gamma * t
        if gamma:
            y = y + math.sqrt(t_hat**2 - t**2) * s_noise * draws.pop(0)
        d = (y - denoise(y, t_hat)) / t_hat
        end = y + (s - t_hat) * d
        if s != 0:
            end = y + (s - t_hat) * (d / 2 + (end - denoise(end, s)) / s / 2)
        y = end
    return y


# The largest levels lie below every schedule's own, so that nothing is clipped.
LEVELS = [40.0, 20.0, 9.0, 4.0, 1.7, 0.8, 0.3, 0.1, 0.03, 0.0]
SETTINGS = [
    {"s_churn": 0.0, "s_min": 0.0, "s_max": math.inf, "s_noise": 1.0},
    {"s_churn": 2.0, "s_min": 0.0, "s_max": 50.0, "s_noise": 1.0},
    {"s_churn": 2.0, "s_min": 0.05, "s_max": 9.0, "s_noise": 1.007},
    {"s_churn": 40.0, "s_min": 0.05, "s_max": 50.0, "s_noise": 1.003},
    {"s_churn": 40.0, "s_min": 10.0, "s_max": 10.0, "s_noise": 1.003},
]


def run(forward, model, y, draws, settings, given_noise):
    """Our end of the run over LEVELS, as y = x / alpha."""
    times = forward.time_at(-2 * torch.tensor(LEVELS[:-1], dtype=torch.float64).log()).tolist()
    alpha = float(forward.levels(times[0])[0])
    return sde.integrate(sde.ReverseSDE(model), alpha * y, [*times, 0.0], Churn(**settings), noise=given_noise(*draws))


class Bent(sde.ScalarSDE):
    """A schedule that states no inverse."""

    t_max = 0.9999

    def alpha(self, t):
        return 1 - t**2

    def sigma(self, t):
        return t


@pytest.mark.parametrize("settings", SETTINGS, ids=range(len(SETTINGS)))
@pytest.mark.parametrize("forward", [sde.EDM(), sde.VP(), sde.Flow(), Bent()], ids=lambda f: type(f).__name__)
def test_it_is_the_papers_algorithm_on_any_schedule(forward, settings, two_modes, given_noise):
    y, *draws = torch.randn(10, 6, 2, generator=generator(), dtype=torch.float64)
    theirs = published(lambda y, r: two_modes.denoise(y, 1.0, r), 40 * y, LEVELS, draws, **settings)
    model = sde.ExactScore(two_modes, forward)
    for either in (model, ThroughTensors(model)):
        ours = run(forward, either, 40 * y, draws, settings, given_noise)
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_without_churn_it_is_heun_on_edm(two_modes):
    model = sde.ExactScore(two_modes, sde.EDM())
    x = model.prior(torch.zeros(8, 2, dtype=torch.float64), generator())
    for steps in (1, 2, 7):
        times = sde.grids.karras(model.sde, steps)
        ends = [sde.integrate(sde.ReverseSDE(model), x, times, solver) for solver in (Churn(s_churn=0.0), sde.Heun())]
        torch.testing.assert_close(*ends, rtol=1e-10, atol=1e-10)


# Orders.


@pytest.mark.parametrize("forward", ["VP", "Flow"])
def test_without_churn_it_is_of_order_two(forward):
    fits = sde.checks.solver(Churn(s_churn=0.0), SDES[forward])
    assert {name: fit.value for name, fit in fits.items()} == pytest.approx(
        {"order": 2.0, "order in distribution": 2.0}, abs=0.2
    )


@pytest.mark.parametrize("settings", [{"s_churn": 1.0}, {"s_churn": 3.0, "s_min": 0.3, "s_max": 3.0}], ids=str)
@pytest.mark.parametrize("forward", SDES)
def test_with_churn_it_is_of_order_two_in_distribution(forward, settings):
    churn = Churn(**settings)
    assert sde.checks.weak_order(churn, SDES[forward], 0.0).value == pytest.approx(churn.weak, abs=0.2)
    assert churn.order == 0.0


@pytest.mark.parametrize("forward", [*ENDS.values(), Bent()], ids=[*ENDS, "Bent"])
def test_laws_of_a_solver(forward):
    """Calls, finite from end to end in 1, 2 and 7 steps, same bits, samples that do not see each other."""
    assert sde.checks.solver(Churn(), forward) == {}


def ends_of(solver, t, s, steps=65, widened=1.0):
    """Trace of the covariance of a Gaussian that runs from t to s on EDM, in parts of the exact one's."""
    reverse, (mean, cov) = sde.ReverseSDE(sde.ExactScore(gaussian(), SDES["EDM"])), marginal(gaussian(), SDES["EDM"], t)
    grid = torch.linspace(math.log(t), math.log(s), steps, dtype=torch.float64).exp()
    got = affine(reverse, (2,), grid, solver).moments(mean, widened * cov)[1]
    return float(got.trace() / marginal(gaussian(), SDES["EDM"], s)[1].trace())


def test_noise_that_is_not_of_unit_size_is_seen():
    """The amount of it is the paper's formula, tested above; here that 1 is right."""
    found = [ends_of(Churn(10.0, s_noise=s), 3.0, 0.3, 129) for s in (0.99, 1.0, 1.01)]
    assert abs(found[1] - 1) < 2e-3
    assert found[0] < 1 - 4e-3 < 1 + 4e-3 < found[2]


def test_churn_forgets_a_wrong_start():
    """A start too wide by half: the flow keeps the error, churn sheds most of it."""
    kept = ends_of(Churn(0.0), 1.0, 0.1, widened=1.5)
    assert kept == pytest.approx(1.5, abs=0.02)
    assert ends_of(Churn(40.0), 1.0, 0.1, widened=1.5) < 1.15


# Where noise is raised.


def raised(forward, times, **settings):
    reverse, grid = sde.ReverseSDE(sde.ExactScore(gaussian(), forward)), torch.tensor(times, dtype=torch.float64)
    return Churn(**settings).start(reverse, grid).stages(reverse, grid)[0]


def test_noise_is_raised_by_at_most_root_two_and_never_beyond_the_prior():
    grid = [80.0, 70.0, 10.0, 1.0, 0.01]
    factor = raised(SDES["EDM"], grid, s_churn=100.0) / torch.tensor(grid[:-1])
    assert factor.tolist() == pytest.approx([1.0, 1.0, math.sqrt(2), math.sqrt(2)])  # 80 and 70 are above s_max
    assert raised(SDES["EDM"], grid, s_churn=100.0, s_max=math.inf)[:2].tolist() == pytest.approx([80.0, 80.0])
    assert raised(SDES["EDM"], grid, s_churn=0.4)[2:].tolist() == pytest.approx([11.0, 1.1])
    assert raised(SDES["EDM"], grid, s_churn=0.4, s_min=2.0)[3] == 1.0


def test_what_is_raised_is_the_ratio_whatever_the_schedule():
    times = [0.9, 0.5, 0.2, 1e-4]  # the last below t_min
    for forward in (SDES["VP"], SDES["Flow"], Bent()):
        up = raised(forward, times, s_churn=0.6, s_min=0.0, s_max=math.inf)
        growth = ratio(forward, up) / ratio(forward, torch.tensor(times[:-1], dtype=torch.float64))
        torch.testing.assert_close(growth[1:], torch.full((2,), 1.2, dtype=torch.float64))
    assert raised(SDES["VP"], [5e-4, 1e-4], s_churn=0.1, s_min=0.0)[0] < 6e-4  # between 0 and t_min


class Plain(Bent):
    """Flow, with the inverse that one would write, which is inf / inf where alpha = 0."""

    t_max = 1.0

    def alpha(self, t):
        return 1 - t

    def inverse(self, log_snr):
        rho = torch.exp(-log_snr / 2)
        return rho / (1 + rho)


@pytest.mark.parametrize("forward", [SDES["Flow"], Plain()], ids=["Flow", "Plain"])
def test_nothing_is_raised_where_alpha_is_0(forward):
    assert raised(forward, [1.0, 0.5, 0.1], s_churn=0.4, s_max=math.inf).tolist() == pytest.approx([1.0, 1.2 / 2.2])


@pytest.mark.parametrize(
    ("forward", "times", "calls"), [("EDM", [5.0, 1.0, 0.0], 3), ("Flow", [1.0, 0.6, 0.3, 0.0], 4)]
)
def test_calls_are_counted_where_a_step_is_eulers(forward, times, calls):
    """To sigma = 0, and from alpha = 0, one evaluation makes the step."""
    counted = ThroughTensors(sde.ExactScore(gaussian(), SDES[forward]))
    seen = []
    counted.register_forward_hook(lambda *_: seen.append(1))
    states = list(sde.trajectory(sde.ReverseSDE(counted), torch.ones(2, 2), times, Churn(), generator()))
    assert states[-1].calls == len(seen) == calls
    assert states[-1].x.isfinite().all()


def test_one_object_serves_many_runs(two_modes):
    model, solver, x = sde.ExactScore(two_modes, sde.VP()), Churn(), torch.randn(4, 2, generator=generator())
    run = lambda steps: sde.sample(model, x=x, steps=steps, solver=solver, generator=generator(2))  # noqa: E731
    first = run(5)
    run(8)
    assert torch.equal(run(5), first)


def test_runs_of_one_object_do_not_meet(two_modes):
    reverse, solver, x = sde.ReverseSDE(sde.ExactScore(two_modes, sde.VP())), Churn(s_churn=1.0), torch.ones(4, 2)
    few, many = (sde.grids.log_snr(sde.VP(), steps) for steps in (4, 6))
    alone = sde.integrate(reverse, x, few, solver, generator())
    first, second = (sde.trajectory(reverse, x, grid, solver, generator()) for grid in (few, many))
    *_, (last, _) = zip(first, second, strict=False)
    assert torch.equal(last.x, alone)


def test_the_noise_is_not_that_of_a_path(two_modes):
    class Fresh(sde.WhiteNoise):
        def normal(self, x, t, s):
            raise AssertionError

    reverse = sde.ReverseSDE(sde.ExactScore(two_modes, sde.VP()))
    assert sde.integrate(reverse, torch.ones(4, 2), [0.9, 0.5, 0.1], Churn(), noise=Fresh(generator())).isfinite().all()


def test_a_step_alone(two_modes):
    """It is a run of one step."""
    reverse, x = sde.ReverseSDE(sde.ExactScore(two_modes, sde.VP())), torch.ones(4, 2)
    alone = Churn().step(reverse, x, 0.5, 0.3, sde.WhiteNoise(generator()))
    torch.testing.assert_close(alone, sde.integrate(reverse, x, [0.5, 0.3], Churn(), generator()))


# Refusals.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"s_churn": -1.0}, r"s_churn must be 0 or more, got -1.0"),
        ({"s_churn": math.inf}, r"s_churn must be 0 or more, got inf"),
        ({"s_min": 2.0, "s_max": 1.0}, r"s_min and s_max must be 0 <= s_min <= s_max, got 2.0 and 1.0"),
        ({"s_min": -0.1}, r"s_min and s_max must be 0 <= s_min <= s_max, got -0.1 and 50.0"),
        ({"s_max": math.nan}, r"s_min and s_max must be .* got 0.05 and nan"),
        ({"s_noise": 0.0}, r"s_noise must be positive, got 0.0: 1 is right for an exact score"),
    ],
)
def test_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        Churn(**settings)


def test_refusals():
    model, x = sde.ExactScore(gaussian(), sde.VP()), torch.zeros(2, 2)
    solve = lambda process, times=(1.0, 0.5): sde.integrate(process, x, list(times), Churn())  # noqa: E731
    with pytest.raises(
        ValueError, match=r"Churn adds noise of its own to the probability flow, got eta=0.5: use eta=0"
    ):
        solve(sde.ReverseSDE(model, 0.5))
    with pytest.raises(ValueError, match=r"Churn goes down in time, got times from 0.5 up to 1: use Heun"):
        solve(sde.ReverseSDE(model), (0.5, 1.0))
    with pytest.raises(ValueError, match=r"Churn needs a scalar SDE, got CLD: use Restart, or Heun"):
        solve(sde.ReverseSDE(sde.ExactScore(gaussian(), sde.CLD())))
    with pytest.raises(ValueError, match=r"Churn uses the endpoints of a score model and cannot solve a DoubleWell"):
        solve(sde.DoubleWell(), (0.5, 1.0))
    model.coupled = True
    with pytest.raises(ValueError, match=r"Churn adds noise .* trained with a coupling .*: use Heun, or train with"):
        solve(sde.ReverseSDE(model))


def test_windows_hold_the_levels_that_are_raised():
    """What the weak orders above see is churn, and not Heun's method."""
    for forward in SDES.values():
        grid = window(forward, 8)
        up = raised(forward, grid.tolist(), s_churn=1.0)
        assert (up > grid[:-1]).sum() >= 7
