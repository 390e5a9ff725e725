"""Training itself: averages and rates written out, exact scores reached, every SDE, odd data."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import sde
from sde.train import Times, constant, denoising, likelihood, min_snr, unit


def raw_weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()]).clone()


# The loop, written out.


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.999])
def test_the_average_is_the_loop_written_out(decay: float, small: Callable, points: Tensor) -> None:
    model, apart = small(), 0.0
    average = raw_weights(model)
    for n, _ in enumerate(sde.fit_steps(model, points, 40, batch=8, ema=decay, lr=1e-2), start=1):
        theta = raw_weights(model)
        d = min(decay, (1 + n) / (10 + n)) if decay else 0.0
        average = average + (1 - d) * (theta - average)
        apart = max(apart, float((theta - average).abs().max()))
    assert torch.allclose(raw_weights(model), average, atol=1e-6)
    assert (apart > 1e-4) == (decay > 0)
    assert not model.training


@pytest.mark.parametrize(("lr", "warmup", "steps"), [(1e-3, 10, 50), (0.3, 0, 20), (1e-2, 100, 30)])
def test_the_learning_rate_is_the_schedule_written_out(
    lr: float, warmup: int, steps: int, small: Callable, points: Tensor
) -> None:
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=123.0)
    rates = []
    for step in sde.fit_steps(model, points, steps, batch=4, lr=lr, warmup=warmup, optimizer=optimizer):
        rates.append(step.lr)
        assert optimizer.param_groups[0]["lr"] == step.lr
    cosine = [lr / 2 * (1 + math.cos(math.pi * n / steps)) for n in range(steps)]
    assert rates == pytest.approx([min(1, (n + 1) / warmup if warmup else 1) * c for n, c in enumerate(cosine)])


class At(Times):
    """One time for all."""

    def quantile(self, sde: sde.ForwardSDE, u: Tensor, scale: float = 1.0) -> Tensor:
        return torch.full_like(u, 0.37)


@pytest.mark.parametrize("weight", [unit, constant, likelihood, min_snr(3.0)], ids=["unit", "constant", "ml", "snr"])
@pytest.mark.parametrize("meaning", ["edm", "eps", "x0", "v"])
@pytest.mark.parametrize("kind", [sde.VP, sde.Flow, sde.CLD])
def test_a_step_is_gradient_descent_on_the_loss(
    kind: Callable, meaning: str, weight: Callable, points: Tensor, small: Callable
) -> None:
    """One step of SGD from `fit` and one written with `denoising` on the same data, times and noise."""
    forward = kind()
    seen: list[tuple[Tensor, Tensor]] = []

    def watch(z: Tensor, eps: Tensor) -> Tensor:
        seen.append((z, eps))
        return eps

    ours, theirs = (small(forward, param=meaning, mean=0.5, scale=1.3) for _ in range(2))
    coupling = watch if isinstance(forward, sde.ScalarSDE) else None
    if coupling is None:
        seen.append(_what_fit_draws(points - 0.5))
    optimizer = torch.optim.SGD(ours.parameters(), lr=1.0)
    generator = torch.Generator().manual_seed(4)
    (step,) = sde.fit_steps(
        ours, points, 1, batch=16, lr=1e-3, warmup=0, ema=0.0, weight=weight, times=At(), coupling=coupling,
        optimizer=optimizer, generator=generator,
    )  # fmt: skip
    z, eps = seen[0]
    loss = denoising(theirs, z + 0.5, torch.full((16,), 0.37, dtype=torch.float64), eps, weight)
    assert float(step.loss) == pytest.approx(float(loss.detach()), rel=1e-5)
    loss.backward()
    size = float(loss.detach())
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        grad = torch.zeros_like(q) if q.grad is None else q.grad
        assert torch.allclose(p, q - 1e-3 * grad, atol=1e-6 * size + 1e-8)


def _what_fit_draws(z: Tensor) -> tuple[Tensor, Tensor]:
    """Data and noise of a first step from a generator of seed 4, by way of a scalar SDE."""
    seen = []
    model = sde.ScoreModel(sde.nets.MLP(dim=2, width=4, depth=1), sde.VP())
    watch = lambda z, eps: seen.append((z, eps)) or eps  # noqa: E731
    list(sde.fit_steps(model, z, 1, batch=16, coupling=watch, generator=torch.Generator().manual_seed(4)))
    return seen[0]


# What it reaches.


def test_it_reaches_the_exact_score(generator: torch.Generator) -> None:
    """Over all times: mean square of sigma (score - exact), where a model of no score at all has one of about 1."""
    target = sde.Gaussian([1.0, -2.0], [[1.0, 0.6], [0.6, 0.8]])
    data = target.sample(20_000, generator).float()
    model = sde.ScoreModel(
        sde.nets.MLP(dim=2, width=64, depth=2), sde.VP(), mean=data.mean(0), scale=float(data.std(0).mean())
    )
    history = sde.fit(model, data, 1000, batch=256, lr=3e-3, generator=generator, progress=False)
    assert history.loss[-1] == pytest.approx(_least_loss(model, target), rel=0.03)
    exact = sde.ExactScore(target, model.sde)
    t = torch.linspace(0.01, 1, 2000)
    x = model.sde.perturb(target.sample(2000, generator).float(), t, generator).x
    sigma = model.sde.sigma(t.double()).float()[:, None]
    with torch.no_grad():
        error = (sigma * (model(x, t).score - exact(x, t).score)).square().mean(1)
        nothing = (sigma * exact(x, t).score).square().mean()
    assert float(error.mean()) < 1e-3 * float(nothing)
    assert float(error.reshape(10, -1).mean(1).max()) < 3e-3  # at every time, not in the mean alone


def _least_loss(model: sde.ScoreModel, target: sde.Gaussian) -> float:
    """The unit loss of the exact score: w det^2 v / (alpha^2 v + sigma^2) in the mean over principal axes and times."""
    u = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    at = model.levels(sde.train.default_times(model.sde).quantile(model.sde, u, model.scale))[:6]
    alpha, sigma, _, _, p, q = (c[:, None] for c in at)
    v = torch.linalg.eigvalsh(target.cov)
    w = 1 / (p**2 * model.scale**2 + q**2)
    return float((w * (alpha * q - sigma * p) ** 2 * v / (alpha**2 * v + sigma**2)).mean())


def test_every_sde_and_param_trains_and_samples(
    forward: sde.ForwardSDE, param: str, points: Tensor, small: Callable, generator: torch.Generator
) -> None:
    model = small(forward, param=param)
    history = sde.fit(model, points, 6, batch=32, every=3, generator=generator, progress=False)
    assert history.step == [3, 6]
    assert all(math.isfinite(v) for v in history.loss)
    x = sde.sample(model, (5, 2), steps=3, solver=sde.Euler(), eta=0.0, generator=generator, progress=False)
    assert x.shape == forward.state(torch.zeros(5, 2)).shape


def test_data_far_from_the_origin(generator: torch.Generator) -> None:
    """EDM on data of mean 20 and deviation 5: the prior is as wide as the data, and centred on them."""
    data = 20 + 5 * torch.randn(4000, 1, generator=generator)
    model = sde.ScoreModel(
        sde.nets.MLP(dim=1, width=32, depth=2), sde.EDM(), mean=data.mean(0), scale=float(data.std())
    )
    sde.fit(model, data, 400, batch=256, lr=3e-3, generator=generator, progress=False)
    x = sde.sample(model, (4000, 1), steps=16, generator=generator, progress=False)
    assert float(x.mean()) == pytest.approx(20, abs=0.4)
    assert float(x.std()) == pytest.approx(5, abs=0.4)


def test_classes(generator: torch.Generator) -> None:
    """Two clusters, one to each label; without a label both."""
    label = torch.arange(2000) % 2
    data = torch.stack([2.0 * label - 1, torch.zeros(2000)], 1) + 0.1 * torch.randn(2000, 2, generator=generator)
    net = sde.nets.MLP(dim=2, width=32, depth=2, classes=2)
    model = sde.ScoreModel(net, sde.VP(), mean=data.mean(0), scale=float(data.std()))
    sde.fit(model, data, 300, cond={"label": label}, lr=5e-3, generator=generator, progress=False)
    asked = torch.arange(200) % 2
    x = sde.sample(model.given(label=asked), (200, 2), steps=12, generator=generator, progress=False)
    assert bool(((x[:, 0] > 0) == (asked == 1)).all())
    assert float((x[:, 0].abs() - 1).abs().mean()) < 0.2


def test_labels_stay_with_their_data(generator: torch.Generator) -> None:
    """Each row of cond goes to the network with its own datum."""

    class Watching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor, c: Tensor, who: Tensor, twice: Tensor) -> Tensor:
            assert torch.equal(2 * who, twice)
            seen.append(who)
            return 0 * x + self.bias

    def watch(z: Tensor, eps: Tensor) -> Tensor:
        batches.append(z)
        return eps

    seen: list[Tensor] = []
    batches: list[Tensor] = []
    data = torch.arange(100.0)[:, None] / 30
    cond = {"who": torch.arange(100), "twice": 2 * torch.arange(100)}
    model = sde.ScoreModel(Watching(), sde.VP(), scale=2.0)
    list(sde.fit_steps(model, data, 40, cond=cond, batch=16, coupling=watch, generator=generator))
    assert torch.allclose(torch.cat(seen) / 30, torch.cat(batches)[:, 0])
    counts = torch.bincount(torch.cat(seen), minlength=100).double()
    assert float(((counts - 6.4) ** 2 / 6.4).sum()) < 150  # chi squared of 99 degrees: each datum as often


@pytest.mark.parametrize("shape", [(64, 1), (64, 1, 8, 8), (64, 3, 2, 4, 4)])
def test_shapes(shape: tuple[int, ...], small: Callable, seeded: Callable) -> None:
    data = torch.randn(shape, generator=seeded(1))
    model = small(dim=data[0].numel(), mean=data.mean(0))
    assert math.isfinite(sde.fit(model, data, 2, batch=4, progress=False).loss[0])


@pytest.mark.parametrize(
    ("data", "net"),
    [
        (torch.float64, torch.float32),
        (torch.float64, torch.float64),
        (torch.float32, torch.bfloat16),
        (torch.float16, torch.float32),
    ],
    ids=str,
)
def test_data_go_in_the_networks_dtype(
    data: torch.dtype, net: torch.dtype, points: Tensor, small: Callable, generator: torch.Generator
) -> None:
    """Centred first: at a mean of 1000 float16 has steps of .5, float32 none to speak of."""
    model = small(mean=1000.0).to(net)
    history = sde.fit(model, points.to(data) + 1000, 30, lr=1e-2, generator=generator, progress=False)
    assert 0.2 < history.loss[0] < 1.5
    assert {p.dtype for p in model.parameters()} == {net}


def test_data_that_are_not_contiguous(points: Tensor, small: Callable, bits: Callable, seeded: Callable) -> None:
    models = [small(), small()]
    for model, data in zip(models, (points, points.T.contiguous().T), strict=True):
        sde.fit(model, data, 3, generator=seeded(0), progress=False)
    assert torch.equal(*map(bits, models))


def test_frozen_weights_stay(points: Tensor, small: Callable) -> None:
    model = small()
    model.net.inward.requires_grad_(False)
    before = model.net.inward.weight.clone()
    sde.fit(model, points, 3, lr=0.1, warmup=0, progress=False)
    assert torch.equal(model.net.inward.weight, before)
    assert bool((model.net.outward.bias.abs() > 1e-3).any())


def test_one_seed_one_model(points: Tensor, small: Callable, bits: Callable, seeded: Callable) -> None:
    """The same generator, the same bits; another, others; and none takes its seed from torch's own."""
    a, b, c, d, e = (small() for _ in range(5))
    for model, seed in ((a, 1), (b, 1), (c, 2)):
        sde.fit(model, points, 5, generator=seeded(seed), progress=False)
    for model in (d, e):
        torch.manual_seed(7)
        sde.fit(model, points, 5, progress=False)
    assert torch.equal(bits(a), bits(b))
    assert torch.equal(bits(d), bits(e))
    assert not torch.equal(bits(a), bits(c))


