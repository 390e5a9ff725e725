"""Picard iteration: the solver's own result for any window, in fewer rounds, whatever the rest of the batch does."""

import math

import pytest
import torch

import sde
from sde.random import BrownianPath, WhiteNoise
from sde.solvers.parallel.picard import Picard
from sde.solvers.parallel.rounds import Options, Rounds, _scan

RING = sde.Mixture(
    [0.30, 0.20, 0.15, 0.12, 0.09, 0.07, 0.05, 0.02],
    [[1.5 * math.cos(k * math.pi / 4), 1.5 * math.sin(k * math.pi / 4)] for k in range(8)],
    [0.15**2] * 8,
)
OFF = sde.Mixture([0.4, 0.6], [[5.0, -3.0], [6.0, -2.0]], [0.2, 0.1])
STEPS = [
    (sde.DDIM(), 0.0),
    (sde.DDIM(), 0.5),
    (sde.Ancestral(), 1.0),
    (sde.Euler(), 0.0),
    (sde.EulerMaruyama(), 1.0),
    (sde.Heun(), 0.0),
    (sde.Heun(), 1.0),
    (sde.ReverseDiffusion(), 0.0),
    (sde.ReverseDiffusion(), 1.0),
]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def setting(forward, target=RING, n=4, dtype=torch.float64, steps=40):
    model = sde.ExactScore(target, forward)
    x = model.prior(torch.zeros(n, 2, dtype=dtype), generator())
    return model, x, sde.solvers.default_times(model, steps)


def last(reverse, x, times, solver, noise=None):
    *_, state = sde.trajectory(reverse, x, times, solver, noise=noise or WhiteNoise(generator(1)))
    return state


def name(v):
    return type(v).__name__ if isinstance(v, sde.Solver) else str(v)


# The result is the solver's.


@pytest.mark.parametrize("split", [True, False], ids=["split", "plain"])
@pytest.mark.parametrize("window", [None, 5, 1])
@pytest.mark.parametrize(("solver", "eta"), STEPS, ids=name)
def test_without_a_tolerance_it_is_the_solver_to_rounding(solver, eta, window, split):
    model, x, times = setting(sde.VP(), OFF)
    reverse = sde.ReverseSDE(model, eta)
    state = last(reverse, x, times, Picard(solver, window, 0.0, split))
    torch.testing.assert_close(state.x, last(reverse, x, times, solver).x, rtol=1e-12, atol=1e-12)
    assert state.serial <= 40 * solver.calls
    assert (state.serial, state.calls) == (40 * solver.calls, 40 * solver.calls) or window != 1


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize(
    "forward", [sde.VP(), sde.EDM(), sde.Flow(), sde.SubVP(), sde.CLD()], ids=lambda s: type(s).__name__
)
def test_with_a_tolerance_it_is_the_solver_within_it_in_fewer_rounds(forward, eta):
    model, x, times = setting(forward, steps=120)
    reverse = sde.ReverseSDE(model, eta)
    exact = last(reverse, x, times, sde.DDIM()).x
    found = [last(reverse, x, times, Picard(window=None, tolerance=tolerance)) for tolerance in (1e-1, 1e-3)]
    errors = [float((state.x - exact).square().mean().sqrt()) for state in found]
    assert errors[0] < 0.2
    assert errors[1] < 2e-3
    for state in found:
        assert state.serial < (50 if isinstance(forward, sde.CLD) else 25)
        assert 120 < state.calls < 120 * state.serial
    assert found[0].calls < found[1].calls


