"""The bound of a DDPM's own chain, against closed forms on a Gaussian and the law of the chain itself."""

import math

import pytest
import torch

import sde
from sde.solvers import table_bound
from sde.solvers.likelihood.table_bound import _log_between

TABLE = sde.Tabulated.linear(60, 1e-3, 0.25)
MEAN, C = 0.3, 0.6


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def abar(table=TABLE):
    return [1.0, *table.alphas_cumprod]


def denoiser(t):
    """(k0, k1) of x0(x_t) = k0 + k1 x_t for data N(MEAN, C^2)."""
    a = abar()[t]
    k = math.sqrt(a) * C**2 / (a * C**2 + 1 - a)
    return MEAN * (1 - k * math.sqrt(a)), k


def squared_error(x, t):
    """E |x - x0(x_t)|^2 for each x."""
    (k0, k1), a = denoiser(t), abar()[t]
    return ((1 - k1 * math.sqrt(a)) * x - k0).square() + k1**2 * (1 - a)


def closed(x, large):
    """KLs of two Gaussians for each step, L_N and L_0 of numbers x."""
    a, parts = abar(), []
    for t in range(2, len(a)):
        beta = 1 - a[t] / a[t - 1]
        b = beta * (1 - a[t - 1]) / (1 - a[t])
        v = beta if large else b
        apart = (math.sqrt(a[t - 1]) * beta / (1 - a[t])) ** 2 * squared_error(x, t)
        parts.append((b / v - 1 - math.log(b / v) + apart / v) / 2)
    prior = (a[-1] * x.square() - a[-1] - math.log(1 - a[-1])) / 2
    beta = 1 - a[1]
    return torch.stack(parts, 1), prior, squared_error(x, 1) / (2 * beta) + math.log(2 * math.pi * beta) / 2


def chain(large):
    """Mean and variance of x_0 under ancestral sampling, step by step."""
    a, m, v = abar(), 0.0, 1.0
    for t in range(len(a) - 1, 0, -1):
        (k0, k1), beta = denoiser(t), 1 - a[t] / a[t - 1]
        b = beta * (1 - a[t - 1]) / (1 - a[t])
        noise = math.sqrt(a[t]) / math.sqrt(a[t - 1]) * (1 - a[t - 1]) / (1 - a[t])  # of x_t in the bridge's mean
        data = math.sqrt(a[t - 1]) * beta / (1 - a[t])
        slope = noise + data * k1
        m, v = slope * m + data * k0, slope**2 * v + (beta if large or t == 1 else b)
    return m, v


@pytest.mark.parametrize("large", [False, True])
def test_each_step_is_its_closed_form(large):
    model = sde.ExactScore(sde.Gaussian([MEAN], C**2), TABLE)
    x = torch.tensor([[-1.0], [0.3], [1.5]], dtype=torch.float64)
    found = table_bound(model, x.repeat(4000, 1), large=large, generator=generator())
    parts, prior, last = closed(x[:, 0], large)
    rows = found.parts.unflatten(0, (4000, 3))
    error = rows.std(0) / math.sqrt(4000)
    assert float(((rows.mean(0) - parts) / error).abs().max()) < 5
    assert float((error / parts.abs()).max()) < 0.05
    torch.testing.assert_close(found.prior[:3], prior)
    rows = found.last.unflatten(0, (4000, 3))
    assert float(((rows.mean(0) - last) / (rows.std(0) / math.sqrt(4000))).abs().max()) < 5
    assert found.t.tolist() == list(range(2, 61))


@pytest.mark.parametrize("large", [False, True])
def test_it_bounds_the_likelihood_of_the_chain_for_every_datum(large):
    x = torch.linspace(-3, 3, 25, dtype=torch.float64)
    m, v = chain(large)
    parts, prior, last = closed(x, large)
    log_p = -((x - m) ** 2) / (2 * v) - math.log(2 * math.pi * v) / 2
    gap = parts.sum(1) + prior + last + log_p
    assert bool((gap > 0).all())
    assert float(gap.min()) < (0.2 if large else 2.5)  # and with variances that fit such data is near it


