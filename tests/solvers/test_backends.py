"""scipy's and torchdiffeq's solvers behind the same call, and what they do not guard against."""

import builtins
import importlib
import math

import pytest
import torch

import sde
from sde.solvers.adaptive.backends import ScipySolver, TorchdiffeqSolver
from sde.solvers.adaptive.embedded import DormandPrince

ELLIPSE = sde.Gaussian([2.0, -1.0], [[0.5, 0.2], [0.2, 0.1]])
SDES = {"VP": sde.VP(), "EDM": sde.EDM(), "Flow": sde.Flow()}
SOLVERS = {
    "DOP853": ScipySolver,
    "RK45": lambda **k: ScipySolver("RK45", **k),
    "LSODA": lambda **k: ScipySolver("LSODA", **k),
    "dopri5": TorchdiffeqSolver,
    "bosh3": lambda **k: TorchdiffeqSolver("bosh3", **k),
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def run(flow, x, times, solver):
    return list(sde.trajectory(flow, x, times, solver))


def problem(forward, batch=8, end=None):
    flow = sde.ReverseSDE(sde.ExactScore(ELLIPSE, forward))
    x = flow.model.prior(torch.zeros(batch, 2, dtype=torch.float64), generator())
    times = torch.tensor([forward.t_max, forward.t_min if end is None else end], dtype=torch.float64)
    return flow, x, times


class Watching(sde.Wrapper):
    """A model that notes when it was asked, and has no answer at some times."""

    def __init__(self, model, lost=None):
        super().__init__(model)
        self.asked, self.lost = [], lost

    def forward(self, x, t, **cond):
        point = self.model(x, t, **cond)
        self.asked.append(float(t))
        return sde.Point(self.sde, x, t, point.x0 + math.nan) if self.lost and self.lost(float(t)) else point


@pytest.mark.parametrize(
    ("name", "forward"), [*[(name, "VP") for name in SOLVERS], ("DOP853", "EDM"), ("dopri5", "Flow")]
)
def test_they_solve_the_same_flow(name, forward):
    """To either end, and states between as good as the end."""
    flow, x, _ = problem(SDES[forward])
    times = torch.tensor([1.0, 0.6, 0.3, 0.02, 0.0], dtype=torch.float64) * SDES[forward].t_max
    exact = sde.record(run(flow, x, times, DormandPrince(rtol=1e-9)))
    path = sde.record(run(flow, x, times, SOLVERS[name](rtol=1e-6)))
    assert torch.equal(path.t, times)
    size = exact.x.abs().amax((1, 2), keepdim=True)
    coarse = 1e-3 if name == "bosh3" else 1e-4  # its states between are of lower order than its steps
    assert float(((path.x - exact.x) / size).abs().max()) < coarse
    back = sde.integrate(flow, path.x[-1], times.flip(0), SOLVERS[name](rtol=1e-6))
    torch.testing.assert_close(back, x, rtol=1e-3, atol=1e-3 * float(x.std()))


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("time", ["angle", "log", "t"])
def test_no_evaluation_outside_of_the_times(name, time):
    """Torchdiffeq by itself steps past the end, where a schedule may have no value."""
    model = Watching(sde.ExactScore(ELLIPSE, sde.VP()))
    x, times = torch.randn(4, 2, generator=generator()).double(), torch.tensor([0.9, 0.5, 0.02], dtype=torch.float64)
    for grid in (times, times.flip(0)):
        sde.integrate(sde.ReverseSDE(model), x, grid, SOLVERS[name](time=time, rtol=1e-4))
    assert 0.02 <= min(model.asked) < 0.02 + 1e-12
    assert 0.9 - 1e-12 < max(model.asked) <= 0.9


def test_torchdiffeq_steps_on_the_last_time():
    """And not past it, clamped: the last step would see a slope that is not its own."""
    model = Watching(sde.ExactScore(ELLIPSE, sde.VP()))
    flow, x = sde.ReverseSDE(model), torch.randn(4, 2, generator=generator()).double()
    path = sde.record(run(flow, x, torch.tensor([1.0, 0.001], dtype=torch.float64), TorchdiffeqSolver(rtol=1e-5)))
    assert model.asked.count(min(model.asked)) <= 4  # two stages of a step lie at its end
    assert len(model.asked) == path.calls[-1]


@pytest.mark.parametrize("name", ["RK45", "DOP853", "dopri5", "bosh3"])
def test_counts(name):
    model = Watching(sde.ExactScore(ELLIPSE, sde.EDM()))
    x = model.prior(torch.zeros(8, 2, dtype=torch.float64), generator())
    times = torch.tensor([80.0, 1.0, 0.1, 0.002], dtype=torch.float64)
    path = sde.record(run(sde.ReverseSDE(model), x, times, SOLVERS[name]()))
    assert len(model.asked) == path.calls[-1]
    assert path.calls[0] == path.accepted[0] == 0
    for counts in (path.calls, path.accepted, path.rejected):
        assert (counts.diff() >= 0).all()
    stages = {"RK45": 6, "DOP853": 12, "dopri5": 6, "bosh3": 3}[name]
    attempts = int(path.accepted[-1] + path.rejected[-1])
    interpolants = 3 * 2 if name == "DOP853" else 0  # it evaluates anew for two of the times
    assert path.calls[-1] == 2 + stages * attempts + interpolants


@pytest.mark.parametrize(("method", "order"), [("midpoint", 2), ("heun3", 3)])
def test_methods_that_step_on_the_times_have_their_order(method, order):
    solver = TorchdiffeqSolver(method)
    assert solver.order == order
    assert sde.checks.ode_order(solver, sde.VP()).value == pytest.approx(order, abs=0.2)


def test_a_method_that_steps_on_the_times():
    flow, x, _ = problem(sde.Flow())
    times = sde.grids.data_scaled(sde.Flow(), 60, scale=ELLIPSE.scale)
    path = sde.record(run(flow, x, times, TorchdiffeqSolver("rk4")))
    assert torch.equal(path.calls, 4 * torch.arange(61))
    exact = sde.integrate(flow, x, times, DormandPrince(rtol=1e-9))
    torch.testing.assert_close(path.x[-1], exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rtol", [1e-5, 1e-7])
def test_ours_needs_no_more_than_theirs(rtol):
    """One sample at a time in the same coordinate: evaluations, at errors that are no larger."""
    k = torch.arange(8, dtype=torch.float64) * (2 * math.pi / 8)
    ring = sde.Mixture(
        [0.3, 0.2, 0.15, 0.12, 0.09, 0.07, 0.05, 0.02], 1.5 * torch.stack([k.cos(), k.sin()], 1), [0.0225] * 8
    )
    flow = sde.ReverseSDE(sde.ExactScore(ring, sde.EDM()))
    x, times = flow.model.prior(torch.zeros(5, 2, dtype=torch.float64), generator()), torch.tensor([80.0, 0.002])
    exact = sde.integrate(flow, x, times, DormandPrince(rtol=1e-9))
    solvers = {
        "ours": DormandPrince(rtol),
        "scipy": ScipySolver("RK45", rtol),
        "torchdiffeq": TorchdiffeqSolver(rtol=rtol),
    }
    spent, wrong = dict.fromkeys(solvers, 0), dict.fromkeys(solvers, 0.0)
    for name, solver in solvers.items():
        for i in range(5):
            end = run(flow, x[i : i + 1], times, solver)[-1]
            spent[name] += end.calls
            wrong[name] += float((end.x - exact[i]).square().sum())
    for name in ("scipy", "torchdiffeq"):
        assert spent["ours"] < 1.05 * spent[name], spent
        assert wrong["ours"] < 1.5 * wrong[name], wrong


def test_samples_images_and_likelihood():
    forward = sde.Flow()
    model = sde.ExactScore(sde.Gaussian(torch.full((3, 4, 4), 0.5), 0.25), forward)
    x, times = model.prior(torch.zeros(2, 3, 4, 4), generator()), torch.tensor([1.0, 0.0])
    for solver in (ScipySolver(), TorchdiffeqSolver()):
        end = sde.sample(model, x=x, times=times, solver=solver)
        assert end.dtype == x.dtype
        torch.testing.assert_close(end, 0.5 + 0.5 * x, rtol=0, atol=1e-4)
    model = sde.ExactScore(ELLIPSE, sde.VP())
    x, up = ELLIPSE.sample(6, generator()).double(), torch.tensor([1e-3, 1.0], dtype=torch.float64)
    exact = model.log_prob(x, 1e-3)
    for solver in (ScipySolver(rtol=1e-7), TorchdiffeqSolver(rtol=1e-7)):
        torch.testing.assert_close(sde.log_prob(model, x, up, solver), exact, rtol=0, atol=1e-4)


def test_gradients_pass_torchdiffeq_and_are_refused_by_scipy():
    flow, x, times = problem(sde.VP(), batch=1)
    with torch.enable_grad():
        leaf = x.clone().requires_grad_()
        (theirs,) = torch.autograd.grad(sde.integrate(flow, leaf, times, TorchdiffeqSolver(rtol=1e-7)).sum(), leaf)
        (ours,) = torch.autograd.grad(sde.integrate(flow, leaf, times, DormandPrince(rtol=1e-7)).sum(), leaf)
        torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)
        with pytest.raises(ValueError, match="x requires a gradient, which is lost in scipy: use TorchdiffeqSolver"):
            sde.integrate(flow, leaf, times, ScipySolver())


# What they would not say, or not say well.


@pytest.mark.parametrize("name", ["DOP853", "RK45", "LSODA", "dopri5"])
def test_values_that_are_not_finite_are_named_and_do_not_hang(name):
    """Scipy's explicit methods halve their step for ever on NaN."""
    exact = sde.ExactScore(ELLIPSE, sde.VP())
    times, x = torch.tensor([1.0, 0.1]), torch.ones(3, 2, dtype=torch.float64)
    who = type(SOLVERS[name]()).__name__
    for lost, where in (
        (lambda t: True, rf"t = 1 \(sample 0 of 3\), the first evaluation of {who}"),
        (lambda t: t < 0.5, r"t = 0\.\d+"),
    ):
        flow = sde.ReverseSDE(Watching(exact, lost))
        with pytest.raises(ValueError, match=f"not finite at {where}"):
            sde.integrate(flow, x, times, SOLVERS[name]())
        assert len(flow.model.asked) < 300


@pytest.mark.parametrize("name", SOLVERS)
def test_evaluations_are_capped(name):
    flow, x, times = problem(sde.VP())
    message = r"max_calls=30 evaluations are spent and \w+Solver is at t = 0\.\d+: raise max_calls, or rtol"
    with pytest.raises(ValueError, match=message):
        sde.integrate(flow, x, times, SOLVERS[name](rtol=1e-9, max_calls=30))


class Jump(sde.SDE):
    """A slope that grows without bound at t = .5."""

    noisy, direction = False, 0

    def drift(self, x, t):
        return 1 / (t - 0.5).abs() ** 1.5 * torch.ones_like(x)

    def diffusion(self, x, t, z):
        return torch.zeros_like(z)


@pytest.mark.parametrize(("name", "library"), [("RK45", "scipy"), ("dopri5", "torchdiffeq")])
def test_steps_that_collapse_are_named(name, library):
    message = rf"{name} of {library} gives up at t = 0\.5 .*: raise rtol=1e-05 and atol=1e-05"
    with pytest.raises(ValueError, match=message):
        sde.integrate(Jump(), torch.ones(1, 1, dtype=torch.float64), torch.tensor([1.0, 0.1]), SOLVERS[name]())


def test_arguments_that_make_no_sense():
    with pytest.raises(ValueError, match=r"method must be one of RK23, .*, LSODA, got 'dopri5'"):
        ScipySolver("dopri5")
    with pytest.raises(ValueError, match=r"method must be one of adaptive_heun, .*, got 'RK45'"):
        TorchdiffeqSolver("RK45")
    with pytest.raises(ValueError, match=r"rtol must be positive and finite, got 0\.0"):
        ScipySolver(rtol=0.0)
    flow, x, times = problem(sde.VP())
    with pytest.raises(ValueError, match=r"rtol=1e-08 is below the rounding of torch.float32"):
        sde.integrate(flow, x.float(), times, ScipySolver(rtol=1e-8))
    noisy = sde.ReverseSDE(flow.model, 1.0)
    with pytest.raises(ValueError, match=r"TorchdiffeqSolver solves ODEs, .* noisy \(eta=1\): use eta=0"):
        sde.integrate(noisy, x, times, TorchdiffeqSolver())
    assert (ScipySolver().nominal, TorchdiffeqSolver("bosh3").nominal) == (8.0, 3.0)


def test_a_library_that_is_not_there_is_named(monkeypatch):
    flow, x, times = problem(sde.VP())
    find, plain = importlib.import_module, builtins.__import__

    def without(name, *rest, **more):
        if name.split(".")[0] in ("torchdiffeq", "scipy"):
            raise ImportError(name)
        return (plain if rest or more else find)(name, *rest, **more)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(ImportError, match=r"needs torchdiffeq: pip install 'sde\[ode\]', or use DormandPrince"):
        sde.integrate(flow, x, times, TorchdiffeqSolver())
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match="ScipySolver needs scipy: pip install scipy, or use DormandPrince"):
        sde.integrate(flow, x, times, ScipySolver())
