"""Three ways to match a score have one gradient, one minimiser, and variances that are known on a Gaussian."""

import math

import pytest
import torch
from torch import nn

import sde
from sde import train
from sde.train import CheckpointError
from sde.train.settings import Settings

LOSSES = {
    "denoising": train.Denoising(train.noise),
    "implicit": train.Implicit(),
    "sliced": train.Sliced(),
    "two slices": train.Sliced(probes=2),
    "not reduced": train.Sliced(reduced=False),
}


class Matrix(nn.Module):
    """F = x A'."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.zeros(dim, dim, dtype=torch.float64))

    def forward(self, x, c, **cond):
        return x @ self.a.T


def gaussian(n, seed, cov=((1.0, 0.5), (0.5, 2.0))):
    root = torch.linalg.cholesky(torch.tensor(cov, dtype=torch.float64))
    return torch.randn(n, len(cov), dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) @ root.T


@pytest.mark.parametrize(
    ("name", "means"),
    [("implicit", means) for means in ("eps", "edm", "x0", "v", "score", "velocity")]
    + [("sliced", "edm"), ("two slices", "eps"), ("not reduced", "v")],
)
def test_one_gradient_in_expectation(name, means, small, seeded):
    """Differences of paired batches are zero within five standard errors, for a network that is not linear."""
    model = small(sde.VP(), net=sde.nets.MLP(dim=2, width=8, depth=1, features=4), param=means).double()
    nn.init.normal_(model.net.outward.weight, std=0.5, generator=seeded(3))
    g, target = seeded(0), sde.Mixture([0.3, 0.7], [[-1.0, 0.5], [1.0, 0.0]], [0.1, 0.3])
    weights = [p for p in model.parameters() if p.requires_grad]
    both = {name: LOSSES[name], "denoising": LOSSES["denoising"]}
    gap, length = [], []
    for _ in range(40):
        x0, t = target.sample(2000, g).double(), 0.3 + 0.3 * torch.rand(2000, generator=g, dtype=torch.float64)
        eps = torch.randn(2000, 2, generator=g, dtype=torch.float64)
        found = [torch.autograd.grad(loss(model, x0, t, eps, g), weights, allow_unused=True) for loss in both.values()]
        a, b = (torch.cat([v.flatten() for v in each if v is not None]) for each in found)
        gap.append(a - b)
        length.append(b)
    gap, mean = torch.stack(gap), torch.stack(length).mean(0)
    error = gap.std(0) / math.sqrt(len(gap)) + 1e-12
    assert float((gap.mean(0) / error).abs().max()) < 5
    assert float(error.norm() / mean.norm()) < 0.1  # so that another factor would be seen


def test_values_differ_by_what_does_not_depend_on_the_network(small):
    """Implicit minus denoising is the same number for two networks: minus the mean of |target|^2 given the state."""
    x0, g = gaussian(200_000, 1, ((1.0, 0.0), (0.0, 1.0))), torch.Generator().manual_seed(2)
    eps = torch.randn(x0.shape, generator=g, dtype=torch.float64)
    t = torch.full((len(x0),), 0.4, dtype=torch.float64)
    sigma = float(sde.VP().levels(t[:1])[1])
    for seed in (0, 1):
        model = small(sde.VP(), seed=seed, net=sde.nets.MLP(dim=2, width=8, depth=1), param="eps").double()
        gap = float((LOSSES["implicit"](model, x0, t, eps) - LOSSES["denoising"](model, x0, t, eps)).detach())
        assert gap == pytest.approx(-1.0, abs=0.02), (seed, sigma)


@pytest.mark.parametrize("name", list(LOSSES))
def test_minimiser_is_the_exact_score_of_a_gaussian(name):
    """eps = sigma C^-1 u for C = alpha^2 S + sigma^2: found by Newton's step, as the loss is quadratic."""
    cov = torch.tensor([[1.0, 0.5], [0.5, 2.0]], dtype=torch.float64)
    x0, forward = gaussian(200_000, 4), sde.VP()
    g = torch.Generator().manual_seed(5)
    eps = torch.randn(x0.shape, generator=g, dtype=torch.float64)
    t = torch.full((len(x0),), 0.3, dtype=torch.float64)
    model = sde.ScoreModel(Matrix(2), forward, "eps").double()
    at = model.levels(t[0])
    state = (at.alpha * x0 + at.sigma * eps) * at.c_in
    (slope,) = torch.autograd.grad(LOSSES[name](model, x0, t, eps, g), [model.net.a])
    second = state.T @ state / len(x0)  # of the loss by A: its gradient is A S + slope(0)
    best = -slope @ torch.linalg.inv(second) if name != "not reduced" else None
    exact = at.sigma * torch.linalg.inv(at.alpha**2 * cov + at.sigma**2 * torch.eye(2)) / at.c_in
    if best is None:  # (v' s)^2 has a Hessian of its own: the gradient at the exact score vanishes
        with torch.no_grad():
            model.net.a.copy_(exact)
        (left,) = torch.autograd.grad(LOSSES[name](model, x0, t, eps, g), [model.net.a])
        assert float(left.abs().max()) < 0.02
        assert float(slope.abs().max()) > 0.2
    else:
        torch.testing.assert_close(best, exact, atol=0.01, rtol=0)


