"""Consistency training and distillation: the loss against the papers' formulas, what is learned against exact flows."""

import copy
import itertools
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import sde
from sde import distill
from sde.distill.consistency import _Agreement, ladder, rungs


class Net(torch.nn.Module):
    """A network with a formula."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(0.8))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.gain * torch.tanh(x + c[:, None])


def told(model: sde.ScoreModel, v: Tensor, step: int = 0, steps: int = 1) -> Any:
    """What a loss asks of a run."""
    return SimpleNamespace(model=model, step=step, settings=SimpleNamespace(steps=steps), quantiles=lambda n: v)


def by_hand(model: sde.ScoreModel, x: Tensor, t: Tensor) -> Tensor:
    """f(x, t) on EDM by c_skip and c_out, for data of mean 0 (see `sde.distill.jump`)."""
    e, s = 0.002, model.scale
    raw = model.net((x / (t**2 + s**2).sqrt()[:, None]), torch.log(t) / 4)
    c_skip = e / t + (1 - e / t) * s**2 / (t**2 + s**2)
    c_out = (t - e) * s / (t**2 + s**2).sqrt()
    return c_skip[:, None] * x + c_out[:, None] * raw


@pytest.mark.parametrize("taught", [False, True])
def test_the_loss_is_the_paper_s(taught: bool, generator: torch.Generator) -> None:
    """Song & Dhariwal (2023): weights 1 / (sigma' - sigma), pseudo-Huber, Karras' levels, a log-normal law of them."""
    s, n, c = 0.5, 10, 0.03
    model = sde.ScoreModel(Net(), sde.EDM(), scale=s).double()
    teacher = sde.ExactScore(sde.Gaussian([0.0, 0.0], 0.25), sde.EDM()) if taught else None
    x0, eps = (torch.randn(64, 2, generator=generator).double() for _ in range(2))
    v = (torch.arange(64) + 0.5).double() / 64
    loss = _Agreement(teacher, (n, n), (-0.4, 2.0), 2, c)(told(model, v), x0, eps, {})

    sigma = torch.linspace(0.002 ** (1 / 7), 80 ** (1 / 7), n + 1).double() ** 7
    centre = -0.4 + math.log(s)  # the paper's -1.1, which is -.4 in units of the scale, to a digit
    erf = torch.erf((torch.log(sigma) - centre) / (math.sqrt(2) * 2))
    below = erf.diff().cumsum(0) / erf.diff().sum()
    i = torch.searchsorted(below, v)
    low, high = sigma[i], sigma[i + 1]
    x = x0 + high[:, None] * eps
    if taught:  # Heun in 1 / sigma: d(x / sigma) = D d(1 / sigma), D = x s^2 / (s^2 + sigma^2)
        gain = lambda level: (s**2 / (s**2 + level**2))[:, None]  # noqa: E731
        k, w = (low / high)[:, None], (1 - low / high)[:, None]
        first = k * x + w * gain(high) * x
        y = k * x + w / 2 * (gain(high) * x + gain(low) * first)
    else:
        y = x0 + low[:, None] * eps
    off = (by_hand(model, x, high) - by_hand(model, y, low)).square().sum(1)
    expected = ((torch.sqrt(off + c**2) - c) / (high - low)).mean()
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    (found,) = torch.autograd.grad(loss, [model.net.gain])
    held = by_hand(model, y, low).detach()  # no gradient flows through the end at s
    off = (by_hand(model, x, high) - held).square().sum(1)
    (right,) = torch.autograd.grad(((torch.sqrt(off + c**2) - c) / (high - low)).mean(), [model.net.gain])
    assert float(found) == pytest.approx(float(right), rel=1e-5)


def test_a_ladder_has_equal_steps_and_ends_where_the_sde_does(scalar_sde: sde.ScalarSDE) -> None:
    made = ladder(scalar_sde, 20, 0.5, -0.4, 2.0, torch.device("cpu"))
    assert (float(made.times[0]), float(made.times[-1])) == (scalar_sde.t_min, scalar_sde.t_max)
    assert bool((made.times.diff() > 0).all())
    assert float(made.below[-1]) == pytest.approx(1)
    assert bool((made.weight > 0).all())
    rho = torch.exp(-scalar_sde.log_snr(made.times) / 2) / 0.5
    roots = (rho ** (1 / 7))[:-1]
    torch.testing.assert_close(roots.diff(), roots.diff().mean().expand(19), rtol=2e-3, atol=1e-3)


def test_numbers_double_in_stages_of_equal_length() -> None:
    """s0 = 10, s1 = 1280 and K = 800: eight stages of a hundred."""
    found = [rungs((10, 1280), k, 800) for k in range(800)]
    assert [found.count(10 * 2**j) for j in range(8)] == [100] * 8
    assert [rungs((10, 60), k, 100) for k in (0, 25, 50, 74, 75, 99)] == [10, 20, 40, 40, 60, 60]
    assert {rungs((7, 7), k, 3) for k in range(3)} == {7}


def small(
    forward: sde.ScalarSDE, dim: int = 1, scale: float = 1.0, classes: int = 0, mean: Any = 0.0
) -> sde.ScoreModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return sde.ScoreModel(sde.nets.MLP(dim, width=32, depth=2, classes=classes), forward, mean=mean, scale=scale)


@pytest.mark.parametrize("name", ["EDM", "VP", "Flow"])
def test_distilling_a_gaussian_gives_its_affine_function(
    name: str, gaussian: sde.Gaussian, ends: Callable[..., Tensor], generator: torch.Generator
) -> None:
    forward: sde.ScalarSDE = {"EDM": sde.EDM(), "VP": sde.VP(), "Flow": sde.Flow()}[name]
    teacher, data = sde.ExactScore(gaussian, forward), gaussian.sample(2000, generator).float()
    model = small(forward, mean=[0.3], scale=0.7)
    x = teacher.prior(torch.empty(500, 1), generator)
    true = ends(forward, x, forward.t_max)

    def error() -> float:
        return float((distill.jump(model, x, forward.t_max) - true).square().mean().sqrt()) / 0.6

    before = error()
    how: dict[str, Any] = {"curriculum": (8, 32), "lr": 1e-2, "ema": 0.98, "warmup": 20, "progress": False}
    distill.consistency(model, data, 1000, teacher=teacher, batch=128, generator=generator, **how)
    assert before > 0.3
    assert error() < 0.4 * before, (error(), before)
    assert error() < 0.15


def test_training_without_a_teacher_finds_the_flow(generator: torch.Generator) -> None:
    """Two modes in one dimension, against a fine solve of the exact flow."""
    target = sde.Mixture([0.5, 0.5], [[-1.0], [1.0]], [0.04, 0.04])
    forward, data = sde.EDM(), target.sample(4000, generator).float()
    exact, model = sde.ExactScore(target, forward), small(forward)
    x = exact.prior(torch.empty(500, 1).double(), generator)
    true = sde.sample(exact, x=x, steps=200, progress=False)

    def error() -> float:
        return float((distill.jump(model, x.float(), 80.0) - true).square().mean().sqrt())

    before = error()
    how: dict[str, Any] = {"curriculum": (10, 40), "lr": 3e-3, "ema": 0.98, "warmup": 20, "progress": False}
    distill.consistency(model, data, 800, batch=256, generator=generator, **how)
    after = error()
    assert before > 0.6
    assert after < 0.4 * before, (before, after)


def test_one_evaluation_of_a_student_comes_near_its_teacher(generator: torch.Generator) -> None:
    """Eight Gaussians: the teacher needs many steps, its student one."""
    angle = torch.arange(8) * math.pi / 4
    target = sde.Mixture([1 / 8] * 8, 1.4 * torch.stack([angle.cos(), angle.sin()], -1), [0.01] * 8)
    teacher, data = sde.ExactScore(target, sde.EDM()).float(), target.sample(5000, generator).float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = sde.ScoreModel(sde.nets.MLP(2, width=64), sde.EDM(), scale=target.scale)
    how: dict[str, Any] = {"curriculum": (10, 40), "lr": 3e-3, "ema": 0.98, "warmup": 20, "progress": False}
    distill.consistency(model, data, 700, teacher=teacher, batch=128, generator=generator, **how)
    truth = target.sample(3000, generator)

    def far(of: sde.Model, steps: int, solver: sde.Solver) -> float:
        x = sde.sample(of, (3000, 2), steps=steps, solver=solver, generator=generator, progress=False)
        return float(sde.metrics.sliced_wasserstein(x, truth))

    best, blind = far(teacher, 50, sde.DDIM()), far(teacher, 1, sde.DDIM())
    one, two = (far(model, n, distill.Multistep()) for n in (1, 2))
    assert blind > 0.8  # the mean alone
    assert one < best + 0.2
    assert two < best + 0.15


def test_labels_and_guided_teachers(labelled: type, ends: Callable[..., Tensor], generator: torch.Generator) -> None:
    """Guided by 2, two classes at -1 and 1 of one width: the guided law's flow, solved finely, is what is learned."""
    forward, label = sde.VP(), torch.arange(2).repeat(1000)
    one = labelled(forward)
    everyone = sde.ExactScore(sde.Mixture([0.5, 0.5], [[-1.0], [1.0]], [0.04, 0.04]), forward).float()
    teacher = sde.CFG(one, everyone, 2.0)
    data = (2.0 * label - 1)[:, None] + 0.2 * torch.randn(2000, 1, generator=generator)
    model = small(forward, classes=2)
    how: dict[str, Any] = {"curriculum": (8, 32), "lr": 1e-2, "ema": 0.98, "warmup": 20, "progress": False}
    cond = {"label": label}
    distill.consistency(model, data, 1000, teacher=teacher, cond=cond, batch=128, generator=generator, **how)
    x, asked = torch.randn(400, 1, generator=generator), torch.arange(2).repeat(200)
    true = x.double()
    times = sde.grids.log_snr(forward, 300)
    for t, s in itertools.pairwise(times):
        true = distill.flow_step(teacher, true, t, s, label=asked)
    made = sde.sample(model.given(label=asked), x=x, steps=1, solver=distill.Multistep(), progress=False)
    assert float((made - true).square().mean().sqrt()) < 0.25  # the modes are 2 apart
    assert bool((made.sign()[:, 0] == 2 * asked - 1).all())


def test_a_coupled_teacher_makes_a_coupled_student(generator: torch.Generator) -> None:
    """Its flow is right, and no consistency model can be trained from independent noise in its place."""
    data = torch.randn(64, 1, generator=generator)
    teacher = small(sde.Flow())
    teacher.coupled = True
    model = copy.deepcopy(teacher)
    distill.consistency(model, data, 2, teacher=teacher, progress=False)
    assert model.coupled
    assert sde.sample(model, (4, 1), steps=1, solver=sde.DDIM(), progress=False).shape == (4, 1)
    with pytest.raises(ValueError, match="coupling"):
        distill.consistency(copy.deepcopy(teacher), data, 2, progress=False)


def test_a_student_is_saved_as_any_model(tmp_path: Any, generator: torch.Generator) -> None:
    model, data = small(sde.EDM()), torch.randn(64, 1, generator=generator)
    distill.consistency(model, data, 3, progress=False)
    again = sde.load(sde.save(model, tmp_path / "student.safetensors"))
    x = 80 * torch.randn(5, 1, generator=generator)
    assert torch.equal(distill.jump(again, x, 80.0), distill.jump(model, x, 80.0))


def test_same_generator_same_weights_and_the_teacher_stays(generator: torch.Generator) -> None:
    data, teacher = torch.randn(64, 1, generator=generator), small(sde.EDM()).train()
    kept, state = copy.deepcopy(teacher.state_dict()), torch.get_rng_state()
    found = []
    for _ in range(2):
        model = small(sde.EDM())
        g = torch.Generator().manual_seed(3)
        history = distill.consistency(model, data, 6, teacher=teacher, generator=g, every=3, progress=False)
        found.append(torch.cat([p.flatten() for p in model.parameters()]))
        assert history.step == [3, 6]
        assert not model.training
        assert teacher.training
    assert torch.equal(*found)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(kept[k], v) for k, v in teacher.state_dict().items())


