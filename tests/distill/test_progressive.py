"""Progressive distillation: the target and the loss against the paper's formulas, students against teachers' DDIM."""

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import sde
from sde import distill
from sde.distill.progressive import _Halving

SOON: dict[str, Any] = {"steps": 2, "batch": 8, "progress": False}


def small(forward: sde.ForwardSDE, seed: int = 0, **make: Any) -> sde.ScoreModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return sde.ScoreModel(sde.nets.MLP(1, width=32, depth=2, **make), forward)


def levels(forward: sde.ScalarSDE, *times: float) -> list[tuple[float, float]]:
    return [(float(a), float(s)) for a, s in (forward.levels(torch.tensor(t).double()) for t in times)]


def test_the_target_is_the_paper_s(scalar_sde: sde.ScalarSDE, gaussian: sde.Gaussian, generator: Any) -> None:
    """Salimans & Ho (2022), algorithm 2, line by line, with N(0.7, 0.36)'s own posterior means."""
    times = [float(scalar_sde.time_at(torch.tensor(v).double())) for v in (-2.0, -0.9, 0.4)]
    (a, s), (am, sm), (ae, se) = levels(scalar_sde, *times)
    x = torch.randn(7, 1, generator=generator).double() * 2

    def mean(z: Tensor, alpha: float, sigma: float) -> Tensor:
        return 0.7 + alpha * 0.36 / (alpha**2 * 0.36 + sigma**2) * (z - alpha * 0.7)

    x_hat = mean(x, a, s)
    z_half = am * x_hat + sm / s * (x - a * x_hat)
    x_hat = mean(z_half, am, sm)
    z_end = ae * x_hat + se / sm * (z_half - am * x_hat)
    wanted = (z_end - se / s * x) / (ae - se / s * a)
    t, m, e = (torch.tensor(v).double() for v in times)
    found = distill.halved(sde.ExactScore(gaussian, scalar_sde), x, t, m, e)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    each = [v.expand(7) for v in (t, m, e)]
    torch.testing.assert_close(distill.halved(sde.ExactScore(gaussian, scalar_sde), x, *each), wanted)


def test_the_target_is_finite_at_pure_noise(gaussian: sde.Gaussian) -> None:
    model = sde.ExactScore(gaussian, sde.Flow(t_min=0.0))
    for t, m, s in ((1.0, 0.9, 0.8), (0.2, 0.1, 0.0)):
        times = (torch.tensor(v).double() for v in (t, m, s))
        assert bool(distill.halved(model, torch.ones(3, 1), *times).isfinite().all())


def test_the_loss_is_snr_plus_one_of_every_other_node(gaussian: sde.Gaussian, generator: Any) -> None:
    """In units of the data's scale s: 1 / s^2 + alpha^2 / sigma^2."""
    forward, scale = sde.VP(), 0.5
    net = torch.nn.Linear(1, 1)
    model = sde.ScoreModel(Told(net), forward, scale=scale).double()
    teacher, times = sde.ExactScore(gaussian, forward), torch.tensor([1.0, 0.8, 0.5, 0.3, 1e-3]).double()
    x0, eps = (torch.randn(4, 1, generator=generator).double() for _ in range(2))
    v = torch.tensor([0.1, 0.3, 0.6, 0.99])  # two of each step
    run: Any = SimpleNamespace(model=model, quantiles=lambda n: v)
    found = _Halving(teacher, times)(run, x0, eps, {})
    total = torch.zeros(1, 1).double()
    for i, (t, m, s) in enumerate([(1.0, 0.8, 0.5)] * 2 + [(0.5, 0.3, 1e-3)] * 2):
        ((alpha, sigma),) = levels(forward, t)
        x = alpha * x0[i : i + 1] + sigma * eps[i : i + 1]
        target = distill.halved(teacher, x, *(torch.tensor(c).double() for c in (t, m, s)))
        total = total + (1 / scale**2 + alpha**2 / sigma**2) * (model(x, t).x0 - target).square()
    torch.testing.assert_close(found, (total / 4).squeeze())


class Told(torch.nn.Module):
    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.net(x)


def ddim(model: sde.Model, x: Tensor, times: Tensor) -> Tensor:
    return sde.sample(model, x=x, times=times, solver=sde.DDIM(), progress=False)


@pytest.mark.parametrize("forward", [sde.VP(), sde.EDM(), sde.Flow()], ids=["VP", "EDM", "Flow"])
def test_students_end_where_the_teacher_s_ddim_does(forward: sde.ScalarSDE, generator: torch.Generator) -> None:
    """From the same noise, in four steps, two and one, where the teacher takes eight; its own first ends at a mean."""
    target = sde.Mixture([0.4, 0.6], [[-1.0], [1.0]], [0.09, 0.04])
    teacher, data = sde.ExactScore(target, forward).float(), target.sample(4000, generator).float()
    how: dict[str, Any] = {"batch": 256, "lr": 5e-3, "warmup": 20, "ema": 0.98, "progress": False}
    stages = distill.progressive(teacher, data, 8, 1, 400, model=small(forward), generator=generator, **how)
    assert [s.steps for s in stages] == [4, 2, 1]
    x = teacher.prior(torch.empty(600, 1), generator)
    grid = sde.grids.data_scaled(forward, 8, scale=stages[0].model.scale)
    wanted = ddim(teacher, x, grid)
    off = {s.steps: float((ddim(s.model, x, s.times) - wanted).square().mean().sqrt()) for s in stages}
    blind = float((ddim(teacher, x, grid[[0, -1]]) - wanted).square().mean().sqrt())
    assert blind > 0.5
    assert off[4] < 0.1
    assert off[2] < 0.15
    assert off[1] < 0.25  # the modes are 2 apart


