"""Sliced and exact Wasserstein distances against closed forms, scipy and POT."""

import math

import ot
import pytest
import torch
from scipy import stats

from sde.metrics import _samples, sliced_wasserstein, wasserstein


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("d", [1, 2, 3, 10])
def test_a_shift_is_its_length_over_root_d(d):
    """Orthonormal blocks make the mean of (θ·c)² exact: |c|²/d."""
    a, shift = normal(50, d), normal(d, seed=1)
    expected = shift.norm() / math.sqrt(d)
    torch.testing.assert_close(sliced_wasserstein(a, a + shift, n_projections=4 * d), expected)


def test_directions_that_do_not_fill_a_block_are_unbiased():
    a, shift = normal(20, 5), normal(5, seed=1)
    generator = torch.Generator().manual_seed(2)
    squares = torch.stack(
        [sliced_wasserstein(a, a + shift, n_projections=7, generator=generator) ** 2 for _ in range(400)]
    )
    error = squares.mean() - shift.square().sum() / 5
    assert error.abs() < 4 * squares.std() / 20


def test_scaling_a_gaussian_has_its_closed_form():
    """SW₂ between N(0, I) and N(0, s² I) is s − 1 in any dimension, up to the sampling of the points."""
    a, b = normal(20_000, 3), 1.5 * normal(20_000, 3, seed=1)
    assert abs(sliced_wasserstein(a, b, n_projections=30) - 0.5) < 0.01


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
@pytest.mark.parametrize(("n", "m"), [(7, 7), (6, 9), (5, 8), (1, 4), (40, 13)])
def test_on_a_line_all_four_agree(n, m, p):
    """Sliced, exact (both ways) and POT's own one-dimensional solver, for equal and unequal sizes."""
    a, b = normal(n, 1), 2 * normal(m, 1, seed=1) + 1
    pot = torch.as_tensor(ot.wasserstein_1d(a[:, 0].numpy(), b[:, 0].numpy(), p=p)) ** (1 / p)
    plane = [torch.cat([x, torch.zeros_like(x)], 1) for x in (a, b)]
    torch.testing.assert_close(sliced_wasserstein(a, b, n_projections=1, p=p), pot)
    torch.testing.assert_close(wasserstein(a, b, p=p), pot)
    torch.testing.assert_close(wasserstein(*plane, p=p), pot)
    if p == 1:
        assert wasserstein(a, b, p=1) == pytest.approx(stats.wasserstein_distance(a[:, 0], b[:, 0]))


def test_gaussians_on_a_line_have_their_closed_form():
    """W₂² between N(m₁, s₁²) and N(m₂, s₂²) is (m₁ − m₂)² + (s₁ − s₂)²: here on exact quantiles."""
    u = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    z = torch.special.ndtri(u)[:, None]
    expected = math.sqrt((1 - 3) ** 2 + (0.5 - 2) ** 2)
    assert wasserstein(1 + 0.5 * z, 3 + 2 * z) == pytest.approx(expected, abs=1e-3)


def test_the_optimal_coupling_is_found_in_the_plane():
    """For a small step from separated points the coupling is the identity; the order must not matter."""
    a = torch.cartesian_prod(torch.arange(5.0), torch.arange(4.0))
    step = 0.3 * normal(20, 2).clamp(-1, 1).float()
    b = (a + step)[torch.randperm(20)]
    assert wasserstein(a, b) == pytest.approx(step.square().sum(1).mean().sqrt().item(), rel=1e-6)


def test_weights_of_unequal_sizes_are_uniform():
    """Doubling every point changes nothing."""
    a, b = normal(12, 2), normal(9, 2, seed=1)
    generator = torch.Generator()
    for metric in (wasserstein, lambda x, y: sliced_wasserstein(x, y, generator=generator.manual_seed(3))):
        torch.testing.assert_close(metric(a, b), metric(a, torch.cat([b, b])))
        torch.testing.assert_close(metric(a, b), metric(b, a))


def test_many_projections_are_worked_through_in_chunks(monkeypatch):
    a, b = normal(30, 4), normal(20, 4, seed=1)
    generator = torch.Generator()
    whole = sliced_wasserstein(a, b, 64, generator=generator.manual_seed(0))
    monkeypatch.setattr(_samples, "TABLE", 50 * 5)
    torch.testing.assert_close(sliced_wasserstein(a, b, 64, generator=generator.manual_seed(0)), whole)


def test_sliced_is_differentiable_and_seeded():
    a = normal(30, 3).requires_grad_()
    b = normal(30, 3, seed=1)
    generator = torch.Generator()
    value = sliced_wasserstein(a, b, generator=generator.manual_seed(0))
    (gradient,) = torch.autograd.grad(value, a)
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0
    assert value == sliced_wasserstein(a, b, generator=generator.manual_seed(0))
    assert value != sliced_wasserstein(a, b, generator=generator.manual_seed(1))


def test_too_many_pairs_are_refused_with_a_remedy():
    a = torch.zeros(5001, 2)
    with pytest.raises(ValueError, match=r"5001 x 5001 pairs.*max_pairs=25000000.*sliced_wasserstein"):
        wasserstein(a, a)
    assert wasserstein(a[:30], a[:30] + 1, max_pairs=900) == pytest.approx(math.sqrt(2))


@pytest.mark.parametrize(("name", "value"), [("n_projections", 0), ("p", 0.5), ("p", math.nan), ("p", math.inf)])
def test_bad_numbers_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=rf"{name} must be at least 1, got {value}: pass {name}=2"):
        sliced_wasserstein(normal(3, 2), normal(3, 2), **{name: value})
