"""Restart: exact marginals, the contraction of earlier errors in closed form, calls, and bad intervals."""

import math
from itertools import pairwise

import pytest
import torch

import sde
from sde import State
from sde.checks import affine
from sde.checks.convergence import fitted, gaussian, marginal, window
from sde.solvers.stochastic.restart import Interval, Restart

V = 0.25
POINT = sde.Gaussian([0.0], V)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class ThroughTensors(sde.Wrapper):
    """The same model on the tensor path."""

    def forward(self, x, t, **cond):
        return self.model(x, t, **cond)


class Halves(sde.solvers.SelfPaced):
    """Euler with two steps to each interval, one more thrown away: a solver with counts of its own."""

    order, calls = 1.0, 2

    def run(self, sde, x, times, noise):
        state = State(float(times[0]), x, 0)
        yield state
        for t, s in pairwise(times.tolist()):
            for a in (t, (t + s) / 2):
                x = x + (s - t) / 2 * sde.drift(x, a)
            state = State(s, x, state.calls + 2, state.accepted + 2, state.rejected + 1)
            yield state


def karras(high, low, n):
    """The paper's grid from high down to low in n steps."""
    u = torch.linspace(0, 1, n + 1, dtype=torch.float64)
    return (high ** (1 / 7) + u * (low ** (1 / 7) - high ** (1 / 7))) ** 7


# In distribution.


def spread(forward, t):
    alpha, sigma = (float(c) for c in forward.levels(t))
    return alpha**2 * V + sigma**2


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize(("forward", "low", "high"), [(sde.EDM(), 0.3, 1.5), (sde.VP(), 0.15, 0.6)], ids=["EDM", "VP"])
def test_earlier_errors_shrink_as_in_closed_form(forward, low, high, repeats):
    """On N(0, v) the flow multiplies by roots of ratios of variances, and a restart by m a for each repeat."""
    first, last = (2.0, 0.1) if isinstance(forward, sde.EDM) else (0.8, 0.05)
    reverse = sde.ReverseSDE(sde.ExactScore(POINT, forward))
    grid = torch.linspace(first, last, 65, dtype=torch.float64)
    run = affine(reverse, (1,), grid, Restart(sde.RK4(), [Interval(low, high, 64, repeats)]))
    a = float(forward.levels(high)[0] / forward.levels(low)[0])
    m = math.sqrt(spread(forward, low) / spread(forward, high))
    kept = (m * a) ** repeats
    assert run.state.item() == pytest.approx(math.sqrt(spread(forward, last) / spread(forward, first)) * kept, rel=1e-5)
    # What is left of the start's variance, and what the noise adds, make the exact one.
    assert run.noise.square().sum().item() == pytest.approx(spread(forward, last) * (1 - kept**2), rel=1e-5)
    assert run.noise.shape == (1, repeats)
    assert kept < 0.5


