"""Training times: quantile functions against scipy's distributions, stratified draws, and the table that stands in."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

import sde
from sde.train import Discrete, LogNormal, Times, Uniform, default_times
from sde.train.times import TimeTable

CPU = torch.device("cpu")
U = torch.linspace(0, 1, 201, dtype=torch.float64)


def log_ratio(forward: sde.ForwardSDE, t: Tensor) -> np.ndarray:
    """log(sigma / alpha)."""
    assert isinstance(forward, sde.ScalarSDE)
    return (torch.log(forward.sigma(t)) - torch.log(forward.alpha(t))).numpy()


def truncated(forward: sde.ForwardSDE, times: LogNormal, scale: float) -> Any:
    """The law of log(sigma / (alpha scale)), by scipy."""
    with np.errstate(divide="ignore"):
        low, high = log_ratio(forward, torch.tensor([forward.t_min, forward.t_max], dtype=torch.float64)) - np.log(
            scale
        )
    a, b = (low - times.mean) / times.std, (high - times.mean) / times.std
    return stats.truncnorm(a, b, loc=times.mean, scale=times.std)


@pytest.mark.parametrize("scale", [1.0, 0.3])
@pytest.mark.parametrize("times", [LogNormal(), LogNormal(0.4, 0.8)], ids=["default", "other"])
def test_log_normal_is_a_truncated_normal(scalar: sde.ForwardSDE, times: LogNormal, scale: float) -> None:
    law, inner = truncated(scalar, times, scale), U[1:-1]
    ours = log_ratio(scalar, times.quantile(scalar, inner, scale)) - np.log(scale)
    assert np.abs(ours - law.ppf(inner.numpy())).max() < 1e-6
    ends = times.quantile(scalar, torch.tensor([0.0, 1.0], dtype=torch.float64), scale)
    assert ends.tolist() == pytest.approx([scalar.t_min, scalar.t_max], rel=1e-6)


def test_edm_times_as_published() -> None:
    """Karras et al. (2022), table 1: log sigma ~ N(-1.2, 1.2^2) for data of deviation .5."""
    times = LogNormal(mean=-1.2 - np.log(0.5), std=1.2)
    sigma = times.quantile(sde.EDM(1e-9, 1e9), U[1:-1], scale=0.5)
    assert np.abs(np.log(sigma.numpy()) - stats.norm(-1.2, 1.2).ppf(U[1:-1].numpy())).max() < 1e-6


def test_on_flow_it_is_logit_normal() -> None:
    """Esser et al. (2024), section 3.1: logit t ~ N(m, s^2)."""
    t = LogNormal(mean=0.3, std=1.1).quantile(sde.Flow(t_min=1e-9), U[1:-1])
    assert np.abs(t.numpy() - 1 / (1 + np.exp(-stats.norm(0.3, 1.1).ppf(U[1:-1].numpy())))).max() < 1e-7


def test_uniform(forward: sde.ForwardSDE) -> None:
    law = stats.uniform(forward.t_min, forward.t_max - forward.t_min)
    assert Uniform().quantile(forward, U).numpy() == pytest.approx(law.ppf(U.numpy()), rel=1e-12)


def test_discrete_takes_each_entry_equally_often() -> None:
    table = sde.Tabulated.linear(50)
    u = (torch.arange(5000, dtype=torch.float64) + 0.5) / 5000
    t = Discrete().quantile(table, u)
    assert torch.equal(t, torch.arange(1, 51, dtype=torch.float64).repeat_interleave(100))
    assert torch.equal(table.clock(t).unique(), torch.arange(50, dtype=torch.float64))  # what a DDPM network is told
    assert Discrete().quantile(table, torch.tensor([0.0, 1.0])).tolist() == [1.0, 50.0]


@pytest.mark.parametrize("n", [1, 7, 64])
def test_a_draw_has_one_time_in_each_stratum(scalar: sde.ForwardSDE, generator: torch.Generator, n: int) -> None:
    for times in (Uniform(), LogNormal()):
        t = times.draw(scalar, n, 2.0, generator)
        if isinstance(times, Uniform):
            share = (t - scalar.t_min) / (scalar.t_max - scalar.t_min)
        else:
            share = torch.from_numpy(truncated(scalar, times, 2.0).cdf(log_ratio(scalar, t) - np.log(2.0)))
        assert torch.equal((share * n).floor(), torch.arange(n, dtype=torch.float64))


def test_draws_fill_their_strata(generator: torch.Generator) -> None:
    """Inside its stratum a draw is uniform."""
    t = torch.cat([Uniform().draw(sde.Flow(t_min=0.0), 4, 1.0, generator) for _ in range(500)])
    assert stats.kstest((4 * t % 1).numpy(), "uniform").pvalue > 1e-3
    assert stats.kstest(t.numpy(), "uniform").pvalue > 0.9  # stratified: far closer than chance


@pytest.mark.parametrize("times", [Uniform(), LogNormal()], ids=["uniform", "log-normal"])
def test_the_table_is_close_to_the_quantile_function(scalar: sde.ForwardSDE, times: Times) -> None:
    table = TimeTable(times, scalar, 1.0, CPU)
    u = torch.linspace(0, 1, 9973, dtype=torch.float64)
    t = table.at(u)
    assert bool((t.diff() >= 0).all())
    assert t[[0, -1]].tolist() == pytest.approx([scalar.t_min, scalar.t_max], rel=1e-6)
    if isinstance(times, Uniform):
        share = ((t - scalar.t_min) / (scalar.t_max - scalar.t_min)).numpy()
    else:
        share = truncated(scalar, times, 1.0).cdf(log_ratio(scalar, t))
    error = np.abs(share - u.numpy())
    assert error.max() < 6e-4  # in the outermost cells, where the quantile function is steep
    assert error[100:-100].max() < 1.5e-5


def test_the_table_keeps_shapes_and_whole_numbers() -> None:
    u = torch.rand(3, 4, generator=torch.Generator().manual_seed(0))
    assert TimeTable(LogNormal(), sde.VP(), 1.0, CPU).at(u).shape == (3, 4)
    t = TimeTable(Discrete(), sde.Tabulated.linear(), 1.0, CPU).at(u)
    assert torch.equal(t, t.round())


def test_fit_trains_at_these_times(points: Tensor) -> None:
    """The clocks that a network sees during a run, one stratum each, in every batch and over chunks of steps."""
    seen: list[Tensor] = []

    class Watching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = sde.nets.MLP(dim=2, width=4, depth=1)

        def forward(self, x: Tensor, c: Tensor) -> Tensor:
            seen.append(c.clone())
            return self.net(x, c)

    model = sde.ScoreModel(Watching(), sde.EDM(), scale=0.7)
    for _ in sde.fit_steps(model, points, 70, batch=16, generator=torch.Generator().manual_seed(0)):
        pass
    law = truncated(model.sde, LogNormal(), 0.7)
    share = law.cdf(4 * torch.stack(seen).double().numpy() - np.log(0.7))
    assert share.shape == (70, 16)
    place = share * 16 - np.arange(16)
    assert place.min() > -0.01
    assert place.max() < 1.01
    assert stats.kstest(place.ravel(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize(
    ("made", "kind"), [(sde.VP(), LogNormal), (sde.Tabulated.linear(), Discrete), (sde.CLD(), Uniform)]
)
def test_default_times(made: sde.ForwardSDE, kind: type) -> None:
    assert type(default_times(made)) is kind


def test_refusals(matrix: sde.ForwardSDE, points: Tensor, small: Callable) -> None:
    with pytest.raises(ValueError, match=r"LogNormal times need a scalar SDE, got .*: use Uniform\(\)"):
        LogNormal().quantile(matrix, U)
    with pytest.raises(ValueError, match=r"Discrete times need a Tabulated SDE, got .*: use Uniform\(\)"):
        Discrete().quantile(matrix, U)
    with pytest.raises(ValueError, match="LogNormal times need a scalar SDE"):
        sde.fit(small(matrix), points, 1, times=LogNormal(), progress=False)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.0), (0.0, -1.0), (float("nan"), 1.0), (0.0, float("inf"))])
def test_a_log_normal_needs_a_width(mean: float, std: float) -> None:
    with pytest.raises(ValueError, match="mean must be finite and std positive"):
        LogNormal(mean, std)


def test_likelihood_times_keep_the_expectation_of_likelihood_weighting(forward):
    """Integral of w f over uniform times is that of w f / p over the times' own law, by the midpoint rule."""
    if not forward.t_min > 0 and not isinstance(forward, sde.MatrixSDE):
        pytest.skip("no finite integral")
    times = sde.train.LikelihoodTimes()
    model = sde.ScoreModel(torch.nn.Identity(), forward, "edm", scale=0.7)
    u = (torch.arange(1500, dtype=torch.float64) + 0.5) / 1500

    def integrand(t):
        at = model.levels(t)
        share = (t - forward.t_min) / (forward.t_max - forward.t_min)
        return sde.train.likelihood(at, 0.7) * (1.2 + torch.cos(3 * share)), at

    # Uniform times by a mesh that is fine near t_min, where the weight is large.
    s = forward.t_min + (forward.t_max - forward.t_min) * u**4
    plain = float((integrand(s)[0] * 4 * u**3).mean())
    t = times.quantile(forward, u, 0.7)
    values, at = integrand(t)
    drawn = values * times.correction(at, forward, 0.7)
    assert float(drawn.mean()) == pytest.approx(plain, rel=2e-4)
    # The law of the error is flat: what scatters is f alone.
    assert float(drawn.std() / drawn.mean()) < 1.0


def test_likelihood_times_make_the_loss_scatter_less():
    model = sde.ScoreModel(torch.nn.Identity(), sde.VP(), "edm")
    spread = {}
    for times in (sde.train.Uniform(), sde.train.LikelihoodTimes()):
        t = times.draw(sde.VP(), 100_000, generator=torch.Generator().manual_seed(0))
        w = sde.train.loss.rows(model, t, sde.train.likelihood, times).root.square()
        spread[type(times).__name__] = float(w.var()), float(w.mean())
    assert spread["LikelihoodTimes"][1] == pytest.approx(spread["Uniform"][1], rel=0.02)
    assert spread["LikelihoodTimes"][0] < 1e-6 * spread["Uniform"][0]


def test_likelihood_times_refuse_an_infinite_integral():
    with pytest.raises(ValueError, match="likelihood weighting has no finite integral from t_min=0"):
        sde.train.LikelihoodTimes().quantile(sde.Flow(t_min=0.0), torch.tensor([0.5]))
