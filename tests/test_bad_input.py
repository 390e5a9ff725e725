"""Bad input, by hand and at random: an error that names argument, value and remedy, or a right answer."""

import math
import re
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

import sde

VP, CLD = sde.VP(), sde.CLD()
TARGET = sde.Gaussian([0.0, 0.0], 1.0)
EXACT = sde.ExactScore(TARGET, VP)
X = torch.zeros(3, 2)


def blame(error: BaseException, word: str) -> None:
    """An error of ours names its argument first, shows what it got, and ends in what to do."""
    message = str(error)
    assert word in message, message
    assert "got" in message or "has" in message or "holds" in message or "needs" in message, message
    assert re.search(r"(: | - |, or |use |pass )", message), f"no remedy in: {message}"


# perturb, at and their kin.


@pytest.mark.parametrize(
    "t", [-1e-3, -1.0, 1.01, 2, math.nan, math.inf, torch.tensor(-0.1), torch.tensor([0.1, 0.2, 7.0])]
)
def test_times_outside_the_run(t: float | Tensor) -> None:
    for forward in (VP, CLD):
        with pytest.raises(
            ValueError, match=r"t must lie in \[0, 1\] for (VP|CLD), got .*: data are at t = 0"
        ) as caught:
            forward.perturb(X, t)
        blame(caught.value, "t must lie in")


@pytest.mark.parametrize(
    "t", [0.0, 1.0, 0, 1, torch.tensor(1.0), torch.ones(3), torch.ones(1), torch.tensor([0, 1, 1])]
)
def test_times_at_the_ends_and_whole_ones_are_times(t: float | Tensor) -> None:
    assert bool(torch.isfinite(VP.perturb(X, t).x).all())


def test_a_float32_time_rounded_past_the_end_is_the_end() -> None:
    for forward in (sde.Cosine(), sde.VE(), sde.EDM(0.01, 3.3)):
        t = torch.full((3,), forward.t_max, dtype=torch.float32)
        assert bool(torch.isfinite(forward.perturb(X, t).x).all())


@pytest.mark.parametrize("t", [torch.ones(2), torch.ones(4), torch.ones(3, 1), torch.ones(3, 1, 1, 1), torch.ones(0)])
def test_times_of_another_shape(t: Tensor) -> None:
    for forward in (VP, CLD, sde.Tabulated.linear(), sde.FromCoefficients(lambda t: -t, lambda t: 1 + t)):
        with pytest.raises(ValueError, match=r"t has shape .* but x has shape .*: pass t of shape \(\) or \(3,\)"):
            forward.perturb(X, 0.5 * t)


@pytest.mark.parametrize(
    ("x0", "kind", "word"),
    [
        (torch.zeros(3, 2, dtype=torch.int64), TypeError, "x0 must be floating, got torch.int64: use x0.float()"),
        (torch.zeros(3, 2, dtype=torch.uint8), TypeError, "x0 must be floating, got torch.uint8"),
        (torch.zeros(3, 2, dtype=torch.bool), TypeError, "x0 must be floating"),
        (torch.zeros(3), ValueError, "x0 must be (B, *D), got shape (3,): use x0[:, None] for numbers"),
        (torch.tensor(0.0), ValueError, "x0 must be (B, *D), got shape ()"),
    ],
)
def test_states_that_are_none(x0: Tensor, kind: type, word: str) -> None:
    for forward in (VP, CLD):
        with pytest.raises(kind) as caught:
            forward.perturb(x0, 0.5)
        blame(caught.value, word)


def test_an_empty_batch_gives_an_empty_point() -> None:
    for forward in (VP, CLD):
        for t in (0.5, torch.zeros(0)):
            point = forward.perturb(torch.zeros(0, 2), t)
            assert point.x.shape[0] == point.velocity.shape[0] == point.score.shape[0] == 0


