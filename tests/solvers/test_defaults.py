"""What `sample` takes by itself, and grids fitted to a model."""

import pytest
import torch

import sde
from sde.solvers import default_solver, default_times

CLUSTERS = sde.Mixture(
    [0.3, 0.2, 0.3, 0.2], [[-1.5, 0.2], [-1.3, -0.2], [1.2, 0.9], [1.1, 0.7]], [0.01, 0.02, 0.004, 0.004]
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("steps", "order", "corrector"),
    [(1, 3, False), (8, 3, False), (9, 4, True), (35, 4, True), (36, 5, True), (80, 5, True), (81, 6, True)],
)
def test_order_and_corrector_follow_the_number_of_steps(steps, order, corrector):
    chosen = default_solver(sde.ExactScore(CLUSTERS, sde.VP()), None, steps)
    assert isinstance(chosen, sde.Adams)
    assert (chosen.k, chosen.predict, chosen.coordinate, chosen.corrector) == (order, "edm", "angle", corrector)


@pytest.mark.parametrize("times", [None, sde.grids.karras(sde.EDM(), 40)])
def test_sample_looks_at_the_steps_it_takes(times):
    model = sde.ExactScore(CLUSTERS, sde.EDM())
    x = model.prior(torch.zeros(5, 2, dtype=torch.float64), generator())
    got = sde.sample(model, x=x, steps=40 if times is None else 3, times=times)
    grid = default_times(model, 40) if times is None else times
    torch.testing.assert_close(got, sde.integrate(sde.ReverseSDE(model), x, grid, sde.Adams(5)), rtol=0, atol=0)


def error(model, times, solver):
    x = model.prior(torch.zeros(300, 2, dtype=torch.float64), generator(1))
    flow = sde.ReverseSDE(model)
    truth = sde.integrate(flow, x, default_times(model, 500), sde.Adams(6))
    return float((sde.integrate(flow, x, times, solver) - truth).square().sum(1).mean().sqrt())


@pytest.mark.parametrize("forward", [sde.VP(), sde.EDM(), sde.Flow()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize(("steps", "order"), [(24, 4), (50, 5)])
def test_a_fitted_grid_is_more_accurate_than_the_default(forward, steps, order):
    model = sde.ExactScore(CLUSTERS, forward)
    times = sde.fitted_times(model, (64, 2), steps, generator=generator(2))
    assert times.shape == (steps + 1,)
    assert (times.diff() < 0).all()
    assert (float(times[0]), float(times[-1])) == (forward.t_max, forward.t_min)
    assert error(model, times, sde.Adams(order)) < 0.9 * error(model, default_times(model, steps), sde.Adams(order))


def test_a_fitted_grid_is_dense_where_paths_bend():
    """Two modes .02 wide at +-1: paths part at ratio 1, and settle into a mode at ratio .02."""
    model = sde.ExactScore(sde.Mixture([0.5, 0.5], [[-1.0], [1.0]], [4e-4, 4e-4]), sde.EDM())
    counts = [
        [int(((times > low) & (times < high)).sum()) for low, high in ((0.2, 1.0), (0.01, 0.1), (5.0, 80.0))]
        for times in (sde.fitted_times(model, (32, 1), 60, mix=0.5, generator=generator()), default_times(model, 60))
    ]
    (parting, settling, above), (default_parting, _, default_above) = counts
    assert settling > above
    assert parting > default_parting
    assert above < default_above


def test_the_default_grid_is_kept_where_no_other_is_clearly_better():
    model = sde.ExactScore(sde.Gaussian([1.0, -2.0], 0.5), sde.VP())  # Adams is exact there, on any grid
    assert torch.equal(sde.fitted_times(model, (16, 2), 7, generator=generator()), default_times(model, 7))
    bent = sde.ExactScore(CLUSTERS, sde.VP())
    made = [sde.fitted_times(bent, (64, 2), 24, mix=mix, generator=generator(2)) for mix in (0.25, 0.5, 0.75)]
    assert any(torch.equal(sde.fitted_times(bent, (64, 2), 24, generator=generator(2)), times) for times in made)


def test_fitted_times_refuses_by_name():
    model = sde.ExactScore(CLUSTERS, sde.VP())
    with pytest.raises(ValueError, match=r"fitted_times needs a scalar SDE, got CLD: use grids.uniform"):
        sde.fitted_times(sde.ExactScore(CLUSTERS, sde.CLD()), (4, 2), 8)
    for wrong in ({"steps": 0}, {"steps": 8, "order": 5}, {"steps": 8, "mix": 1.5}, {"steps": 8, "fine": 4}):
        with pytest.raises(ValueError, match="steps must be at least 1, order 1 to 4, mix 0 to 1 and fine at least 4"):
            sde.fitted_times(model, (4, 2), **wrong)
