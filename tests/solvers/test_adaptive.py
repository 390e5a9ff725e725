"""Embedded pairs: orders of rule, estimate and interpolant, errors that follow the tolerance, and every way to fail."""

import math
import time
from itertools import pairwise

import pytest
import torch

import sde
from sde.checks.convergence import fitted
from sde.solvers.adaptive.backends import ScipySolver, TorchdiffeqSolver
from sde.solvers.adaptive.coordinate import coordinate
from sde.solvers.adaptive.embedded import BogackiShampine, DormandPrince
from sde.solvers.adaptive.stochastic import AdaptiveHeun
from sde.solvers.ratio import TimeOfRatio

PAIRS = {"BogackiShampine": BogackiShampine, "DormandPrince": DormandPrince}
SDES = {"VP": sde.VP(), "EDM": sde.EDM(), "Flow": sde.Flow()}
ELLIPSE = sde.Gaussian([2.0, -1.0], [[0.5, 0.2], [0.2, 0.1]])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def ring():
    """The target of the peers' figures: eight modes of unlike weight on a circle."""
    k = torch.arange(8, dtype=torch.float64) * (2 * math.pi / 8)
    means = 1.5 * torch.stack([k.cos(), k.sin()], 1)
    return sde.Mixture([0.30, 0.20, 0.15, 0.12, 0.09, 0.07, 0.05, 0.02], means, torch.full((8,), 0.15**2))


def flow_of(target, forward):
    return sde.ReverseSDE(sde.ExactScore(target, forward))


def start_of(flow, batch, seed=0):
    return flow.model.prior(torch.zeros(batch, 2, dtype=torch.float64), generator(seed))


def whole(forward, end=None):
    return torch.tensor([forward.t_max, forward.t_min if end is None else end], dtype=torch.float64)


def run(flow, x, times, solver):
    return list(sde.trajectory(flow, x, times, solver))


def along(target, forward, x, times):
    """Exact flow of a Gaussian: each principal coordinate keeps its distance from the mean in deviations."""
    axes, variances, mean = target.axes[0], target.variances[0], target.means[0]
    alpha, sigma = forward.levels(times)
    width = (alpha[:, None] ** 2 * variances + sigma[:, None] ** 2).sqrt()
    z = (x - alpha[0] * mean) @ axes / width[0]
    return torch.stack([a * mean + (z * w) @ axes.T for a, w in zip(alpha, width, strict=True)])


def rms(a, b):
    return float((a - b).square().sum(-1).mean().sqrt())


class Watching(sde.Wrapper):
    """A model that notes when it was asked, and has no answer at some times."""

    def __init__(self, model, lost=None):
        super().__init__(model)
        self.asked, self.lost = [], lost

    def forward(self, x, t, **cond):
        point = self.model(x, t, **cond)
        self.asked.append(torch.as_tensor(t).expand(len(x)))
        if self.lost is None:
            return point
        return sde.Point(self.sde, x, t, torch.where(self.lost(self.asked[-1])[:, None], math.nan, point.x0))


class Ode(sde.SDE):
    """An ordinary equation that a test writes."""

    noisy, direction = False, 0

    def __init__(self, slope):
        self.slope = slope

    def drift(self, x, t):
        return self.slope(x, torch.as_tensor(t).expand(len(x))[:, None])

    def diffusion(self, x, t, z):
        return torch.zeros_like(z)


# The rules themselves, in fixed steps.


def fixed(pair, flow, x, times, n):
    """States at the nodes of n equal steps in the solver's own time and half-way between, and the largest estimate."""
    line = coordinate(None, flow, times, x)
    u = torch.linspace(*line.of(times).tolist(), n + 1, dtype=torch.float64)
    nodes, inside, largest, h = [line.enter(x, times[0])], [], 0.0, u[1] - u[0]
    slope = line.fields(u[:1], x)[0](nodes[0])
    for start in u[:-1]:
        fields = line.fields(start + h * torch.tensor(pair.c, dtype=torch.float64), x)
        step = pair.take(fields, nodes[-1], slope, h)
        largest = max(
            largest, float(sum(e * k for e, k in zip(pair.e, step.slopes, strict=True)).abs().max() * h.abs())
        )
        inside.append(pair.between(step, torch.tensor(0.5, dtype=torch.float64)))
        nodes.append(step.end)
        slope = step.slopes[-1]
    return torch.stack(nodes), torch.stack(inside), largest


