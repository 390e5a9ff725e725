"""Jumps to t_min, steps of a teacher's flow, and consistency sampling, against a Gaussian's own flow."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import sde
from sde import distill

Ends = Callable[..., Tensor]
PARAMS = ("edm", "v", "x0", "eps", "velocity", "score")


class Consistent(sde.ExactScore):
    """A model whose jump to t_min is the exact consistency function of a Gaussian."""

    tabulates = False
    ends: Ends

    def forward(self, x: Tensor, t: float | Tensor, **cond: Any) -> sde.Point:
        forward = self.sde
        assert isinstance(forward, sde.ScalarSDE)
        time, end = (torch.as_tensor(v, dtype=torch.float64) for v in (t, forward.t_min))
        k = forward.sigma(end) / forward.sigma(time)
        c = forward.alpha(end) - k * forward.alpha(time)
        return sde.Point(forward, x, t, ((self.ends(forward, x, time) - k * x) / c).to(x.dtype))


@pytest.fixture
def consistent(gaussian: sde.Gaussian, ends: Ends) -> Callable[[sde.ScalarSDE], Consistent]:
    def make(forward: sde.ScalarSDE) -> Consistent:
        model = Consistent(gaussian, forward)
        model.ends = ends
        return model

    return make


@pytest.mark.parametrize("param", PARAMS)
def test_a_jump_from_t_min_is_the_identity(scalar_sde: sde.ScalarSDE, param: str, generator: torch.Generator) -> None:
    """The boundary condition holds whatever the network says."""
    net = torch.nn.Linear(2, 2)
    model = sde.ScoreModel(Told(net), scalar_sde, param, mean=[1.0, -2.0], scale=0.7).double()
    x = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    for t in (scalar_sde.t_min, torch.full((5,), scalar_sde.t_min, dtype=torch.float64)):
        torch.testing.assert_close(distill.jump(model, x, t), x, rtol=1e-6, atol=1e-6)


class Told(torch.nn.Module):
    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.net(x)


def test_edm_coefficients_are_the_paper_s() -> None:
    """c_out of Song et al. (2023), appendix C, exactly; c_skip to the order of sigma_min / scale."""
    e, s = 0.002, 0.5
    model = sde.ScoreModel(Told(torch.nn.Identity()), sde.EDM(e, 80.0), scale=s).double()
    for sigma in (0.002, 0.01, 0.5, 10.0, 80.0):
        t, zero = torch.tensor(sigma, dtype=torch.float64), torch.zeros(1, 1).double()
        model.net.net = Constant(1.0)
        out = float(distill.jump(model, zero, t))
        assert out == pytest.approx(s * (sigma - e) / (sigma**2 + s**2) ** 0.5, rel=1e-9, abs=1e-12)
        model.net.net = Constant(0.0)
        skip = float(distill.jump(model, zero + 1, t))
        assert skip == pytest.approx(s**2 / ((sigma - e) ** 2 + s**2), abs=2 * e / s)


class Constant(torch.nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        return torch.full_like(x, self.value)


def test_jump_is_a_step_of_ddim(scalar_sde: sde.ScalarSDE, gaussian: sde.Gaussian, generator: torch.Generator) -> None:
    model = sde.ExactScore(gaussian, scalar_sde)
    x = torch.randn(6, 1, generator=generator).double() * 2
    t, s = (scalar_sde.time_at(torch.tensor(v).double()) for v in (-1.0, 0.5))
    step = sde.integrate(sde.ReverseSDE(model), x, torch.stack([t, s]), sde.DDIM())
    torch.testing.assert_close(distill.jump(model, x, t.expand(6), s), step)
    torch.testing.assert_close(distill.flow_step(model, x, t, s.expand(6), order=1), step)


@pytest.mark.parametrize("order", [1, 2])
def test_flow_step_has_its_order(scalar_sde: sde.ScalarSDE, gaussian: sde.Gaussian, ends: Ends, order: int) -> None:
    """The error of one step falls as h^(order + 1), and the other end is the Gaussian's own."""
    model, x = sde.ExactScore(gaussian, scalar_sde), torch.tensor([[1.5], [-0.4]]).double()
    middle = torch.tensor(-0.6).double()
    t = float(scalar_sde.time_at(middle))
    errors = []
    for h in (0.2, 0.1, 0.05):
        s = float(scalar_sde.time_at(middle + h))
        errors.append(float((distill.flow_step(model, x, t, s, order) - ends(scalar_sde, x, t, s)).abs().max()))
    rates = [float(torch.log2(torch.tensor(a / b))) for a, b in pairwise(errors)]
    assert rates[-1] == pytest.approx(order + 1, abs=0.2), errors