@pytest.mark.parametrize("name", ["EDM", "Flow", "CLD"])
def test_exact_marginals_stay(name):
    forward = {"EDM": sde.EDM(), "Flow": sde.Flow(), "CLD": sde.CLD()}[name]
    grid = window(forward, 48)
    a, b, c = float(grid[40]), float(grid[24]), float(grid[8])
    restart = Restart(sde.RK4(), [Interval(a, b, 24, 2), Interval(b, c, 24, 1)])
    target = gaussian()
    start, end = marginal(target, forward, grid[0]), marginal(target, forward, grid[-1])
    event = forward.state(torch.zeros(1, 2)).shape[1:]
    found = affine(sde.ReverseSDE(sde.ExactScore(target, forward)), event, grid, restart).moments(*start)
    for got, exact in zip(found, end, strict=True):
        torch.testing.assert_close(got, exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("solver", [sde.Euler(), sde.Heun(), sde.DDIM()], ids=lambda s: type(s).__name__)
def test_it_has_its_solvers_order_in_distribution(solver):
    forward, target = sde.VP(), gaussian()
    reverse, ends = sde.ReverseSDE(sde.ExactScore(target, forward)), window(forward, 1)
    start, (mean, cov) = marginal(target, forward, ends[0]), marginal(target, forward, ends[1])

    def error(steps):
        grid = window(forward, steps)
        restart = Restart(solver, [Interval(0.1, 0.3, steps, 2)])
        got_mean, got_cov = affine(reverse, (2,), grid, restart).moments(*start)
        return math.sqrt(float((got_mean - mean).square().sum() + (got_cov - cov).square().sum()))

    weak = Restart(solver, [Interval(0.1, 0.3)]).weak
    assert weak == solver.order
    assert fitted(error, last=64).value == pytest.approx(weak, abs=0.2)


def test_a_wrong_start_is_forgotten_by_samples(two_modes):
    """All of a batch starts from one mode's side; restarts spread it to the weights of both."""
    model = sde.ExactScore(two_modes, sde.EDM())
    x = torch.full((2000, 2), 0.4) * torch.tensor([1.0, -0.6]) + 0.02 * torch.randn(2000, 2, generator=generator())
    reverse, grid = sde.ReverseSDE(model), sde.grids.karras(sde.EDM(0.02, 0.8), 12)
    share = lambda end: float((end[:, 0] < -0.1).double().mean())  # noqa: E731
    plain = share(sde.integrate(reverse, x, grid, sde.Heun()))
    again = Restart(sde.Heun(), [Interval(0.05, 4.0, 12, 3)])
    assert plain < 0.05
    assert share(sde.integrate(reverse, x, grid, again, generator(1))) == pytest.approx(0.3, abs=0.05)


# What a run does.


def by_hand(reverse, x, legs, noise, solver):
    """A solve along a leg, then for each (t_min, t_max, grid) up by the transition and down again."""
    for leg, jumps in legs:
        x = sde.integrate(reverse, x, leg, solver)
        for low, high, grid in jumps:
            x = reverse.model.sde.transition(x, low, high, noise.fresh(x))
            x = sde.integrate(reverse, x, grid, solver)
    return x


@pytest.mark.parametrize("solver", [sde.Heun(), sde.Adams(3)], ids=["Heun", "Adams"])
@pytest.mark.parametrize("tensors", [False, True], ids=["nodes", "tensors"])
def test_a_run_by_hand(two_modes, tensors, solver):
    """Two intervals, one that begins at a time of the grid and one between two, the latter twice."""
    model = sde.ExactScore(two_modes, sde.EDM())
    reverse = sde.ReverseSDE(ThroughTensors(model) if tensors else model)
    x = 5 * torch.randn(4, 2, generator=generator(), dtype=torch.float64)
    upper, lower = karras(3.0, 1.0, 3), karras(1.2, 0.3, 2)
    legs = [
        ([5.0, 2.0, 1.0], [(1.0, 3.0, upper)]),
        ([1.0, 0.5, 0.3], [(0.3, 1.2, lower), (0.3, 1.2, lower)]),
        ([0.3, 0.1, 0.01], []),
    ]
    expected = by_hand(reverse, x, legs, sde.WhiteNoise(generator(1)), solver)
    restart = Restart(solver, [Interval(0.3, 1.2, 2, 2), Interval(1.0, 3.0, 3)])
    states = list(sde.trajectory(reverse, x, [5.0, 2.0, 1.0, 0.5, 0.1, 0.01], restart, generator(1)))
    torch.testing.assert_close(states[-1].x, expected, rtol=1e-9, atol=1e-9)
    assert [state.t for state in states] == [5.0, 2.0, 1.0, 0.5, 0.1, 0.01]
    assert [state.calls // solver.calls for state in states] == [0, 1, 2 + 3, 6, 7 + 2 * 2 + 1, 13]
    # What is recorded at t_min is what the run goes on from.
    after = by_hand(reverse, x, legs[:1], sde.WhiteNoise(generator(1)), solver)
    torch.testing.assert_close(states[2].x, after, rtol=1e-9, atol=1e-9)


def test_calls_are_those_that_are_made():
    model = ThroughTensors(sde.ExactScore(gaussian(), sde.EDM()))
    seen = []
    model.register_forward_hook(lambda *_: seen.append(1))
    restart = Restart(sde.Heun(), [Interval(0.1, 0.5, 3, 4), Interval(0.1, 2.0, 2)])
    *_, last = sde.trajectory(sde.ReverseSDE(model), torch.ones(2, 2), [5.0, 0.2, 0.0], restart, generator())
    assert last.calls == len(seen) == 2 * (1 + 1 + 4 * 3 + 2) + 1  # Heun's last step, to sigma = 0, is DDIM's
    assert last.x.isfinite().all()


def test_intervals_at_the_last_time_and_in_float32(two_modes):
    """A grid in float32 meets t_min by rounding, and takes no step of 1e-9 to get there."""
    reverse, restart = (
        sde.ReverseSDE(sde.ExactScore(two_modes, sde.EDM())),
        Restart(sde.Heun(), [Interval(0.1, 0.5, 3)]),
    )
    for grid in (torch.tensor([5.0, 1.0, 0.1]).double(), torch.tensor([5.0, 1.0, 0.1])):
        states = list(sde.trajectory(reverse, torch.ones(4, 2), grid, restart, generator()))
        assert [state.calls for state in states] == [0, 2, 4 + 6]
        assert [state.t for state in states] == torch.as_tensor(grid).tolist()
    *_, middle, _ = sde.trajectory(reverse, torch.ones(4, 2), torch.tensor([5.0, 0.1, 0.01]), restart, generator())
    assert middle.calls == 2 + 6


@pytest.mark.parametrize("forward", [sde.VP(), sde.Cosine(), sde.CLD()], ids=lambda f: type(f).__name__)
def test_the_way_down_ends_where_it_is_to_end(forward):
    for low, high in ((0.0, 0.9), (0.1, 0.3), (1 / 3, 2 / 3)):
        grid = Interval(low, high, 5).times(forward)
        assert (grid[0].item(), grid[-1].item()) == (high, low)
        assert (grid.diff() < 0).all()


@pytest.mark.parametrize("forward", [sde.VP(), sde.EDM(), sde.Flow()], ids=lambda f: type(f).__name__)
def test_from_the_data_themselves(forward):
    """t_min = 0: up from sigma = 0 and down to it."""
    restart = Restart(sde.Heun(), [Interval(0.0, 0.5, 6, 2)])
    reverse = sde.ReverseSDE(sde.ExactScore(gaussian(), forward))
    x = sde.integrate(reverse, torch.ones(4, 2), [0.7, 0.3, 0.0], restart, generator())
    assert x.isfinite().all()


@pytest.mark.parametrize("solver", [sde.Adams(3), sde.RK4(), Halves()], ids=lambda s: type(s).__name__)
def test_any_solver_of_the_flow(solver, two_modes):
    model = sde.ExactScore(two_modes, sde.VP())
    restart = Restart(solver, [Interval(0.05, 0.4, 8, 3)])
    x = sde.sample(model, (4000, 2), 40, restart, generator=generator())
    assert float((x[:, 0] < -0.1).double().mean()) == pytest.approx(0.3, abs=0.04)


def test_counts_of_a_solver_with_steps_of_its_own_go_on(two_modes):
    reverse = sde.ReverseSDE(sde.ExactScore(two_modes, sde.VP()))
    restart = Restart(Halves(), [Interval(0.2, 0.4, 2, 3)])
    *_, last = sde.trajectory(reverse, torch.ones(4, 2), [0.8, 0.3, 0.1], restart, generator())
    assert (last.calls, last.accepted, last.rejected) == (2 * 9, 2 * 9, 9)


@pytest.mark.parametrize("forward", [sde.VP(), sde.Flow(), sde.CLD()], ids=lambda f: type(f).__name__)
def test_laws_of_a_solver(forward):
    low, high = window(forward, 8)[[5, 2]].tolist()
    assert sde.checks.solver(Restart(sde.Heun(), [Interval(low, high)]), forward) == {}


# Refusals.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.5, 0.5), r"t_min and t_max must be 0 <= t_min < t_max, got 0.5 and 0.5"),
        ((0.5, 0.1), r"got 0.5 and 0.1: Interval\(.06, .3\), say"),
        ((-0.1, 0.5), r"got -0.1 and 0.5"),
        ((0.1, math.inf), r"got 0.1 and inf"),
        ((math.nan, 0.5), r"got nan and 0.5"),
        ((0.1, 0.5, 0), r"steps must be a whole number of at least 1, got 0: pass steps=4, say"),
        ((0.1, 0.5, 2.5), r"steps must be a whole number of at least 1, got 2.5"),
        ((0.1, 0.5, 2, 0), r"repeats must be a whole number of at least 1, got 0: pass repeats=4, say"),
    ],
)
def test_intervals(arguments, message):
    with pytest.raises(ValueError, match=message):
        Interval(*arguments)