RATIONAL = Ode(lambda x, t: -2 * t * x**2)  # x = 1 / (t^2 + c)


@pytest.mark.parametrize("name", PAIRS)
def test_rule_interpolant_and_estimate_have_their_orders(name):
    """Without its quartic's term DormandPrince would be of order 4 half-way through a step."""
    pair = PAIRS[name]()
    x, times = torch.tensor([[1.0], [0.8], [1.2]], dtype=torch.float64), torch.tensor([0.0, 1.5], dtype=torch.float64)
    runs = {n: fixed(pair, RATIONAL, x, times, n) for n in (8, 16, 32, 64, 128)}
    middles = {n: (torch.arange(n).double()[:, None, None] + 0.5) * 1.5 / n for n in runs}
    errors = {
        "order": lambda n: rms(runs[n][0][-1], 1 / (1.5**2 + 1 / x)),
        "half-way": lambda n: rms(runs[n][1], 1 / (middles[n] ** 2 + 1 / x)),
        "estimate": lambda n: runs[n][2],  # of the lower order, in one step
    }
    for what, declared in {"order": pair.nominal, "half-way": pair.nominal, "estimate": pair.local}.items():
        fit = fitted(errors[what], first=8, last=128, floor=1e-14)
        assert fit.value == pytest.approx(declared, abs=0.2), f"{what}: {fit}"


@pytest.mark.parametrize("forward", SDES)
@pytest.mark.parametrize("name", PAIRS)
def test_the_rule_has_its_order_on_a_flow(name, forward, two_modes):
    pair, flow = PAIRS[name](), flow_of(two_modes, SDES[forward])
    times = SDES[forward].time_at(torch.tensor([-3.0, 3.0], dtype=torch.float64))
    x = SDES[forward].perturb(two_modes.sample(16, generator()), times[0], generator()).x
    exact = fixed(DormandPrince(), flow, x, times, 128)[0][-1]
    coarse, fine = (rms(fixed(pair, flow, x, times, n)[0][-1], exact) for n in (16, 32))
    assert pair.nominal - 0.2 < math.log2(coarse / fine) < pair.nominal + 1.2


# Error and tolerance.


@pytest.mark.parametrize("forward", SDES)
@pytest.mark.parametrize("name", PAIRS)
def test_the_error_follows_the_tolerance_on_a_gaussian(name, forward):
    flow, times = flow_of(ELLIPSE, SDES[forward]), whole(SDES[forward])
    x = start_of(flow, 64)
    exact = along(ELLIPSE, SDES[forward], x, times)[-1]
    tolerances = {"BogackiShampine": (1e-2, 1e-3, 1e-5), "DormandPrince": (1e-2, 1e-4, 1e-6, 1e-8)}[name]
    errors = [rms(sde.integrate(flow, x, times, PAIRS[name](rtol=rtol)), exact) for rtol in tolerances]
    for rtol, error in zip(tolerances, errors, strict=True):
        assert 0.02 * rtol < error < 2 * rtol
    assert all(b < a / 5 for a, b in pairwise(errors))


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("forward", SDES)
def test_the_error_follows_the_tolerance_on_a_mixture(name, forward, two_modes):
    """Of the middle path, as a few change their mode at the slightest touch."""
    flow, times = flow_of(two_modes, SDES[forward]), whole(SDES[forward])
    x = start_of(flow, 64)
    fine = sde.grids.data_scaled(SDES[forward], 150, scale=two_modes.scale)
    exact = sde.integrate(flow, x, fine, sde.RK4())
    for rtol in (1e-3, 1e-5):
        error = (sde.integrate(flow, x, times, PAIRS[name](rtol=rtol)) - exact).norm(dim=1).median()
        assert 0.02 * rtol < float(error) < 10 * rtol


def test_better_than_the_peers_figures():
    """Adaptive peers in log sigma on the ring: 116 evaluations leave 8.5e-4, 194 leave 1.3e-5."""
    flow, times = flow_of(ring(), sde.EDM()), whole(sde.EDM())
    x = start_of(flow, 300)
    exact = sde.integrate(flow, x, times, DormandPrince(rtol=1e-9))
    for rtol, calls, error in [(1e-4, 100, 8.5e-4), (1e-6, 160, 5e-6)]:
        end = run(flow, x, times, DormandPrince(rtol=rtol))[-1]
        assert end.calls <= calls
        assert rms(end.x, exact) < error