def test_an_empty_batch_is_not_sampled() -> None:
    with pytest.raises(ValueError, match=r"shape must be \(B, \*D\) with every size at least 1, got \(0, 2\)"):
        sde.sample(EXACT, (0, 2))
    with pytest.raises(ValueError, match=r"x must be \(B, \*D\) with B at least 1, got shape \(0, 2\)"):
        sde.sample(EXACT, x=torch.zeros(0, 2))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_states_that_are_not_finite_are_not_integrated(bad: float) -> None:
    x = torch.zeros(3, 2)
    x[1, 1] = bad
    with pytest.raises(ValueError, match="x holds 1 values that are not finite: clean it first"):
        sde.sample(EXACT, x=x)
    with pytest.raises(ValueError, match="1 values that are not finite"):
        sde.integrate(sde.BrownianMotion(), x, [0.0, 1.0], sde.Euler())


def test_not_finite_data_stay_in_their_own_sample() -> None:
    x0 = torch.zeros(3, 2)
    x0[1, 1] = math.nan
    point = VP.perturb(x0, 0.5)
    assert point.x.isfinite().all(1).tolist() == [True, False, True]


def test_a_wrong_number_of_generators() -> None:
    generators = [torch.Generator().manual_seed(k) for k in range(2)]
    calls: Sequence[Callable[[], object]] = (
        lambda: VP.perturb(X, 0.5, generators),
        lambda: VP.prior(X, generator=generators),
        lambda: CLD.perturb(X, 0.5, generators),
        lambda: TARGET.sample(3, generators),
        lambda: sde.sample(EXACT, (3, 2), generator=generators),
        lambda: sde.sample(EXACT, x=X, solver=sde.Ancestral(), generator=generators),
    )
    for call in calls:
        with pytest.raises(
            ValueError, match="generator holds 2 generators for a batch of 3: pass one for each"
        ) as caught:
            call()
        blame(caught.value, "generator holds 2")


# Non-contiguous tensors, views and tensors that share memory.


def strided(*shape: int) -> tuple[Tensor, Tensor]:
    """A tensor and its equal, one of them not contiguous."""
    x = torch.randn(*shape[:-2], shape[-1], shape[-2], generator=torch.Generator().manual_seed(0)).transpose(-1, -2)
    assert not x.is_contiguous()
    return x, x.contiguous()


def test_non_contiguous_states_are_states(any_sde: sde.ForwardSDE) -> None:
    view, plain = strided(3, 4, 2)
    target = sde.Gaussian(torch.zeros(4, 2), 1.0 * torch.ones(8))
    empirical = sde.Empirical(torch.randn(5, 4, 2))
    t, generator = 0.5 * any_sde.t_max, torch.Generator()
    one, other = (any_sde.perturb(x, t, generator.manual_seed(0)) for x in (view, plain))
    for name in ("x", "velocity", "score"):
        assert torch.equal(getattr(one, name), getattr(other, name))
    state = one.x.transpose(0, 1).contiguous().transpose(0, 1)
    for model in (sde.ExactScore(target, any_sde), sde.ExactScore(empirical, any_sde)):
        torch.testing.assert_close(model(state, t).score, model(other.x, t).score)
        torch.testing.assert_close(model.log_prob(state, t), model.log_prob(other.x, t))


def test_broadcast_states_are_states() -> None:
    one = torch.ones(1, 2)
    rows = one.expand(3, 2)
    generator = torch.Generator()
    a, b = (VP.perturb(x, 0.5, generator.manual_seed(0)).x for x in (rows, rows.clone()))
    assert torch.equal(a, b)
    assert torch.equal(one, torch.ones(1, 2))


def test_inputs_are_not_written_to(any_sde: sde.ForwardSDE) -> None:
    x0 = torch.ones(3, 2)
    eps = torch.ones_like(any_sde.state(x0))
    x, z, t = eps.clone(), eps.clone(), 0.5 * any_sde.t_max
    point = any_sde.at(x0, t, eps)
    point.velocity, point.score, point.tilted(z)
    any_sde.transition(x, any_sde.t_min, t, z)
    any_sde.bridge(x0, x, t, any_sde.t_min, z)
    sde.sample(sde.ExactScore(TARGET, any_sde), x=x, times=[t, any_sde.t_min], solver=sde.Ancestral())
    assert all(bool((c == 1).all()) for c in (x0, eps, x, z))


