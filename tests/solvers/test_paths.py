"""Strong convergence: one path on coarse and fine grids, closed solutions, and torchsde on the same increments."""

import math
import warnings
from itertools import pairwise

import pytest
import torch

import sde


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def slope(errors):
    """Least-squares order of errors at steps n, 2n, 4n, ..."""
    y = torch.tensor(errors).double().log2()
    i = torch.arange(len(errors), dtype=torch.float64)
    return -float(((i - i.mean()) * y).sum() / (i - i.mean()).square().sum())


def path_errors(process, batch=2000, steps=(8, 16, 32, 64, 128)):
    """RMS error of Euler at t = 1 against `solution` along one path that all grids share."""
    path, x0 = sde.BrownianPath(generator()), torch.ones(batch, 1, dtype=torch.float64)
    fine = torch.linspace(0, 1, 513, dtype=torch.float64)
    for t, s in pairwise(fine):
        path.increment(x0, float(t), float(s))
    exact = process.solution(x0, 1.0, path.increment(x0, 0.0, 1.0))
    solves = [sde.integrate(process, x0, fine[:: 512 // n], sde.Euler(), noise=path) for n in steps]
    return [float((x - exact).square().mean().sqrt()) for x in solves]


def test_euler_on_geometric_brownian_motion_has_strong_order_half():
    assert slope(path_errors(sde.GeometricBrownianMotion(mu=0.5, s=1.0))) == pytest.approx(0.5, abs=0.1)


def test_euler_on_brownian_motion_is_exact():
    assert max(path_errors(sde.BrownianMotion(mu=0.5, s=2.0), batch=10)) < 1e-6


def test_geometric_brownian_motion_ends_in_its_own_law():
    """E x = exp(mu t) and the mean of log x: Itô, not Stratonovich."""
    process, x0 = sde.GeometricBrownianMotion(mu=0.3, s=0.8), torch.ones(40_000, 1, dtype=torch.float64)
    x = sde.integrate(process, x0, torch.linspace(0, 1, 201), sde.Euler(), generator())
    assert float(x.mean()) == pytest.approx(math.exp(0.3), abs=5 * float(x.std()) / 200)
    assert float(x.log().mean()) == pytest.approx(0.3 - 0.32, abs=5 * 0.8 / 200 + 2e-3)


@pytest.mark.parametrize("process", [sde.GeometricBrownianMotion(mu=0.5, s=0.7), sde.DoubleWell()])
def test_euler_equals_torchsde_on_its_increments(process, given_noise):
    import torchsde

    class Theirs(torch.nn.Module):
        sde_type, noise_type = "ito", "diagonal"

        def f(self, t, x):
            return process.drift(x, float(t))

        def g(self, t, x):
            return process.diffusion(x, float(t), torch.ones_like(x))

    x0, times = torch.full((16, 1), 0.8, dtype=torch.float64), torch.linspace(0, 1, 33, dtype=torch.float64)
    motion = torchsde.BrownianInterval(0.0, 1.0, size=(16, 1), dtype=torch.float64, entropy=7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = torchsde.sdeint(Theirs(), x0, times, bm=motion, method="euler", dt=1 / 32)
    steps = [motion(t, s) / (s - t).sqrt() for t, s in pairwise(times)]
    ours = sde.record(sde.trajectory(process, x0, times, sde.Euler(), noise=given_noise(*steps))).x
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)


def test_a_long_run_in_the_double_well_ends_in_its_stationary_law():
    """Its moments by quadrature, within five standard errors."""
    well = sde.DoubleWell(h=0.5, s=1.0)
    x = sde.integrate(well, torch.zeros(4000, 1), torch.linspace(0, 12, 601), sde.Heun(), generator())
    grid = torch.linspace(-3, 3, 4001, dtype=torch.float64)
    density = well.stationary_log_prob(grid[:, None]).exp()[:, 0]
    for power in (1, 2, 4):
        expected = float(torch.trapezoid(density * grid**power, grid))
        sample = x.double() ** power
        assert float(sample.mean()) == pytest.approx(expected, abs=5 * float(sample.std()) / math.sqrt(4000))


def test_coarse_and_fine_solves_share_a_path(two_modes):
    model = sde.ExactScore(two_modes, sde.VP())
    reverse, path = sde.ReverseSDE(model, 1.0), sde.BrownianPath(generator())
    x = model.prior(torch.zeros(64, 2, dtype=torch.float64), generator(1))
    fine = sde.grids.uniform(model.sde, 400)
    ends = [sde.integrate(reverse, x, fine[::k], sde.Euler(), noise=path) for k in (1, 2, 8)]
    apart = sde.integrate(reverse, x, fine[::2], sde.Euler(), generator(2))
    near, far, other = ((end - ends[0]).norm() for end in (ends[1], ends[2], apart))
    assert near < far < 0.5 * other


def test_the_same_path_twice_gives_the_same_bits(two_modes):
    model = sde.ExactScore(two_modes, sde.EDM(sigma_max=5.0))
    path, x = sde.BrownianPath(generator()), torch.randn(8, 2, generator=generator(1))
    times = sde.grids.karras(model.sde, 10)
    run = lambda: sde.integrate(sde.ReverseSDE(model, 1.0), x, times, sde.Ancestral(), noise=path)  # noqa: E731
    assert torch.equal(run(), run())


def test_correctors_draw_noise_of_their_own(two_modes):
    """On a shared path a predictor repeats itself, and the corrector behind it does not."""
    model = sde.ExactScore(two_modes, sde.VP())
    path, x = sde.BrownianPath(generator()), torch.randn(8, 2, generator=generator(1))
    times = torch.linspace(1.0, 0.5, 5)
    predictor = sde.EulerMaruyama()
    both = sde.PredictorCorrector(predictor, sde.AnnealedLangevin())
    reverse = sde.ReverseSDE(model, 1.0)
    first, again = (sde.integrate(reverse, x, times, both, noise=path) for _ in range(2))
    assert not torch.equal(first, again)
    runs = [sde.integrate(reverse, x, times, predictor, noise=path) for _ in range(2)]
    assert torch.equal(*runs)