def test_no_path_is_left_behind():
    """With two coordinates an estimate vanishes by accident; if it is all, one path is off by 150 tolerances."""
    flow, times = flow_of(ELLIPSE, sde.Flow()), whole(sde.Flow())
    x = start_of(flow, 2000)
    exact = along(ELLIPSE, sde.Flow(), x, times)[-1]
    end = sde.integrate(flow, x, times, DormandPrince(rtol=1e-6))
    assert float((end - exact).norm(dim=1).max()) < 1e-5


def test_the_angle_is_the_time_to_step_in():
    flow, times = flow_of(ring(), sde.EDM()), whole(sde.EDM())
    x = start_of(flow, 40)
    ends = {t: run(flow, x, times, DormandPrince(rtol=1e-6, time=t))[-1] for t in (None, "angle", "log", "t")}
    assert ends[None].calls == ends["angle"].calls < 0.8 * ends["log"].calls
    assert ends["angle"].calls < 0.7 * ends["t"].calls
    assert max(rms(ends["angle"].x, end.x) for end in ends.values()) < 1e-5


@pytest.mark.parametrize("name", PAIRS)
def test_the_laws_of_a_solver(name):
    """Finite in every dtype, the calls that were made, and samples that do not see their batch."""
    assert sde.checks.solver(PAIRS[name](rtol=1e-3), sde.VP()) == {}


# One sample and its batch.


@pytest.mark.parametrize("name", PAIRS)
def test_a_sample_does_not_see_its_batch(name):
    flow, times = flow_of(ring(), sde.VP()), torch.tensor([1.0, 0.2, 0.001])
    x = start_of(flow, 12)
    together = sde.record(run(flow, x, times, PAIRS[name](rtol=1e-3)))
    for i in (0, 7):
        alone = sde.record(run(flow, x[i : i + 1], times, PAIRS[name](rtol=1e-3)))
        torch.testing.assert_close(alone.x[:, 0], together.x[:, i], rtol=1e-11, atol=1e-11)
        assert alone.calls[-1] <= together.calls[-1]


def test_counts_are_those_of_evaluations_and_of_all_samples():
    model = Watching(sde.ExactScore(ring(), sde.EDM()))
    flow, times = sde.ReverseSDE(model), torch.tensor([80.0, 1.0, 0.1, 0.002])
    x = start_of(flow, 10)
    path = sde.record(run(flow, x, times, DormandPrince(rtol=1e-5)))
    assert len(model.asked) == path.calls[-1]
    assert path.accepted[0] == path.rejected[0] == path.calls[0] == 0
    assert (path.accepted.diff() > 0).all()
    assert (path.rejected.diff() >= 0).all()
    assert path.rejected[-1] > 0
    alone = [run(flow, x[i : i + 1], times, DormandPrince(rtol=1e-5))[-1] for i in range(10)]
    assert all(end.calls == 2 + 6 * (end.accepted + end.rejected) for end in alone)
    assert path.calls[-1] == max(end.calls for end in alone)
    assert path.accepted[-1] == sum(end.accepted for end in alone)
    assert path.rejected[-1] == sum(end.rejected for end in alone)


def test_two_runs_of_one_object_give_the_same_bits(two_modes):
    flow, solver = flow_of(two_modes, sde.Flow()), DormandPrince()
    x = start_of(flow, 8)
    assert torch.equal(*[sde.integrate(flow, x, whole(sde.Flow()), solver) for _ in range(2)])


