"""Moments of the shipped SDEs against the formulas that their papers print."""

import math

import pytest
import torch

import sde

T = torch.linspace(0.01, 0.99, 23, dtype=torch.float64)


def agree(got: tuple, alpha: torch.Tensor, variance: torch.Tensor) -> None:
    torch.testing.assert_close(got[0], alpha, rtol=1e-12, atol=0)
    torch.testing.assert_close(got[1] ** 2, variance, rtol=1e-10, atol=0)


@pytest.mark.parametrize(("low", "high"), [(0.1, 20.0), (0.5, 5.0), (3.0, 1.0)])
def test_vp_and_sub_vp_as_in_appendix_c_of_song_2021(low: float, high: float) -> None:
    """Eq. 33: the log of the mean's coefficient is -t^2 (high - low) / 4 - t low / 2; the variances follow from it."""
    log_mean = -(T**2) * (high - low) / 4 - T * low / 2
    agree(sde.VP(low, high).levels(T), torch.exp(log_mean), 1 - torch.exp(2 * log_mean))
    agree(sde.SubVP(low, high).levels(T), torch.exp(log_mean), (1 - torch.exp(2 * log_mean)) ** 2)


def test_ve_as_in_appendix_c_of_song_2021() -> None:
    """sigma(t) = sigma_min (sigma_max / sigma_min)^t and g = sigma(t) sqrt(2 (log sigma_max - log sigma_min))."""
    ve = sde.VE(0.02, 30.0)
    level = 0.02 * (30.0 / 0.02) ** T
    agree(ve.levels(T), torch.ones_like(T), level**2)
    g = ve.diffusion(torch.zeros(len(T), 1).double(), T, torch.ones(len(T), 1).double())[:, 0]
    torch.testing.assert_close(g, level * math.sqrt(2 * (math.log(30) - math.log(0.02))))


def test_edm_is_noise_as_time() -> None:
    agree(sde.EDM().levels(T), torch.ones_like(T), T**2)
    assert (sde.EDM(0.01, 5.0).t_min, sde.EDM(0.01, 5.0).t_max) == (0.01, 5.0)


def test_cosine_is_that_of_nichol_and_dhariwal() -> None:
    """Eq. 17: alpha_bar = f(t) / f(0), f(t) = cos^2((t + s) / (1 + s) pi / 2), s = .008; variance-preserving."""
    f = lambda t: math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2  # noqa: E731
    bar = torch.tensor([f(float(t)) / f(0.0) for t in T], dtype=torch.float64)
    alpha, sigma = sde.Cosine().levels(T)
    torch.testing.assert_close(alpha**2, bar)
    torch.testing.assert_close(sigma**2, 1 - bar)
    # Time stops where log SNR is that of VP at t = 1, to the digits of .9946.
    end, vp = (float(s.log_snr(s.t_max)) for s in (sde.Cosine(), sde.VP()))
    assert abs(end - vp) < 0.5


def test_flow_is_a_straight_line() -> None:
    agree(sde.Flow().levels(T), 1 - T, T**2)
    x0, eps = torch.randn(len(T), 2).double(), torch.randn(len(T), 2).double()
    for t in (T, torch.ones_like(T)):
        torch.testing.assert_close(sde.Flow().at(x0, t, eps).velocity, eps - x0)


def test_ornstein_uhlenbeck_has_its_textbook_moments() -> None:
    theta, s = 0.7, 1.3
    mean, variance = torch.exp(-theta * T), s**2 / (2 * theta) * (1 - torch.exp(-2 * theta * T))
    agree(sde.OrnsteinUhlenbeck(theta, s).levels(T), mean, variance)


def test_vp_is_ornstein_uhlenbeck_on_the_clock_of_beta() -> None:
    vp, ou = sde.VP(), sde.OrnsteinUhlenbeck()
    for got, expected in zip(vp.levels(T), ou.levels(vp.integral(T) / 2), strict=True):
        torch.testing.assert_close(got, expected)


