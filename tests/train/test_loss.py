"""The loss: its minimiser is the exact score, its minimum is the closed form, and special cases are the papers' own."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import sde
from sde.train import constant, denoising, likelihood, min_snr, unit

MEAN, SCALE, STD = 3.0, 1.7, 1.2  # the data's mean, what the model is told, and what the data have

Inside = Callable[..., Tensor]


class Linear(nn.Module):
    """F = gain c_in u + shift + slope c_in u, a gain for each sample: exact for Gaussian data with the right gains."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = torch.ones(())
        self.shift, self.slope = (
            nn.Parameter(torch.zeros((), dtype=torch.float64)),
            nn.Parameter(torch.zeros(()).double()),
        )

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.gain.reshape(-1, 1) * x + self.shift + self.slope * x


class Wavy(nn.Module):
    """Any smooth function of state and clock."""

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        c = c.reshape(-1, *[1] * (x.ndim - 1)).to(x.dtype)
        return torch.tanh(1.3 * x.roll(1, -1) - 0.4 * c) + 0.2 * x


def levels(forward: sde.ForwardSDE, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """alpha, sigma of what a network sees, and their derivatives by central differences."""

    def pair(u: Tensor) -> tuple[Tensor, Tensor]:
        if isinstance(forward, sde.ScalarSDE):
            return forward.alpha(u), forward.sigma(u)
        _, alpha, sigma = forward.statistic(forward.state(torch.zeros(len(u), 1, dtype=torch.float64)), u)
        return alpha * torch.ones_like(u), torch.as_tensor(sigma).reshape(-1)

    h = 1e-6 * forward.t_max
    (a1, s1), (a0, s0) = pair(t + h), pair(t - h)
    return *pair(t), (a1 - a0) / (2 * h), (s1 - s0) / (2 * h)


def published(param: str, z: Tensor, eps: Tensor, at: tuple[Tensor, Tensor, Tensor, Tensor], s: float) -> Tensor:
    """What the papers regress, for data of standard deviation s; one column per time."""
    alpha, sigma, dalpha, dsigma = at
    if param == "eps":  # Ho et al.
        return eps
    if param == "x0":
        return z / s
    if param == "v":  # Salimans & Ho at s = 1: alpha eps - sigma x
        return (alpha * s * eps - sigma * (z / s)) / torch.sqrt(alpha**2 * s**2 + sigma**2)
    if param == "edm":  # Karras et al., table 1, for x = u / alpha of noise sigma / alpha
        noise = sigma / alpha
        skip, out = s**2 / (noise**2 + s**2), noise * s / torch.sqrt(noise**2 + s**2)
        return (z - skip * (z + noise * eps)) / out
    if param == "velocity":  # Lipman et al. at s = 1; else of the size that it has there
        size = torch.sqrt((dalpha * s) ** 2 + dsigma**2) / torch.sqrt(dalpha**2 + dsigma**2)
        return (dalpha * z + dsigma * eps) / size
    return -eps / sigma  # Song & Ermon


def quadrature(t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """z, eps and times (4 n,): four points for each time, whose second moments are those of the Gaussian."""
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
    z, eps = (STD * signs[:, 0]).repeat(len(t)), signs[:, 1].repeat(len(t))
    return z, eps, t.repeat_interleave(4)


@pytest.fixture
def exact(forward: sde.ForwardSDE, param: str, inside: Inside) -> tuple[sde.ScoreModel, Tensor, Tensor, Tensor, float]:
    """A model whose network is the conditional expectation, the quadrature, and the minimum of its unit loss."""
    model = sde.ScoreModel(Linear(), forward, param, mean=MEAN, scale=SCALE)
    z, eps, t = quadrature(inside(forward))
    at = levels(forward, t)
    alpha, sigma = at[:2]
    u, target = alpha * z + sigma * eps, published(param, z, eps, at, SCALE)
    told = published(param, z * SCALE / STD, eps, at, SCALE)
    moment = lambda a, b: (a * b).reshape(-1, 4).mean(1)  # noqa: E731
    gain = moment(u, target) / moment(u, u)
    least = ((moment(target, target) - gain * moment(u, target)) / moment(told, told)).mean()
    net = model.net
    assert isinstance(net, Linear)
    # The network is given u in units of its standard deviation, except where flow matching gives it u itself.
    root = torch.sqrt((alpha * SCALE) ** 2 + sigma**2)
    net.gain = gain.repeat_interleave(4) * (root / torch.sqrt(alpha**2 + sigma**2) if param == "velocity" else root)
    return model, (MEAN + z)[:, None], eps[:, None], t, float(least)


def test_the_exact_network_has_the_least_loss(exact: tuple) -> None:
    model, x0, eps, t, least = exact
    assert float(denoising(model, x0, t, eps).detach()) == pytest.approx(least, rel=1e-6)


def test_no_perturbation_of_the_exact_network_lowers_the_loss(exact: tuple) -> None:
    model, x0, eps, t, _ = exact
    right = model.net.gain
    for weight in (unit, constant, likelihood, min_snr(2.0)):
        gradients, sizes = [], []
        for gain in (right, 1.1 * right):
            model.net.gain = gain
            loss = denoising(model, x0, t, eps, weight)
            gradients.append([float(g) for g in torch.autograd.grad(loss, [model.net.shift, model.net.slope])])
            sizes.append(float(loss.detach()))
        assert gradients[0] == pytest.approx([0, 0], abs=1e-6 * sizes[0])
        assert abs(gradients[1][1]) > 1e-4 * sizes[1]  # the quadrature does see a wrong network


def test_the_exact_network_makes_the_exact_score(exact: tuple) -> None:
    model, x0, _, t, _ = exact
    target = sde.ExactScore(sde.Gaussian([MEAN], STD**2), model.sde)
    x = model.sde.state(x0)
    x = x + torch.linspace(-3, 4, x.numel(), dtype=torch.float64).reshape(x.shape)
    ours, truth = model(x, t), target(x, t)
    scale = truth.score.abs().flatten(1).amax(1)
    assert float(((ours.score - truth.score).abs().flatten(1).amax(1) / scale).max().detach()) < 2e-6
    assert torch.allclose(ours.x0, truth.x0, rtol=1e-6, atol=1e-6)


# Weights.


@pytest.fixture
def batch(forward: sde.ForwardSDE, inside: Inside, seeded: Callable) -> tuple[Tensor, Tensor, Tensor]:
    """Data (20, 3) in float64, times and noise."""
    draw = lambda seed: torch.randn(20, 3, generator=seeded(seed), dtype=torch.float64)  # noqa: E731
    return MEAN + STD * draw(1), inside(forward, 20), draw(2)


def test_unit_is_one_over_the_targets_variance(forward: sde.ForwardSDE, param: str, inside: Inside) -> None:
    t = inside(forward)
    at = levels(forward, t)
    one, none = torch.ones_like(t), torch.zeros_like(t)
    variance = published(param, SCALE * one, none, at, SCALE) ** 2 + published(param, none, one, at, SCALE) ** 2
    model = sde.ScoreModel(Wavy(), forward, param, scale=SCALE)
    assert torch.allclose(unit(model.levels(t), SCALE), 1 / variance, rtol=1e-6)
    if param in ("edm", "x0", "v", "eps"):  # lambda(sigma) c_out^2 = 1 of EDM, and its like
        assert torch.allclose(variance, torch.ones_like(variance))


def test_constant_is_the_plain_squared_error(forward: sde.ForwardSDE, param: str, batch: tuple) -> None:
    x0, t, eps = batch
    model = sde.ScoreModel(Wavy(), forward, param, mean=MEAN, scale=SCALE)
    at = tuple(c[:, None] for c in levels(forward, t))
    z = x0 - MEAN
    u = at[0] * z + at[1] * eps
    root = torch.sqrt((at[0] * SCALE) ** 2 + at[1] ** 2)
    c_in = torch.sqrt(at[0] ** 2 + at[1] ** 2) / root if param == "velocity" else 1 / root
    error = model.net(c_in * u, forward.clock(t)) - published(param, z, eps, at, SCALE)
    assert float(denoising(model, x0, t, eps, constant)) == pytest.approx(float((error**2).mean()), rel=1e-6)


def test_likelihood_is_half_g_squared_on_the_score(forward: sde.ForwardSDE, param: str, batch: tuple) -> None:
    x0, t, eps = batch
    model = sde.ScoreModel(Wavy(), forward, param, mean=MEAN, scale=SCALE)
    if isinstance(forward, sde.ScalarSDE):
        point = forward.at(x0, t, eps)
        error = model(point.x, t).score - point.score
        loss = 0.5 * (forward.f_g2(x0, t)[1] * error**2).mean()
    else:  # 1/2 |G' error|^2 over all channels; the network sees no more than the statistic's noise
        state = torch.randn(20, forward.channels, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        point = forward.at(x0, t, state)
        error = model(point.x, t).score - point.score
        loss = 0.5 * (error * forward.gain(error, t)).sum(1).mean()
        seen, alpha, sigma = forward.statistic(point.x, t)
        eps = (seen - alpha * x0) / sigma
    assert float(denoising(model, x0, t, eps, likelihood)) == pytest.approx(float(loss), rel=1e-6)


def test_min_snr_is_the_capped_snr_on_x0(forward: sde.ForwardSDE, param: str, batch: tuple) -> None:
    x0, t, eps = batch
    model = sde.ScoreModel(Wavy(), forward, param, mean=MEAN, scale=SCALE)
    alpha, sigma, *_ = (c[:, None] for c in levels(forward, t))
    if isinstance(forward, sde.ScalarSDE):
        estimate = model(forward.at(x0, t, eps).x, t).x0
    else:  # a state whose statistic is x0 + sigma eps
        estimate = model(forward.mean(x0 + sigma * eps, t), t).x0
    for gamma in (0.5, 5.0):
        weight = ((alpha * SCALE / sigma) ** 2).clamp(max=gamma)
        loss = (weight * ((estimate - x0) / SCALE) ** 2).mean()
        assert float(denoising(model, x0, t, eps, min_snr(gamma))) == pytest.approx(float(loss), rel=1e-6)


@pytest.mark.parametrize(
    ("meaning", "divisor"), [("eps", lambda snr: snr), ("x0", lambda snr: 1.0), ("v", lambda snr: snr + 1)]
)
def test_min_snr_as_printed(meaning: str, divisor: Callable[[Tensor], Tensor | float]) -> None:
    """Hang et al. (2023), section 3.4: min(SNR, gamma) for x0, over SNR for eps, over SNR + 1 for v; VP, unit data."""
    vp = sde.VP()
    t = torch.linspace(0.01, 1, 50, dtype=torch.float64)
    snr = vp.alpha(t) ** 2 / vp.sigma(t) ** 2
    model = sde.ScoreModel(Wavy(), vp, meaning)
    assert torch.allclose(min_snr(5.0)(model.levels(t), 1.0), snr.clamp(max=5.0) / divisor(snr), rtol=1e-9)


# Losses as published, written out.


def test_edm_loss_as_published(seeded: Callable) -> None:
    """Karras et al. (2022), table 1 and eq. 2: lambda |D(y + n; sigma) - y|^2 with sigma_data = .5."""
    data = 0.5
    y, n = (torch.randn(64, 3, 4, 4, generator=seeded(i), dtype=torch.float64) for i in (1, 2))
    sigma = torch.exp(-1.2 + 1.2 * torch.randn(64, generator=seeded(3), dtype=torch.float64))
    s, net = sigma.reshape(-1, 1, 1, 1), Wavy()
    c_skip, c_out = data**2 / (s**2 + data**2), s * data / torch.sqrt(data**2 + s**2)
    c_in, c_noise = 1 / torch.sqrt(data**2 + s**2), torch.log(sigma) / 4
    x = y + s * n
    denoised = c_skip * x + c_out * net(c_in * x, c_noise)
    loss = ((s**2 + data**2) / (s * data) ** 2 * (denoised - y) ** 2).mean()
    model = sde.ScoreModel(net, sde.EDM(), "edm", scale=data)
    assert float(denoising(model, y, sigma, n)) == pytest.approx(float(loss), rel=1e-12)
    assert torch.allclose(model(x, sigma).x0, denoised, rtol=1e-12)


def test_ddpm_simple_loss_as_published(seeded: Callable) -> None:
    """Ho et al. (2020), eq. 14: |eps - eps_theta(sqrt(abar_i) x0 + sqrt(1 - abar_i) eps, i)|^2, i from 0 in code."""
    table = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    x0, eps = (torch.randn(40, 2, generator=seeded(i), dtype=torch.float64) for i in (1, 2))
    i = torch.randint(1000, (40,), generator=seeded(3))
    net, bar = Wavy(), table[i][:, None]
    loss = ((eps - net(bar.sqrt() * x0 + (1 - bar).sqrt() * eps, i)) ** 2).mean()
    model = sde.ScoreModel(net, sde.Tabulated.linear(), "eps")
    for weight in (constant, unit):  # one and the same for eps
        assert float(denoising(model, x0, i + 1.0, eps, weight)) == pytest.approx(float(loss), rel=1e-9)


def test_flow_matching_loss_as_published(seeded: Callable) -> None:
    """Lipman et al. (2023), eq. 23 with their time reversed: |v_theta((1 - t) x0 + t eps, t) - (eps - x0)|^2."""
    x0, eps = (torch.randn(40, 2, generator=seeded(i), dtype=torch.float64) for i in (1, 2))
    t = torch.rand(40, generator=seeded(3), dtype=torch.float64)
    net, u = Wavy(), t[:, None]
    loss = float(((net((1 - u) * x0 + u * eps, t) - (eps - x0)) ** 2).mean())
    model = sde.ScoreModel(net, sde.Flow(), "velocity")
    assert float(denoising(model, x0, t, eps, constant)) == pytest.approx(loss, rel=1e-12)
    assert float(denoising(model, x0, t, eps, unit)) == pytest.approx(loss / 2, rel=1e-12)


def test_score_matching_loss_as_published(seeded: Callable) -> None:
    """Song et al. (2021), eq. 7 with lambda = sigma^2: sigma^2 |s_theta(x, t) + eps / sigma|^2 on VE."""
    ve = sde.VE()
    x0, eps = (torch.randn(40, 2, generator=seeded(i), dtype=torch.float64) for i in (1, 2))
    t = torch.rand(40, generator=seeded(3), dtype=torch.float64)
    sigma = (0.01 * 5000.0**t)[:, None]
    x, net = x0 + sigma * eps, Wavy()
    loss = (sigma**2 * (net(x / torch.sqrt(1 + sigma**2), torch.log(sigma[:, 0]) / 4) + eps / sigma) ** 2).mean()
    model = sde.ScoreModel(net, ve, "score")
    assert float(denoising(model, x0, t, eps)) == pytest.approx(float(loss), rel=1e-9)


# Shapes and types.


@pytest.mark.parametrize("shape", [(5, 1), (5, 3, 8, 8), (5, 3, 4, 8, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_and_dtypes(shape: tuple[int, ...], dtype: torch.dtype, seeded: Callable) -> None:
    x0, eps = (torch.randn(shape, generator=seeded(i)).to(dtype) for i in (1, 2))
    model = sde.ScoreModel(Wavy(), sde.VP())
    loss = denoising(model, x0, torch.linspace(0.1, 1, 5), eps)
    each = [denoising(model, x0[i : i + 1], torch.linspace(0.1, 1, 5)[i : i + 1], eps[i : i + 1]) for i in range(5)]
    assert loss.dtype == dtype
    assert loss.shape == ()
    assert float(loss) == pytest.approx(math.fsum(float(e) for e in each) / 5, rel=1e-5)


def test_conditioning_reaches_the_network() -> None:
    class Told(nn.Module):
        def forward(self, x: Tensor, c: Tensor, told: Tensor) -> Tensor:
            return told[:, None].expand_as(x)

    model = sde.ScoreModel(Told(), sde.VP(), "eps")
    zeros, told = torch.zeros(3, 2), torch.tensor([1.0, 2.0, 3.0])
    assert float(denoising(model, zeros, torch.full((3,), 0.5), zeros, told=told)) == pytest.approx(14 / 3)


def test_an_empty_mean_is_no_special_case(seeded: Callable) -> None:
    """Data moved by the model's mean have the same loss."""
    x0, eps = (torch.randn(6, 2, generator=seeded(i), dtype=torch.float64) for i in (1, 2))
    t, mean = torch.linspace(0.1, 1, 6), torch.tensor([8.0, -4.0])
    here, there = (sde.ScoreModel(Wavy(), sde.VP(), mean=m) for m in (0.0, mean))
    assert float(denoising(here, x0, t, eps)) == pytest.approx(float(denoising(there, x0 + mean, t, eps)), rel=1e-12)
