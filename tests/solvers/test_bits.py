"""Bits per dimension against densities that are known: the offset, the cells, the probes and their errors."""

import math

import pytest
import torch

import sde
from sde.data import digits
from sde.score import Model
from sde.solvers import BitsPerDim, bits_per_dim, hutchinson, log_prob
from sde.solvers.likelihood.log_prob import log_likelihood, times_up
from sde.solvers.likelihood.traces import signs


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class Still(Model):
    """A model that knows nothing: nothing moves, and the prior is uniform over all cells."""

    def __init__(self, low, high, levels):
        super().__init__()
        self.sde, self.reach = sde.Flow(), (high - low) / (levels - 1) / 2
        self.low, self.high = low - self.reach, high + self.reach

    def forward(self, x, t):
        return sde.Point(self.sde, x, t, x, x)  # velocity eps - x0 = 0

    def prior_log_prob(self, x, sde=None):
        edge = 1e-4 * self.reach  # what steps leave of an image's place
        inside = ((x >= self.low - edge) & (x <= self.high + edge)).flatten(1).all(1)
        return torch.where(inside, -x[0].numel() * math.log(self.high - self.low), -math.inf)

    def data_scale(self):
        return 0.5

    def data_mean(self):
        return None


@pytest.mark.parametrize(
    ("levels", "low", "high"), [(256, -1.0, 1.0), (256, 0.0, 1.0), (17, -1.0, 1.0), (2, -3.0, 5.0), (256, 0.0, 255.0)]
)
def test_no_knowledge_costs_log2_of_the_levels(levels, low, high):
    """Every level at every pixel, noise and all, stays within its cell: log2(levels) bits, exactly."""
    x = torch.arange(levels).repeat(2).reshape(-1, 1, 1, 2).to(torch.uint8)
    model = Still(low, high, levels)
    found = bits_per_dim(model, x, levels=levels, low=low, high=high, steps=64, solver=sde.RK4(), generator=generator())
    assert found.value == pytest.approx(math.log2(levels), abs=2e-5)
    assert found.error == pytest.approx(0, abs=2e-5)
    floats = low + x.double() * (high - low) / (levels - 1)
    same = bits_per_dim(
        model, floats.float(), levels=levels, low=low, high=high, steps=64, solver=sde.RK4(), generator=generator()
    )
    torch.testing.assert_close(same.bits, found.bits, rtol=0, atol=1e-5)


def test_noise_fills_the_cell_and_no_more():
    """A uniform density one cell wide, under the level itself: 0 bits; half a cell aside half the images are lost."""
    model = Still(-1.0, 1.0, 256)
    model.low, model.high = -1 - model.reach * 1.0001, -1 + model.reach * 1.0001
    x = torch.zeros(500, 1, 1, 1, dtype=torch.uint8)
    assert bits_per_dim(model, x, steps=64, solver=sde.RK4(), generator=generator()).value == pytest.approx(0, abs=1e-3)
    model.low, model.high = -1.0, -1 + 2 * model.reach
    lost = bits_per_dim(model, x, steps=64, solver=sde.RK4(), generator=generator()).bits.isinf().double().mean()
    assert lost == pytest.approx(0.5, abs=0.1)


@pytest.fixture
def correlated():
    w = torch.randn(12, 12, generator=generator(3), dtype=torch.float64) / 12**0.5
    return sde.Gaussian(torch.zeros(3, 2, 2), 0.08 * (w @ w.T) + 0.02 * torch.eye(12))


def quantised(target, n):
    return ((target.sample(n, generator(1)).clamp(-1, 1) + 1) * 127.5).round().byte()


@pytest.mark.parametrize("name", ["VP", "EDM", "Flow"])
def test_a_gaussian_on_images_has_its_closed_form(name, correlated):
    """E_u −log N(x + Δ u): −log N(x) + tr(C⁻¹) Δ² / 24, with C of the marginal at t_min."""
    model = sde.ExactScore(correlated, getattr(sde, name)())
    x = quantised(correlated, 64)
    found = bits_per_dim(model, x, probes=0, steps=64, solver=sde.RK4(), generator=generator())
    levels = x.double() / 127.5 - 1
    nats = -model.log_prob(levels, model.sde.t_min)
    _, alpha, sigma = model.sde.statistic(levels, model.sde.t_min)
    cov = float(alpha) ** 2 * correlated.covs[0] + float(sigma) ** 2 * torch.eye(12)
    expected = (nats + torch.linalg.inv(cov).trace() / 127.5**2 / 24) / 12 / math.log(2) + math.log2(127.5)
    spread = (found.bits[:, 0] - expected).std()
    assert abs(found.value - float(expected.mean())) < 4 * float(spread) / 8 + 1e-3
    assert spread < 0.2
    assert found.evaluations == 256
    assert found.error == pytest.approx(float(found.bits.std()) / 8)


