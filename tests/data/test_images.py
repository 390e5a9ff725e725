"""Digits and the two scales of images."""

import pytest
import torch
from sklearn.datasets import load_digits

from sde.data import digits, from_uint8, to_uint8


def test_digits_are_scikit_learns_in_minus_one_to_one():
    data, source = digits(), load_digits()
    assert data.x.shape == (1797, 1, 8, 8)
    assert data.x.dtype == torch.float32
    assert (data.x.min(), data.x.max()) == (-1, 1)
    assert torch.equal(data.unstandardize(data.x)[:, 0].double(), torch.as_tensor(source.images))
    assert torch.equal(data.label, torch.as_tensor(source.target).long())


def test_bytes_survive_the_round_trip():
    every = torch.arange(256).to(torch.uint8)
    x = from_uint8(every)
    assert (x[0], x[-1]) == (-1, 1)
    torch.testing.assert_close(x[1:] - x[:-1], torch.full((255,), 2 / 255), atol=1e-6, rtol=0)
    assert torch.equal(to_uint8(x), every)


def test_values_beyond_the_range_are_clamped_not_wrapped():
    assert to_uint8(torch.tensor([-5.0, 5.0, float("inf")])).tolist() == [0, 255, 255]


def test_wrong_types_and_nan_are_refused_by_name():
    with pytest.raises(TypeError, match=r"x must be floats in \[-1, 1\], got torch.uint8"):
        to_uint8(torch.zeros(3, dtype=torch.uint8))
    with pytest.raises(TypeError, match=r"x must be torch.uint8, got torch.float32"):
        from_uint8(torch.zeros(3))
    with pytest.raises(ValueError, match=r"x must have no NaN"):
        to_uint8(torch.tensor([0.0, float("nan")]))
