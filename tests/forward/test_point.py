"""Points: every property from every pair of tensors, lerp and tilt, gradients, and what is refused."""

import pytest
import torch
from torch import Tensor

import sde
from sde.forward import Point

VP = sde.VP()


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_properties_of_a_known_point() -> None:
    x0, eps = draw(3, 2), draw(3, 2, seed=1)
    t = torch.tensor(0.4, dtype=torch.float64)
    alpha, sigma, dalpha, dsigma = VP.rates(t)
    point = VP.at(x0, t, eps)
    torch.testing.assert_close(point.x, alpha * x0 + sigma * eps)
    torch.testing.assert_close(point.velocity, dalpha * x0 + dsigma * eps)
    torch.testing.assert_close(point.score, -eps / sigma)
    assert point.x0 is x0
    assert point.eps is eps


def test_eps_follows_from_x0(any_sde: sde.ForwardSDE) -> None:
    truth = any_sde.perturb(draw(3, 2), 0.5 * any_sde.t_max, torch.Generator().manual_seed(0))
    point = Point(any_sde, truth.x, truth.t, truth.x0)
    torch.testing.assert_close(point.eps, truth.eps, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shift", [None, 0.5])
@pytest.mark.parametrize("batched", [False, True])
def test_a_point_of_pairs_is_the_point_of_its_endpoints(shift: float | None, batched: bool) -> None:
    u, w, t = draw(3, 2), draw(3, 2, seed=1), 0.4
    numbers = [0.7, -0.3, 0.2, 1.1]
    pairs = tuple(torch.full((3, 1), c, dtype=torch.float64) if batched else c for c in numbers)
    moved = None if shift is None else torch.tensor(shift)
    point = Point.of(VP, u, torch.full((3,), t).double() if batched else t, u, w, pairs, moved)
    x0, eps = 0.7 * u - 0.3 * w + (shift or 0.0), 0.2 * u + 1.1 * w
    known = VP.at(x0, torch.tensor(t, dtype=torch.float32).double() if batched else t, eps)
    for name in ("velocity", "score", "x0", "eps"):  # before the endpoints are made, and after
        torch.testing.assert_close(getattr(point, name), getattr(known, name))
    torch.testing.assert_close(point.combine(2.0, 3.0), 2 * x0 + 3 * eps)


@pytest.mark.parametrize("shift", [None, 0.5])
@pytest.mark.parametrize("batched", [False, True])
def test_a_move_is_a_combination_with_the_state(shift: float | None, batched: bool) -> None:
    x, u, w = (draw(3, 2, seed=i) for i in range(3))
    numbers = [0.7, -0.3, 0.2, 1.1]
    pairs = tuple(torch.full((3, 1), c, dtype=torch.float64) if batched else c for c in numbers)
    moved = None if shift is None else torch.tensor(shift)
    for base in (x, u):  # a network's input is the state itself, or what was made of it
        point = Point.of(VP, x, 0.4, base, w, pairs, moved)
        x0, eps = 0.7 * base - 0.3 * w + (shift or 0.0), 0.2 * base + 1.1 * w
        for c, c0, c1 in ((1.0, 0.5, -2.0), (0.0, 2.0, 3.0), (-1.0, 0.0, 0.5)):
            torch.testing.assert_close(point.move(c, c0, c1), c * x + c0 * x0 + c1 * eps)
            each = (torch.full((3, 1), k, dtype=torch.float64) for k in (c, c0, c1))
            torch.testing.assert_close(point.move(*each), c * x + c0 * x0 + c1 * eps)
    known = Point(VP, x, 0.4, u, w)
    torch.testing.assert_close(known.move(2.0, 3.0, 4.0), 2 * x + 3 * u + 4 * w)


@pytest.mark.parametrize("shift", [None, 0.5])
def test_lerp_of_two_outputs_on_one_state_is_that_of_their_endpoints(shift: float | None) -> None:
    x, pairs = draw(3, 2), (0.7, -0.3, 0.2, 1.1)
    moved = None if shift is None else torch.tensor(shift)
    one, two = (Point.of(VP, x, 0.4, x, draw(3, 2, seed=i), pairs, moved) for i in (1, 2))
    other = Point.of(VP, x, 0.4, x, draw(3, 2, seed=2), (0.7, -0.3, 0.2, 1.2), moved)
    for w in (0.0, 0.3, 1.0, 2.5, torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64)):
        for end in (two, other):
            mixed = one.lerp(end, w)
            for name in ("x0", "eps", "velocity"):
                a, b = getattr(one, name), getattr(end, name)
                torch.testing.assert_close(getattr(mixed, name), a + w * (b - a))


