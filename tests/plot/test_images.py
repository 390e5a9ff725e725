"""Image pictures: every pixel where it belongs."""

import numpy as np
import pytest
import torch

from sde import data, plot


def shown(ax):
    return np.asarray(ax.images[0].get_array())


def test_grid_lays_images_out_row_by_row():
    x = torch.linspace(-1, 1, 5)[:, None, None, None].expand(5, 1, 4, 6)
    ax = plot.grid(x, ncols=3)
    canvas = shown(ax)
    assert canvas.shape == (2 * 4 + 1, 3 * 6 + 2)
    for k in range(5):
        top, left = 5 * (k // 3), 7 * (k % 3)
        np.testing.assert_allclose(canvas[top : top + 4, left : left + 6], k / 4)
    assert (canvas[5:, 14:] == 1).all()  # the empty sixth place
    assert (canvas[4] == 1).all()  # the gap
    assert ax.images[0].get_clim() == (0, 1)
    assert not ax.get_xticks().size
    assert ax.get_title() == "images, 5 shown"


def test_colours_are_kept_and_values_beyond_the_range_clamped():
    x = torch.tensor([-3.0, 0.0, 3.0])[None, :, None, None].expand(1, 3, 4, 4)
    canvas = shown(plot.grid(x))
    assert canvas.shape == (4, 4, 3)
    np.testing.assert_allclose(canvas[0, 0], [0, 0.5, 1])
    assert shown(plot.grid(torch.full((1, 1, 2, 2), float("nan")))).max() == 0


def test_a_data_set_is_a_grid():
    digits = data.digits()[:6]
    ax = plot.grid(digits)
    np.testing.assert_allclose(shown(ax)[:8, :8], (digits.x[0, 0] + 1) / 2)
    assert ax.get_title() == "digits, 6 shown"


def test_birth_shows_one_image_in_the_order_of_the_run(run):
    r = run((3, 1, 4, 4), noise=20.0)
    ax = plot.birth(r, index=1, times=[1.0, 0.5, 0.0])
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "0.5", "0"]
    canvas = shown(ax)
    assert canvas.shape == (4, 14)
    np.testing.assert_allclose(canvas[:, 10:], (r.x[-1, 1, 0] + 1) / 2, atol=1e-6)
    np.testing.assert_allclose(ax.get_xticks(), [1.5, 6.5, 11.5])
    first = r.x[0, 1, 0] / torch.quantile(r.x[0, 1].abs().flatten(), 0.9)
    np.testing.assert_allclose(canvas[:, :4], (first.clamp(-1, 1) + 1) / 2, atol=1e-6)
    assert (ax.get_xlabel(), ax.get_title()) == ("t", "an image being born")


def test_neighbours_finds_the_nearest_and_says_how_near():
    generator = torch.Generator().manual_seed(0)
    old = torch.rand(60, 1, 4, 4, generator=generator) * 2 - 1
    new = torch.cat([old[17:18], old[5:6] + 0.01, torch.rand(1, 1, 4, 4, generator=generator) * 2 - 1])
    ax = plot.neighbours(new, old, n=3)
    canvas = shown(ax)
    assert canvas.shape == (9, 14)
    gaps = torch.cdist(old.flatten(1).double(), old.flatten(1).double())
    typical = (gaps + 1e9 * torch.eye(60)).min(1).values.median()
    shares = [float(label.get_text()) for label in ax.get_xticklabels()]
    nearest = torch.cdist(new.flatten(1), old.flatten(1)).argmin(1)
    assert nearest[:2].tolist() == [17, 5]
    for k in range(3):
        np.testing.assert_allclose(canvas[:4, 5 * k : 5 * k + 4], (new[k, 0].clamp(-1, 1) + 1) / 2, atol=1e-6)
        np.testing.assert_allclose(canvas[5:, 5 * k : 5 * k + 4], (old[nearest[k], 0] + 1) / 2, atol=1e-6)
        share = (new[k] - old[nearest[k]]).norm() / typical
        assert shares[k] == pytest.approx(float(share), abs=0.006 if share < 1 else 0.06)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["new", "nearest"]


def test_wrong_images_are_refused_by_name(run):
    for bad in (torch.zeros(1, 4, 4), torch.zeros(2, 2, 4, 4), torch.zeros(0, 1, 4, 4)):
        with pytest.raises(ValueError, match=r"images must be images \(n, 1 or 3, height, width\)"):
            plot.grid(bad)
    with pytest.raises(ValueError, match="ncols must be at least 1, got 0"):
        plot.grid(torch.zeros(2, 1, 4, 4), ncols=0)
    with pytest.raises(ValueError, match=r"trajectory must have states .* got \(21, 4, 2\)"):
        plot.birth(run((4, 2)))
    with pytest.raises(ValueError, match="index must be one of the 4 images of the batch, got 4"):
        plot.birth(run((4, 1, 3, 3)), index=4)
    with pytest.raises(ValueError, match="images and data must be pictures of one shape"):
        plot.neighbours(torch.zeros(2, 1, 4, 4), torch.zeros(9, 1, 5, 5))


def test_forward_runs_dissolve(run):
    assert plot.birth(run((1, 1, 3, 3), start=0.0, end=1.0)).get_title() == "an image dissolving"
