"""Densities and scores: values at the right places, the right way up."""

import math

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgba

from sde import plot

MEAN = torch.tensor([1.0, -0.5])


def log_prob(x, t=0.0):
    return -(x - MEAN).square().sum(1) / (0.2 + t)


def score(x, t=0.0):
    return -2 * (x - MEAN) / (0.2 + t)


def test_density_is_the_exponential_at_cell_centres_the_right_way_up():
    ax = plot.density(log_prob, bounds=(-2, 2, -1, 1), resolution=40)
    (image,) = ax.images
    assert image.get_extent() == (-2, 2, -1, 1) or list(image.get_extent()) == [-2, 2, -1, 1]
    assert image.origin == "lower"
    values = image.get_array()
    row, column = np.unravel_index(values.argmax(), values.shape)
    x1, x2 = -2 + 4 * (column + 0.5) / 40, -1 + 2 * (row + 0.5) / 40
    assert abs(x1 - 1) <= 0.05 + 1e-9
    assert abs(x2 + 0.5) <= 0.025 + 1e-9
    ratio = values[row, column - 10] / values[row, column]
    expected = math.exp(-(((x1 - 1 - 1) ** 2) - (x1 - 1) ** 2) / 0.2)
    assert ratio == pytest.approx(expected, rel=1e-4)
    assert ax.get_aspect() == 1


def test_density_of_a_sample_counts_it():
    x = torch.cat([torch.zeros(90, 2), torch.tensor([[1.5, -1.5]]).expand(10, 2)])
    ax = plot.density(x, bounds=(-2, 2, -6, 6), resolution=30)
    counts = ax.images[0].get_array()
    assert counts.sum() == 100
    assert counts[3, 8] == 10  # low and to the right
    assert counts[5, 5] == 90


def test_strips_ask_at_their_times_and_scale_each_panel():
    seen = []

    def asked(x, t):
        seen.append((tuple(x.shape), t.shape, float(t)))
        return log_prob(x, t)

    figure = plot.density_strip(asked, [0.0, 0.5, 2.0], bounds=[1, 2, 3], resolution=20)
    assert seen == [((400, 2), (), t) for t in (0.0, 0.5, 2.0)]
    assert [ax.get_title() for ax in figure.axes] == ["t = 0", "t = 0.5", "t = 2"]
    assert [ax.get_xlim()[1] for ax in figure.axes] == [1, 2, 3]
    assert all(ax.images[0].get_array().max() == 1 for ax in figure.axes)


def test_four_bounds_for_four_times_are_a_box_for_each():
    figure = plot.density_strip(log_prob, [0, 1, 2, 3], bounds=(-1, 2, -3, 4), resolution=5)
    assert all(ax.get_xlim() + ax.get_ylim() == (-1, 2, -3, 4) for ax in figure.axes)


def test_arrows_point_along_the_score_and_their_colour_is_its_length():
    ax = plot.score_field(score, bounds=2, resolution=9)
    (quiver,) = ax.collections
    at = torch.as_tensor(np.asarray(quiver.get_offsets()))
    truth = score(at.float()).double()
    drawn = torch.as_tensor(np.stack([quiver.U, quiver.V], 1))
    torch.testing.assert_close(
        torch.nn.functional.normalize(drawn), torch.nn.functional.normalize(truth), atol=1e-5, rtol=0
    )
    lengths, norms = drawn.norm(dim=1), truth.norm(dim=1)
    assert lengths.max() == pytest.approx(1)
    torch.testing.assert_close(lengths**2, norms / norms.max(), atol=1e-5, rtol=0)
    np.testing.assert_allclose(quiver.get_array(), norms, rtol=1e-5)
    assert [a.get_ylabel() for a in ax.figure.axes] == ["x₂", "|∇ log p|"]


def test_a_model_that_gives_points_is_a_score():
    class Point:
        def __init__(self, x, t):
            self.score = score(x, t)

    figure = plot.score_strip(Point, [0.0, 1.0], bounds=2, resolution=5, log_prob=log_prob)
    for ax in figure.axes:
        assert len(ax.images) == len(ax.collections) == 1
        assert tuple(ax.collections[0].get_facecolors()[0]) == to_rgba("white")
    bare = plot.score_strip(score, [0.0], resolution=5)
    assert bare.axes[0].collections[0].get_array() is not None


def test_wrong_fields_are_refused_by_name():
    with pytest.raises(ValueError, match=r"log_prob must map \(N, 2\) to \(N,\), got \(25, 2\)"):
        plot.density(lambda x: x, resolution=5)
    with pytest.raises(ValueError, match=r"score must map \(N, 2\) to \(N, 2\), got \(25,\)"):
        plot.score_field(lambda x: x.sum(1), resolution=5)
    with pytest.raises(ValueError, match="score must be finite on the grid"):
        plot.score_field(lambda x: x / 0, resolution=5)
    with pytest.raises(ValueError, match="bounds must hold some of the density"):
        plot.density(lambda x: torch.full((len(x),), -math.inf), resolution=5)
    with pytest.raises(ValueError, match="resolution must be at least 2, got 1"):
        plot.density(log_prob, resolution=1)
    with pytest.raises(ValueError, match="times must hold at least one finite time"):
        plot.density_strip(log_prob, [])
