"""Matrix SDEs beyond the laws: against scalar SDEs, against scipy, and where they refuse."""

import numpy as np
import pytest
import torch
from scipy.linalg import expm, solve_continuous_lyapunov

import sde
from sde.forward.matrix import act
from sde.nodes import Table

ONE_CHANNEL = {"F": [[-1.0]], "G": [[2**0.5]], "embed": [1.0], "cov0": [[0.0]]}


def test_one_channel_is_ornstein_uhlenbeck() -> None:
    matrix, scalar = sde.MatrixSDE(**ONE_CHANNEL, t_min=1e-4, t_max=5.0), sde.OrnsteinUhlenbeck()
    x0, eps, z = (torch.randn(4, 2, dtype=torch.float64) for _ in range(3))
    for t, s in ((5.0, 1e-4), (0.7, 0.1)):
        one, other = matrix.at(x0, t, eps[:, None]), scalar.at(x0, t, eps)
        for name in ("x", "score", "velocity", "eps"):
            torch.testing.assert_close(getattr(one, name)[:, 0], getattr(other, name))
        got = matrix.transition(one.x, s, t, z[:, None]), matrix.bridge(x0, one.x, t, s, z[:, None])
        expected = scalar.transition(other.x, s, t, z), scalar.bridge(x0, other.x, t, s, z)
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a[:, 0], b)
        log_p = [p.prior_log_prob(u, 0.3, 0.5) for p, u in ((matrix, one.x), (scalar, other.x))]
        torch.testing.assert_close(*log_p)


def test_one_channel_gives_the_exact_score_of_the_scalar_sde() -> None:
    target = sde.Mixture([0.3, 0.7], [[-1.0], [1.0]], [0.1, 0.2])
    matrix, scalar = sde.MatrixSDE(**ONE_CHANNEL, t_max=5.0), sde.OrnsteinUhlenbeck(t_min=1e-3)
    x = torch.linspace(-3, 3, 9, dtype=torch.float64)[:, None]
    one, other = sde.ExactScore(target, matrix), sde.ExactScore(target, scalar)
    for t in (1e-3, 0.5, 5.0):
        torch.testing.assert_close(one(x[:, None], t).score[:, 0], other(x, t).score)
        torch.testing.assert_close(one.log_prob(x[:, None], t), other.log_prob(x, t))


def test_moments_against_scipy() -> None:
    """Sigma - P solves the homogeneous equation, with P the stationary covariance of Lyapunov's equation."""
    system = sde.CLD()
    f, g = system.beta * np.array(system.F), system.beta**0.5 * np.array(system.G)
    stationary = solve_continuous_lyapunov(f, -g @ g.T)
    for t in (1e-3, 0.1, 1.0):
        a, cov = system.moments(torch.tensor(t, dtype=torch.float64))
        phi = expm(f * t)
        expected = stationary + phi @ (np.array(system.cov0) - stationary) @ phi.T
        np.testing.assert_allclose(a.numpy(), phi @ np.array(system.embed), rtol=1e-9)
        np.testing.assert_allclose(cov.numpy(), expected, rtol=1e-8, atol=1e-15)


def test_short_intervals_are_as_accurate_alone_as_in_a_batch() -> None:
    """torch.matrix_exp of one matrix of norm .03 is wrong by 1e-12, where Q is as small."""
    for t in (1e-3, 2e-3, 5e-3):
        alone, batch = (sde.CLD()._factors(torch.full(n, t, dtype=torch.float64)) for n in ((), (3,)))
        for a, b in zip(alone, batch, strict=True):
            torch.testing.assert_close(a, b[0], rtol=1e-11, atol=0)


def test_root_of_a_covariance_does_not_depend_on_eigenvectors() -> None:
    root = torch.tensor([[1.0, 0.2], [0.2, 0.5]], dtype=torch.float64)
    basis = torch.eye(2, dtype=torch.float64)[..., None]
    torch.testing.assert_close(sde.CLD()._noise(root @ root, basis)[..., 0], root)


def test_tables_are_made_once_in_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    system, calls = sde.CLD(), []
    original = sde.MatrixSDE._van_loan
    monkeypatch.setattr(sde.MatrixSDE, "_van_loan", lambda self, b: calls.append(b.shape) or original(self, b))
    model = sde.ExactScore(sde.Gaussian([0.0, 0.0], 1.0), system)
    for steps in (4, 16):
        calls.clear()
        times = torch.linspace(1, 1e-3, steps + 1)
        sde.sample(model, (2, 2), times=times, solver=sde.Ancestral(), generator=torch.Generator().manual_seed(0))
        assert len(calls) <= 6, calls  # two for the prior, the rest for all steps at once


def test_nodes_serve_every_dtype_of_one_run() -> None:
    node = Table(torch.tensor([1.0, 0.5])).nodes[0]
    for dtype in (torch.float32, torch.float64):
        assert sde.CLD().mean(torch.ones(2, 3, dtype=dtype), node).dtype == dtype


def test_act_mixes_channels_only() -> None:
    m = torch.tensor([[1.0, 2.0], [0.0, 3.0]])
    x = torch.arange(8.0).reshape(1, 2, 2, 2)
    assert torch.equal(act(m, x), torch.stack([x[:, 0] + 2 * x[:, 1], 3 * x[:, 1]], 1))
    batch = torch.stack([m, 2 * m])
    assert torch.equal(act(batch, x.expand(2, 2, 2, 2)), torch.cat([act(m, x), act(2 * m, x)]))


def test_noise_that_reaches_no_channel_is_named() -> None:
    silent = sde.MatrixSDE(F=[[0, 0], [0, 0]], G=[[0, 0], [0, 1]], embed=[1, 0], cov0=[[0, 0], [0, 0]])
    with pytest.raises(ValueError, match=r"not positive definite at t = 0\.5: give every channel noise, by G or cov0"):
        silent.perturb(torch.zeros(1, 1), 0.5)


SQUARE = [[0.0, 0.0], [0.0, 1.0]]


@pytest.mark.parametrize(
    ("keys", "word"),
    [
        ({"F": [[0.0]]}, "F must be 2 × 2, as embed has 2 numbers"),
        ({"G": [[0.0, 1.0]]}, "G must be 2 × 2"),
        ({"cov0": [[0.0, 0.0], [0.0]]}, "cov0 must be 2 × 2"),
        ({"cov0": [[0.0, 1.0], [1.0, 0.0]]}, "cov0 must be symmetric positive semi-definite"),
        ({"cov0": [[1.0, 0.5], [0.0, 1.0]]}, "cov0 must be symmetric positive semi-definite"),
        ({"beta": 0.0}, "beta must be positive and finite, got 0.0"),
        ({"t_min": 1.0}, "0 <= t_min < t_max, got 1.0 and 1.0"),
    ],
)
def test_wrong_arguments_are_refused(keys: dict, word: str) -> None:
    good = {"F": SQUARE, "G": SQUARE, "embed": [1.0, 0.0], "cov0": SQUARE}
    with pytest.raises(ValueError, match=r".") as caught:
        sde.MatrixSDE(**{**good, **keys})
    assert word in str(caught.value)


def test_times_of_another_shape_are_refused_by_name() -> None:
    for t in (torch.full((2,), 0.5), torch.full((3, 1), 0.5)):
        with pytest.raises(ValueError, match=r"pass t of shape \(\) or \(3,\)"):
            sde.CLD().perturb(torch.zeros(3, 2), t)
