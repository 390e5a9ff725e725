"""Grids: their ends, their order, and the formulas of their papers."""

import math

import pytest
import torch

import sde
from sde import grids

NAMED = {name: getattr(grids, name) for name in ("uniform", "quadratic", "karras", "log_snr", "data_scaled")}


@pytest.mark.parametrize("name", NAMED)
def test_ends_are_exact_and_times_decrease(name, any_sde):
    for steps in (1, 2, 7, 100):
        times = NAMED[name](any_sde, steps)
        assert times.shape == (steps + 1,)
        assert times.dtype == torch.float64
        assert (times[0].item(), times[-1].item()) == (any_sde.t_max, any_sde.t_min)
        assert bool((times.diff() < 0).all())


def test_karras_is_the_papers_equation_5():
    n, rho = 18, 7.0
    i = torch.arange(n, dtype=torch.float64)
    paper = (80 ** (1 / rho) + i / (n - 1) * (0.002 ** (1 / rho) - 80 ** (1 / rho))) ** rho
    torch.testing.assert_close(grids.karras(sde.EDM(), n - 1), paper, rtol=1e-10, atol=0)


@pytest.mark.parametrize("rho", [1.0, 3.0])
def test_karras_takes_other_exponents(rho):
    times = grids.karras(sde.EDM(0.1, 10.0), 10, rho)
    steps = (times ** (1 / rho)).diff()
    torch.testing.assert_close(steps, steps[:1].expand(10))


def test_quadratic_is_the_quadratic_tau_of_ddim():
    times = grids.quadratic(sde.VP(t_min=0.04), 4)
    paper = [(0.2 + 0.8 * i / 4) ** 2 for i in range(5)]
    torch.testing.assert_close(times.flip(0), torch.tensor(paper, dtype=torch.float64))


@pytest.mark.parametrize("forward", [sde.VP(), sde.EDM(), sde.Cosine(), sde.Tabulated.linear()])
def test_log_snr_is_even_in_log_snr(forward):
    steps = forward.log_snr(grids.log_snr(forward, 20)).diff()
    torch.testing.assert_close(steps, steps[:1].expand(20), rtol=1e-5, atol=0)


def test_schedules_share_the_noise_levels_of_a_grid():
    """karras on VP visits the ratios of karras on EDM between the same ends."""
    vp = sde.VP()
    ratio = lambda t: torch.exp(-vp.log_snr(t) / 2)  # noqa: E731
    ends = ratio(torch.tensor([vp.t_min, vp.t_max], dtype=torch.float64))
    edm = sde.EDM(*ends.tolist())
    torch.testing.assert_close(ratio(grids.karras(vp, 12)), grids.karras(edm, 12), rtol=1e-7, atol=0)


def test_data_scaled_is_even_in_its_own_variable_and_scales_with_the_data():
    edm = sde.EDM()
    times = grids.data_scaled(edm, 30, scale=2.0)
    log = torch.log(times / 2.0)  # centre 1, widths .5 above and 1.5 below it
    steps = torch.where(log > 0, 0.5 * torch.asinh(log / 0.5), 1.5 * torch.asinh(log / 1.5)).diff()
    torch.testing.assert_close(steps, steps[:1].expand(30), rtol=1e-6, atol=0)
    small = grids.data_scaled(sde.EDM(0.0002, 8.0), 30, scale=0.2)
    torch.testing.assert_close(10 * small, times, rtol=1e-6, atol=0)
    nearest = (times.log() - math.log(2.0)).abs().argmin()
    assert times.log().diff().abs().argmin() in (nearest - 1, nearest)


def test_the_first_step_from_an_infinite_ratio_shrinks_with_the_others():
    first = [float(1 - grids.data_scaled(sde.Flow(), n)[1]) for n in (16, 64, 256)]
    assert first[0] > 3 * first[1] > 9 * first[2] > 0


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("steps", [0, -1, 2.0, True, "8"])
def test_numbers_of_steps_that_are_none_are_refused(name, steps):
    with pytest.raises(ValueError, match=r"steps must be a whole number of at least 1, got .*: pass steps=32, say"):
        NAMED[name](sde.VP(), steps)


def test_centre_and_widths_may_be_chosen():
    times = grids.data_scaled(sde.EDM(), 12, 2.0, centre=0.6, widths=(0.7, 0.7))
    steps = torch.asinh(torch.log(times / 1.2) / 0.7).diff()
    torch.testing.assert_close(steps, steps[:1].expand(12), rtol=1e-6, atol=0)
    few, named = grids.data_scaled(sde.EDM(), 7), grids.data_scaled(sde.EDM(), 7, 1.0, 0.8, (0.7, 1.0))
    torch.testing.assert_close(few, named, rtol=0, atol=0)
    for wrong in ({"scale": 0.0}, {"centre": -1.0}, {"widths": (0.5, 0.0)}):
        with pytest.raises(ValueError, match="scale, centre and widths must be positive, got scale="):
            grids.data_scaled(sde.EDM(), 8, **wrong)
