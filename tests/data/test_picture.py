"""A picture as a density: right weights, right way up, standardised by its own sums."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from sde.data import from_picture

PICTURE = np.array([[255, 204, 153], [0, 255, 102]], dtype=np.uint8)  # darkness 0 .2 .4 / 1 0 .6


def pixel_counts(data, shape):
    raw = data.unstandardize(data.x.double())
    column, row = raw.floor().long().unbind(1)
    table = torch.zeros(shape, dtype=torch.long)
    return table.index_put_((shape[0] - 1 - row, column), torch.ones_like(row), accumulate=True).numpy()


def seeded():
    return torch.Generator().manual_seed(0)


def test_pixels_are_drawn_as_dark_as_they_are_and_the_right_way_up():
    data = from_picture(PICTURE, 50_000, generator=seeded())
    counts = pixel_counts(data, PICTURE.shape)
    weight = (255 - PICTURE.astype(float)) / (255 - PICTURE.astype(float)).sum()
    assert (counts[weight == 0] == 0).all()
    assert stats.chisquare(counts[weight > 0], 50_000 * weight[weight > 0]).pvalue > 1e-4


def test_points_are_uniform_within_a_pixel():
    data = from_picture(PICTURE, 50_000, generator=seeded())
    inside = data.unstandardize(data.x.double()) % 1
    assert stats.kstest(inside.numpy().ravel(), "uniform").pvalue > 1e-4


def test_population_is_standardised():
    x = from_picture(PICTURE, 200_000, generator=seeded()).x.double()
    squares = x.square().sum(1) / 2
    assert (x.mean(0).abs() < 5 * x.std(0) / len(x) ** 0.5).all()
    assert abs(squares.mean() - 1) < 5 * squares.std() / len(x) ** 0.5


def test_invert_and_white_move_the_mass():
    bright = pixel_counts(from_picture(PICTURE, 5000, invert=True, generator=seeded()), PICTURE.shape)
    assert bright[1, 0] == 0
    assert bright[0, 0] > 0
    dark = pixel_counts(from_picture(PICTURE, 5000, white=0.5, generator=seeded()), PICTURE.shape)
    assert ((dark > 0) == [[False, False, False], [True, False, True]]).all()
    assert abs(dark[1, 2] / dark[1, 0] - 0.2) < 0.04


def test_every_kind_of_picture_gives_the_same_points(tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(PICTURE).save(path)
    alpha = np.dstack([np.zeros_like(PICTURE)] * 3 + [255 - PICTURE])  # black, as opaque as the picture is dark
    reference = from_picture(PICTURE, 200, generator=seeded()).x
    for same in (
        path,
        str(path),
        Image.fromarray(PICTURE),
        PICTURE / 255.0,
        torch.tensor(PICTURE),
        np.dstack([PICTURE] * 3),
        alpha,
        Image.fromarray(alpha),
    ):
        torch.testing.assert_close(from_picture(same, 200, generator=seeded()).x, reference)


@pytest.mark.parametrize("white", [np.full((4, 4), 255, np.uint8), np.ones((4, 4, 3)), np.ones((4, 4))])
def test_a_white_picture_has_no_density(white):
    with pytest.raises(ValueError, match=r"picture has no pixel darker than white=1.0.*invert=True"):
        from_picture(white, 10)


@pytest.mark.parametrize("shape", [(4,), (3, 5, 6), (0, 4), (2, 4, 4, 3)])
def test_a_wrong_shape_is_refused_by_name(shape):
    with pytest.raises(ValueError, match=r"picture must be \(height, width\)"):
        from_picture(np.zeros(shape), 10)


@pytest.mark.parametrize("values", [-1.0, 7.0, np.nan])
def test_a_wrong_range_is_refused_by_name(values):
    with pytest.raises(ValueError, match=r"picture must hold integers in 0..255 or floats in 0..1, got float64"):
        from_picture(np.full((4, 4), values), 10)
