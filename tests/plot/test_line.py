"""Runs on a line against their exact densities."""

import math

import numpy as np
import pytest
import torch

from sde import plot


def exact(x, t):
    """The law of the runs made here: a Gaussian of standard deviation .1 + .9 t."""
    scale = 0.1 + 0.9 * t
    return -((x[:, 0] / scale) ** 2) / 2 - scale.log() - math.log(2 * math.pi) / 2


def bars(ax):
    return np.array([[p.get_x(), p.get_width(), p.get_height()] for p in ax.patches])


def test_marginals_are_densities_beside_the_exact_curve(run):
    r = run((20_000, 1))
    figure = plot.marginals(r, exact, times=[1.0, 0.25, 0.0], bins=40)
    assert [ax.get_title() for ax in figure.axes] == ["t = 1", "t = 0.25", "t = 0"]
    for ax, t in zip(figure.axes, (1.0, 0.25, 0.0), strict=True):
        left, width, height = bars(ax).T
        assert len(height) == 40
        assert (height * width).sum() == pytest.approx(1, abs=0.002)
        x, curve = ax.lines[0].get_data()
        scale = 0.1 + 0.9 * t
        np.testing.assert_allclose(
            curve, np.exp(-((x / scale) ** 2) / 2) / scale / math.sqrt(2 * math.pi), rtol=1e-4, atol=1e-9
        )
        assert np.abs(height - np.interp(left + width / 2, x, curve)).max() * scale < 0.04
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["run", "exact"]


def test_bars_count_what_lies_beyond_the_limits(run):
    """Else a run with a tail would look higher than the density it has."""
    r = run((100_000, 1))
    r.x[0, :30] = 1e3  # too few to widen the limits
    (ax,) = plot.marginals(r, times=[1.0]).axes
    assert ax.get_xlim()[1] < 10
    _, width, height = bars(ax).T
    inside = ((r.x[0] > ax.get_xlim()[0]) & (r.x[0] < ax.get_xlim()[1])).double().mean()
    assert inside < 0.9997
    assert (height * width).sum() == pytest.approx(float(inside), abs=1e-9)


@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (1.0, 0.0)])
def test_space_time_shades_the_density_and_draws_the_run(run, start, end):
    r = run((3000, 1), start=start, end=end)
    ax = plot.space_time(r, exact, n=4, bounds=4)
    mesh, lines = ax.collections
    image = np.asarray(mesh.get_array())
    assert image.shape == (300, 160)
    np.testing.assert_allclose(image.max(0), 1)
    at, now = np.linspace(*ax.get_ylim(), 300), np.linspace(start, end, 160)
    np.testing.assert_allclose(image, np.exp(-((at[:, None] / (0.1 + 0.9 * now)) ** 2) / 2), atol=0.02)
    assert len(lines.get_segments()) == 4
    np.testing.assert_allclose(lines.get_segments()[2][:, 1], r.x[:, 2, 0], rtol=1e-5)
    assert ax.get_xlim() == (start, end)

    left, right = ax.child_axes
    assert (left.get_title(), right.get_title()) == (f"t = {start:.0f}", f"t = {end:.0f}")
    for side, t in ((left, start), (right, end)):
        density, at = side.lines[0].get_data()
        scale = 0.1 + 0.9 * t
        np.testing.assert_allclose(
            density, np.exp(-((at / scale) ** 2) / 2) / scale / math.sqrt(2 * math.pi), rtol=1e-4, atol=1e-9
        )
        assert sum(p.get_width() * p.get_height() for p in side.patches) == pytest.approx(1, abs=0.01)
    assert left.get_xlim()[0] > left.get_xlim()[1] == 0


def test_space_time_without_a_density_counts_the_run(run):
    r = run((500, 1))
    ax = plot.space_time(r, n=0, bounds=(-3, 3))
    image = np.asarray(ax.collections[0].get_array())
    assert image.shape == (80, 21)
    counts = np.histogram(r.x[7, :, 0], bins=80, range=(-3, 3))[0]
    np.testing.assert_allclose(image[:, 7], counts / counts.max())
    assert ax.get_ylim() == (-3, 3)


def test_logarithmic_time_for_time_that_is_the_noise(run):
    r = run((500, 1), start=1.0, end=0.01)
    ax = plot.space_time(r, exact, log_time=True)
    assert ax.get_xscale() == "log"
    assert ax.get_xlim() == pytest.approx((1.0, 0.01))
    assert plot.space_time(r, exact).get_xscale() == "linear"
    r.t = torch.logspace(0, -3, 21)
    assert plot.space_time(r, exact).get_xscale() == plot.paths(r).get_xscale() == "log"
    assert plot.space_time(r, exact, log_time=False).get_xscale() == "linear"
    with pytest.raises(ValueError, match="log_time needs times above 0, got 0"):
        plot.space_time(run((500, 1)), exact, log_time=True)


def test_wrong_densities_and_bounds_are_refused_by_name(run):
    r = run((50, 1))
    with pytest.raises(ValueError, match=r"log_prob must map x \(M, 1\) and t \(\) to \(M,\), got \(400, 1\)"):
        plot.marginals(r, lambda x, t: x)
    with pytest.raises(ValueError, match="log_prob must be finite, got nan or inf at t = 1"):
        plot.marginals(r, lambda x, t: x[:, 0] * float("inf"))
    with pytest.raises(ValueError, match="bounds must be a radius or"):
        plot.space_time(r, exact, bounds=(3, -3))
    with pytest.raises(ValueError, match=r"must have states \(N, B, 1\)"):
        plot.space_time(run((50, 2)), exact)
