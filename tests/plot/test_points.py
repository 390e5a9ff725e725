"""Scatter plots: what is drawn is what was given."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgba

from sde import data, plot


def test_scatter_draws_the_points_on_equal_axes():
    x = torch.randn(50, 2)
    ax = plot.scatter(x)
    (drawn,) = ax.collections
    np.testing.assert_allclose(drawn.get_offsets(), x.numpy(), rtol=1e-6)
    assert ax.get_aspect() == 1
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title()) == ("x₁", "x₂", "points, n = 50")
    assert ax.get_xlim()[0] <= x[:, 0].quantile(0.002)
    assert ax.get_xlim()[1] - ax.get_xlim()[0] == pytest.approx(ax.get_ylim()[1] - ax.get_ylim()[0])


def test_classes_have_colours_and_a_data_set_brings_its_own():
    moons = data.moons(40)
    for ax in (plot.scatter(moons), plot.scatter(moons.x, label=moons.label)):
        colours = ax.collections[0].get_facecolors()[:, :3]
        expected = [to_rgba(plot.COLOURS[k])[:3] for k in moons.label]
        np.testing.assert_allclose(colours, expected)
    assert plot.scatter(moons).get_title() == "moons, n = 40"


def test_given_axes_and_options_are_used():
    _, ax = plt.subplots()
    ax.set_title("mine")
    x = torch.randn(10, 2, dtype=torch.bfloat16, requires_grad=True)
    assert plot.scatter(x, ax=ax, limits=(0, 1, 2, 3), s=7, c=torch.arange(10)) is ax
    assert ax.get_title() == "mine"
    assert ax.get_xlim() + ax.get_ylim() == (0, 1, 2, 3)
    assert ax.collections[0].get_sizes() == [7]
    assert ax.collections[0].get_array().tolist() == list(range(10))


def test_compare_has_one_scale():
    samples = {"a": torch.randn(30, 2), "b": 5 * torch.randn(40, 2), "moons": data.moons(20)}
    figure = plot.compare(samples)
    assert [ax.get_title() for ax in figure.axes] == list(samples)
    assert len({ax.get_xlim() + ax.get_ylim() for ax in figure.axes}) == 1
    assert [len(ax.collections[0].get_offsets()) for ax in figure.axes] == [30, 40, 20]
    assert len({tuple(ax.collections[0].get_facecolors()[0]) for ax in figure.axes}) == 3
    assert plot.compare(samples, axes=figure.axes) is figure


def test_wrong_arguments_are_refused_by_name():
    with pytest.raises(ValueError, match=r"x must be points of the plane \(n, 2\), got shape \(5, 3\).*x\[:, :2\]"):
        plot.scatter(torch.zeros(5, 3))
    with pytest.raises(ValueError, match=r"samples\['b'\] must be points"):
        plot.compare({"a": torch.zeros(3, 2), "b": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"label must be \(5,\).*got shape \(4,\)"):
        plot.scatter(torch.zeros(5, 2), label=torch.zeros(4))
    for bad in (torch.zeros(3, 2), {}):
        with pytest.raises(TypeError, match="samples must map titles to points"):
            plot.compare(bad)
    with pytest.raises(ValueError, match="axes must hold 2 axes, one for each panel, got 1"):
        plot.compare({"a": torch.zeros(3, 2), "b": torch.zeros(3, 2)}, axes=[plt.gca()])
