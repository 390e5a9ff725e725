"""Tables of DDPM: against diffusers, against the posterior of Ho et al., and between the entries."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sde


@pytest.mark.parametrize(("ours", "theirs"), [("linear", "linear"), ("cosine", "squaredcos_cap_v2")])
def test_tables_are_those_of_diffusers(ours: str, theirs: str) -> None:
    from diffusers import DDPMScheduler

    table = torch.as_tensor(getattr(sde.Tabulated, ours)().alphas_cumprod)
    expected = DDPMScheduler(beta_schedule=theirs).alphas_cumprod.double()
    torch.testing.assert_close(table.double(), expected, rtol=2e-4, atol=1e-9)


def test_bridge_between_neighbours_is_the_posterior_of_ho_2020() -> None:
    """Eq. 7: mean sqrt(bar_{i-1}) b / (1 - bar_i) x0 + sqrt(1 - b) (1 - bar_{i-1}) / (1 - bar_i) x, and variance."""
    table = sde.Tabulated.linear()
    bar = torch.tensor(table.alphas_cumprod, dtype=torch.float64)
    one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    for i in (1, 2, 500, 999):
        beta, before = 1 - bar[i] / bar[i - 1], bar[i - 1]
        t, s = float(i + 1), float(i)
        expected = {
            (1, 0, 0): before.sqrt() * beta / (1 - bar[i]),
            (0, 1, 0): (1 - beta).sqrt() * (1 - before) / (1 - bar[i]),
            (0, 0, 1): ((1 - before) / (1 - bar[i]) * beta).sqrt(),
        }
        for (a, b, c), value in expected.items():
            got = table.bridge(a * one, b * one, t, s, c * one)
            torch.testing.assert_close(got[0, 0], value, rtol=1e-8, atol=1e-12)
        got = table.transition(one, s, t, zero), table.transition(zero, s, t, one)
        torch.testing.assert_close(
            torch.cat(got)[:, 0], torch.stack([(1 - beta).sqrt(), beta.sqrt()]), rtol=1e-8, atol=0
        )


def test_time_0_is_the_data_and_the_clock_is_the_index() -> None:
    table = sde.Tabulated.linear()
    x0 = torch.randn(3, 2)
    assert torch.equal(table.perturb(x0, 0.0).x, x0)
    assert table.clock(torch.tensor([1.0, 1000.0])).tolist() == [0.0, 999.0]
    below = torch.linspace(0, 1, 11, dtype=torch.float64)
    torch.testing.assert_close(table.sigma(below) ** 2, below * (1 - table.alphas_cumprod[0]))


tables = st.lists(st.floats(0.02, 0.98), min_size=2, max_size=12).map(lambda keep: np.cumprod(keep).tolist())


@settings(max_examples=settings.default.max_examples // 2)
@given(tables)
def test_any_table_is_met_at_its_entries_and_falls_between_them(cumprod: list[float]) -> None:
    table = sde.Tabulated(cumprod)
    sde.checks.moments(table)
    sde.checks.rates(table)
    sde.checks.transitions(table)
    t = torch.linspace(0.01, table.t_max, 500, dtype=torch.float64)
    assert bool((table.log_snr(t).diff() < 0).all())
    alpha, sigma = table.levels(t)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(t))


def test_a_tensor_and_a_list_are_one_table() -> None:
    numbers = [0.9, 0.5, 0.1]
    one, other = sde.Tabulated(numbers), sde.Tabulated(torch.tensor(numbers, dtype=torch.float64))
    t = torch.linspace(0, 3, 7, dtype=torch.float64)
    assert torch.equal(one.alpha(t), other.alpha(t))


@pytest.mark.parametrize(
    ("numbers", "word"),
    [
        ([0.5], "at least 2 numbers in a row, got shape (1,)"),
        ([[0.9, 0.5]], "got shape (1, 2)"),
        ([0.5, 0.9], "must decrease within (0, 1), got 0.5 .. 0.9"),
        ([1.0, 0.5], "must decrease within (0, 1), got 1 .. 0.5"),
        ([0.9, 0.0], "raise its last entry to 1e-8"),
        ([0.9, math.nan, 0.1], "must decrease"),
        ([0.9, 0.9, 0.1], "must decrease"),
    ],
)
def test_wrong_tables_are_refused(numbers: list, word: str) -> None:
    with pytest.raises(ValueError, match=r"alphas_cumprod must") as caught:
        sde.Tabulated(numbers)
    assert word in str(caught.value)
