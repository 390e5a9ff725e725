"""Toy sets: their curves against independent constructions, their constants against large draws."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import datasets

from sde import data

SETS = [
    data.moons,
    data.circles,
    data.swiss_roll,
    data.checkerboard,
    data.pinwheel,
    data.eight_gaussians,
    data.spirals,
    data.s_curve,
]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def same_distribution(a, b):
    """Kolmogorov-Smirnov along eight directions; a wrong curve or noise gives p far below 1e-4."""
    for angle in np.linspace(0, np.pi, 8, endpoint=False):
        direction = np.array([np.cos(angle), np.sin(angle)])
        assert stats.ks_2samp(a @ direction, b @ direction).pvalue > 1e-4


@pytest.mark.parametrize("make", SETS)
def test_population_is_standardised_to_mean_zero_and_mean_variance_one(make, monkeypatch):
    """Sobol points for random numbers: their error is far below that of a draw, so that a wrong third digit shows."""
    n, columns = 2**16, torch.quasirandom.SobolEngine(8, scramble=True, seed=0).draw(2**16).T
    unused = iter(columns.clamp(1e-6, 1 - 1e-6))

    def rand(shape, generator, dtype):
        return torch.stack([next(unused) for _ in range(math.prod(shape[1:]))], -1).reshape(shape)

    monkeypatch.setattr("sde.data.toy.rand", rand)
    monkeypatch.setattr("sde.data.toy.randn", lambda *args, **kwargs: torch.special.ndtri(rand(*args, **kwargs)))
    x = make(n).x.double()
    assert x.mean(0).abs().max() < 1e-3
    assert abs(x.square().mean() - 1) < 1e-3


@pytest.mark.parametrize("make", SETS)
def test_one_scale_for_every_draw_and_the_way_back(make):
    a, b = make(7, generator=seeded(1)), make(5000, generator=seeded(2))
    assert a.scale == b.scale
    assert torch.equal(a.mean, b.mean)
    raw = a.unstandardize(a.x)
    torch.testing.assert_close(a.standardize(raw), a.x)
    torch.testing.assert_close(raw, a.mean + a.scale * a.x)


@pytest.mark.parametrize("make", SETS)
def test_same_generator_same_bits_and_the_global_state_is_left_alone(make):
    before = torch.random.get_rng_state()
    a, b, c = make(50, generator=seeded(3)), make(50, generator=seeded(3)), make(50, generator=seeded(4))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(a.x, b.x)
    assert not torch.equal(a.x, c.x)
    assert a.x.dtype == torch.float32
    assert a.x.shape == (50, 2)


@pytest.mark.parametrize(
    ("make", "oracle"),
    [
        (data.moons, lambda n: datasets.make_moons(n, noise=0.05, random_state=0)[0]),
        (data.circles, lambda n: datasets.make_circles(n, noise=0.05, factor=0.5, random_state=0)[0]),
        (data.swiss_roll, lambda n: datasets.make_swiss_roll(n, noise=0.5, random_state=0)[0][:, [0, 2]]),
        (data.s_curve, lambda n: datasets.make_s_curve(n, noise=0.1, random_state=0)[0][:, [0, 2]]),
    ],
)
def test_raw_units_are_those_of_scikit_learn(make, oracle):
    mine = make(20_000, generator=seeded())
    same_distribution(mine.unstandardize(mine.x).numpy(), oracle(20_000))


def test_labels_of_moons_and_circles_are_scikit_learns():
    for make, oracle in (
        (data.moons, datasets.make_moons),
        (
            data.circles,
            lambda n, random_state: datasets.make_circles(n, factor=0.5, random_state=random_state),
        ),
    ):
        mine, (x, label) = make(10_000, generator=seeded()), oracle(10_000, random_state=0)
        for k in (0, 1):
            mean = mine.unstandardize(mine.x)[mine.label == k].mean(0).numpy()
            assert np.abs(mean - x[label == k].mean(0)).max() < 0.06


def test_checkerboard_fills_the_eight_dark_squares_evenly():
    board = data.checkerboard(40_000, generator=seeded())
    raw = board.unstandardize(board.x).double()
    cell = (raw + 2).floor().long()
    assert ((cell.sum(1) % 2) == 0).all()
    assert set(cell.unique().tolist()) == {0, 1, 2, 3}
    counts = torch.bincount(4 * cell[:, 0] + cell[:, 1], minlength=16)
    assert stats.chisquare(counts[counts > 0].numpy()).pvalue > 1e-4
    inside = ((raw + 2) % 1).numpy()
    assert stats.kstest(inside.ravel(), "uniform").pvalue > 1e-4


def test_pinwheel_untwisted_is_a_gaussian_on_every_arm():
    wheel = data.pinwheel(30_000, arms=4, radial=0.2, tangential=0.05, twist=0.3, generator=seeded())
    raw = wheel.unstandardize(wheel.x).double()
    # |raw|² = rho² + tau²; tau is small, so rho is found by one fixed point from the radius
    z = torch.complex(raw[:, 0], raw[:, 1])
    rho = z.abs()
    for _ in range(60):
        turned = z * torch.exp(-1j * (2 * math.pi / 4 * wheel.label + 0.3 * rho.exp()))
        rho = 0.5 * rho + 0.5 * turned.real
    assert stats.kstest(((turned.real - 1) / 0.2).numpy(), "norm").pvalue > 1e-4
    assert stats.kstest((turned.imag / 0.05).numpy(), "norm").pvalue > 1e-4


def test_eight_gaussians_are_where_their_labels_say():
    ring = data.eight_gaussians(40_000, noise=0.1, generator=seeded())
    angle = 2 * math.pi * ring.label / 8
    rest = ring.unstandardize(ring.x) - torch.stack([angle.cos(), angle.sin()], -1)
    assert stats.kstest((rest / 0.1).numpy().ravel(), "norm").pvalue > 1e-4
    assert stats.chisquare(torch.bincount(ring.label).numpy()).pvalue > 1e-4


def test_spirals_wind_evenly_in_area():
    arms = data.spirals(20_000, noise=0.0, generator=seeded())
    raw = arms.unstandardize(arms.x).double()
    radius = raw.norm(dim=1)
    expected = radius[:, None] * torch.stack([-radius.cos(), radius.sin()], -1)
    sign = (1 - 2 * arms.label)[:, None]
    torch.testing.assert_close(raw, sign * expected, atol=1e-4, rtol=0)
    assert stats.kstest((radius / (3 * math.pi)).square().numpy(), "uniform").pvalue > 1e-4


@pytest.mark.parametrize("make", SETS)
def test_no_points_are_refused_by_name(make):
    for n in (0, -3, 2.5):
        with pytest.raises(ValueError, match=rf"n must be .* got {n}: pass n=1000"):
            make(n)


def test_bad_lengths_arms_and_generators_are_refused_by_name():
    with pytest.raises(ValueError, match=r"noise must be zero or more, got -0.1"):
        data.moons(10, noise=-0.1)
    with pytest.raises(ValueError, match=r"factor must be zero or more, got nan"):
        data.circles(10, factor=math.nan)
    with pytest.raises(ValueError, match=r"arms must be at least 2, got 1"):
        data.pinwheel(10, arms=1)


@pytest.mark.parametrize("make", SETS)
def test_a_generator_for_each_point_makes_it_independent_of_its_batch(make):
    batch = make(5, generator=[seeded(k) for k in range(5)])
    alone = make(2, generator=[seeded(3), seeded(1)])
    torch.testing.assert_close(alone.x, batch.x[[3, 1]])
    with pytest.raises(ValueError, match=r"generator holds 2 generators for a batch of 5"):
        make(5, generator=[seeded(0), seeded(1)])