class One(nn.Module):
    def __init__(self, a: float) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a, dtype=torch.float64))

    def forward(self, x, c, **cond):
        return self.a * x


def test_gradient_variance_of_a_line_is_the_closed_form():
    """F = a x for unit data, rho = sigma / r: denoising 4 (2 a^2 - 4 a rho + 1 + rho^2), implicit 8 a^2."""
    model = sde.ScoreModel(One(0.4), sde.Flow(), "eps").double()
    times = torch.tensor([0.1, 0.4, 0.8], dtype=torch.float64)
    data = torch.randn(100_000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    losses = {"denoising": train.Denoising(), "implicit": train.Implicit()}
    found = train.gradient_variance(
        model, data, losses, times, draws=600, weight=train.noise, generator=torch.Generator().manual_seed(1)
    )
    rho = times / torch.hypot(times, 1 - times)
    a = 0.4
    exact = {"denoising": 4 * (2 * a**2 - 4 * a * rho + 1 + rho**2), "implicit": torch.full_like(rho, 8 * a**2)}
    for name in losses:
        off = (found.variance[name] - exact[name]).abs() / found.variance_error[name]
        assert float(off.max()) < 4, name
        assert float((found.variance_error[name] / exact[name]).max()) < 0.12
        off = (found.mean[name] - 4 * (a - rho) ** 2).abs() / found.mean_error[name]
        assert float(off.max()) < 4, name


def test_slices_add_the_variance_of_their_signs():
    """F = A x: the gradient (2 / d)(A x x' - rho v v') has 4 rho^2 (d^2 - d) / d^2 more than without slices."""
    d, model = 3, sde.ScoreModel(Matrix(3), sde.Flow(), "eps").double()
    data = torch.randn(50_000, d, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.6], dtype=torch.float64)
    losses = {"implicit": train.Implicit(), "one": train.Sliced(), "two": train.Sliced(probes=2)}
    found = train.gradient_variance(model, data, losses, t, draws=400, generator=torch.Generator().manual_seed(1))
    rho = float(t / torch.hypot(t, 1 - t))
    extra = 4 * rho**2 * (d**2 - d) / d**2
    assert float(found.variance["implicit"]) < 1e-12  # at A = 0 its gradient is -2 rho / d, always
    assert float(found.variance["one"]) == pytest.approx(extra, abs=4 * float(found.variance_error["one"]))
    assert float(found.variance["two"]) == pytest.approx(extra / 2, abs=4 * float(found.variance_error["two"]))


def test_gradient_variance_leaves_the_model_and_refuses_few_draws(small, points, bits):
    model = small()
    before = bits(model)
    train.gradient_variance(model, points, {"d": train.Denoising()}, torch.tensor([0.5]), draws=4, batch=8)
    assert torch.equal(before, bits(model))
    assert all(p.grad is None for p in model.parameters())
    with pytest.raises(ValueError, match="draws must be at least 4, got 2"):
        train.gradient_variance(model, points, {"d": train.Denoising()}, torch.tensor([0.5]), draws=2)
    with pytest.raises(ValueError, match=r"times must be \(T,\)"):
        train.gradient_variance(model, points, {"d": train.Denoising()}, torch.tensor(0.5))


def test_losses_are_finite_with_their_gradients_where_alpha_is_zero(small, points):
    for param in ("eps", "edm", "velocity"):
        for loss in LOSSES.values():
            model = small(sde.Flow(), param=param)
            made = loss(model, points, torch.ones(len(points)), torch.randn(points.shape))
            made.backward()
            slopes = [p.grad for p in model.parameters() if p.grad is not None]
            assert torch.isfinite(made)
            assert all(torch.isfinite(v).all() for v in slopes)