def test_flow_step_is_finite_at_pure_noise() -> None:
    model = sde.ExactScore(sde.Gaussian([0.7], 0.36), sde.Flow(t_min=0.0))
    x = torch.ones(3, 1)
    assert bool(distill.flow_step(model, x, 1.0, torch.full((3,), 0.99).double()).isfinite().all())
    assert bool(distill.flow_step(model, x, 0.01, 0.0).isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_kept(dtype: torch.dtype) -> None:
    model = sde.ScoreModel(sde.nets.MLP(dim=2, width=8), sde.VP()).to(dtype)
    x, t, s = torch.ones(3, 2, dtype=dtype), torch.tensor([0.5, 0.6, 0.7]).double(), torch.full((3,), 0.1).double()
    m = torch.full((3,), 0.3).double()
    found = distill.jump(model, x, t), distill.flow_step(model, x, t, s), distill.halved(model, x, t, m, s)
    assert {y.dtype for y in found} == {dtype}


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_an_exact_consistency_model_samples_the_law_at_t_min(
    scalar_sde: sde.ScalarSDE, consistent: Callable, steps: int, generator: torch.Generator
) -> None:
    """With any number of steps: noising x_min anew leads to the marginal at s, which the jump leads back."""
    model, n = consistent(scalar_sde), 20_000
    x = sde.sample(model, (n, 1), steps=steps, solver=distill.Multistep(), generator=generator, progress=False)
    alpha, sigma = (float(c) for c in scalar_sde.levels(scalar_sde.t_min))
    var = alpha**2 * 0.36 + sigma**2
    assert float(x.mean()) == pytest.approx(alpha * 0.7, abs=5 * (var / n) ** 0.5)
    assert float(x.var()) == pytest.approx(var, rel=5 * (2 / n) ** 0.5)


def test_steps_of_multistep_have_the_marginals_between(consistent: Callable, generator: torch.Generator) -> None:
    """From a t_min that is far from 0, noise is added to the state there and not to x0."""
    forward, n = sde.VP(t_min=0.2), 50_000
    states = sde.trajectory(
        sde.ReverseSDE(consistent(forward), 1.0),
        consistent(forward).prior(torch.empty(n, 1).double(), generator),
        torch.tensor([1.0, 0.3, 0.2]).double(),
        distill.Multistep(),
        generator,
    )
    for state in states:
        alpha, sigma = (float(c) for c in forward.levels(state.t))
        assert float(state.x.var()) == pytest.approx(alpha**2 * 0.36 + sigma**2, rel=5 * (2 / n) ** 0.5)
        assert float(state.x.mean()) == pytest.approx(alpha * 0.7, abs=5 / n**0.5)


def test_one_step_is_the_jump_whatever_the_solver(generator: torch.Generator) -> None:
    model = sde.ScoreModel(sde.nets.MLP(dim=2, width=8), sde.EDM())
    x = 80 * torch.randn(5, 2, generator=generator)
    end = distill.jump(model, x, 80.0)
    for solver in (distill.Multistep(), sde.DDIM()):
        torch.testing.assert_close(sde.sample(model, x=x, steps=1, solver=solver, progress=False), end)


def test_multistep_refuses_what_it_cannot_do() -> None:
    net, multistep = sde.nets.MLP(dim=2, width=8), distill.Multistep()
    model = sde.ScoreModel(net, sde.EDM())
    with pytest.raises(ValueError, match="eta=1, got eta=0"):
        sde.sample(model, (2, 2), steps=2, eta=0.0, solver=multistep)
    with pytest.raises(ValueError, match="CLD is a matrix SDE"):
        sde.sample(sde.ScoreModel(net, sde.CLD()), (2, 2), steps=2, solver=multistep)
    with pytest.raises(ValueError, match="BrownianMotion"):
        sde.integrate(sde.BrownianMotion(), torch.zeros(1, 1), [0.0, 1.0], multistep)
    coupled = sde.ScoreModel(net, sde.Flow(), coupled=True)  # noise added anew leads to other states than its flow's
    with pytest.raises(ValueError, match="coupling"):
        sde.sample(coupled, (2, 2), steps=2, solver=multistep)
    with pytest.raises(ValueError, match="order must be 1 or 2, got 3"):
        distill.flow_step(model, torch.zeros(1, 2), 1.0, 0.5, order=3)
    with pytest.raises(ValueError, match="CLD is a matrix SDE"):
        distill.jump(sde.ScoreModel(net, sde.CLD()), torch.zeros(1, 2, 2), 0.5)
