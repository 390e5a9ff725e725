"""SDEdit, codes and what lies between them: closed forms on Gaussians, round trips on a mixture."""

import math
from itertools import pairwise

import pytest
import torch

import sde
from sde.inverse import decode, encode, interpolate, sdedit, slerp, time_of_noise, time_of_strength

SDES = {"EDM": sde.EDM, "VP": sde.VP, "Flow": sde.Flow, "CLD": sde.CLD}
MIXTURE = sde.Mixture([0.3, 0.3, 0.4], [[-1.0, 0.0], [1.0, 0.3], [0.0, 1.2]], [[0.02, 0.2], [0.1, 0.03], [0.05, 0.05]])
M, V = 1.0, 0.36


@pytest.fixture(params=SDES)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


# SDEdit.


@pytest.mark.parametrize("eta", [0.0, 1.0, None])
@pytest.mark.parametrize("noise", [0.3, 1.0])
def test_law_on_a_gaussian(kind: str, eta: float | None, noise: float, generator: torch.Generator) -> None:
    """The reverse SDE where no eta is given."""
    if kind == "CLD" and eta == 0:
        pytest.skip("the flow begins at a velocity drawn at random: noise of its own to x0")
    n, x = 8_000, 2.0
    model = sde.ExactScore(sde.Gaussian([M], V), SDES[kind]())
    start = torch.full((n, 1), x, dtype=torch.float64)
    steps = 100 if kind == "CLD" else 48
    made = sdedit(model, start, noise=noise, eta=eta, steps=steps, generator=generator)
    r2 = V + noise**2  # in units of alpha
    keep, variance = (math.sqrt(V / r2), V * noise**2 / r2) if eta == 0 else (V / r2, V * (1 - V**2 / r2**2))
    assert abs(float(made.mean()) - (M + keep * (x - M))) < 5 * math.sqrt(variance / n) + 0.004
    assert float(made.var()) == pytest.approx(variance, rel=0.08)


def test_strength_0_is_the_input_and_1_is_a_new_sample(generator: torch.Generator) -> None:
    model = sde.ExactScore(MIXTURE, sde.EDM())
    x0 = torch.tensor([[-1.0, 0.0]]).repeat(6000, 1)
    assert torch.equal(sdedit(model, x0, strength=0), x0)
    new = sdedit(model, x0, strength=1.0, generator=generator)
    draws = [MIXTURE.sample(6000, generator).float() for _ in range(3)]
    apart, floor = (float(sde.metrics.sliced_wasserstein(x, draws[0], generator=generator)) for x in (new, draws[1]))
    assert apart < floor + 0.03
    half = sdedit(model, x0, strength=0.5, generator=generator)
    assert float(sde.metrics.sliced_wasserstein(half, draws[0], generator=generator)) > 10 * apart


def test_more_strength_keeps_less(generator: torch.Generator) -> None:
    model = sde.ExactScore(MIXTURE, sde.VP())
    x0 = MIXTURE.sample(500, generator)
    strengths = (1e-3, 0.2, 0.4, 0.6, 0.8, 1.0)
    moved = [float((sdedit(model, x0, w, generator=generator) - x0).norm(dim=1).mean()) for w in strengths]
    assert moved == sorted(moved)
    assert moved[0] < 0.03


def test_sdedit_of_draws_are_draws(kind: str, generator: torch.Generator) -> None:
    """Down from p_t by the reverse SDE: the law of the data is kept at any strength."""
    model = sde.ExactScore(MIXTURE, SDES[kind]())
    x0 = MIXTURE.sample(4000, generator)
    made = sdedit(model, x0, strength=0.7, steps=64, generator=generator)
    apart = sde.metrics.sliced_wasserstein(made, MIXTURE.sample(4000, generator), generator=generator)
    assert float(apart) < 0.06


def test_strength_means_the_same_under_every_schedule() -> None:
    levels = []
    for forward in (sde.EDM(), sde.VP(), sde.Flow()):
        model = sde.ExactScore(sde.Gaussian([0.0], 1.0), forward)
        alpha, sigma = forward.levels(torch.tensor(time_of_strength(model, 0.6), dtype=torch.float64))
        levels.append(float(sigma / alpha))
    assert max(levels) < 1.6 * min(levels)  # their t_min differ, and with it what a share of the way is


def test_strength_and_noise_name_one_level(generator: torch.Generator) -> None:
    model = sde.ExactScore(MIXTURE, sde.VP())
    t = time_of_strength(model, 0.4)
    alpha, sigma = model.sde.levels(torch.tensor(t, dtype=torch.float64))
    assert float(time_of_noise(model, float(sigma / alpha))) == pytest.approx(t, rel=1e-6)
    a, b = (
        sdedit(model, torch.zeros(3, 2), **level, generator=torch.Generator().manual_seed(1))
        for level in ({"strength": 0.4}, {"noise": float(sigma / alpha)})
    )
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


# Codes.


def test_code_of_a_gaussian_in_closed_form(kind: str) -> None:
    """The flow keeps the number of standard deviations from the mean."""
    if kind == "CLD":
        pytest.skip("its state has two channels")
    model = sde.ExactScore(sde.Gaussian([M], V), SDES[kind]())
    x0 = torch.linspace(-1, 3, 5, dtype=torch.float64)[:, None]
    ends = torch.tensor([model.sde.t_min, model.sde.t_max], dtype=torch.float64)
    alpha, sigma = model.sde.levels(ends)
    scale = (alpha**2 * V + sigma**2).sqrt()
    expected = alpha[1] * M + scale[1] * alpha[0] * (x0 - M) / scale[0]
    torch.testing.assert_close(encode(model, x0, steps=400), expected, rtol=2e-4, atol=2e-4)