def test_cld_as_in_appendix_b_of_dockhorn_2022() -> None:
    """Mean and covariance at critical damping, with b = beta t, from variances 0 of x and gamma M of v."""
    cld = sde.CLD()
    b, big_gamma, vv0 = cld.beta * T, 1.0, 0.04 * 0.25
    decay = torch.exp(-2 * b / big_gamma)
    a, cov = cld.moments(T)
    torch.testing.assert_close(a[:, 0], (1 + 2 * b / big_gamma) * decay)
    torch.testing.assert_close(a[:, 1], -b * decay)
    xx = 1 / decay**2 - 1 - 4 * b / big_gamma - 8 * b**2 / big_gamma**2 + 16 * b**2 / big_gamma**4 * vv0
    xv = 4 * b / big_gamma**2 * vv0 + 4 * b**2 / big_gamma - 8 * b**2 / big_gamma**3 * vv0
    vv = big_gamma**2 / 4 * (1 / decay**2 - 1) + b * big_gamma - 2 * b**2
    vv = vv + vv0 * (1 + 4 * b**2 / big_gamma**2 - 4 * b / big_gamma)
    for got, expected in ((cov[:, 0, 0], xx), (cov[:, 0, 1], xv), (cov[:, 1, 1], vv)):
        torch.testing.assert_close(got, expected * decay**2, rtol=1e-8, atol=1e-12)


def test_third_order_langevin_is_critically_damped_and_tends_to_the_standard_normal() -> None:
    system = sde.ThirdOrderLangevin(t_max=20.0)
    f = torch.tensor(system.F, dtype=torch.float64) + math.sqrt(3) * torch.eye(3, dtype=torch.float64)
    assert float(f.matrix_power(3).abs().max()) < 1e-12  # (F + sqrt 3)^3 = 0: one triple eigenvalue
    a, cov = system.moments(torch.tensor(20.0, dtype=torch.float64))
    torch.testing.assert_close(cov, torch.eye(3, dtype=torch.float64), atol=1e-12, rtol=0)
    assert float(a.abs().max()) < 1e-12


@pytest.mark.parametrize(
    ("kind", "t", "expected"), [("VP", 1.0, 0.00657), ("SubVP", 1.0, 0.00657), ("CLD", 1.0, 0.003)]
)
def test_the_prior_forgets_the_data(kind: str, t: float, expected: float) -> None:
    system = getattr(sde, kind)()
    a = system.mean(torch.ones(1, 1), t).abs().max()
    assert a.item() == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("kind", [sde.VP, sde.SubVP, sde.VE, sde.EDM, sde.Cosine, sde.Flow, sde.OrnsteinUhlenbeck])
def test_shipped_sdes_publish_their_coefficients_without_their_moments(kind: type) -> None:
    """Law 0 compares two statements: `published` must not call what it is compared with."""
    names = set(kind.published.__code__.co_names)
    assert not names & {"alpha", "sigma", "rates", "integral", "beta", "angle", "levels"}
    assert kind().published(torch.tensor(0.5)) is not None


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: sde.VP(beta_min=0.0), "beta_min must be positive and finite, got 0.0"),
        (lambda: sde.SubVP(beta_max=math.inf), "beta_max must be positive and finite, got inf"),
        (lambda: sde.VP(4.0, 1.0, t_max=3.0), "beta must stay positive up to t_max = 3.0, beta_min = 4.0"),
        (lambda: sde.VP(t_min=1.0), "0 <= t_min < t_max, got 1.0 and 1.0"),
        (lambda: sde.VP(t_min=-0.1), "0 <= t_min < t_max, got -0.1 and 1.0"),
        (lambda: sde.VE(50.0, 0.01), "sigma_min must be below sigma_max, got 50.0 and 0.01: exchange them"),
        (lambda: sde.VE(t_max=math.nan), "got 1e-05 and nan"),
        (lambda: sde.EDM(sigma_min=0.0), "sigma_min must be positive and finite, got 0.0: pass a number above 0"),
        (lambda: sde.EDM(1.0, 1.0), "exchange them"),
        (lambda: sde.Cosine(s=-1.0), "s must be positive"),
        (lambda: sde.Cosine(t_max=1.0), "t_max must be below 1, where beta is infinite, got 1.0: keep .9946"),
        (lambda: sde.Flow(t_max=1.5), "t_max must be at most 1, where x is pure noise, got 1.5: keep 1"),
        (lambda: sde.Flow(t_min=2.0), "0 <= t_min < t_max"),
        (lambda: sde.OrnsteinUhlenbeck(theta=-1.0), "theta must be positive and finite, got -1.0"),
        (lambda: sde.OrnsteinUhlenbeck(s=0.0), "s must be positive"),
        (lambda: sde.CLD(beta=0.0), "beta must be positive and finite, got 0.0: it is the speed of the clock"),
        (lambda: sde.CLD(mass=-1.0), "mass must be positive and finite, got -1.0"),
        (lambda: sde.CLD(t_min=2.0), "0 <= t_min < t_max"),
        (lambda: sde.ThirdOrderLangevin(spread=0.0), "spread must be positive"),
    ],
)
def test_wrong_parameters_are_refused_by_name(make: object, word: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        make()  # type: ignore[operator]
    assert word in str(caught.value)