def test_weights_make_the_error_of_what_they_name(forward, inside):
    """A wrong F of each parameterisation shows the same error of eps, and of the velocity, under those weights."""
    if isinstance(forward, sde.MatrixSDE):
        pytest.skip("the statistic has no velocity of its own")
    t, off = inside(forward), 0.1
    for param in ("eps", "edm", "x0", "v"):
        model = sde.ScoreModel(nn.Identity(), forward, param, scale=1.7)
        at = model.levels(t)
        x = torch.ones(len(t), 1, dtype=torch.float64)
        a, b = (_moved(model, x, t, off * i) for i in (0, 1))
        f = off**2
        eps, speed = ((p - q).square().flatten() for p, q in zip(a, b, strict=True))
        torch.testing.assert_close(train.noise(at, 1.7) * f, eps, rtol=1e-6, atol=1e-12)
        torch.testing.assert_close(train.velocity(at, 1.7) * f, speed, rtol=1e-6, atol=1e-12)


def _moved(model, x, t, off):
    class Constant(nn.Module):
        def forward(self, x, c):
            return torch.full_like(x, off)

    model.net = Constant()
    point = model(x, t)
    return point.eps, point.velocity


def test_karras_weight_is_that_of_edm_for_any_network(scalar, inside):
    at = {p: sde.ScoreModel(nn.Identity(), scalar, p, scale=0.5).levels(inside(scalar)) for p in ("edm", "x0", "eps")}
    torch.testing.assert_close(train.karras(at["edm"], 0.5), torch.ones(5, dtype=torch.float64))
    of_x0 = train.karras(at["x0"], 0.5) / 0.5**2  # per error of x0 itself: F is x0 / s
    ratio = at["x0"].sigma / at["x0"].alpha
    torch.testing.assert_close(of_x0, (ratio**2 + 0.25) / (ratio * 0.5) ** 2)


@pytest.mark.parametrize(("name", "loss"), list(LOSSES.items()))
def test_fit_learns_a_gaussian_by_each_loss(name, loss, small):
    x = gaussian(4000, 0).float()
    model = small(sde.VP(), mean=x.mean(0), scale=float(x.std()))
    sde.fit(model, x, 400, lr=1e-2, loss=loss, generator=torch.Generator().manual_seed(0), progress=False)
    exact = sde.ExactScore(sde.Gaussian([0.0, 0.0], [[1.0, 0.5], [0.5, 2.0]]), sde.VP())
    seen = sde.VP().perturb(x[:500], 0.3, torch.Generator().manual_seed(1)).x
    with torch.no_grad():
        found, truth = model(seen, 0.3).score, exact(seen, 0.3).score
    assert float((found - truth).norm() / truth.norm()) < 0.2


def test_fit_takes_what_the_loss_asks_for_unless_told(small, points):
    own = Settings(5, loss=train.maximum_likelihood()).objective
    assert (own.weight, own.times) == (train.likelihood, train.LikelihoodTimes())
    told = Settings(5, loss=train.maximum_likelihood(), weight=train.unit, times=train.Uniform()).objective
    assert (told.weight, told.times) == (train.unit, train.Uniform())
    model = small(sde.Flow(), param="velocity")
    loss = train.flow_matching(train.optimal_transport)
    sde.fit(model, points, 2, batch=8, loss=loss, progress=False)
    assert model.coupled


def test_losses_by_name_are_the_losses_of_the_arguments(small, points, bits):
    """flow_matching() is Flow's velocity with constant weight and uniform times; the default is Denoising()."""
    pairs = [
        ({"loss": train.flow_matching()}, {"weight": train.constant, "times": train.Uniform()}),
        ({"loss": train.Denoising()}, {}),
    ]
    for one, two in pairs:
        found = []
        for told in (one, two):
            model = small(sde.Flow(), param="velocity")
            sde.fit(model, points, 10, batch=8, generator=torch.Generator().manual_seed(0), progress=False, **told)
            found.append(bits(model))
        torch.testing.assert_close(*found, rtol=1e-6, atol=1e-7)


def test_edm_loss_is_the_papers():
    """Table 1 of Karras et al., data of scale 1/2: ln sigma ~ N(-1.2, 1.2^2), (sigma^2 + 1/4) / (sigma / 2)^2 on x0."""
    loss, forward = train.edm_loss(), sde.EDM(1e-6, 1e6)  # so wide that nothing is cut
    u = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    sigma = loss.times.quantile(forward, u, 0.5)
    torch.testing.assert_close(torch.log(sigma), -1.2 + 1.2 * torch.special.ndtri(u), atol=1e-6, rtol=0)
    error = 0.3  # of x0, by a network that gives F = x0 / scale
    at = sde.ScoreModel(nn.Identity(), forward, "x0", scale=0.5).levels(sigma)
    found = loss.weight(at, 0.5) * (error / 0.5) ** 2
    torch.testing.assert_close(found, (sigma**2 + 0.25) / (0.5 * sigma) ** 2 * error**2)


