"""The container: rows, labels and devices travel together."""

import pytest
import torch

from sde.data import Dataset, circles, from_uint8


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


def test_bytes_stay_bytes():
    data = Dataset(torch.arange(12, dtype=torch.uint8).reshape(3, 1, 2, 2), mean=127.5, scale=127.5)
    assert repr(data) == "Dataset('data', x=(3, 1, 2, 2) uint8)"
    assert data[1:].x.dtype == data.to("meta").x.dtype == torch.uint8
    torch.testing.assert_close(data.unstandardize(data.x), data.x.float())
    torch.testing.assert_close(data.standardize(data.x), from_uint8(data.x))


@pytest.mark.parametrize("n", [1, 255, 256, 257, 1500])
def test_statistics_of_bytes_are_those_of_their_floats(n, generator):
    x = torch.randint(0, 256, (n, 3, 4, 5), generator=generator).to(torch.uint8)
    x[:, 0, 0, 0] = 255  # a pixel that never changes, and the largest sums
    floats = x.double() / 127.5 - 1
    mean, scale = Dataset(x).statistics()
    torch.testing.assert_close(mean, floats.mean(0).float(), atol=1e-7, rtol=1e-6)
    assert mean[0, 0, 0] == 1
    assert scale == pytest.approx(float(floats.var(0, correction=0).mean().sqrt()), rel=1e-9, abs=1e-9)
    for close in (Dataset(floats.float()).statistics(), Dataset(from_uint8(x)).statistics()):
        torch.testing.assert_close(close[0], mean, atol=1e-6, rtol=1e-6)
        assert close[1] == pytest.approx(scale, rel=1e-6, abs=1e-6)


def test_sums_of_bytes_are_exact():
    """Of 300 bytes one is less by one, which float32 would lose: their squares sum to an odd number over 2^24."""
    x = torch.full((300, 1), 255, dtype=torch.uint8)
    x[7] = 254
    assert Dataset(x).statistics()[1] == pytest.approx((299 / 300**2) ** 0.5 / 127.5, rel=1e-6)


def test_statistics_of_nothing_are_refused():
    with pytest.raises(ValueError, match=r"x has shape \(0, 2\): there is nothing to take the mean of"):
        circles(10)[:0].statistics()
