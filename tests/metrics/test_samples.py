"""What all metrics share: any shape and dtype, and errors that name the argument."""

import pytest
import torch

from sde.metrics import energy_distance, mmd, sliced_wasserstein, wasserstein

METRICS = [sliced_wasserstein, wasserstein, mmd, energy_distance]


def call(metric, a, b):
    extra = {"generator": torch.Generator().manual_seed(0)} if metric is sliced_wasserstein else {}
    return metric(a, b, **extra)


@pytest.mark.parametrize("metric", METRICS)
def test_images_are_flattened_and_halves_are_measured_in_float64(metric):
    a, b = torch.randn(6, 3, 4, 4).half(), torch.randn(5, 3, 4, 4).half()
    value = call(metric, a, b)
    assert value.dtype == torch.float64
    assert value.shape == ()
    assert value == call(metric, a.double().flatten(1), b.double().flatten(1))
    assert value == call(metric, a.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2), b)


@pytest.mark.parametrize("metric", METRICS)
def test_a_far_sample_is_farther(metric):
    a, b = torch.randn(200, 2), torch.randn(200, 2)
    assert call(metric, a, b) < call(metric, a, b + 1) < call(metric, a, b + 3)


@pytest.mark.parametrize("metric", METRICS)
def test_wrong_samples_are_refused_by_name(metric):
    a = torch.randn(5, 2)
    for bad, error, message in [
        (a.numpy(), TypeError, r"b must be a tensor, got ndarray"),
        (a.long(), TypeError, r"b must be floating point, got torch.int64"),
        (a[:, 0], ValueError, r"b must be a batch .* got shape \(5,\): numbers on a line are b\[:, None\]"),
        (a[:0], ValueError, r"b must be a batch .* got shape \(0, 2\)"),
        (torch.randn(5, 3), ValueError, r"one shape, got \(5, 2\) and \(5, 3\)"),
        (
            a.clone().index_fill_(0, torch.tensor([1]), float("nan")),
            ValueError,
            r"b must be finite, got 1 of 5 rows",
        ),
    ]:
        with pytest.raises(error, match=message):
            metric(a, bad)


@pytest.mark.gpu
@pytest.mark.parametrize("metric", METRICS)
def test_the_device_is_kept(metric):
    a, b = torch.randn(40, 3), torch.randn(30, 3)
    value = call(metric, a.cuda(), b.cuda())
    assert value.device.type == "cuda"
    torch.testing.assert_close(value.cpu(), call(metric, a, b))
    with pytest.raises(ValueError, match=r"one device, got cuda:0 and cpu: pass b.to\(a.device\)"):
        metric(a.cuda(), b)
