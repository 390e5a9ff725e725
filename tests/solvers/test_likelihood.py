"""Laws 7 and 9: likelihood through the flow against closed forms, and the flow up and down again."""

import math
from itertools import pairwise

import pytest
import torch

import sde
from sde.checks import LawViolation, likelihood, round_trip
from sde.solvers import divergence, log_prob
from sde.solvers.likelihood.log_prob import times_up

SDES = {
    "VP": sde.VP(),
    "SubVP": sde.SubVP(),
    "VE": sde.VE(),
    "EDM": sde.EDM(),
    "Cosine": sde.Cosine(),
    "Flow": sde.Flow(),
    "OrnsteinUhlenbeck": sde.OrnsteinUhlenbeck(),
    "FromCoefficients": sde.FromCoefficients(f=lambda t: -t, g=lambda t: 1 + t, t_max=2.0),
}
MATRIX = {
    "CLD": sde.CLD(),
    "ThirdOrderLangevin": sde.ThirdOrderLangevin(),
    "MatrixSDE": sde.MatrixSDE(
        F=[[0, 1], [-1, -2]], G=[[0, 0], [0, 2]], embed=[1, 0], cov0=[[0, 0], [0, 0.04]], t_max=5.0
    ),
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", SDES)
def test_it_is_the_closed_form_at_t_min(name, two_modes):
    assert likelihood(sde.ExactScore(two_modes, SDES[name]), n=16) < 3e-5


@pytest.mark.parametrize("name", MATRIX)
def test_it_is_the_closed_form_of_a_matrix_state(name, two_modes):
    """log p of position and velocity together."""
    assert likelihood(sde.ExactScore(two_modes, MATRIX[name]), n=8) < 1e-3


def test_a_table_is_smooth_up_to_its_knots(two_modes):
    assert likelihood(sde.ExactScore(two_modes, sde.Tabulated.linear()), n=16) < 2e-4


@pytest.mark.parametrize("name", ["VP", "EDM", "Flow"])
def test_it_integrates_to_one(name):
    """`likelihood` adds the integral over a line for data of one coordinate."""
    target = sde.Mixture([0.2, 0.8], [[-1.0], [0.7]], [0.09, 0.16])
    assert likelihood(sde.ExactScore(target, SDES[name]), n=16) < 3e-5


@pytest.mark.parametrize("name", ["VP", "EDM", "Flow"])
def test_it_integrates_to_one_over_the_plane(name):
    """By equal weights on a grid, which is exact to rounding for what is smooth and ends within it."""
    target = sde.Mixture([0.3, 0.7], [[-1.0, 0.5], [0.8, -0.4]], [[[0.2, 0.1], [0.1, 0.3]], [[0.15, 0.0], [0.0, 0.25]]])
    line = torch.linspace(-4.5, 4.5, 41, dtype=torch.float64)
    model = sde.ExactScore(target.double(), SDES[name])
    cell = float(line[1] - line[0]) ** 2
    for trace in (None, sde.ExactTrace()):
        total = log_prob(model, torch.cartesian_prod(line, line), trace=trace).exp().sum() * cell
        assert float(total) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("trace", [None, sde.ExactTrace(), sde.Hutchinson(2)], ids=["closed form", "exact", "estimate"])
def test_data_that_are_not_contiguous_are_as_their_copy(trace):
    target = sde.Gaussian(torch.zeros(3, 2), torch.linspace(0.2, 0.6, 6))
    model, x = sde.ExactScore(target, sde.VP()), target.sample(4, generator()).float()
    across = x.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert not across.is_contiguous()
    found, same = (log_prob(model, y, trace=trace, generator=generator(1)) for y in (across, x))
    torch.testing.assert_close(found, same, rtol=1e-5, atol=1e-5)
    every_second = torch.stack([x, x], 1).flatten(0, 1)[::2]
    torch.testing.assert_close(log_prob(model, every_second, trace=trace, generator=generator(1)), same)


def test_any_event_shape_and_dtype():
    cov = torch.linspace(0.2, 0.6, 8)
    target = sde.Gaussian(torch.arange(8.0).reshape(2, 2, 2) / 8, cov)
    model = sde.ExactScore(target, sde.VP())
    x = target.sample(5, generator())
    exact = model.log_prob(x, model.sde.t_min)
    torch.testing.assert_close(log_prob(model, x), exact, rtol=0, atol=1e-4)
    single = log_prob(model, x.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single, exact.float(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("solver", [sde.Euler(), sde.Heun()], ids=lambda s: type(s).__name__)
def test_error_falls_at_the_solvers_order(solver, two_modes):
    model = sde.ExactScore(two_modes, sde.Cosine())
    x = two_modes.sample(8, generator())
    exact = model.log_prob(x, model.sde.t_min)
    errors = [float((log_prob(model, x, times_up(model, n), solver) - exact).norm()) for n in (128, 256)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(solver.order, abs=0.2)


def test_a_network_is_as_a_dense_jacobian_says(seeded):
    """The trained path: log p against the trace of torch's own Jacobian, integrated in t by the midpoint rule."""
    net = sde.nets.MLP(dim=2, width=16, depth=1)
    with torch.no_grad():
        torch.nn.init.normal_(net.outward.weight, std=0.3)
    model = sde.ScoreModel(net, sde.Flow(t_min=0.05), "velocity", mean=[0.2, -0.1], scale=0.7).double()
    x = torch.tensor([[0.3, -1.0], [1.5, 0.2]], dtype=torch.float64)
    times = torch.linspace(0.05, 1, 801, dtype=torch.float64)
    y, integral = x, torch.zeros(2, dtype=torch.float64)
    for t, s in pairwise(times):
        middle, half = (t + s) / 2, y + (s - t) / 2 * model(y, t).velocity.detach()
        at_t = lambda u, t=middle: model(u[None], t).velocity[0]  # noqa: E731
        jacobian = torch.stack([torch.autograd.functional.jacobian(at_t, row) for row in half])
        integral = integral + (s - t) * jacobian.diagonal(dim1=1, dim2=2).sum(1)
        y = y + (s - t) * model(half, middle).velocity.detach()
    expected = model.prior_log_prob(y) + integral
    torch.testing.assert_close(log_prob(model, x), expected, rtol=0, atol=3e-5)
    for solver in (sde.RK4(), sde.Heun(), sde.DDIM(), sde.DPMSolverPP(), sde.DormandPrince(), sde.UniPC()):
        atol = 0.05 if solver.order == 1 else 2e-3  # the steps are the default's
        torch.testing.assert_close(log_prob(model, x, solver=solver), expected, rtol=0, atol=atol)


def test_conditioning_and_rescheduling_go_through(two_modes):
    exact = sde.ExactScore(two_modes, sde.VP())
    model = sde.Reschedule(exact, sde.EDM(sigma_min=0.02, sigma_max=80.0))
    x = two_modes.sample(8, generator())
    direct = sde.ExactScore(two_modes, model.sde).log_prob(x, model.sde.t_min)
    torch.testing.assert_close(log_prob(model, x), direct, rtol=0, atol=1e-3)
    net = sde.nets.MLP(dim=2, classes=3, width=8)
    torch.nn.init.normal_(net.outward.weight)
    trained, labels = sde.ScoreModel(net, sde.VP()), torch.tensor([0, 1, 2])
    times = times_up(trained, 8)
    x = torch.zeros(3, 2)
    together = log_prob(trained.given(label=labels), x, times)
    alone = torch.cat([log_prob(trained.given(label=labels[i : i + 1]), x[:1], times) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-4)
    assert together.unique().numel() == 3


def test_a_coupled_model_has_a_likelihood():
    """Only its velocity is used."""
    net = sde.nets.MLP(dim=2, width=8)
    torch.nn.init.normal_(net.outward.weight, std=0.3)
    free, coupled = (sde.ScoreModel(net, sde.Flow(), "velocity", coupled=c) for c in (False, True))
    x, times = torch.randn(4, 2, generator=generator()), times_up(free, 8)
    assert torch.equal(log_prob(free, x, times), log_prob(coupled, x, times))


def test_gradients_of_weights_are_neither_taken_nor_left():
    net = sde.nets.MLP(dim=2, width=8)
    torch.nn.init.normal_(net.outward.weight)
    model = sde.ScoreModel(net, sde.VP())
    result = log_prob(model, torch.zeros(2, 2), times_up(model, 2))
    assert not result.requires_grad
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("chunk", [1, 2, 5, 6, 100])
def test_divergence_in_chunks(chunk):
    w = torch.randn(6, 6, generator=generator())
    x = torch.randn(4, 2, 3, generator=generator(1))
    field = lambda u: torch.sin(u.flatten(1) @ w).reshape(u.shape)  # noqa: E731
    v, div = divergence(field, x, chunk)
    torch.testing.assert_close(v, field(x))
    expected = (torch.cos(x.flatten(1) @ w) * w.diagonal()).sum(1)
    torch.testing.assert_close(div, expected)


def test_divergence_of_a_field_that_ignores_its_argument():
    _, div = divergence(lambda u: torch.ones_like(u.detach()), torch.zeros(3, 2))
    assert torch.equal(div, torch.zeros(3))


@pytest.mark.parametrize("name", ["VP", "EDM", "Flow", "VE"])
def test_up_and_down_the_flow_is_the_identity(name, two_modes):
    model = sde.ExactScore(two_modes, SDES[name])
    x = two_modes.sample(32, generator())
    assert round_trip(model, x) < 1e-6
    assert round_trip(model, x.float()) < 5e-6


def test_up_and_down_a_matrix_flow(two_modes):
    model = sde.ExactScore(two_modes, sde.CLD())
    x = model.sde.perturb(two_modes.sample(16, generator()), model.sde.t_min, generator(1)).x
    assert round_trip(model, x) < 1e-3


class TwistedFlow(sde.Wrapper):
    """A model whose velocity depends on how often it was asked: no flow at all."""

    asked = 0

    def forward(self, x, t, **cond):
        self.asked += 1
        point = self.model(x, t)
        return sde.Point(self.sde, x, t, point.x0 * (1 + 1e-4 * (self.asked > 512)))


def test_what_is_no_flow_is_told(two_modes):
    model = TwistedFlow(sde.ExactScore(two_modes, sde.VP()))
    with pytest.raises(LawViolation, match=r"law 7 is broken by TwistedFlow under VP: up and down by RK4 in 144 steps"):
        round_trip(model, two_modes.sample(8, generator()), rtol=1e-6)


class WrongPrior(sde.ExactScore):
    def prior_log_prob(self, x, sde=None):
        return super().prior_log_prob(x, sde) + 0.01


def test_a_wrong_likelihood_is_told(two_modes):
    with pytest.raises(LawViolation, match=r"law 9 is broken by log_prob under VP: log p is .* nats, the closed form"):
        likelihood(WrongPrior(two_modes, sde.VP()), n=4)
    with pytest.raises(LawViolation, match="law 9"):
        likelihood(sde.ExactScore(two_modes, sde.VP()), n=4, times=[1e-3, 0.5, 1.0])


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([1.0, 0.5, 1e-3], r"times must run up, from t_min to t_max"),
        ([0.0, 0.5, 1.0], r"times begin at 0, where the flow has no velocity: begin at t_min=0.001"),
        ([1e-3, 0.5], r"times end at 0.5, but the prior is known at t_max=1: end there"),
        ([1e-3], r"times must run up"),
    ],
)
def test_grids_that_do_not_fit_are_refused(times, message, two_modes):
    model = sde.ExactScore(two_modes, sde.VP())
    with pytest.raises(ValueError, match=message):
        log_prob(model, two_modes.sample(2, generator()), times)


def test_states_and_solvers_that_do_not_fit_are_refused(two_modes):
    model = sde.ExactScore(two_modes, sde.VP())
    with pytest.raises(ValueError, match=r"x must be \(B, \*D\) with B at least 1, got shape \(2,\)"):
        log_prob(model, torch.zeros(2))
    with pytest.raises(ValueError, match=r"x must be \(B, \*D\) with B at least 1, got shape \(0, 2\)"):
        log_prob(model, torch.zeros(0, 2))
    with pytest.raises(ValueError, match="not finite"):
        log_prob(model, torch.full((1, 2), math.nan))
    for dtype in (torch.bfloat16, torch.float16, torch.int64):
        with pytest.raises(TypeError, match=rf"x must be float32 or float64, got {dtype}: use x.float\(\)"):
            log_prob(model, torch.zeros(1, 2, dtype=dtype))