def test_fit_is_its_steps(points: Tensor, small: Callable, bits: Callable, seeded: Callable) -> None:
    a, b = small(), small()
    history = sde.fit(a, points, 40, batch=8, every=1, generator=seeded(0), progress=False)
    steps = list(sde.fit_steps(b, points, 40, batch=8, generator=seeded(0)))
    assert torch.equal(bits(a), bits(b))
    assert history.step == [s.step for s in steps] == list(range(1, 41))
    assert history.loss == [float(s.loss) for s in steps]
    assert history.lr == [s.lr for s in steps]


def test_steps_left_early_leave_the_average(points: Tensor, small: Callable) -> None:
    model = small()
    average = raw_weights(model)
    steps = sde.fit_steps(model, points, 100, batch=8, ema=0.9, lr=1e-2)
    for n, step in enumerate(steps, start=1):
        assert model.training
        average += (1 - min(0.9, (1 + n) / (10 + n))) * (raw_weights(model) - average)
        if step.step == 5:
            break
    raw = raw_weights(model)
    steps.close()
    assert torch.allclose(raw_weights(model), average, atol=1e-6)
    assert not torch.allclose(raw, average, atol=1e-6)
    assert not model.training


def test_steps_never_taken_change_nothing(points: Tensor, small: Callable, bits: Callable) -> None:
    model = small()
    before = bits(model)
    sde.fit_steps(model, points, 100).close()
    assert torch.equal(bits(model), before)


