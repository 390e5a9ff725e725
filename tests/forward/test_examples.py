"""The SDEs of a first lecture against their closed forms, along one Brownian path."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

import sde

GRID = torch.linspace(0, 1, 2049, dtype=torch.float64)


@pytest.mark.parametrize(
    ("system", "bound"),
    [(sde.BrownianMotion(mu=0.5, s=1.5), 1e-12), (sde.GeometricBrownianMotion(mu=0.5, s=0.8), 0.02)],
)
def test_solution_against_fine_steps_on_the_same_path(system: sde.BrownianMotion, bound: float) -> None:
    x0 = torch.full((200, 1), 1.3, dtype=torch.float64)
    path = sde.BrownianPath(torch.Generator().manual_seed(0))
    x = sde.integrate(system, x0, GRID, sde.Euler(), noise=path)
    w = path.increment(x0, 0.0, 1.0)
    exact = system.solution(x0, 1.0, w)
    error = ((x - exact) / exact).square().mean().sqrt().item()
    assert error < bound
    # The right solution beats the one of Stratonovich's equation, and the one that starts elsewhere.
    wrong = system.solution(x0, 1.0, w) * math.exp(0.8**2 / 2)
    assert ((x - wrong) / exact).square().mean().sqrt().item() > 0.2
    half = system.solution(x0, torch.full((200,), 0.5).double(), path.increment(x0, 0.0, 0.5))
    assert half.shape == x0.shape


def test_geometric_brownian_motion_has_its_mean_and_its_strong_order_one_half() -> None:
    gbm = sde.GeometricBrownianMotion(mu=0.5, s=0.8)
    w = sde.random.randn((200_000, 1), torch.Generator().manual_seed(1), dtype=torch.float64)
    x = gbm.solution(torch.ones_like(w), 1.0, w)
    assert x.mean().item() == pytest.approx(math.exp(0.5), abs=5 * x.std().item() / len(x) ** 0.5)
    x0, path, errors = torch.ones(2000, 1, dtype=torch.float64), sde.BrownianPath(torch.Generator().manual_seed(0)), []
    for steps in (256, 64, 16):
        coarse = sde.integrate(gbm, x0, torch.linspace(0, 1, steps + 1, dtype=torch.float64), sde.Euler(), noise=path)
        errors.append((coarse - gbm.solution(x0, 1.0, path.increment(x0, 0.0, 1.0))).abs().mean().item())
    order = math.log2(errors[2] / errors[0]) / 4
    assert order == pytest.approx(0.5, abs=0.1)


def moment(well: sde.DoubleWell, power: int) -> float:
    return quad(lambda x: x**power * math.exp(well.stationary_log_prob(torch.tensor([[x]]).double()).item()), -7, 7)[0]


@given(h=st.floats(0.05, 20.0), s=st.floats(0.2, 3.0))
def test_stationary_density_is_normalised(h: float, s: float) -> None:
    well = sde.DoubleWell(h, s)
    x = torch.linspace(-9, 9, 60_001, dtype=torch.float64)
    total = well.stationary_log_prob(x[:, None]).exp().sum() * (x[1] - x[0])
    assert float(total) == pytest.approx(1, rel=1e-6)


def test_stationary_density_carries_no_current() -> None:
    """Fokker and Planck: f p = s^2 / 2 p' in every point."""
    well = sde.DoubleWell(h=1.3, s=0.6)
    x = torch.linspace(-2, 2, 101, dtype=torch.float64)[:, None].requires_grad_()
    (slope,) = torch.autograd.grad(well.stationary_log_prob(x).sum(), x)
    torch.testing.assert_close(well.drift(x.detach(), 0.0), 0.6**2 / 2 * slope)
    noise = well.diffusion(x.detach(), 0.0, torch.ones_like(x).detach())
    assert bool((noise == 0.6).all())


def test_a_long_run_has_the_stationary_moments() -> None:
    well, n = sde.DoubleWell(h=1.0, s=1.2), 4000
    x0 = torch.sign(torch.randn(n, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    x = sde.integrate(well, x0, torch.linspace(0, 4, 801), sde.Euler(), generator=torch.Generator().manual_seed(1))
    for power in (2, 4):
        got, spread = (x**power).mean().item(), (x**power).std().item() / n**0.5
        assert got == pytest.approx(moment(well, power), abs=5 * spread + 0.01)  # .01: the bias of steps of .005
    assert abs(moment(well, 1)) < 1e-8


def test_the_density_is_each_coordinates_own() -> None:
    x = torch.tensor([[0.3, -1.2]])
    well = sde.DoubleWell()
    both = well.stationary_log_prob(x)
    assert both.shape == (1, 2)
    np.testing.assert_allclose(both[0, 0], well.stationary_log_prob(x[:, :1])[0, 0])


@pytest.mark.parametrize(("keys", "word"), [({"h": 0.0}, "h must be positive"), ({"s": -1.0}, "s must be positive")])
def test_wells_need_a_barrier_and_noise(keys: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        sde.DoubleWell(**keys)
