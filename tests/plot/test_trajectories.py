"""Paths and snapshots: the states that were recorded, in the order of the run."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb

from sde import plot


def test_paths_in_the_plane_are_the_states_from_ring_to_dot(run):
    r = run((40, 2))
    ax = plot.paths(r, n=5)
    lines, ends_of_all, starts, ends = ax.collections
    segments = np.asarray(lines.get_segments()).reshape(5, 20, 2, 2)
    np.testing.assert_allclose(segments[:, :, 0], r.x[:-1, :5].transpose(0, 1), rtol=1e-5)
    np.testing.assert_allclose(segments[:, :, 1], r.x[1:, :5].transpose(0, 1), rtol=1e-5)
    np.testing.assert_allclose(ends_of_all.get_offsets(), r.x[-1], rtol=1e-5)
    np.testing.assert_allclose(starts.get_offsets(), r.x[0, :5], rtol=1e-5)
    np.testing.assert_allclose(ends.get_offsets(), r.x[-1, :5], rtol=1e-5)
    inks = lines.get_colors().reshape(5, 20, 4)
    assert (np.diff(inks[..., 3]) > 0).all()
    for k in range(5):
        np.testing.assert_allclose(inks[k, :, :3], [to_rgb(plot.COLOURS[k])] * 20)
    assert ax.get_title() == "5 of 40 paths, t = 1 → 0"


@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (1.0, 0.0)])
def test_paths_on_a_line_run_from_left_to_right(run, start, end):
    r = run((6, 1), start=start, end=end)
    ax = plot.paths(r, n=9)
    segments = ax.collections[0].get_segments()
    assert len(segments) == 6
    np.testing.assert_allclose(segments[4][:, 0], r.t)
    np.testing.assert_allclose(segments[4][:, 1], r.x[:, 4, 0], rtol=1e-5)
    assert ax.get_xlim() == (start, end)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("t", "x")


def test_compared_paths_share_limits_and_colours(run):
    runs = {"SDE": run((20, 2), seed=0), "ODE": run((20, 2), seed=1, noise=2.0)}
    figure = plot.compare_paths(runs, n=3)
    left, right = figure.axes
    assert left.get_xlim() + left.get_ylim() == right.get_xlim() + right.get_ylim()
    assert [ax.get_title() for ax in figure.axes] == ["SDE", "ODE"]
    assert np.array_equal(left.collections[3].get_facecolors(), right.collections[3].get_facecolors())
    assert right.get_ylabel() == ""
    assert plot.compare_paths(runs, n=3, axes=[left, right]) is figure


def test_snapshots_are_the_nearest_records_in_the_order_of_the_run(run):
    r = run((30, 2))
    figure = plot.snapshots(r, times=[1.0, 0.52, 0.0])
    assert [ax.get_title() for ax in figure.axes] == ["t = 1", "t = 0.5", "t = 0"]
    for ax, k in zip(figure.axes, (0, 10, 20), strict=True):
        np.testing.assert_allclose(ax.collections[0].get_offsets(), r.x[k], rtol=1e-5)
    assert len(plot.snapshots(r, times=4).axes) == 4


def test_snapshots_have_common_limits_unless_the_noise_dwarfs_the_data(run):
    def limits(r):
        return [ax.get_xlim() for ax in plot.snapshots(r, times=3).axes]

    assert len(set(limits(run((30, 2), noise=0.4)))) == 1
    wide = limits(run((30, 2), noise=80.0))
    assert wide[0][1] > 100 * wide[2][1]
    assert len({ax.get_xlim() for ax in plot.snapshots(run((30, 2), noise=80.0), limits=3).axes}) == 1


def test_wrong_runs_are_refused_by_name(run):
    with pytest.raises(ValueError, match=r"states \(N, B, 1\) or \(N, B, 2\), got \(21, 4, 3\).*map"):
        plot.paths(run((4, 3)))
    with pytest.raises(ValueError, match=r"must have states \(N, B, 2\), got \(21, 4, 1\)"):
        plot.snapshots(run((4, 1)))
    with pytest.raises(ValueError, match=r"got \(21, 4, 2, 2\): .* or a channel with x\[:, 0\]"):
        plot.snapshots(run((4, 2, 2)))
    with pytest.raises(ValueError, match=r"trajectories\['b'\] must have states"):
        plot.compare_paths({"a": run((4, 2)), "b": run((4, 5))})
    with pytest.raises(ValueError, match=r"N at least 2, got \(1,\)"):
        plot.paths(run((4, 2), steps=0))
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        plot.paths(run((4, 2)), n=0)
    with pytest.raises(TypeError, match="trajectories must map titles to trajectories, got SimpleNamespace"):
        plot.compare_paths(run((4, 2)))


def test_a_run_on_the_way_to_nan_is_drawn_as_far_as_it_goes(run):
    r = run((10, 2))
    r.x[5:, 3] = float("nan")
    assert np.isfinite(plot.paths(r).get_xlim()).all()
    assert torch.isnan(r.x).any()
    plt.gcf().canvas.draw()