# The history.


def test_history(points: Tensor, small: Callable, seeded: Callable) -> None:
    logged: list[int] = []
    history = sde.fit(
        small(), points, 25, every=10, batch=16, generator=seeded(0), callback=lambda s: logged.append(s.step),
        progress=False,
    )  # fmt: skip
    fine = sde.fit(small(), points, 25, every=1, batch=16, generator=seeded(0), progress=False)
    assert history.step == logged == [10, 20, 25]
    ends = [0, 10, 20, 25]
    means = [sum(fine.loss[a:b]) / (b - a) for a, b in itertools.pairwise(ends)]
    assert history.loss == pytest.approx(means, rel=1e-5)
    assert history.lr == [fine.lr[s - 1] for s in history.step]
    assert 0 < history.seconds[0] < history.seconds[1] < history.seconds[2] < 60


def test_history_is_what_plot_draws(points: Tensor, small: Callable) -> None:
    history = sde.fit(small(), points, 30, every=2, progress=False)
    ax = sde.plot.history(history)
    faint, bold, *_ = ax.get_lines()
    assert faint.get_xdata().tolist() == history.step
    assert faint.get_ydata().tolist() == history.loss
    assert bold.get_xdata().tolist() == history.step
    assert "30 steps" in ax.get_title()


def test_progress_goes_to_stderr_and_can_be_off(
    points: Tensor, small: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    sde.fit(small(), points, 4, every=2, progress=True)
    shown = capsys.readouterr()
    assert "4/4" in shown.err
    assert "loss" in shown.err
    sde.fit(small(), points, 4, every=2, progress=False)
    silent = capsys.readouterr()
    assert (silent.out, silent.err) == ("", "")