@pytest.mark.parametrize("solver", [sde.Euler(), sde.Heun()], ids=name)
def test_sdes_without_a_model(solver):
    times = torch.linspace(0, 1, 60, dtype=torch.float64)
    x = torch.full((3, 2), 0.7, dtype=torch.float64)
    for process in (
        sde.DoubleWell(),
        sde.BrownianMotion(mu=1.0),
        sde.OrnsteinUhlenbeck(),
        sde.GeometricBrownianMotion(),
    ):
        if isinstance(process, sde.GeometricBrownianMotion) and isinstance(solver, sde.Heun):
            continue
        exact = last(process, x, times, solver).x
        torch.testing.assert_close(last(process, x, times, Picard(solver, 9, 0.0)).x, exact, rtol=1e-12, atol=1e-12)
        state = last(process, x, times, Picard(solver, None, 1e-2))
        torch.testing.assert_close(state.x, exact, rtol=0, atol=5e-3)
        assert state.serial <= 25 * solver.calls


def test_the_split_passes_noise_levels_above_the_data_at_once():
    model, x, times = setting(sde.EDM(), n=8, steps=200)
    reverse = sde.ReverseSDE(model)
    split, plain = (last(reverse, x, times, Picard(window=None, split=s)) for s in (True, False))
    assert split.serial < 0.7 * plain.serial
    assert split.calls < 0.6 * plain.calls
    # Gaussian data of the model's scale: the first round is the solution, and the second sees that it is.
    for eta in (0.0, 1.0):
        gaussian, x, times = setting(sde.EDM(), sde.Gaussian([20.0, -3.0], 0.25), steps=100)
        state = last(sde.ReverseSDE(gaussian, eta), x, times, Picard(window=None))
        assert state.serial <= (2 if eta == 0 else 3)


def test_guesses_are_the_flow_of_gaussian_data():
    gaussian, x, times = setting(sde.VP(), sde.Gaussian([20.0, -3.0], 0.25), steps=6)
    reverse = sde.ReverseSDE(gaussian)
    guesses = Rounds(sde.DDIM(), reverse, x, times, WhiteNoise(), Options(None, 0.0, True, None)).states
    exact = sde.record(sde.trajectory(reverse, x, times, sde.Adams(1))).x
    torch.testing.assert_close(guesses, exact, rtol=1e-9, atol=1e-9)


def test_it_is_shihs_iteration_without_the_split():
    """Two rounds of x_j <- x_0 + sum_{i<j} (phi_i(x_i) - x_i), all states the first at first."""
    model, x, times = setting(sde.VP(), n=3, steps=12)
    reverse, t = sde.ReverseSDE(model), times.tolist()
    rounds = Rounds(sde.DDIM(), reverse, x, times, WhiteNoise(), Options(None, 0.0, False, None))
    states = [x] * 13
    for front in range(2):
        torch.testing.assert_close(rounds.states[: 13 - front], torch.stack(states[front:]), rtol=1e-12, atol=1e-12)
        rounds.round()
        assert rounds.front.tolist() == [front + 1] * 3
        moved = [sde.DDIM().step(reverse, states[i], t[i], t[i + 1], None) - states[i] for i in range(12)]
        states = states[: front + 1] + [states[front] + sum(moved[front:i]) for i in range(front + 1, 13)]


def test_the_tolerance_is_over_the_noise_of_a_step():
    model, x, times = setting(sde.VP(), steps=30)
    rounds = Rounds(sde.DDIM(), sde.ReverseSDE(model), x, times, WhiteNoise(), Options(None, 0.3, True, None))
    zero = torch.zeros(1, 1, dtype=torch.float64)
    for i in (0, 11, 29):
        drawn = [
            sde.VP().bridge(zero, zero, times[i], times[i + 1], z * torch.ones_like(zero)).item() for z in (0.0, 1.0)
        ]
        assert rounds.limits[i].item() == pytest.approx((0.3 * (drawn[1] - drawn[0])) ** 2, rel=1e-9)


def test_scan():
    a, d = torch.rand(2, 11, 3, dtype=torch.float64, generator=generator())
    y, by_hand = torch.zeros(3, dtype=torch.float64), []
    for j in range(11):
        y = (a[j] * y if j else 0) + d[j]
        by_hand.append(y)
    torch.testing.assert_close(_scan(a, d), torch.stack(by_hand))
    d[7] = math.nan
    assert _scan(a, d)[:7].isfinite().all()


# What it yields and counts.