def test_digits_in_bytes_with_labels() -> None:
    digits = sde.data.digits(bytes=True)
    model = sde.ScoreModel(sde.nets.MLP(64, width=16, classes=10), sde.EDM(), scale=0.54)
    cond = {"label": digits.label}
    distill.consistency(model, digits.x, 3, cond=cond, batch=16, progress=False)
    given = model.given(label=torch.arange(10))
    assert sde.sample(given, (10, 1, 8, 8), steps=2, solver=distill.Multistep(), progress=False).shape == (10, 1, 8, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": torch.nn.Linear(1, 1)}, "model must be a ScoreModel, got Linear"),
        ({"model": small(sde.CLD())}, "CLD is a matrix SDE"),
        ({"model": sde.ScoreModel(sde.nets.MLP(1), sde.EDM(), "eps")}, "param 'eps' under EDM makes x0 at t_max from"),
        ({"model": sde.ScoreModel(sde.nets.MLP(1), sde.Flow(), "eps")}, "param 'eps' under Flow .* inf"),
        ({"teacher": torch.nn.Linear(1, 1)}, "teacher must be a Model, got Linear"),
        ({"teacher": small(sde.VP())}, "share their SDE, got VP.* Reschedule"),
        ({"teacher": small(sde.EDM(0.01))}, "share their SDE"),
        ({"curriculum": (20, 10)}, r"curriculum must be two numbers that do not fall, got \(20, 10\)"),
        ({"curriculum": (0, 10)}, "curriculum must be at least 1, got 0"),
        ({"law": (0.0, 0.0)}, "law must be a finite mean and a positive"),
        ({"order": 3}, "order must be 1 or 2, got 3"),
        ({"c": 0.0}, "c must be positive and finite, got 0"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"lr": -1.0}, "lr must be positive"),
        ({"every": 0}, "every must be at least 1"),
        ({"data": torch.zeros(5)}, r"data must be \(N, \*D\)"),
        ({"cond": {"label": torch.zeros(3)}}, "3 rows for 8 data"),
    ],
)  # fmt: skip
def test_mistakes_are_named(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {
        "model": small(sde.EDM()),
        "data": torch.randn(8, 1),
        "steps": 1,
        "progress": False,
    } | change
    with pytest.raises((TypeError, ValueError), match=message):
        distill.consistency(**given)


def test_a_teacher_that_shares_weights_is_refused() -> None:
    model = small(sde.EDM())
    with pytest.raises(ValueError, match=r"share weights.* copy\.deepcopy"):
        distill.consistency(model, torch.randn(8, 1), 1, teacher=sde.CFG(model, model, 2.0), progress=False)