def test_lerp_between_points() -> None:
    one, two = (VP.perturb(draw(3, 2, seed=i), 0.4, torch.Generator().manual_seed(i)) for i in range(2))
    for w in (0.0, 0.3, 1.0, 2.5):
        mixed = one.lerp(two, w)
        for name in ("x0", "eps", "score"):
            a, b = getattr(one, name), getattr(two, name)
            torch.testing.assert_close(getattr(mixed, name), a + w * (b - a))


def test_tilt_moves_x0_and_score_together() -> None:
    point, g = VP.perturb(draw(3, 2), 0.4, torch.Generator().manual_seed(0)), draw(3, 2, seed=5)
    alpha, sigma = VP.levels(0.4)
    tilted = point.tilted(g)
    torch.testing.assert_close(tilted.x0, point.x0 + sigma**2 / alpha * g)
    torch.testing.assert_close(tilted.score, point.score + g)
    torch.testing.assert_close(alpha * tilted.x0 + sigma * tilted.eps, point.x)


def test_where_alpha_is_0_a_tilt_moves_nothing() -> None:
    flow, g = sde.Flow(), torch.ones(3, 2, dtype=torch.float64)
    for t in (1.0, torch.tensor(1.0), torch.ones(3)):
        point = flow.perturb(draw(3, 2), t, torch.Generator().manual_seed(0))
        assert not flow.unmean(g, t).any()
        assert torch.equal(point.tilted(g).x0, point.x0)
    mixed = flow.unmean(g, torch.tensor([0.5, 1.0, 0.75]))
    assert mixed[:, 0].tolist() == [2.0, 0.0, 4.0]


def test_gradients_pass_through_every_property(any_sde: sde.ForwardSDE) -> None:
    x0 = draw(2, 3).requires_grad_()
    point = any_sde.perturb(x0, 0.5 * any_sde.t_max, torch.Generator().manual_seed(0))
    (slope,) = torch.autograd.grad(point.x.sum() + 0.3 * point.velocity.sum(), x0)
    assert bool((slope != 0).all())
    estimate = Point(any_sde, point.x.detach().requires_grad_(), point.t, x0.detach())
    (slope,) = torch.autograd.grad(estimate.score.sum(), estimate.x)
    assert bool(torch.isfinite(slope).all())


def test_coupled_points_have_a_velocity_and_no_score() -> None:
    point = Point(sde.Flow(), draw(3, 2), 0.4, draw(3, 2, seed=1), coupled=True)
    assert bool(torch.isfinite(point.velocity).all())
    for ask in (lambda: point.score, lambda: point.lerp(point, 0.5).score):
        with pytest.raises(ValueError, match=r"score: this model was trained with a coupling .* use eta=0"):
            ask()
    with pytest.raises(ValueError, match=r"tilted: this model was trained with a coupling"):
        point.tilted(point.x)


def test_eps_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"eps has shape \(2,\), the state of x0 \(3, 2\)"):
        VP.at(draw(3, 2), 0.5, draw(2))
    with pytest.raises(ValueError, match=r"eps has shape \(3, 2\), the state of x0 \(3, 2, 2\): pass randn_like"):
        sde.CLD().at(draw(3, 2), 0.5, draw(3, 2))
