"""Times from log SNR: the closed forms against the bisection that serves an SDE without one."""

import pytest
import torch

import sde
from sde.forward.scalar import ScalarSDE

SCALAR = [
    sde.VP(),
    sde.VP(beta_min=0.5, beta_max=0.5 + 1e-9),
    sde.SubVP(),
    sde.VE(),
    sde.EDM(),
    sde.Cosine(),
    sde.Flow(),
    sde.OrnsteinUhlenbeck(theta=0.7, s=1.3),
]


@pytest.mark.parametrize("forward", SCALAR, ids=repr)
def test_inverse_undoes_log_snr_and_agrees_with_bisection(forward):
    t = forward.t_min + (forward.t_max - forward.t_min) * torch.linspace(0, 0.999, 41, dtype=torch.float64)
    log_snr = forward.log_snr(t)
    torch.testing.assert_close(forward.time_at(log_snr), t, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(ScalarSDE.inverse(forward, log_snr), t, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("forward", [*SCALAR, sde.Tabulated.linear(50)], ids=repr)
def test_times_beyond_the_range_are_clipped_to_it(forward):
    ends = forward.time_at(torch.tensor([1e4, -float("inf")], dtype=torch.float64))
    torch.testing.assert_close(ends, torch.tensor([forward.t_min, forward.t_max], dtype=torch.float64))