def test_losses_by_name_are_those_of_their_papers():
    found = train.min_snr_loss(3.0)
    assert (found.weight.__name__, found.times) == ("min_snr(3)", train.Uniform())
    at = sde.ScoreModel(nn.Identity(), sde.VP(), "eps").levels(torch.tensor([0.01, 0.5, 0.9], dtype=torch.float64))
    snr = (at.alpha / at.sigma) ** 2
    torch.testing.assert_close(found.weight(at, 1.0), snr.clamp_max(3.0) / snr)  # Hang et al., eq. 8
    found = train.maximum_likelihood()
    assert (found.weight, found.times) == (train.likelihood, train.LikelihoodTimes())
    found = train.flow_matching()
    assert (found.weight, found.times, found.coupling) == (train.velocity, train.Uniform(), None)


def test_batch_loss_is_the_loss_that_fit_makes(small, points):
    """One part or two: the same gradient, up to what the slices draw."""
    for loss in (train.Implicit(), train.Denoising(train.noise)):
        whole, halves = (
            next(sde.fit_steps(small(), points, 1, batch=64, loss=loss, accumulate=k,
                               generator=torch.Generator().manual_seed(0))).loss
            for k in (1, 2)
        )  # fmt: skip
        torch.testing.assert_close(whole, halves)


def test_conditions_and_images_reach_every_loss(small):
    x, label = torch.randn(40, 2), torch.randint(3, (40,))
    for loss in LOSSES.values():
        model = small(net=sde.nets.MLP(dim=2, classes=3, width=8))
        sde.fit(model, x, 2, cond={"label": label}, batch=8, drop=0.2, loss=loss, progress=False)
    images = torch.randint(256, (20, 1, 4, 4), dtype=torch.uint8)
    net = nn.Conv2d(1, 1, 3, padding=1)
    model = sde.ScoreModel(_Image(net), sde.VP())
    sde.fit(model, images, 2, batch=8, loss=train.Sliced(), progress=False)


class _Image(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x, c):
        return self.net(x)


def test_resumed_run_by_slices_makes_the_same_bits(small, points, bits, tmp_path):
    def go(model, path=None, stop=None):
        def halt(step):
            if step.step == stop:
                raise KeyboardInterrupt

        told = {"batch": 16, "every": 5, "loss": train.Sliced(probes=2), "progress": False, "checkpoint": path}
        return sde.fit(model, points, 40, generator=torch.Generator().manual_seed(0), callback=halt, **told)

    whole, halves, path = small(), small(), tmp_path / "run.safetensors"
    go(whole)
    with pytest.raises(KeyboardInterrupt):
        go(halves, path, stop=15)
    again = small()
    go(again, path)
    assert torch.equal(bits(whole), bits(again))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"loss": train.Implicit()}, r"loss=Sliced\(probes=1, reduced=True\), now loss=Implicit"),
        ({"loss": train.Sliced(probes=2)}, r"now loss=Sliced\(probes=2, reduced=True\)"),
        ({"weight": train.min_snr(3.0)}, r"weight=noise, now weight=min_snr\(3\)"),
        ({"times": train.Uniform()}, r"times=None, now times=Uniform\(\)"),
    ],
)
def test_resume_refuses_another_loss(changed, said, small, points, tmp_path):
    path = tmp_path / "run.safetensors"
    told = {"loss": train.Sliced(), "batch": 8, "progress": False, "checkpoint": path}
    sde.fit(small(), points, 4, **told)
    with pytest.raises(CheckpointError, match=said):
        sde.fit(small(), points, 4, **{**told, **changed})


def test_what_cannot_be_is_refused_by_name(small, points):
    with pytest.raises(TypeError, match=r"loss must be an objective, got 'sliced': pass loss=sde.train.Sliced\(\)"):
        sde.fit(small(), points, 2, loss="sliced")
    with pytest.raises(ValueError, match="coupling: Implicit learns the score of independent noise"):
        sde.fit(small(), points, 2, loss=train.Implicit(), coupling=train.optimal_transport)
    with pytest.raises(ValueError, match="compile=True has no second derivative, which Sliced"):
        sde.fit(small(), points, 2, loss=train.Sliced(), compile=True)
    with pytest.raises(ValueError, match="probes must be a whole number of at least 1, got 0"):
        train.Sliced(probes=0)
