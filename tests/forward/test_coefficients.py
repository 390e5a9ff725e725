"""SDEs from f and g: against closed forms, and against scipy's quadrature where there is none."""

import math

import pytest
import torch
from scipy.integrate import quad

import sde

T = torch.linspace(0.001, 1, 41, dtype=torch.float64)


def test_coefficients_of_vp_give_vp() -> None:
    vp = sde.VP()
    made = sde.FromCoefficients(f=lambda t: -vp.beta(t) / 2, g=lambda t: vp.beta(t).sqrt())
    for got, expected in zip(made.rates(T), vp.rates(T), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-14)


def test_coefficients_without_closed_form_against_scipy() -> None:
    f, g = (lambda t: -math.sin(3 * t)), (lambda t: 1 + t**2)
    made = sde.FromCoefficients(f=lambda t: -torch.sin(3 * t), g=lambda t: 1 + t**2)
    for t in (0.013, 0.5, 1.0):
        log_alpha = quad(f, 0, t)[0]
        noise = quad(lambda u: g(u) ** 2 * math.exp(-2 * quad(f, 0, u)[0]), 0, t)[0]
        assert float(made.alpha(torch.tensor(t).double())) == pytest.approx(math.exp(log_alpha), rel=1e-9)
        sigma = math.exp(log_alpha) * math.sqrt(noise)
        assert float(made.sigma(torch.tensor(t).double())) == pytest.approx(sigma, rel=1e-7)


def test_plain_numbers_are_coefficients_in_full_precision() -> None:
    """A Python float must not pass through float32: .1 there is wrong in the ninth digit."""
    made, ou = sde.FromCoefficients(f=lambda t: -0.1, g=lambda t: 0.3), sde.OrnsteinUhlenbeck(0.1, 0.3)
    for got, expected in zip(made.rates(T), ou.rates(T), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)


def test_g_may_vanish_at_first() -> None:
    made = sde.FromCoefficients(f=lambda t: 0 * t, g=lambda t: torch.sqrt(2 * t))  # EDM
    torch.testing.assert_close(made.sigma(T), T, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("keys", "kind", "word"),
    [
        ({"f": -0.5, "g": lambda t: 1.0}, TypeError, "f must be a function of a tensor of times, got -0.5"),
        ({"f": lambda t: -t, "g": None}, TypeError, "g must be a function"),
        ({"f": lambda t: -t, "g": lambda t: t, "t_min": 1.0}, ValueError, "0 <= t_min < t_max, got 1.0 and 1.0"),
        ({"f": lambda t: -t, "g": lambda t: t, "t_max": math.inf}, ValueError, "got 0.001 and inf"),
    ],
)
def test_wrong_arguments_are_refused(keys: dict, kind: type, word: str) -> None:
    with pytest.raises(kind) as caught:
        sde.FromCoefficients(**keys)
    assert word in str(caught.value)
