"""The container: rows, labels and devices travel together."""

import pytest
import torch

from sde.data import Dataset, circles


def test_rows_keep_their_labels_and_their_scale():
    whole = circles(100, generator=torch.Generator().manual_seed(0))
    part = whole[whole.label == 1]
    assert len(part) == int(whole.label.sum())
    assert (part.label == 1).all()
    assert torch.equal(part.x, whole.x[whole.label.bool()])
    assert part.scale == whole.scale
    assert torch.equal(whole[[3, 1]].x, whole.x[[3, 1]])
    assert len(whole[10:30]) == 20


def test_a_single_row_is_asked_for_with_a_slice():
    with pytest.raises(TypeError, match=r"rows must be .* got 3: one row is data\[3:4\]"):
        circles(10)[3]


def test_it_is_frozen_and_moves_whole():
    data = circles(10)
    with pytest.raises(AttributeError):
        data.scale = 2.0
    moved = data.to("meta")
    assert moved.x.device.type == moved.label.device.type == "meta"
    assert Dataset(torch.zeros(3, 2)).to("meta").label is None


def test_unstandardize_follows_the_dtype_of_its_argument():
    data = circles(10)
    assert data.unstandardize(data.x.double()).dtype == torch.float64
    assert data.unstandardize(data.x.bfloat16()).dtype == torch.bfloat16