# Times.


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("time", ["angle", "t"])
@pytest.mark.parametrize("up", [False, True])
def test_no_evaluation_outside_of_the_times(name, time, up):
    """A peer's adaptive solver steps past the end and interpolates back."""
    model = Watching(sde.ExactScore(ring(), sde.VP()))
    times = torch.tensor([0.9, 0.5, 0.02], dtype=torch.float64)
    x = torch.randn(20, 2, generator=generator()).double()
    sde.integrate(sde.ReverseSDE(model), x, times.flip(0) if up else times, PAIRS[name](time=time))
    asked = torch.cat(model.asked)
    assert times[-1] <= asked.min() < times[-1] + 1e-12
    assert times[0] - 1e-12 < asked.max() <= times[0]


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("forward", SDES)
def test_states_between_cost_nothing_and_are_as_good(name, forward):
    flow, solver = flow_of(ELLIPSE, SDES[forward]), PAIRS[name](rtol=1e-4)
    times = sde.grids.data_scaled(SDES[forward], 40, scale=ELLIPSE.scale)
    x = start_of(flow, 16)
    path, ends = sde.record(run(flow, x, times, solver)), run(flow, x, times[[0, -1]], solver)
    assert path.calls[-1] == ends[-1].calls
    torch.testing.assert_close(path.x[-1], ends[-1].x, rtol=0, atol=0)
    exact = along(ELLIPSE, SDES[forward], x, times)
    size = exact.abs().amax((1, 2))
    assert ((path.x - exact).abs().amax((1, 2)) < 2e-3 * size).all()


@pytest.mark.parametrize("forward", ["VP", "EDM", "Flow"])
def test_both_ends_where_noise_or_data_vanish(forward):
    """At sigma = 0, and on Flow at alpha = 0, where eps or x0 is 0 / 0, and back up again."""
    flow, times = flow_of(ELLIPSE, SDES[forward]), whole(SDES[forward], end=0.0)
    x = start_of(flow, 16)
    exact = along(ELLIPSE, SDES[forward], x, times)[-1]
    end = sde.integrate(flow, x, times, DormandPrince(rtol=1e-8))
    torch.testing.assert_close(end, exact, rtol=0, atol=1e-7)
    back = sde.integrate(flow, end, times.flip(0), DormandPrince(rtol=1e-8))
    torch.testing.assert_close(back, x, rtol=1e-7, atol=1e-7 * float(x.std()))
    coarse = sde.integrate(flow, x.float(), times, DormandPrince(rtol=1e-4))
    assert coarse.dtype == torch.float32
    torch.testing.assert_close(coarse.double(), exact, rtol=0, atol=2e-3)


class Searched(sde.ScalarSDE):
    """A schedule that states no inverse."""

    def alpha(self, t):
        return 1 - t

    def sigma(self, t):
        return t**2 + t / 2


