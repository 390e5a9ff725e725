"""Random numbers: laws of the draws, of Brownian paths, and who may see which generator."""

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

import sde.random
from sde.checks import affine, reproducible
from sde.forward import BrownianMotion
from sde.random import BrownianPath, Noise, WhiteNoise, rand, randn, randn_like
from sde.solvers import Solver

Seeded = Callable[[int], torch.Generator]
N = 20_000


def test_draws_have_their_laws(seeded: Seeded) -> None:
    z, u = randn((N,), seeded(0)), rand((N,), seeded(0))
    assert stats.kstest(z.numpy(), "norm").pvalue > 1e-3
    assert stats.kstest(u.numpy(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("draw", [randn, rand])
def test_draws_are_reproducible_and_independent_of_the_batch(draw: Callable[..., torch.Tensor]) -> None:
    reproducible(lambda n, g: draw((n, 2, 3), g), draw.__name__, rtol=0.0)
    reproducible(lambda n, g: randn_like(torch.zeros(n, 2), g), "randn_like", rtol=0.0)


def test_one_seed_gives_the_same_numbers_in_every_dtype(seeded: Seeded) -> None:
    single = randn((5, 2), seeded(0))
    for dtype in (torch.float64, torch.bfloat16):
        assert torch.equal(randn((5, 2), seeded(0), dtype=dtype), single.to(dtype))
        assert torch.equal(randn_like(torch.zeros(5, 2, dtype=dtype), seeded(0)), single.to(dtype))
    assert torch.equal(randn((5, 2), seeded(0)), torch.randn((5, 2), generator=seeded(0)))


def test_no_generator_is_torchs_own() -> None:
    torch.manual_seed(3)
    first = randn((2, 3)), rand((2, 3)), randn_like(torch.zeros(2, 3))
    torch.manual_seed(3)
    assert all(torch.equal(a, b) for a, b in zip(first, (randn((2, 3)), rand((2, 3)), torch.randn(2, 3)), strict=True))


@pytest.mark.gpu
def test_a_cpu_seed_gives_its_numbers_on_a_gpu(seeded: Seeded) -> None:
    there = randn_like(torch.zeros(4, 2, device="cuda"), seeded(0))
    assert there.device.type == "cuda"
    assert torch.equal(there.cpu(), randn((4, 2), seeded(0)))


def test_a_generator_for_each_sample_must_be_one_for_each(seeded: Seeded) -> None:
    message = "generator holds 2 generators for a batch of 3: pass one for each sample"
    with pytest.raises(ValueError, match=message):
        randn((3, 2), [seeded(0), seeded(1)])
    with pytest.raises(ValueError, match=message):
        BrownianPath([seeded(0), seeded(1)]).increment(torch.zeros(3, 1), 1.0, 0.0)


def test_whole_numbers_are_refused() -> None:
    with pytest.raises(TypeError, match=r"dtype must be floating for random numbers, got torch.int64: use x.float\(\)"):
        randn_like(torch.zeros(2, 3, dtype=torch.int64))


# Noise of a run.


@pytest.mark.parametrize("kind", [WhiteNoise, BrownianPath])
def test_increments_have_the_variance_of_their_interval(kind: type[Noise], seeded: Seeded) -> None:
    noise, x = kind(seeded(0)), torch.zeros(N, 1)
    for t, s in ((1.0, 0.7), (0.7, 0.1)):
        w = noise.increment(x, t, s)
        assert w.shape == x.shape
        assert stats.kstest(w[:, 0].numpy() / math.sqrt(t - s), "norm").pvalue > 1e-3
    z = noise.normal(x, 0.1, 0.05)
    assert z.std().item() == pytest.approx(1.0, abs=5 / math.sqrt(2 * N))


def test_noise_of_one_step_is_not_that_of_the_next(seeded: Seeded) -> None:
    for noise in (WhiteNoise(seeded(0)), BrownianPath(seeded(0))):
        x = torch.zeros(N, 1)
        draws = torch.cat(
            [noise.increment(x, 1.0, 0.5), noise.increment(x, 0.5, 0.2), noise.fresh(x), noise.fresh(x)], 1
        )
        correlation = torch.corrcoef(draws.T)
        off = correlation - torch.diag(correlation.diagonal())
        assert float(off.abs().max()) < 5 / math.sqrt(N)


@settings(max_examples=settings.default.max_examples // 2)
@given(times=st.lists(st.floats(0.0, 2.0), min_size=3, max_size=6, unique=True), seed=st.integers(0, 10))
def test_a_path_is_consistent_in_whatever_order_it_is_asked(times: list[float], seed: int) -> None:
    path, x = BrownianPath(torch.Generator().manual_seed(seed)), torch.zeros(3, 2, dtype=torch.float64)
    first = {(t, s): path.increment(x, t, s) for t in times for s in times}
    for (t, s), w in first.items():
        assert torch.equal(path.increment(x, t, s), w)  # remembered
        torch.testing.assert_close(w, -first[s, t])
        for u in times:
            torch.testing.assert_close(w, first[t, u] + first[u, s])


@pytest.mark.parametrize(
    "order", [(0.0, 1.0, 0.3, 0.6), (1.0, 0.0, 0.6, 0.3), (0.3, 0.6, 1.0, 0.0), (0.6, 0.0, 0.3, 1.0)]
)
def test_the_joint_law_does_not_depend_on_the_order(order: tuple[float, ...], seeded: Seeded) -> None:
    """W(0), W(.3), W(.6), W(1), asked in any order: independent increments of variances .3, .3, .4."""
    path, x = BrownianPath(seeded(0)), torch.zeros(N, 1, dtype=torch.float64)
    for t in order:
        path.increment(x, order[0], t)
    knots = (0.0, 0.3, 0.6, 1.0)
    w = torch.cat([path.increment(x, a, b) for a, b in pairwise(knots)], 1)
    expected = torch.diag(torch.tensor([0.3, 0.3, 0.4], dtype=torch.float64))
    assert float((w.T.cov() - expected).abs().max()) < 5 * 0.4 * math.sqrt(2 / N)


def test_a_new_time_between_two_known_ones_is_bridged(seeded: Seeded) -> None:
    """W(t) given both ends has the mean on the line between them and the variance (b - t)(t - a) / (b - a)."""
    path, x, t = BrownianPath(seeded(0)), torch.zeros(N, 1, dtype=torch.float64), 0.2
    whole = path.increment(x, 0.0, 1.0)
    part = path.increment(x, 0.0, t)
    rest = part - t * whole
    assert rest.var().item() == pytest.approx(t * (1 - t), rel=5 * math.sqrt(2 / N))
    assert abs(rest.mean().item()) < 5 * math.sqrt(t * (1 - t) / N)
    assert abs(torch.corrcoef(torch.cat([rest, whole], 1).T)[0, 1].item()) < 5 / math.sqrt(N)


def test_paths_of_their_own_do_not_see_the_batch() -> None:
    def path(n: int, generator: object) -> torch.Tensor:
        noise = BrownianPath(generator)  # type: ignore[arg-type]
        x = torch.zeros(n, 2)
        return torch.cat([noise.increment(x, 1.0, s) for s in (0.0, 0.5, 0.2)], 1)

    reproducible(path, "BrownianPath", rtol=0.0)


@pytest.mark.parametrize(
    "other", [torch.zeros(4, 2), torch.zeros(3, 1), torch.zeros(3, 2, dtype=torch.float64)], ids=["B", "D", "dtype"]
)
def test_a_path_is_bound_to_its_first_state(other: torch.Tensor, seeded: Seeded) -> None:
    path = BrownianPath(seeded(0))
    path.increment(torch.zeros(3, 2), 1.0, 0.0)
    with pytest.raises(ValueError, match=r"this path was drawn for \(3, 2\) .*: make a BrownianPath for each batch"):
        path.increment(other, 1.0, 0.0)


def test_non_contiguous_states_take_noise(seeded: Seeded) -> None:
    x = torch.zeros(2, 3, 4).transpose(1, 2)
    for noise in (WhiteNoise(seeded(0)), BrownianPath(seeded(0))):
        assert noise.increment(x, 1.0, 0.0).shape == x.shape
    assert torch.equal(randn_like(x, seeded(0)), randn(x.shape, seeded(0)))


# Areas: the integral of W(u) - W(t) from t to s.


@pytest.mark.parametrize("kind", [WhiteNoise, BrownianPath])
@pytest.mark.parametrize(("t", "s"), [(0.2, 1.0), (1.0, 0.2)], ids=["up", "down"])
def test_increment_and_area_have_their_joint_law(kind: type[Noise], t: float, s: float, seeded: Seeded) -> None:
    x, h = torch.zeros(N, 1, dtype=torch.float64), s - t
    w, area = kind(seeded(0)).increment_and_area(x, t, s)
    drawn = torch.cat([w, area], 1)
    expected = torch.tensor([[abs(h), h * abs(h) / 2], [h * abs(h) / 2, abs(h) ** 3 / 3]], dtype=torch.float64)
    assert drawn.shape == (N, 2)
    assert float(drawn.mean(0).abs().max()) < 5 * math.sqrt(abs(h) / N)
    torch.testing.assert_close(drawn.T.cov(), expected, rtol=0, atol=5 * abs(h) * math.sqrt(2 / N))
    rest = (area - h / 2 * w)[:, 0] / math.sqrt(abs(h) ** 3 / 12)
    assert stats.kstest(rest.numpy(), "norm").pvalue > 1e-3


def test_the_increment_of_a_pair_is_the_increment(seeded: Seeded) -> None:
    x = torch.zeros(4, 2)
    assert torch.equal(
        WhiteNoise(seeded(0)).increment_and_area(x, 1.0, 0.4)[0], WhiteNoise(seeded(0)).increment(x, 1.0, 0.4)
    )
    path = BrownianPath(seeded(0))
    w, area = path.increment_and_area(x, 1.0, 0.4)
    assert torch.equal(w, path.increment(x, 1.0, 0.4))
    assert torch.equal(area, path.area(x, 1.0, 0.4))


def covariance(order: list[tuple[str, float, float]], wanted: list[tuple[str, float, float]], monkeypatch) -> Tensor:
    """Exact covariance of `wanted` questions, asked after those in `order`: each draw is a basis vector of its own."""
    m = 64
    drawn = iter(torch.eye(m, dtype=torch.float64))
    monkeypatch.setattr(sde.random, "randn_like", lambda x, generator=None: next(drawn)[:, None].clone())
    path, x = BrownianPath(), torch.zeros(m, 1, dtype=torch.float64)
    for what, t, s in order:
        getattr(path, what)(x, t, s)
    rows = torch.cat([getattr(path, what)(x, t, s) for what, t, s in wanted], 1).T
    return rows @ rows.T


def exact_covariance(wanted: list[tuple[str, float, float]]) -> Tensor:
    """The same by quadrature: each answer is the integral of a weight k(u) dW(u)."""
    edges = sorted({u for _, t, s in wanted for u in (t, s)})
    node, weight = np.polynomial.legendre.leggauss(3)
    u = np.concatenate([(a + b) / 2 + (b - a) / 2 * node for a, b in pairwise(edges)])
    w = np.concatenate([(b - a) / 2 * weight for a, b in pairwise(edges)])

    def kernel(what: str, t: float, s: float) -> np.ndarray:
        sign, inside = math.copysign(1.0, s - t), (u > min(t, s)) & (u < max(t, s))
        return np.where(inside, sign if what == "increment" else sign * (s - u), 0.0)

    k = np.stack([kernel(*question) for question in wanted])
    return torch.from_numpy(k * w @ k.T)


ASKED = [
    [("area", 0.0, 1.0)],
    [("increment", 0.0, 1.0), ("area", 1.0, 0.3), ("increment", 1.0, 0.55)],
    [("area", 0.3, 1.0), ("increment", 0.0, 0.6), ("area", 1.0, 0.0), ("increment", 0.8, 0.1)],
    [("increment", 0.6, 0.3), ("area", 0.6, 1.0), ("area", 0.9, 0.0), ("increment", 0.95, 0.05)],
    [("area", 1.0, 0.9), ("area", 0.1, 0.0), ("area", 0.0, 1.0), ("area", 0.45, 0.7)],
]


@pytest.mark.parametrize("order", ASKED, ids=range(len(ASKED)))
def test_areas_and_increments_have_their_joint_law_in_whatever_order(order, monkeypatch) -> None:
    knots = (0.0, 0.3, 0.6, 1.0)
    wanted = [(what, t, s) for what in ("increment", "area") for t, s in pairwise(knots)]
    wanted += [("area", 1.0, 0.0), ("area", 0.6, 0.0), ("increment", 1.0, 0.3)]
    torch.testing.assert_close(covariance(order, wanted, monkeypatch), exact_covariance(wanted), rtol=1e-9, atol=1e-12)


@settings(max_examples=settings.default.max_examples // 2)
@given(
    times=st.lists(st.floats(0.0, 2.0).map(lambda t: round(t, 6)), min_size=3, max_size=6, unique=True),
    asked=st.lists(st.booleans(), min_size=15, max_size=15),
    seed=st.integers(0, 10),
)
def test_areas_add_up_and_are_remembered(times: list[float], asked: list[bool], seed: int) -> None:
    path, x = BrownianPath(torch.Generator().manual_seed(seed)), torch.zeros(3, 2, dtype=torch.float64)
    first = {}
    for (t, s), area in zip([(t, s) for t in times for s in times if t < s], asked, strict=False):
        first[t, s] = path.area(x, t, s) if area else path.increment(x, t, s)
    for ((t, s), answer), area in zip(first.items(), asked, strict=False):
        again = path.area(x, t, s) if area else path.increment(x, t, s)
        torch.testing.assert_close(again, answer, rtol=1e-9, atol=1e-12)  # its parts may be known by now
    for a in times:
        for b in times:
            for c in times:
                parts = path.area(x, a, b) + path.area(x, b, c) + (c - b) * path.increment(x, a, b)
                torch.testing.assert_close(path.area(x, a, c), parts, rtol=1e-9, atol=1e-12)


def test_areas_do_not_see_the_batch() -> None:
    def path(n: int, generator: object) -> torch.Tensor:
        noise = BrownianPath(generator)  # type: ignore[arg-type]
        x = torch.zeros(n, 2)
        asked = [noise.area(x, 1.0, 0.0), noise.increment(x, 1.0, 0.4), *noise.increment_and_area(x, 0.4, 0.1)]
        return torch.cat([*asked, *WhiteNoise(generator).increment_and_area(x, 1.0, 0.0)], 1)  # type: ignore[arg-type]

    reproducible(path, "area", rtol=0.0)


def test_white_noise_gives_an_area_with_its_increment_only(seeded: Seeded) -> None:
    message = "WhiteNoise does not remember .*: ask for both by increment_and_area, or use a BrownianPath"
    with pytest.raises(ValueError, match=message):
        WhiteNoise(seeded(0)).area(torch.zeros(3, 2), 1.0, 0.0)


class Areas(Solver):
    """Adds the increment and the area of each step to the state: covariances that are known."""

    order, weak = 1.0, 1.0

    def step(self, sde, x, t, s, noise):
        w, area = noise.increment_and_area(x, t, s)
        return x + w + area


def test_a_probe_sees_areas_too() -> None:
    """Each step adds |h| + 2 h |h| / 2 + |h|^3 / 3 to the variance."""
    run = affine(BrownianMotion(), (2,), [0.0, 0.4, 1.0], Areas())
    _, cov = run.moments(torch.zeros(2).double(), torch.zeros(2, 2).double())
    expected = sum(h + h**2 + h**3 / 3 for h in (0.4, 0.6))
    torch.testing.assert_close(cov, expected * torch.eye(2, dtype=torch.float64))
