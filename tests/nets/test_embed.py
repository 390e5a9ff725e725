"""Time features: sines and cosines at the stated frequencies."""

import math

import pytest
import torch

from sde.nets import Fourier, Sinusoidal


def test_fourier_features_span_half_to_sixteen_radians() -> None:
    features = Fourier(8)
    c = torch.tensor([0.3, -1.2])
    frequencies = [0.5 * 32 ** (k / 3) for k in range(4)]
    expected = [[*(math.sin(f * u) for f in frequencies), *(math.cos(f * u) for f in frequencies)] for u in c.tolist()]
    torch.testing.assert_close(features(c), torch.tensor(expected))


def test_sinusoidal_features_are_those_of_the_transformer() -> None:
    features = Sinusoidal(6)
    c = torch.tensor([0.0, 7.0, 999.0])
    frequencies = [10_000 ** (-k / 3) for k in range(3)]
    expected = [[*(math.sin(f * u) for f in frequencies), *(math.cos(f * u) for f in frequencies)] for u in c.tolist()]
    torch.testing.assert_close(features(c), torch.tensor(expected), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("kind", "clocks"), [(Fourier, torch.linspace(-2, 2, 41)), (Sinusoidal, torch.arange(1000.0))])
def test_no_two_clocks_look_alike(kind: type, clocks: torch.Tensor) -> None:
    distance = torch.cdist(kind(32)(clocks), kind(32)(clocks)) + 10 * torch.eye(len(clocks))
    assert float(distance.min()) > 0.1


@pytest.mark.parametrize("features", [0, 1, 7, -2])
def test_odd_features_are_refused(features: int) -> None:
    with pytest.raises(ValueError, match=f"features must be even and at least 2, got {features}: half are sines"):
        Fourier(features)


@pytest.mark.parametrize("shape", [(), (3, 1)])
def test_a_clock_is_one_number_to_each_sample(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"c must be \(B,\), got shape"):
        Fourier(8)(torch.zeros(shape))


def test_features_follow_the_modules_dtype() -> None:
    assert Fourier(8).double()(torch.zeros(3, dtype=torch.float64)).dtype == torch.float64