# Schedules that a student writes, and gets wrong.


class Mathematical(sde.ScalarSDE):
    def alpha(self, t: Tensor) -> Tensor:
        return math.exp(-t)  # type: ignore[return-value, arg-type]

    def sigma(self, t: Tensor) -> Tensor:
        return t


class Columns(Mathematical):
    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-t)[..., None]


class Words(Mathematical):
    def alpha(self, t: Tensor) -> Tensor:
        return "1 - t"  # type: ignore[return-value]


@pytest.mark.parametrize("wrong", [Mathematical, Columns, Words])
def test_schedules_that_are_not_elementwise(wrong: type[sde.ScalarSDE]) -> None:
    for ask in (
        lambda: wrong().perturb(X, torch.full((3,), 0.5)),
        lambda: sde.sample(sde.ExactScore(TARGET, wrong()), (2, 2)),
    ):
        with pytest.raises(
            ValueError, match=rf"alpha\(t\) of {wrong.__name__} fails for t of shape .*torch\.exp, not math"
        ):
            ask()


class Constant(sde.ScalarSDE):
    """Numbers, and not tensors: a schedule all the same."""

    def alpha(self, t: Tensor) -> Tensor:
        return 0.1  # type: ignore[return-value]

    def sigma(self, t: Tensor) -> Tensor:
        return 0.2 + 0 * t


def test_a_number_is_a_schedule_in_full_precision() -> None:
    t = torch.tensor([0.1, 0.2], dtype=torch.float64)
    assert Constant().levels(t)[0].tolist() == [0.1, 0.1]  # type: ignore[union-attr]
    assert [c.tolist() for c in Constant().rates(t)[2:]] == [[0.0, 0.0], [0.0, 0.0]]


# Samples, grids and solvers.


@pytest.mark.parametrize(
    ("keys", "word"),
    [
        ({"shape": None}, "shape is missing: pass shape=(16, 2)"),
        ({"shape": (5,)}, "shape must be (B, *D) with every size at least 1, got (5,)"),
        ({"steps": 0}, "steps must be a whole number of at least 1, got 0: pass steps=32"),
        ({"steps": 2.5}, "steps must be a whole number of at least 1, got 2.5"),
        ({"steps": True}, "got True"),
        ({"eta": -1.0}, "eta must be 0 or more, got -1.0"),
        ({"eta": math.nan}, "eta must be 0 or more, got nan"),
        ({"times": [1.0]}, "times must hold at least 2 times in a row, got shape (1,)"),
        ({"times": [1.0, 0.5, 0.5]}, "strictly increasing or decreasing"),
        ({"times": [1.0, math.nan]}, "times must be finite"),
        ({"times": [2.0, 0.5]}, "times must lie in [0, 1] for VP, got 0.5 to 2"),
        ({"times": [0.5, 1.0], "eta": 1.0, "solver": sde.Euler()}, "runs down in time only"),
    ],
)
def test_samples_that_cannot_be_drawn(keys: dict, word: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        sde.sample(EXACT, **{"shape": (3, 2), **keys})
    assert word in str(caught.value)


def test_states_of_whole_numbers_are_not_integrated() -> None:
    with pytest.raises(TypeError, match=r"x must be floating, got torch.int64: use x.float\(\)"):
        sde.sample(EXACT, x=torch.zeros(3, 2, dtype=torch.int64))


# At random: whatever comes, an answer is finite and right, or the error is a ValueError or TypeError with words.

numbers = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from([0.0, -0.0, 1.0, -1.0, math.nan, math.inf, 1e-300, 1e300]),
)


def refused(make: Callable[[], object]) -> bool:
    """Whether it is refused with words of ours; any other error, or an answer, passes through."""
    try:
        make()
    except (ValueError, TypeError) as error:
        words = str(error)
    else:
        return False
    assert len(words) > 20, words
    return True