def test_with_variances_that_fit_it_is_near_the_density_itself():
    target = sde.Gaussian([0.0, 1.0], 0.5)
    model = sde.ExactScore(target, sde.Tabulated.linear(100, 1e-3, 0.2))
    x = target.sample(8000, generator())
    gap = table_bound(model, x, large=True, generator=generator(1)).value + target.log_prob(x)
    error = float(gap.std()) / math.sqrt(8000)
    assert -3 * error < float(gap.mean()) < 0.02 + 3 * error < 0.1


def test_some_steps_stand_for_all():
    model = sde.ExactScore(sde.Gaussian([MEAN], C**2), TABLE)
    x = torch.full((20, 1), 0.5, dtype=torch.float64)
    runs = torch.stack(
        [table_bound(model, x, steps=12, generator=generator(seed)).parts.sum(1).mean() for seed in range(200)]
    )
    wanted = float(closed(x[:1, 0], False)[0].sum())
    assert abs(float(runs.mean()) - wanted) < 4 * float(runs.std()) / math.sqrt(200)
    assert float(runs.std()) / wanted < 0.5


def test_levels_give_probabilities():
    """Fine levels have the density's probability; all levels together, whatever x_1 was, have 1."""
    model = sde.ExactScore(sde.Gaussian(torch.zeros(3), 0.2), TABLE)
    x = (torch.linspace(-1, 1, 257, dtype=torch.float64)[::32])[:, None].expand(-1, 3)[1:-1]
    density = table_bound(model, x, generator=generator(2))
    cells = table_bound(model, x, levels=257, generator=generator(2))
    torch.testing.assert_close(cells.last, density.last - 3 * math.log(2 / 256), rtol=0, atol=0.03)
    torch.testing.assert_close(cells.bits, cells.value / (3 * math.log(2)))
    edges = torch.tensor([-math.inf, -30.0, -2.0, 0.5, 12.0, math.inf], dtype=torch.float64)
    found = _log_between(edges[:-1], edges[1:])
    assert float(found.exp().sum()) == pytest.approx(1, abs=1e-12)
    assert bool(found.isfinite().all())
    upper = _log_between(torch.tensor(40.0), torch.tensor(41.0))
    assert float(upper) == pytest.approx(float(torch.special.log_ndtr(torch.tensor(-40.0).double())), abs=1e-6)


def test_a_prior_of_ones_own_and_its_closed_form():
    target = sde.Gaussian([0.5, -0.5], [[0.5, 0.2], [0.2, 0.3]])
    model = sde.ExactScore(target, TABLE)
    x = target.sample(5, generator())
    a = abar()[-1]
    prior = torch.distributions.MultivariateNormal(
        math.sqrt(a) * target.mean, a * target.cov + (1 - a) * torch.eye(2).double()
    )
    wanted = [
        torch.distributions.kl_divergence(
            torch.distributions.MultivariateNormal(math.sqrt(a) * row, (1 - a) * torch.eye(2).double()), prior
        )
        for row in x
    ]
    torch.testing.assert_close(table_bound(model, x, steps=1, prior=target).prior, torch.stack(wanted))
    with pytest.raises(ValueError, match="prior must be a Gaussian"):
        table_bound(model, x, steps=1, prior=sde.Mixture([0.5, 0.5], [[0.0, 0.0], [1.0, 1.0]], [0.1, 0.1]))


def test_what_it_cannot_do_is_refused_by_name():
    model, x = sde.ExactScore(sde.Gaussian([0.0], 1.0), TABLE), torch.zeros(2, 1)
    with pytest.raises(TypeError, match="table_bound needs a Tabulated SDE, got VP"):
        table_bound(sde.ExactScore(sde.Gaussian([0.0], 1.0), sde.VP()), x)
    with pytest.raises(ValueError, match="trained with a coupling"):
        table_bound(sde.ScoreModel(sde.nets.MLP(1, width=8), TABLE, coupled=True), x)
    with pytest.raises(TypeError, match="x must be float32 or float64"):
        table_bound(model, x.half())
    with pytest.raises(ValueError, match="x must be"):
        table_bound(model, x[:0])
    with pytest.raises(ValueError, match="steps must be 1 to 59"):
        table_bound(model, x, steps=60)
    with pytest.raises(ValueError, match="levels must be at least 2"):
        table_bound(model, x, levels=1)
    with pytest.raises(ValueError, match="x must lie on 2 levels"):
        table_bound(model, x, levels=2, steps=1)