def test_grids_are_each_other_s_every_other_node(generator: torch.Generator) -> None:
    teacher, data = small(sde.VP()), torch.randn(64, 1, generator=generator)
    own = torch.tensor([1.0, 0.9, 0.7, 0.3, 1e-3]).double()
    for times, whole in ((None, sde.grids.data_scaled(sde.VP(), 4, scale=1.0)), (own, own)):
        first, second = distill.progressive(teacher, data, 4, 1, times=times, **SOON)
        assert torch.equal(first.times, whole[::2])
        assert torch.equal(second.times, whole[[0, -1]])
        assert first.history.step == [2]
        assert (first.steps, second.steps) == (2, 1)
    (only,) = distill.progressive(teacher, data, 8, 4, **SOON)
    assert only.steps == 4


def test_labels_and_guided_teachers(labelled: type, generator: torch.Generator) -> None:
    forward, label = sde.VP(), torch.arange(2).repeat(1000)
    everyone = sde.ExactScore(sde.Mixture([0.5, 0.5], [[-1.0], [1.0]], [0.04, 0.04]), forward).float()
    teacher = sde.CFG(labelled(forward), everyone, 2.0)
    data = (2.0 * label - 1)[:, None] + 0.2 * torch.randn(2000, 1, generator=generator)
    model = small(forward, classes=2)
    how: dict[str, Any] = {"lr": 5e-3, "ema": 0.98, "progress": False, "cond": {"label": label}}
    last = distill.progressive(teacher, data, 4, 1, 300, model=model, generator=generator, **how)[-1]
    asked = torch.arange(2).repeat(200)
    x = torch.randn(400, 1, generator=generator)
    wanted = ddim(teacher.given(label=asked), x, sde.grids.data_scaled(forward, 4, scale=1.0))
    made = ddim(last.model.given(label=asked), x, last.times)
    assert bool((made.sign()[:, 0] == 2 * asked - 1).all())
    assert float((made - wanted).square().mean().sqrt()) < 0.15


def test_same_generator_same_weights_and_the_teacher_stays(generator: torch.Generator) -> None:
    data, teacher, found = torch.randn(64, 1, generator=generator), small(sde.EDM()).train(), []
    kept, state = copy.deepcopy(teacher.state_dict()), torch.get_rng_state()
    for _ in range(2):
        stages = distill.progressive(teacher, data, 4, generator=torch.Generator().manual_seed(3), **SOON)
        found.append(torch.cat([p.flatten() for s in stages for p in s.model.parameters()]))
        assert teacher.training
        assert not any(s.model.training for s in stages)
    assert torch.equal(*found)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(kept[k], v) for k, v in teacher.state_dict().items())
    began = torch.cat([p.flatten() for p in teacher.parameters()])
    assert not torch.equal(found[0][: len(began)], began)


def test_coupled_teachers_and_saved_students(tmp_path: Any, generator: torch.Generator) -> None:
    data, teacher = torch.randn(64, 1, generator=generator), small(sde.Flow())
    teacher.coupled = True
    stage = distill.progressive(teacher, data, 2, **SOON)[-1]
    assert stage.model.coupled
    assert distill.progressive(teacher, data, 2, model=small(sde.Flow()), **SOON)[-1].model.coupled
    again = sde.load(sde.save(stage.model, tmp_path / "student.safetensors"))
    x = torch.randn(5, 1, generator=generator)
    assert torch.equal(ddim(again, x, stage.times), ddim(stage.model, x, stage.times))


def test_mistakes_are_named() -> None:
    data, teacher = torch.randn(8, 1), small(sde.VP())
    exact = sde.ExactScore(sde.Gaussian([0.0], 1.0), sde.VP()).float()
    for change, message in (
        ({"start": 6}, "start must be stop times a power of 2, got 6 and 1"),
        ({"start": 4, "stop": 4}, "start must be stop times a power of 2, got 4 and 4"),
        ({"stop": 0}, "stop must be at least 1"),
        ({"times": torch.tensor([1.0, 0.5])}, "times must be 5 falling ones for start=4"),
        ({"times": torch.tensor([1.0, 0.5, 0.6, 0.2, 0.1])}, "times must be 5 falling ones"),
        ({"teacher": exact}, "model is missing: ExactScore has no network"),
        ({"model": small(sde.EDM())}, "share their SDE"),
        ({"teacher": sde.ScoreModel(sde.nets.MLP(1), sde.EDM(), "eps")}, "param 'eps' under EDM makes x0 at t_max"),
        ({"teacher": small(sde.CLD())}, "CLD is a matrix SDE"),
        ({"steps": 0}, "steps must be at least 1"),
    ):
        given: dict[str, Any] = {"teacher": teacher, "data": data, "start": 4, **SOON} | change
        with pytest.raises((TypeError, ValueError), match=message):
            distill.progressive(**given)


def test_the_callback_hears_of_every_round(generator: torch.Generator) -> None:
    heard: list[int] = []
    note: Callable[[Any], None] = lambda step: heard.append(step.step)  # noqa: E731
    distill.progressive(small(sde.VP()), torch.randn(64, 1, generator=generator), 4, every=1, callback=note, **SOON)
    assert heard == [1, 2, 1, 2]
