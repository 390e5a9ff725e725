"""The one loop: how many steps, which ends, whose noise, what is recorded, and what is refused."""

import math

import pytest
import torch

import sde
from sde.nodes import Table
from sde.solvers import default_times

SDES = {
    "VP": sde.VP,
    "SubVP": sde.SubVP,
    "VE": sde.VE,
    "EDM": sde.EDM,
    "Cosine": sde.Cosine,
    "Flow": sde.Flow,
    "OrnsteinUhlenbeck": sde.OrnsteinUhlenbeck,
    "Tabulated": sde.Tabulated.linear,
    "CLD": sde.CLD,
    "ThirdOrderLangevin": sde.ThirdOrderLangevin,
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def fits(solver, model, eta):
    """Whether the solver takes this model at this eta."""
    try:
        solver.check(sde.ReverseSDE(model, eta))
    except ValueError:
        return False
    return True


# Any number of steps, any ends.


@pytest.mark.parametrize("forward", SDES)
def test_one_two_and_an_odd_number_of_steps_are_finite(any_solver, forward, two_modes):
    model = sde.ExactScore(two_modes, SDES[forward]())
    if not fits(any_solver, model, any_solver.eta):
        pytest.skip("refused, see below")
    for steps in (1, 2, 7):
        x = sde.sample(model, (3, 2), steps, any_solver, generator=generator(), progress=False)
        assert x.isfinite().all()


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize(
    "ends", [("Flow", 1.0, 0.0), ("Flow", 1.0, 1e-5), ("Tabulated", 1000.0, 0.0), ("VP", 1.0, 0.0)]
)
def test_infinite_coefficients_at_the_ends_are_stepped_over(any_solver, eta, ends, two_modes):
    """Noise at Flow's t = 1, where the drift is infinite; and data at sigma = 0, where the velocity is."""
    forward, high, low = ends
    model = sde.ExactScore(two_modes, SDES[forward]())
    if not fits(any_solver, model, eta):
        pytest.skip("refused, see below")
    for steps in (1, 2, 5):
        times = torch.linspace(high, low, steps + 1, dtype=torch.float64)
        x = model.prior(torch.zeros(3, 2), generator())
        assert sde.integrate(sde.ReverseSDE(model, eta), x, times, any_solver, generator()).isfinite().all()


@pytest.mark.parametrize("solver", [sde.DDIM(), sde.Ancestral()], ids=["DDIM", "Ancestral"])
@pytest.mark.parametrize("forward", ["Tabulated", "Flow", "VP", "Cosine"])
def test_the_last_step_to_the_data_is_the_estimate_of_x0(solver, forward, two_modes):
    model = sde.ExactScore(two_modes, SDES[forward]())
    t = 0.1 * model.sde.t_max
    x = torch.randn(5, 2, dtype=torch.float64, generator=generator())
    end = sde.integrate(sde.ReverseSDE(model, solver.eta), x, [t, 0.0], solver, generator(1))
    torch.testing.assert_close(end, model(x, t).x0)


@pytest.mark.parametrize("solver", [sde.Euler(), sde.Heun(), sde.RK4()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("forward", ["VP", "OrnsteinUhlenbeck", "Tabulated", "Cosine", "SubVP", "EDM", "CLD"])
def test_forward_from_the_data_has_the_moments_of_the_marginal(forward, solver):
    """From t = 0, where g^2 is computed as 0 times infinity; within five standard errors and the step's own error."""
    process, n = SDES[forward](), 20_000
    start, t = (process.t_min if forward == "CLD" else 0.0), 2.0 if forward == "EDM" else 0.3 * process.t_max
    x0 = process.perturb(torch.full((n, 1), 1.5, dtype=torch.float64), start, generator(1)).x
    end = sde.integrate(process, x0, torch.linspace(start, t, 101), solver, generator()).flatten(1)
    exact = process.perturb(torch.full((n, 1), 1.5, dtype=torch.float64), t, generator(2)).x.flatten(1)
    error = exact.std(0) * math.sqrt(2 / n)
    slack = 0.03 if isinstance(solver, sde.Euler) else 0.005
    assert bool(((end.mean(0) - exact.mean(0)).abs() < 5 * error + slack).all())
    assert bool(((end.std(0) / exact.std(0) - 1).abs() < 5 * math.sqrt(1 / n) + slack).all())


# The same run on the grid's table and on tensors.


class ThroughTensors(sde.Wrapper):
    """The same model, told times as tensors: what a guidance rule sees."""

    def forward(self, x, t, **cond):
        assert isinstance(t, torch.Tensor)
        assert t.shape in ((), (len(x),))  # one for each sample where a solver chooses its steps
        return self.model(x, t)


@pytest.mark.parametrize("forward", ["VP", "EDM", "Flow", "Tabulated", "CLD"])
@pytest.mark.parametrize("kind", ["network", "exact"])
def test_columns_of_a_grid_are_the_coefficients_at_its_times(any_solver, forward, kind, two_modes):
    process = SDES[forward]()
    if kind == "network":
        net = sde.nets.MLP(dim=2, width=8)
        torch.nn.init.normal_(net.outward.weight, std=0.2)
        model = sde.ScoreModel(net, process, mean=[0.3, 0.0], scale=0.8).double()
    else:
        model = sde.ExactScore(two_modes, process)
    if not fits(any_solver, model, any_solver.eta):
        pytest.skip("refused, see below")
    x = model.prior(torch.zeros(4, 2, dtype=torch.float64), generator())
    times = default_times(model, 6)
    runs = [
        sde.integrate(sde.ReverseSDE(m, any_solver.eta), x, times, any_solver, generator(1))
        for m in (model, ThroughTensors(model))
    ]
    torch.testing.assert_close(*runs, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("forward", SDES)
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_fused_steps_are_their_formulas(forward, eta, two_modes):
    one = SDES[forward]()
    model = sde.ScoreModel(sde.nets.MLP(dim=2, width=8), one, mean=0.3)
    nodes = Table(torch.linspace(0.8 * one.t_max, 0.2 * one.t_max, 4)).nodes
    x = model.prior(torch.zeros(3, 2, dtype=torch.float64), generator())
    z = torch.randn(x.shape, dtype=x.dtype, generator=generator(1))
    model.to(x.dtype)
    for process in (one, sde.ReverseSDE(model, eta), sde.BrownianMotion(mu=0.3)):
        for t in (nodes[1], torch.tensor(float(nodes[1]), dtype=torch.float64)):
            torch.testing.assert_close(process.advance(x, t, -0.1), x - 0.1 * process.drift(x, t))
            torch.testing.assert_close(process.kick(x, 0.3, x, t, z), x + 0.3 * process.diffusion(x, t, z))


def test_values_that_only_overflow_in_their_sum_are_finite():
    big = torch.full((4, 3), 3e38)
    assert not math.isfinite(float(big.sum()))
    assert len(list(sde.trajectory(sde.BrownianMotion(s=0.0), big, torch.linspace(0, 1, 3), sde.Euler()))) == 3
    with pytest.raises(ValueError, match="x holds 1 values that are not finite"):
        sde.trajectory(sde.BrownianMotion(), torch.tensor([[1.0, math.nan]]), torch.linspace(0, 1, 3), sde.Euler())


def test_fractions_of_a_step_are_nodes_too(two_modes):
    """RK4's midpoints are looked up: no time of its run is a tensor."""
    seen = []

    class Watching(sde.ExactScore):
        def forward(self, x, t, **cond):
            seen.append(type(t).__name__)
            return super().forward(x, t, **cond)

    model = Watching(two_modes, sde.VP())
    sde.sample(model, (2, 2), 3, sde.RK4(), progress=False)
    assert seen == ["Node"] * 12


# Noise.


@pytest.mark.parametrize("forward", ["VP", "Flow", "CLD"])
def test_samples_do_not_depend_on_their_batch(any_solver, forward, two_modes):
    """One generator to a sample: alone, in a batch, and in the other order."""
    model = sde.ExactScore(two_modes, SDES[forward]())
    if not fits(any_solver, model, any_solver.eta):
        pytest.skip("refused, see below")

    def draw(seeds):
        generators = [generator(seed) for seed in seeds]
        return sde.sample(model, (len(seeds), 2), 6, any_solver, generator=generators, progress=False)

    batch = draw([0, 1, 2, 3])
    torch.testing.assert_close(draw([3, 2, 1, 0]).flip(0), batch)
    torch.testing.assert_close(torch.cat([draw([0, 1]), draw([2]), draw([3])]), batch)


def test_deterministic_solvers_do_not_depend_on_the_size_of_the_batch(any_solver, two_modes):
    """From the same states, however they are cut: a fault found in other libraries."""
    model = sde.ExactScore(two_modes, sde.VP())
    if not fits(any_solver, model, 0.0) or isinstance(any_solver, sde.PredictorCorrector):
        pytest.skip("noisy")
    # in float64: the width of the batch moves float32's last bits
    x = model.prior(torch.zeros(70, 2, dtype=torch.float64), generator())
    whole = sde.sample(model, x=x, steps=8, solver=any_solver, eta=0.0, progress=False)
    parts = [sde.sample(model, x=part, steps=8, solver=any_solver, eta=0.0, progress=False) for part in x.split(13)]
    torch.testing.assert_close(torch.cat(parts), whole)


def test_same_seed_same_bits_other_seed_other_bits(any_solver, two_modes):
    model = sde.ExactScore(two_modes, sde.VP())
    state = torch.get_rng_state()
    draw = lambda seed: sde.sample(model, (5, 2), 4, any_solver, generator=generator(seed), progress=False)  # noqa: E731
    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))
    assert torch.equal(state, torch.get_rng_state())


def test_float32_and_float64_see_the_same_noise(two_modes):
    model = sde.ExactScore(two_modes, sde.VP())
    x = torch.randn(6, 2, generator=generator())
    runs = [
        sde.sample(model, x=x.to(dtype), steps=10, solver=sde.Ancestral(), generator=generator(1), progress=False)
        for dtype in (torch.float32, torch.float64)
    ]
    assert [run.dtype for run in runs] == [torch.float32, torch.float64]
    torch.testing.assert_close(runs[0].double(), runs[1], rtol=0, atol=1e-4)


def test_a_list_of_times_is_not_rounded_to_float32():
    states = list(sde.trajectory(sde.BrownianMotion(), torch.zeros(1, 1), [0.1, 0.7], sde.Euler()))
    assert [state.t for state in states] == [0.1, 0.7]


def test_a_grid_in_float32_may_end_a_rounding_beyond_t_max():
    forward = sde.VP(t_max=0.1)
    model = sde.ExactScore(sde.Gaussian([0.0], 1.0), forward)
    times = torch.linspace(0.1, 1e-3, 5)
    assert float(times[0]) > 0.1
    record = sde.record(sde.trajectory(sde.ReverseSDE(model), torch.zeros(1, 1), times, sde.Heun()))
    assert float(record.t[0]) == 0.1


# The record.


def test_record_keeps_every_kth_state_and_both_ends(two_modes):
    model = sde.ExactScore(two_modes, sde.VP())
    x, times = torch.randn(4, 2, generator=generator()), torch.linspace(1, 0.1, 8)
    run = lambda: sde.trajectory(sde.ReverseSDE(model), x, times, sde.Heun())  # noqa: E731
    whole = sde.record(run())
    assert whole.x.shape == (8, 4, 2)
    torch.testing.assert_close(whole.t, times.double())
    assert whole.calls.tolist() == [0, 2, 4, 6, 8, 10, 12, 14]
    assert torch.equal(whole.x[0], x)
    assert torch.equal(whole.x[-1], sde.integrate(sde.ReverseSDE(model), x, times, sde.Heun()))
    for every, kept in {2: [0, 2, 4, 6, 7], 3: [0, 3, 6, 7], 7: [0, 7], 50: [0, 7]}.items():
        part = sde.record(run(), every=every)
        assert torch.equal(part.x, whole.x[kept])
        assert torch.equal(part.t, whole.t[kept])
        assert torch.equal(part.calls, whole.calls[kept])


def test_a_record_is_detached_and_maps():
    x = torch.zeros(3, 2, requires_grad=True)
    path = sde.record(sde.trajectory(sde.BrownianMotion(), x, [0.0, 1.0], sde.Euler()))
    assert not path.x.requires_grad
    shifted = path.map(lambda x: x[:, :1] + 1)
    assert shifted.x.shape == (2, 3, 1)
    assert torch.equal(shifted.x, path.x[..., :1] + 1)
    assert torch.equal(shifted.t, path.t)


def test_the_loop_leaves_grad_mode_alone_and_sample_takes_no_gradients(two_modes):
    model = sde.ExactScore(two_modes, sde.VP())
    x = torch.randn(2, 2, generator=generator()).requires_grad_()
    with torch.enable_grad():
        end = sde.integrate(sde.ReverseSDE(model), x, [1.0, 0.5, 0.2], sde.Heun())
        (gradient,) = torch.autograd.grad(end.sum(), x)
        assert gradient.isfinite().all()
        assert not sde.sample(model, x=x, steps=2, progress=False).requires_grad


# What `sample` is for.


@pytest.mark.parametrize("forward", ["EDM", "VE", "VP", "Flow", "Cosine"])
def test_data_far_from_the_origin_and_of_small_scale_are_sampled_right(forward):
    """Mean 20, standard deviation .1: the prior knows both, and an untrained edm net is right for a Gaussian."""
    model = sde.ScoreModel(sde.nets.MLP(dim=2, width=8), SDES[forward](), mean=[20.0, -3.0], scale=0.1)
    x = sde.sample(model, (4000, 2), generator=generator(), progress=False)
    spread = math.hypot(0.1, float(model.sde.sigma(torch.tensor(model.sde.t_min).double())))
    error = spread / math.sqrt(4000)
    torch.testing.assert_close(x.mean(0), torch.tensor([20.0, -3.0]), rtol=1e-4, atol=5 * error)
    torch.testing.assert_close(x.std(0), torch.full((2,), spread), rtol=0.06, atol=0)


def test_exact_data_of_mean_20_on_edm():
    model = sde.ExactScore(sde.Mixture([0.5, 0.5], [[19.0], [21.0]], [0.04, 0.04]), sde.EDM())
    for solver in (None, sde.Heun(), sde.EulerMaruyama(), sde.Ancestral()):
        x = sde.sample(model, (4000, 1), 60, solver, generator=generator(), progress=False)
        assert float(x.mean()) == pytest.approx(20.0, abs=0.1)
        assert float((x < 20).double().mean()) == pytest.approx(0.5, abs=0.04)


def test_sample_follows_its_arguments(two_modes):
    model = sde.ExactScore(two_modes, sde.VP())
    seen = []

    class Watching(sde.Wrapper):
        def forward(self, x, t, **cond):
            seen.append(float(t))
            return self.model(x, t)

    x = torch.randn(3, 2, generator=generator())
    sde.sample(Watching(model), x=x, times=[0.9, 0.4, 0.1], solver=sde.Euler(), progress=False)
    assert seen == [0.9, 0.4]
    seen.clear()
    sde.sample(Watching(model), x=x, steps=5, solver=sde.Heun(), progress=False)
    assert len(seen) == 10
    assert seen[0] == 1.0
    quiet = sde.sample(model, x=x, steps=5, solver=sde.Euler(), eta=0.0, generator=generator(1), progress=False)
    noisy = sde.sample(model, x=x, steps=5, solver=sde.Euler(), eta=1.0, generator=generator(1), progress=False)
    default = sde.sample(model, x=x, steps=5, solver=sde.EulerMaruyama(), generator=generator(1), progress=False)
    assert torch.equal(noisy, default)
    assert not torch.equal(noisy, quiet)


@pytest.mark.parametrize("event", [(1,), (2, 3), (3, 4, 4), (3, 2, 4, 4)])
def test_any_event_shape(event, any_solver):
    d = math.prod(event)
    model = sde.ExactScore(sde.Gaussian(torch.linspace(-1, 1, d).reshape(event), torch.full((d,), 0.3)), sde.VP())
    x = sde.sample(model, (2, *event), 3, any_solver, generator=generator(), progress=False)
    assert x.shape == (2, *event)


def test_a_bar_is_shown_when_asked_for(two_modes, capsys):
    model = sde.ExactScore(two_modes, sde.VP())
    sde.sample(model, (2, 2), 4, progress=True)
    assert "sampling" in capsys.readouterr().err
    for progress in (False, None):
        sde.sample(model, (2, 2), 4, progress=progress)
        assert capsys.readouterr().err == ""


def test_states_that_are_not_contiguous_are_as_good(any_solver, two_modes):
    model = sde.ExactScore(two_modes, sde.VP())
    x = torch.randn(2, 5, generator=generator()).T
    assert not x.is_contiguous()
    runs = [
        sde.sample(model, x=start, steps=3, solver=any_solver, generator=generator(1), progress=False)
        for start in (x, x.contiguous())
    ]
    torch.testing.assert_close(*runs)


def test_a_start_is_left_as_it_was(any_solver, two_modes):
    model = sde.ExactScore(two_modes, sde.VP())
    x = torch.randn(5, 2, generator=generator())
    before = x.clone()
    sde.sample(model, x=x, steps=3, solver=any_solver, progress=False)
    assert torch.equal(x, before)