def test_without_noise_it_is_log_prob_and_an_offset(correlated):
    model = sde.ExactScore(correlated, sde.VP())
    x = correlated.sample(6, generator())
    found = bits_per_dim(model, x, dequantize=False, probes=0, offset=0.0, steps=128)
    torch.testing.assert_close(found.bits[:, 0], -log_prob(model, x) / 12 / math.log(2), rtol=0, atol=1e-5)
    more = bits_per_dim(model, x, dequantize=False, probes=0, offset=1.5, steps=128)
    torch.testing.assert_close(more.bits, found.bits + 1.5)
    other = bits_per_dim(model, x, dequantize=False, probes=0, levels=3, low=0.0, high=1.0, steps=128)
    torch.testing.assert_close(other.bits, found.bits + 1)


def test_digits_have_seventeen_levels():
    x = digits().x[:40]
    target = sde.Mixture(torch.ones(20) / 20, digits().x[40:60], torch.full((20,), 0.1))
    model = sde.ExactScore(target, sde.VP())
    found = bits_per_dim(model, x, levels=17, generator=generator())
    noisy = x.double() + 0.125 * (torch.rand(x.shape, generator=generator()).double() - 0.5)
    exact = -model.log_prob(noisy, model.sde.t_min) / 64 / math.log(2) + 3
    assert abs(float((found.bits[:, 0] - exact).mean())) < 4 * float((found.bits[:, 0] - exact).std()) / 40**0.5 + 1e-3
    with pytest.raises(ValueError, match=r"x must lie on 256 levels from -1 to 1, .*of a level off"):
        bits_per_dim(model, x)