def test_it_yields_every_state_of_the_grid():
    model, x, times = setting(sde.Flow(), steps=30)
    for eta, solver in ((0.0, sde.DDIM()), (1.0, sde.EulerMaruyama())):  # alpha = 0 at t = 1: the first step goes alone
        reverse = sde.ReverseSDE(model, eta)
        ours = sde.record(sde.trajectory(reverse, x, times, Picard(solver, 8, 1e-4), generator(1)))
        theirs = sde.record(sde.trajectory(reverse, x, times, solver, generator(1)))
        torch.testing.assert_close(ours.t, times)
        torch.testing.assert_close(ours.x, theirs.x, rtol=0, atol=1e-3)
        assert (ours.calls.diff() >= 0).all()
        assert (ours.serial.diff() >= 0).all()
        assert int(ours.serial[-1]) < int(ours.calls[-1])


def test_sigma_of_0_at_the_end():
    model, x, times = setting(sde.VP(), steps=15)
    times = torch.cat([times, times.new_zeros(1)])
    for solver in (sde.DDIM(), sde.Heun(), sde.Euler()):
        exact = last(sde.ReverseSDE(model), x, times, solver)
        ours = last(sde.ReverseSDE(model), x, times, Picard(solver, tolerance=0.0))
        torch.testing.assert_close(ours.x, exact.x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("forward", [sde.VP(), sde.Flow()], ids=lambda s: type(s).__name__)
def test_few_steps(forward, steps):
    model, x, times = setting(forward, steps=steps)
    for solver, eta in STEPS:
        reverse = sde.ReverseSDE(model, eta)
        ours = last(reverse, x, times, Picard(solver))
        torch.testing.assert_close(ours.x, last(reverse, x, times, solver).x, rtol=1e-9, atol=1e-2)


class Counting(sde.Wrapper):
    def __init__(self, model):
        super().__init__(model)
        self.seen = []

    def forward(self, x, t, **cond):
        self.seen.append(len(x))
        return self.model(x, t, **cond)


def test_calls_are_all_evaluations_and_serial_those_in_sequence():
    model, x, times = setting(sde.VP(), n=5)
    for solver in (sde.DDIM(), sde.Heun()):
        counting = Counting(model)
        state = last(sde.ReverseSDE(counting), x, times, Picard(solver, 10))
        assert state.serial == len(counting.seen)
        assert state.calls == pytest.approx(sum(counting.seen) / 5, abs=2)
        assert max(counting.seen) <= 5 * 10


@pytest.mark.parametrize("forward", [sde.VP(), sde.Flow(), sde.CLD()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("solver", [Picard(), Picard(sde.Ancestral(), window=3)], ids=["default", "ancestral"])
def test_laws_that_need_no_fit(solver, forward):
    sde.checks.calls(solver, forward)
    sde.checks.finite_samples(solver, forward)
    model = sde.ExactScore(RING, forward)
    sde.checks.reproducible(lambda n, g: sde.sample(model, (n, 2), 12, solver, generator=g, progress=False), solver)


@pytest.mark.nightly
@pytest.mark.parametrize("solver", [sde.DDIM(), sde.Euler(), sde.Heun(), sde.ReverseDiffusion()], ids=name)
def test_orders_are_the_solvers(solver):
    sde.checks.orders(Picard(solver, window=None, tolerance=0.0), sde.VP())


# One batch.


def test_a_sample_does_not_see_its_neighbours():
    """Fronts of their own: what a sample is does not depend on slower ones, which would move its window."""
    model, x, times = setting(sde.VP(), n=6, steps=60)
    for eta in (0.0, 1.0):
        noises = [generator(i) for i in range(6)]
        reverse, solver = sde.ReverseSDE(model, eta), Picard(window=7, tolerance=0.3)
        together = sde.integrate(reverse, x, times, solver, noises)
        for i in range(6):
            alone = sde.integrate(reverse, x[i : i + 1], times, solver, [generator(i)])
            torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-9, atol=1e-9)


def test_a_path_is_shared_with_the_solver():
    model, x, times = setting(sde.VP())
    reverse, path = sde.ReverseSDE(model, 1.0), BrownianPath(generator(3))
    exact = sde.integrate(reverse, x, times, sde.EulerMaruyama(), noise=path)
    ours = sde.integrate(reverse, x, times, Picard(sde.EulerMaruyama(), 10, 0.0), noise=path)
    torch.testing.assert_close(ours, exact, rtol=1e-6, atol=1e-6)


def test_guidance_and_conditions_go_along():
    torch.manual_seed(0)
    net = sde.nets.MLP(dim=2, classes=3, width=16)
    model = sde.ScoreModel(net, sde.VP(), mean=[1.0, -2.0], scale=2.0)
    label, other = torch.tensor([0, 2, 1, 1]), torch.tensor([2, 2, 0, 1])
    guided = sde.CFG(model.given(label=label), model.given(label=other), 2.0)
    x = model.prior(torch.zeros(4, 2), generator())
    times = sde.solvers.default_times(model, 20)
    for m in (guided, model.given(label=label)):
        reverse = sde.ReverseSDE(m, 1.0)
        ours = last(reverse, x, times, Picard(window=6, tolerance=0.0)).x
        torch.testing.assert_close(ours, last(reverse, x, times, sde.DDIM()).x, rtol=1e-4, atol=1e-4)
    assert torch.equal(guided.model.cond["label"], label)


@pytest.mark.parametrize("split", [True, False], ids=["split", "plain"])
def test_float32(split):
    model, x, times = setting(sde.EDM(), steps=60, dtype=torch.float32)
    state = last(sde.ReverseSDE(model), x, times, Picard(split=split))
    exact = last(sde.ReverseSDE(model), x.double(), times, sde.DDIM()).x
    assert state.x.dtype == torch.float32
    torch.testing.assert_close(state.x.double(), exact, rtol=0, atol=2e-3 if split else 2e-2)
    assert state.serial < 45


def test_a_model_that_breaks_ends():
    class Broken(sde.Wrapper):
        def forward(self, x, t, **cond):
            return self.model(x * torch.where(t < 0.5, math.nan, 1.0)[:, None], t)

    model, x, times = setting(sde.VP(), steps=12)
    with pytest.raises(ValueError, match="samples are not finite"):
        sde.sample(Broken(model), x=x, times=times, solver=Picard())


# Refusals.


class Remembers(sde.Solver):
    order = 1.0

    def step(self, sde, x, t, s, noise):
        return x


@pytest.mark.parametrize("solver", [sde.Adams(), sde.RK4(), Remembers(), Picard(), sde.Langevin()], ids=name)
def test_solvers_that_it_cannot_run(solver):
    model, x, times = setting(sde.VP())
    match = f"Picard cannot take the steps of {type(solver).__name__} all at once.*: use DDIM, Euler, Heun or"
    with pytest.raises(ValueError, match=match):
        sde.integrate(sde.ReverseSDE(model), x, times, Picard(solver))


def test_bad_arguments():
    for wrong in ({"window": 0}, {"window": 2.5}, {"window": True}, {"max_iterations": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be a whole number of at least 1, got"):
            Picard(**wrong)
    for tolerance in (-0.1, math.nan):
        with pytest.raises(ValueError, match="tolerance must be 0 or more, got"):
            Picard(tolerance=tolerance)
    with pytest.raises(TypeError, match="solver must be a Solver object, got 'DDIM'"):
        Picard("DDIM")
    model, x, times = setting(sde.VP())
    with pytest.raises(ValueError, match=r"Picard has passed \d+ of 40 steps in max_iterations=3: raise it, or the"):
        sde.integrate(sde.ReverseSDE(model), x, times, Picard(max_iterations=3))
    with pytest.raises(ValueError, match="takes eta up to 1"):  # what the solver refuses
        sde.integrate(sde.ReverseSDE(model, 1.5), x, times, Picard())
