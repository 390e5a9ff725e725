"""Learned dequantisation bounds the probability of an integer, which is known for a Gaussian, and closes the gap."""

import math

import pytest
import torch
from torch import nn

import sde
from sde import train

CELLS = torch.tensor([[-1.0, 0.0], [0.0, 0.0], [2.0, -1.0]], dtype=torch.float64)


def bent(width=1.0):
    """A dequantiser that was never trained and is far from uniform."""
    made = train.Dequantiser(nn.Linear(2, 4), width).double()
    with torch.no_grad():
        made.net.weight.copy_(torch.linspace(-0.4, 0.4, 8).reshape(4, 2))
        made.net.bias.copy_(torch.tensor([0.5, -0.7, 0.3, -0.4]))
        made.gain.copy_(torch.tensor([1.0, 0.8]))
    return made


def gaussian(s):
    return lambda y: torch.distributions.Normal(0.0, s).log_prob(y).sum(1)


def exact(x, s, width=1.0):
    """-log of the Gaussian's mass on the cells."""
    normal = torch.distributions.Normal(torch.tensor(0.0, dtype=torch.float64), s)
    return -(normal.cdf(x + width / 2) - normal.cdf(x - width / 2)).log().sum(1)


@pytest.mark.parametrize("width", [1.0, 2 / 17])
def test_density_of_the_draws_is_the_one_that_is_told(width, seeded):
    """E_q p / q is the mass of p on the cell, whatever q is."""
    x = (CELLS * width).repeat(200_000, 1)
    with torch.no_grad():
        y, log_q = bent(width)(x, seeded(0))
    assert float(((y - x).abs() / width).max()) < 0.5
    share = torch.exp(gaussian(0.8)(y) - log_q).reshape(-1, 3)
    mass = torch.exp(-exact(CELLS * width, 0.8, width))
    off = (share.mean(0) - mass).abs() / (share.std(0) / math.sqrt(len(share)))
    assert float(off.max()) < 4
    assert float((share.std(0) / mass).max()) < 30


@pytest.mark.parametrize("make", [bent, lambda: train.Dequantiser(nn.Linear(2, 4)).double()], ids=["bent", "uniform"])
def test_bound_lies_above_what_it_bounds(make, seeded):
    x = CELLS.repeat(50_000, 1)
    with torch.no_grad():
        found = make().bound(x, gaussian(0.8), seeded(1)).reshape(-1, 3)
    assert bool((found.mean(0) - 4 * found.std(0) / math.sqrt(len(found)) > exact(CELLS, 0.8)).all())


def test_an_untrained_one_is_uniform(seeded):
    x = CELLS.repeat(20_000, 1)
    with torch.no_grad():
        y, log_q = train.Dequantiser(nn.Linear(2, 4), 0.5).double()(x, seeded(2))
    torch.testing.assert_close(log_q, torch.full_like(log_q, 2 * math.log(2)))
    off = (y - x).flatten() / 0.5
    assert float(off.var()) == pytest.approx(1 / 12, rel=0.01)
    assert float(off.mean()) == pytest.approx(0.0, abs=0.005)


def test_learning_closes_the_gap_that_uniform_noise_leaves(seeded):
    """One narrow Gaussian in each cell: uniform noise costs (1/12) / 2 s^2 + log s sqrt(2 pi), the learned almost 0."""
    s = 0.1
    x = torch.randint(3, (512, 1), generator=seeded(3)).double()
    # The mixture of peaks at 0, 1, 2 that are off their cells' middles by .1, 0, -.2.
    centre = torch.tensor([0.1, 1.0, 1.8], dtype=torch.float64)

    def log_prob(y):
        each = torch.distributions.Normal(centre, s).log_prob(y)
        return torch.logsumexp(each - math.log(3), 1)

    torch.manual_seed(0)
    made = train.Dequantiser(nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 2))).double()
    with torch.no_grad():
        before = float(made.bound(x, log_prob, seeded(4)).mean())
    losses = train.fit_dequantiser(made, x, log_prob, 600, lr=0.03, generator=seeded(5))
    with torch.no_grad():
        after = float(made.bound(x.repeat(40, 1), log_prob, seeded(6)).mean())
    shift = (0.1**2 + 0.2**2) / 3
    uniform = math.log(3) + (1 / 12 + shift) / (2 * s**2) + math.log(s * math.sqrt(2 * math.pi))
    assert before == pytest.approx(uniform, abs=0.6)
    assert math.log(3) - 0.01 < after < math.log(3) + 0.08
    assert len(losses) == 600


def test_it_learns_with_the_model_whose_density_it_serves(seeded):
    """A Gaussian of unknown width on one cell of images: both are trained by one bound, which falls to 0."""

    class Peak(nn.Module):
        def __init__(self):
            super().__init__()
            self.log_s = nn.Parameter(torch.zeros(()))

        def forward(self, y):
            return torch.distributions.Normal(0.0, self.log_s.exp()).log_prob(y).flatten(1).sum(1)

    peak, x = Peak(), torch.zeros(64, 1, 2, 2)
    alone = train.Dequantiser(nn.Conv2d(1, 2, 1))
    with torch.no_grad():
        first = float(alone.bound(x, peak, seeded(0)).mean())
    train.fit_dequantiser(alone, x, peak, 300, lr=0.03, also=[peak], generator=seeded(1))
    assert float(peak.log_s.detach()) < -1
    assert 0 <= float(alone.bound(x, peak, seeded(2)).mean().detach()) < 0.25 * first


def test_bits_of_a_score_model(seeded):
    """Its log_prob is any function of data: the flow of an exact model, bounded from above by the same mass."""
    model = sde.ExactScore(sde.Gaussian([0.0, 0.0], 0.64), sde.VP(t_min=1e-4))
    x = CELLS.repeat(300, 1)
    with torch.no_grad():
        by = bent()
        one = by.bound(x, lambda y: sde.log_prob(model, y), seeded(7))
        two = by.bound(x, gaussian(0.8), seeded(7))
    torch.testing.assert_close(one, two, atol=2e-3, rtol=0)


def test_refusals():
    for width in (0.0, -1.0, math.inf):
        with pytest.raises(ValueError, match="width must be positive, got"):
            train.Dequantiser(nn.Linear(2, 4), width)
    with pytest.raises(ValueError, match=r"net makes halves of shape \(5, 1\) for data \(5, 2\)"):
        train.Dequantiser(nn.Linear(2, 2))(torch.zeros(5, 2))
    with pytest.raises(ValueError, match="steps and batch must be at least 1, got 0 and 256"):
        train.fit_dequantiser(train.Dequantiser(nn.Linear(2, 4)), torch.zeros(5, 2), gaussian(1.0), 0)