def test_probes_are_unbiased_and_tell_their_error(correlated):
    model = sde.ExactScore(correlated, sde.VP())
    x = correlated.sample(40, generator())
    times = times_up(model, 32)
    exact = bits_per_dim(model, x, dequantize=False, probes=0, times=times).bits
    found = bits_per_dim(model, x, dequantize=False, probes=16, times=times, generator=generator(2))
    assert found.bits.shape == (40, 16)
    assert abs(found.value - float(exact.mean())) < 4 * found.probe_error
    off = (found.bits - exact).square().mean()
    assert found.probe_error == pytest.approx(float((off / 640).sqrt()), rel=0.15)
    together = -log_prob(model, x, times, trace=sde.Hutchinson(16), generator=generator(2)) / 12 / math.log(2)
    torch.testing.assert_close(together + math.log2(127.5), found.bits.mean(1), rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", ["VP", "EDM", "Flow", "SubVP"])
def test_the_default_steps_are_enough_under_every_schedule(name):
    """With a mean, so that nothing is centred by chance, and structure a hundredth of the data's scale."""
    target = sde.Mixture([0.4, 0.6], [[0.6, 0.5], [-0.6, 0.2]], [[0.3, 1e-4], [0.01, 0.05]])
    model = sde.ExactScore(target, getattr(sde, name)())
    x = target.sample(64, generator())
    exact = model.log_prob(x, model.sde.t_min)[:, None]
    found = [log_likelihood(model, x, times_up(model, n)) for n in (64, 128)]
    errors = [float((f.values - exact).abs().mean()) for f in found]
    assert [f.evaluations for f in found] == [64, 128]
    assert errors[0] < 0.01
    assert errors[1] < errors[0] / 6


def test_a_coupled_model_and_a_matrix_sde_have_bits(correlated):
    """Only the velocity is used; and there is no angle for a matrix."""
    net = sde.nets.MLP(dim=2, width=8)
    torch.nn.init.normal_(net.outward.weight, std=0.3)
    free, coupled = (sde.ScoreModel(net, sde.Flow(), "velocity", coupled=c) for c in (False, True))
    x = torch.tensor([[3, 200], [128, 90]], dtype=torch.uint8)
    one, two = (bits_per_dim(model, x, steps=4, generator=generator()) for model in (free, coupled))
    assert torch.equal(one.bits, two.bits)
    model = sde.ExactScore(sde.Gaussian([0.0, 0.1], 0.1), sde.CLD())
    state = model.sde.perturb(torch.zeros(4, 2).double(), model.sde.t_min, generator()).x
    found = bits_per_dim(model, state, dequantize=False, probes=0, offset=0.0, steps=144)
    torch.testing.assert_close(found.bits[:, 0], -log_prob(model, state) / 4 / math.log(2))


def test_hutchinson_has_the_mean_and_the_variance_of_its_formula():
    w = torch.randn(6, 6, generator=generator(), dtype=torch.float64)
    x = torch.randn(1, 2, 3, generator=generator(1), dtype=torch.float64)
    z = signs(x.shape, 20_000, generator(2), x)
    v, found = hutchinson(lambda u: (u.flatten(1) @ w).reshape(u.shape), x, z[:200])
    assert torch.equal(v, (x.flatten(1) @ w).reshape(x.shape))
    torch.testing.assert_close(found[0], ((z[:200, 0].flatten(1) @ w) * z[:200, 0].flatten(1)).sum(1))
    many = ((z[:, 0].flatten(1) @ w) * z[:, 0].flatten(1)).sum(1)
    symmetric = w + w.T
    variance = float(symmetric.triu(1).square().sum())
    assert abs(float(many.mean() - w.trace())) < 4 * math.sqrt(variance / 20_000)
    assert float(many.var()) == pytest.approx(variance, rel=0.05)
    assert hutchinson(lambda u: torch.ones_like(u), x, z[:2])[1].abs().max() == 0


def test_an_images_bits_are_its_own(correlated):
    """With a generator for each, the batch does not matter; with one, the order of drawing does."""
    model, x = sde.ExactScore(correlated, sde.VP()), quantised(correlated, 7)

    def run(batch, order=slice(None)):
        own = [generator(i) for i in range(7)]
        return bits_per_dim(model, x[order], batch=batch, generator=own[order], steps=8, probes=2).bits

    torch.testing.assert_close(run(3), run(7))
    torch.testing.assert_close(run(7, slice(2, 5)), run(7)[2:5])
    one = bits_per_dim(model, x, generator=generator(), steps=8)
    assert torch.equal(one.bits, bits_per_dim(model, x, generator=generator(), steps=8).bits)
    assert not torch.equal(one.bits, bits_per_dim(model, x, generator=generator(1), steps=8).bits)


def test_labels_go_with_their_images():
    net = sde.nets.MLP(dim=2, classes=3, width=8)
    torch.nn.init.normal_(net.outward.weight)
    model = sde.ScoreModel(net, sde.VP())
    x, label = torch.full((6, 2), 128, dtype=torch.uint8), torch.tensor([0, 1, 2, 2, 1, 0])
    own = [generator() for _ in range(6)]
    found = bits_per_dim(model, x, label=label, batch=4, steps=4, generator=own).bits[:, 0]
    torch.testing.assert_close(found, found.flip(0), rtol=0, atol=1e-4)
    assert found[:3].unique().numel() == 3


def test_parts_merge_to_the_whole():
    bits = torch.rand(10, 2, generator=generator(), dtype=torch.float64)
    whole = BitsPerDim(bits[:4], 128).merge(BitsPerDim(bits[4:], 128))
    assert torch.equal(whole.bits, bits)
    assert whole.value == pytest.approx(float(bits.mean()))
    assert math.isnan(BitsPerDim(bits[:, :1], 1).probe_error)
    assert math.isnan(BitsPerDim(bits[:1], 1).error)


def test_what_does_not_fit_is_refused(correlated):
    model = sde.ExactScore(correlated, sde.VP())
    x = quantised(correlated, 4)
    with pytest.raises(ValueError, match="levels must be at least 2 from low to high, got 1"):
        bits_per_dim(model, x, levels=1)
    with pytest.raises(ValueError, match=r"got 256 from 1.0 to -1.0"):
        bits_per_dim(model, x, low=1.0, high=-1.0)
    with pytest.raises(ValueError, match=r"label must be one for each of the 4 images, got 3"):
        bits_per_dim(model, x, label=torch.zeros(3))
    with pytest.raises(ValueError, match=r"generator must be one for each of the 4 images, got 1"):
        bits_per_dim(model, x, generator=[generator()])
    with pytest.raises(TypeError, match=r"x must be uint8 or floating, got torch.int64"):
        bits_per_dim(model, x.long())
    with pytest.raises(ValueError, match="x must lie on 17 levels from -1 to 1"):
        bits_per_dim(model, x, levels=17)
    with pytest.raises(ValueError, match="x must lie on 256 levels"):
        bits_per_dim(model, 2 * (x.float() / 127.5 - 1))
    with pytest.raises(ValueError, match=r"x must be \(n, \*D\)"):
        bits_per_dim(model, x[:0])
    with pytest.raises(ValueError, match="probes must be at least 0 and batch at least 1, got 1 and 0"):
        bits_per_dim(model, x, batch=0)
    with pytest.raises(ValueError, match=r"probes must be a whole number of at least 1, got -1"):
        sde.Hutchinson(-1)


@pytest.mark.gpu
def test_nothing_waits_for_the_gpu_inside_a_batch(correlated):
    """Only the checks at a batch's start and the bits at its end do: as many waits for 4 steps as for 40."""
    import warnings

    net = torch.nn.Conv2d(3, 3, 1)
    model = sde.ScoreModel(Timeless(net), sde.VP()).cuda()
    x = quantised(correlated, 8)

    def waits(steps):
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                bits_per_dim(model, x, steps=steps)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return sum("synchroniz" in str(w.message) for w in seen)

    waits(4)
    assert waits(4) == waits(40)


class Timeless(torch.nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, c):
        return self.net(x)
