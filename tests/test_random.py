"""Random numbers: laws of the draws, of Brownian paths, and who may see which generator."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sde.checks import reproducible
from sde.random import BrownianPath, Noise, WhiteNoise, rand, randn, randn_like

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