def test_round_trip_is_the_identity(kind: str, generator: torch.Generator) -> None:
    model = sde.ExactScore(MIXTURE, SDES[kind]())
    x0 = MIXTURE.sample(50, generator)
    steps, least = (400, 1e-3) if kind == "CLD" else (800, 1e-4 if kind == "Flow" else 1e-6)
    code = encode(model, x0, steps)
    assert code.shape == model.sde.state(x0).shape
    torch.testing.assert_close(decode(model, code, steps), x0, rtol=0, atol=least)


@pytest.mark.parametrize("solver", [sde.Heun(), sde.Adams(3), sde.DPMSolverPP(2), sde.DDIM()])
def test_round_trip_falls_at_the_solvers_order(solver: sde.Solver, generator: torch.Generator) -> None:
    """Or faster: of an even order one more, as the leading error upwards is taken back downwards."""
    model = sde.ExactScore(MIXTURE, sde.EDM())
    x0 = MIXTURE.sample(20, generator)
    errors = []
    for steps in (300, 600):
        back = decode(model, encode(model, x0, steps, solver), steps, solver)
        errors.append(float((back - x0).norm()))
    assert all(math.log2(a / b) > solver.order - 0.2 for a, b in pairwise(errors))


def test_round_trip_of_a_gaussian_is_exact_to_rounding() -> None:
    """The default solver is exact where the flow is affine."""
    model = sde.ExactScore(sde.Gaussian([M], V), sde.EDM())
    x0 = torch.linspace(-1, 3, 9, dtype=torch.float64)[:, None]
    torch.testing.assert_close(decode(model, encode(model, x0, 8), 8), x0, rtol=1e-12, atol=1e-12)


def test_codes_of_data_have_the_law_of_noise(generator: torch.Generator) -> None:
    model = sde.ExactScore(MIXTURE, sde.VP())
    code = encode(model, MIXTURE.sample(4000, generator), steps=100)
    prior = [model.prior(torch.empty(4000, 2, dtype=torch.float64), generator) for _ in range(2)]
    apart, floor = (float(sde.metrics.sliced_wasserstein(x, prior[0], generator=generator)) for x in (code, prior[1]))
    assert apart < 2 * floor + 0.02


def test_another_condition_makes_something_else_of_a_code() -> None:
    left, right = (sde.ExactScore(sde.Gaussian([m], 0.25), sde.VP()) for m in (-3.0, 3.0))
    x0 = torch.tensor([[-2.0]], dtype=torch.float64)  # two deviations above its mean
    torch.testing.assert_close(decode(right, encode(left, x0)), x0 + 6, rtol=0, atol=0.06)


# Between two.


def test_slerp_keeps_norms_and_angles(generator: torch.Generator) -> None:
    a, b = (torch.randn(20, 3, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    a, b = (7 * v / v.flatten(1).norm(dim=1)[:, None, None] for v in (a, b))
    whole = torch.acos((a * b).sum((1, 2)) / 49)
    for w in (0.0, 0.25, 0.7, 1.0):
        c = slerp(a, b, w)
        torch.testing.assert_close(c.flatten(1).norm(dim=1), torch.full((20,), 7.0, dtype=torch.float64))
        torch.testing.assert_close(torch.acos(((a * c).sum((1, 2)) / 49).clamp(-1, 1)), w * whole, atol=1e-6, rtol=0)
    torch.testing.assert_close(slerp(a, b, 0.0), a)
    torch.testing.assert_close(slerp(a, b, 1.0), b)
    each = torch.linspace(0, 1, 20)
    torch.testing.assert_close(slerp(a, b, each)[7:8], slerp(a[7:8], b[7:8], float(each[7])), atol=1e-6, rtol=1e-6)


def test_slerp_of_parallels_is_a_straight_line() -> None:
    a = torch.tensor([[1.0, 2.0], [0.0, 0.0], [1.0, 1.0]])
    b = torch.tensor([[2.0, 4.0], [3.0, 1.0], [-1.0, -1.0]])
    torch.testing.assert_close(slerp(a, b, 0.25), torch.lerp(a, b, 0.25))


def test_interpolation_in_closed_form() -> None:
    """Of a Gaussian the flow is affine: what lies between two is the great circle around its mean."""
    mean = torch.tensor([3.0, -1.0, 0.5], dtype=torch.float64)
    model = sde.ExactScore(sde.Gaussian(mean, V), sde.EDM())
    g = torch.Generator().manual_seed(0)
    a, b = (mean + torch.randn(4, 3, generator=g, dtype=torch.float64) for _ in range(2))
    found = interpolate(model, a, b, n=5, steps=200)
    expected = torch.stack([mean + slerp(a - mean, b - mean, w) for w in (0.0, 0.25, 0.5, 0.75, 1.0)])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_bad_input_is_refused_with_a_remedy() -> None:
    model, x = sde.ExactScore(MIXTURE, sde.EDM()), torch.zeros(2, 2)
    for strength in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"strength must lie in \[0, 1\]"):
            sdedit(model, x, strength)
    with pytest.raises(ValueError, match="either strength or noise"):
        sdedit(model, x)
    with pytest.raises(ValueError, match="either strength or noise"):
        sdedit(model, x, 0.5, noise=1.0)
    with pytest.raises(ValueError, match=r"noise must lie in \[0\.002, 80\]"):
        sdedit(model, x, noise=0.0)
    with pytest.raises(TypeError, match=r"x\.float"):
        encode(model, torch.zeros(2, 2, dtype=torch.uint8))
    with pytest.raises(ValueError, match="a and b"):
        slerp(x, x[:1], 0.5)
    with pytest.raises(ValueError, match="a and b"):
        interpolate(model, x, x[:1])
    with pytest.raises(ValueError, match="n must be a whole number"):
        interpolate(model, x, x, n=1)