@settings(max_examples=2 * settings.default.max_examples)
@given(a=numbers, b=numbers, t_min=numbers, t_max=numbers)
def test_numbers_at_random_make_a_sound_schedule_or_an_error(a: float, b: float, t_min: float, t_max: float) -> None:
    """What is accepted has a finite interval, and levels that are numbers on it."""
    assume(not 1e100 < t_max < math.inf)
    makes: Sequence[Callable[[], sde.ScalarSDE]] = (
        lambda: sde.VP(a, b, t_min, t_max),
        lambda: sde.SubVP(a, b, t_min, t_max),
        lambda: sde.VE(a, b, t_min, t_max),
        lambda: sde.EDM(a, b),
        lambda: sde.Cosine(a, t_min, t_max),
        lambda: sde.Flow(t_min, t_max),
        lambda: sde.OrnsteinUhlenbeck(a, b, t_min, t_max),
        lambda: sde.CLD(a, t_min, t_max, b),  # type: ignore[list-item, return-value]
    )
    for make in makes:
        if refused(make):
            continue
        forward = make()
        assert math.isfinite(forward.t_min)
        assert 0 <= forward.t_min < forward.t_max < math.inf
        if isinstance(forward, sde.ScalarSDE):
            levels = torch.stack(forward.levels(torch.tensor([forward.t_min, forward.t_max], dtype=torch.float64)))  # type: ignore[arg-type]
            assert not bool(levels.isnan().any())


@settings(max_examples=2 * settings.default.max_examples)
@given(
    weights=st.lists(numbers, min_size=1, max_size=3),
    means=st.lists(numbers, min_size=1, max_size=3),
    covs=st.lists(numbers, min_size=1, max_size=3),
)
def test_numbers_at_random_make_a_sound_mixture_or_an_error(weights: list, means: list, covs: list) -> None:
    assume(all(abs(c) < 1e6 or not math.isfinite(c) for c in weights + means + covs))
    columns = [[m] for m in means]
    if refused(lambda: sde.Mixture(weights, columns, covs)):
        return
    assert len(weights) == len(means) == len(covs)
    assert min(weights) >= 0 < sum(weights)
    assert min(covs) >= -1e-10 * max(map(abs, covs))  # eigenvalues are rounded
    target = sde.Mixture(weights, columns, covs)
    assert bool(target.sample(4, torch.Generator().manual_seed(0)).isfinite().all())
    point = sde.ExactScore(target, sde.EDM())(torch.zeros(2, 1, dtype=torch.float64), 1.0)
    assert bool(point.x0.isfinite().all())


@settings(max_examples=2 * settings.default.max_examples)
@given(table=st.lists(numbers, min_size=0, max_size=5))
def test_numbers_at_random_make_a_sound_table_or_an_error(table: list[float]) -> None:
    if refused(lambda: sde.Tabulated(table)):
        return
    assert all(0 < c < 1 for c in table)
    assert sorted(table, reverse=True) == table
    assert not bool(torch.stack(sde.Tabulated(table).levels(torch.arange(len(table) + 1.0))).isnan().any())  # type: ignore[arg-type]


@settings(max_examples=2 * settings.default.max_examples)
@given(t=st.one_of(numbers, st.lists(numbers, min_size=0, max_size=4).map(torch.tensor)))
def test_times_at_random_give_a_finite_state_or_an_error(t: float | Tensor) -> None:
    if not refused(lambda: VP.perturb(X, t)):
        point = VP.perturb(X, t)
        assert point.x.shape == (3, 2)
        assert bool(point.x.isfinite().all())


@given(steps=st.one_of(st.integers(-2, 6), numbers), shape=st.lists(st.integers(-1, 3), max_size=3), eta=numbers)
def test_runs_at_random_give_samples_or_an_error(steps: int, shape: list[int], eta: float) -> None:
    assume(not 1e3 < abs(eta) < math.inf)
    shape = [*shape[:1], *[2 for _ in shape[1:2]], *shape[2:]]

    def run() -> Tensor:
        return sde.sample(
            EXACT, shape, steps=steps, eta=eta, solver=sde.DDIM(), generator=torch.Generator().manual_seed(0)
        )

    if not refused(run):
        assert bool(run().isfinite().all())