@pytest.mark.parametrize(
    "forward",
    [Searched(), sde.FromCoefficients(f=lambda t: -t, g=lambda t: 1 + t), sde.Tabulated([0.95, 0.4, 0.05])],
    ids=lambda f: type(f).__name__,
)
def test_schedules_without_an_inverse(forward):
    times = torch.linspace(0, forward.t_max, 41, dtype=torch.float64)
    alpha, sigma = forward.levels(times)
    found = TimeOfRatio(forward, 0.0, forward.t_max)(sigma / alpha)
    torch.testing.assert_close(found, times, rtol=1e-13, atol=1e-14)
    flow, x = flow_of(ELLIPSE, forward), torch.randn(8, 2, generator=generator()).double()
    ends = whole(forward)
    end = sde.integrate(flow, x, ends, DormandPrince(rtol=1e-7))
    torch.testing.assert_close(end, along(ELLIPSE, forward, x, ends)[-1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("up", [True, False])
def test_any_ode_in_its_own_time(up):
    """x' = -2 t x, exp(-t^2), each sample at times of its own."""
    times = torch.linspace(0, 2, 5, dtype=torch.float64)
    times = times if up else times.flip(0)
    x = torch.tensor([[1.0], [3.0], [-0.1]], dtype=torch.float64)
    path = sde.record(run(Ode(lambda x, t: -2 * t * x), x, times, DormandPrince(rtol=1e-8, atol=1e-12)))
    exact = x * torch.exp(times[0] ** 2 - times**2)[:, None, None]
    torch.testing.assert_close(path.x, exact, rtol=1e-6, atol=1e-11)


def test_a_matrix_sde_goes_in_t():
    flow = flow_of(ELLIPSE, sde.CLD())
    x = flow.model.prior(torch.zeros(4, 2, dtype=torch.float64), generator())
    fine = sde.integrate(flow, x, sde.grids.quadratic(sde.CLD(), 100), sde.RK4())
    end = sde.integrate(flow, x, whole(sde.CLD()), DormandPrince(rtol=1e-4))
    torch.testing.assert_close(end, fine, rtol=0, atol=1e-3)


# What else a run is asked for.


def test_samples_and_networks(two_modes):
    x = sde.sample(sde.ExactScore(two_modes, sde.VP()), (4, 2), solver=DormandPrince(rtol=1e-3))
    assert x.shape == (4, 2)
    torch.manual_seed(0)
    net = sde.nets.MLP(dim=2, width=16)
    for p in net.parameters():
        p.copy_(0.3 * torch.randn(p.shape))
    learned = sde.ScoreModel(net, sde.VP(), mean=[1.0, -2.0], scale=0.7)
    for model in (learned, sde.CFG(learned, learned, 1.0)):
        start = model.prior(torch.zeros(5, 2), generator())
        fine = sde.sample(model, x=start, steps=80, solver=sde.RK4())
        end = sde.sample(model, x=start, solver=BogackiShampine(rtol=1e-4))
        assert end.dtype == torch.float32
        torch.testing.assert_close(end, fine, rtol=0, atol=5e-3)


def test_images():
    forward = sde.Flow()
    model = sde.ExactScore(sde.Gaussian(torch.full((3, 4, 4), 0.5), 0.25), forward)
    x = model.prior(torch.zeros(2, 3, 4, 4), generator())
    end = sde.sample(model, x=x, times=whole(forward, 0.0), solver=DormandPrince())
    torch.testing.assert_close(end, 0.5 + 0.5 * x, rtol=0, atol=1e-4)


@pytest.mark.parametrize("forward", SDES)
def test_likelihood(forward, two_modes):
    model = sde.ExactScore(two_modes, SDES[forward])
    x = two_modes.sample(20, generator())
    times = whole(SDES[forward], max(SDES[forward].t_min, 1e-3)).flip(0)
    got = sde.log_prob(model, x, times, DormandPrince(rtol=1e-6))
    torch.testing.assert_close(got, model.log_prob(x, float(times[0])), rtol=0, atol=5e-5)


def test_gradients_pass():
    flow, times = flow_of(ELLIPSE, sde.VP()), whole(sde.VP())
    x = start_of(flow, 1)
    with torch.enable_grad():
        jacobian = torch.autograd.functional.jacobian(lambda u: sde.integrate(flow, u, times, DormandPrince(1e-7)), x)
    basis = torch.cat([x, x + torch.eye(2, dtype=torch.float64)])
    exact = along(ELLIPSE, sde.VP(), basis, times)[-1]
    torch.testing.assert_close(jacobian[0, :, 0].T, exact[1:] - exact[:1], rtol=0, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("forward", [sde.VP(), sde.Flow(), sde.CLD()], ids=lambda f: type(f).__name__)
def test_the_same_on_a_gpu(forward, two_modes):
    """States there, times here: the same path, noise and all, to rounding in float64."""
    model, seeds = sde.ExactScore(two_modes, forward), range(5)
    x = model.prior(torch.zeros(5, 2, dtype=torch.float64), generator())
    times = torch.tensor([1.0, 0.5, 0.01], dtype=torch.float64)
    solvers = [DormandPrince(1e-5), BogackiShampine(1e-3), ScipySolver(), TorchdiffeqSolver(), AdaptiveHeun(rtol=0.2)]
    for solver in solvers:
        reverse = sde.ReverseSDE(model, solver.eta)
        paths = []
        for device in ("cpu", "cuda"):
            model.to(device)
            noise = [generator(seed) for seed in seeds]
            paths.append(sde.record(sde.trajectory(reverse, x.to(device), times, solver, noise)))
        model.to("cpu")
        torch.testing.assert_close(*(path.x for path in paths), rtol=1e-8, atol=1e-8)
        assert torch.equal(*(path.calls for path in paths))


# Refusals: each names what, its value, where, and the remedy; none hangs.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rtol": 0.0}, r"rtol must be positive and finite, got 0\.0: pass rtol=1e-5"),
        ({"rtol": math.nan}, "rtol must be positive and finite, got nan"),
        ({"atol": -1.0}, r"atol must be positive and finite, got -1\.0"),
        ({"max_calls": 0}, "max_calls must be at least 1, got 0: keep 10000"),
        ({"safety": 1.0}, r"safety must lie between 0 and 1, got 1\.0"),
        ({"factors": (1.2, 2.0)}, r"factors must be one below 1 and one above, got \(1\.2, 2\.0\)"),
    ],
)
def test_arguments_that_make_no_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        DormandPrince(**arguments)


def refused(process, solver, message, x=None, times=(1.0, 0.1)):
    x = torch.ones(2, 2, dtype=torch.float64) if x is None else x
    began = time.monotonic()
    with pytest.raises(ValueError, match=message):
        sde.integrate(process, x, torch.tensor(times, dtype=torch.float64), solver)
    assert time.monotonic() - began < 20


def test_what_is_no_flow_is_refused(two_modes):
    noisy = sde.ReverseSDE(sde.ExactScore(two_modes, sde.VP()), eta=1.0)
    refused(noisy, DormandPrince(), r"solves ODEs, .* noisy \(eta=1\): use eta=0, or AdaptiveHeun")
    motion = "BogackiShampine solves ODEs, and this BrownianMotion is noisy: use AdaptiveHeun"
    refused(sde.BrownianMotion(), BogackiShampine(), motion, times=(0.1, 1.0))
    cld = flow_of(two_modes, sde.CLD())
    refused(cld, DormandPrince(time="angle"), r"scalar SDE, got ReverseSDE\(eta=0\) of CLD: use time=\"t\"")
    refused(Ode(lambda x, t: x), DormandPrince(time="log"), r"scalar SDE, got Ode: use time=\"t\"")
    refused(cld, DormandPrince(time="clock"), r"time must be \"angle\", \"log\" or \"t\", got 'clock'")
    flow = flow_of(two_modes, sde.Flow())
    refused(flow, DormandPrince(time="log"), r"infinite where sigma = 0 or alpha = 0.*Flow: use time=\"angle\"")
    refused(flow, DormandPrince(rtol=1e-8), r"rtol=1e-08 is below the rounding of torch.float32", x=torch.ones(2, 2))


class Backwards(Searched):
    def sigma(self, t):
        return 0.2 + torch.sin(6 * t)


def test_a_ratio_that_turns_back_is_refused():
    refused(
        flow_of(ELLIPSE, Backwards()), DormandPrince(), r"sigma / alpha of Backwards does not grow .* use time=\"t\""
    )


def test_evaluations_are_capped():
    solver = DormandPrince(rtol=1e-10, max_calls=100)
    message = r"max_calls=100 evaluations are spent and DormandPrince is at t = 0\.\d+ \(sample \d of 2\): raise"
    refused(flow_of(ring(), sde.VP()), solver, message)


def test_values_that_are_not_finite_are_named_and_do_not_hang():
    exact = sde.ExactScore(ring(), sde.VP())
    everywhere = sde.ReverseSDE(Watching(exact, lost=lambda t: t > 0))
    refused(
        everywhere, DormandPrince(), r"not finite at t = 1 \(sample 0 of 2\), the first evaluation of DormandPrince"
    )
    late = Watching(exact, lost=lambda t: t < 0.4)
    refused(sde.ReverseSDE(late), DormandPrince(), r"not finite at t = 0\.4\d* \(sample 0 of 2\), and beyond it")
    assert len(late.asked) < 600
    refused(Ode(lambda x, t: x / (t - 0.5).clamp_min(0)), DormandPrince(), r"not finite at t = 0\.5")


def test_one_lost_sample_is_named():
    broken = Ode(lambda x, t: torch.where((x > 5) & (t < 0.5), math.inf, -x))
    refused(broken, DormandPrince(), r"sample 1 of 3", x=torch.tensor([[1.0], [20.0], [2.0]]).double())


def test_steps_that_collapse_are_named():
    jump = Ode(lambda x, t: 1 / (t - 0.5).abs() ** 1.5)
    refused(jump, DormandPrince(), r"the step of DormandPrince, shrinks to nothing at t = 0\.5 .*: raise rtol")


def test_a_first_trial_that_overflows_is_only_rejected():
    """exp(x) from 0 down: a long trial overflows, a short one does not."""
    growth = Ode(lambda x, t: -torch.exp(4 * x))
    end = sde.integrate(
        growth, torch.zeros(1, 1).double(), torch.tensor([1.0, 0.7501], dtype=torch.float64), DormandPrince(rtol=1e-6)
    )
    assert float(end) == pytest.approx(-math.log(1 - 4 * 0.2499) / 4, rel=1e-3)