def solve(interval=(0.1, 0.3), times=(1.0, 0.5, 0.05), forward=None, solver=None, eta=0.0, coupled=False):
    model = sde.ExactScore(gaussian(), forward or sde.VP())
    model.coupled = coupled
    x = model.sde.state(torch.zeros(2, 2))
    return sde.integrate(
        sde.ReverseSDE(model, eta), x, list(times), Restart(solver or sde.Heun(), [Interval(*interval)])
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"interval": (0.01, 0.3)}, r"is not met by times from 1 to 0.05, got t_min=0.01: it must lie below the first"),
        ({"interval": (0.6, 0.9), "times": (0.5, 0.1)}, r"is not met by times from 0.5 to 0.1, got t_min=0.6"),
        ({"interval": (0.5, 0.9), "times": (0.5, 0.1)}, r"is not met by times from 0.5 to 0.1, got t_min=0.5"),
        ({"interval": (0.1, 1.5)}, r"goes beyond what VP can come back from, got t_max=1.5: it must lie below 1"),
        ({"interval": (0.1, 1.0), "forward": sde.Flow()}, r"beyond what Flow can come back from, got t_max=1: "),
        ({"times": (0.05, 1.0)}, r"Restart goes down in time, got times from 0.05 up to 1: use its solver"),
        ({"eta": 0.5}, r"Restart adds noise of its own to the probability flow, got eta=0.5: use eta=0"),
        ({"coupled": True}, r"Restart adds noise .* trained with a coupling"),
        ({"forward": sde.CLD(), "solver": sde.Adams()}, r"CLD"),
    ],
)
def test_runs(arguments, message):
    with pytest.raises(ValueError, match=message):
        solve(**arguments)


def test_no_intervals_and_no_model():
    with pytest.raises(ValueError, match=r"intervals is empty: pass \[Interval\(t_min, t_max\)\], or use the solver"):
        Restart(sde.Heun(), [])
    with pytest.raises(ValueError, match=r"Restart uses the endpoints of a score model and cannot solve a DoubleWell"):
        sde.integrate(sde.DoubleWell(), torch.ones(2, 2), [0.0, 1.0], Restart(sde.Heun(), [Interval(0.1, 0.3)]))
