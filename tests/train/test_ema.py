"""Power-function averages against their closed forms, and reconstruction against averages computed directly."""

import math
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sde
from sde.train import CheckpointError, Power
from sde.train.ema import Averages, exponent
from sde.train.snapshots import combination, reconstruct


def profile(width: float, last: int, until: int | None = None) -> Tensor:
    """Share of each step's weights in an average: the integral of (g + 1) tau^g / N^(g+1) over the step."""
    edges = torch.arange(last + 1, dtype=torch.float64) / last
    share = edges.pow(exponent(width) + 1).diff()
    return share if until is None else torch.cat([share, torch.zeros(until - last, dtype=torch.float64)])


@pytest.mark.parametrize("width", [0.01, 0.05, 0.1, 0.15, 0.25, 0.28])
def test_the_exponent_has_the_width(width: float) -> None:
    """Standard deviation of the profile by quadrature."""
    tau = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    p = tau.pow(exponent(width))
    p = p / p.sum()
    mean = (p * tau).sum()
    assert float((p * (tau - mean).square()).sum().sqrt()) == pytest.approx(width, rel=1e-4)


def test_published_exponents() -> None:
    """Karras et al. (2024), section 3.1: widths .05 and .10 have exponents 16.97 and 6.94."""
    assert Power((0.05, 0.10)).gammas == pytest.approx((16.97, 6.94), abs=0.005)
    assert Power(0.10).each == (0.10,)


def test_the_recursion_is_the_average(seeded: Callable) -> None:
    """A synthetic history of weights, with two profiles at once."""
    history = torch.randn(300, 7, generator=seeded(0), dtype=torch.float64).cumsum(0)
    widths = (0.05, 0.2)
    averages = Averages(Power(widths), [torch.full((7,), 1e6, dtype=torch.float64)])  # the start is forgotten
    for n, theta in enumerate(history, start=1):
        averages.update([theta.clone()], n)
        if n in (1, 2, 50, 300):
            for (mean,), width in zip(averages.means, widths, strict=True):
                assert torch.allclose(mean, profile(width, n) @ history[:n], rtol=1e-10, atol=1e-10)


def test_fit_leaves_the_first_profile(points: Tensor, small: Callable) -> None:
    model, raw = small(), []
    for step in sde.fit_steps(model, points, 60, batch=8, lr=1e-2, ema=Power((0.1, 0.05))):
        raw.append(torch.cat([p.detach().double().reshape(-1) for p in model.parameters()]))
        if step.step == 30:
            with step.averaged():
                half = torch.cat([p.detach().double().reshape(-1) for p in model.parameters()])
    left = torch.cat([p.detach().double().reshape(-1) for p in model.parameters()])
    assert torch.allclose(half, profile(0.1, 30) @ torch.stack(raw[:30]), atol=1e-6)
    assert torch.allclose(left, profile(0.1, 60) @ torch.stack(raw), atol=1e-6)
    assert not torch.allclose(left, profile(0.05, 60) @ torch.stack(raw), atol=1e-5)


# Reconstruction.


@pytest.mark.parametrize("target", [0.03, 0.07, 0.15, 0.25])
@pytest.mark.parametrize(("last", "until"), [(2000, 2000), (1500, 2000)])
def test_coefficients_are_the_nearest_combination(target: float, last: int, until: int) -> None:
    """Against dense least squares over all steps, with the sum of one imposed by a heavy row."""
    steps = [n for n in range(250, last + 1, 250) for _ in range(2)]
    widths = [0.05, 0.10] * (len(steps) // 2)
    x, error = combination(steps, widths, last, target)
    columns = torch.stack([profile(w, n, until) for n, w in zip(steps, widths, strict=True)], 1)
    wanted = profile(target, last, until)
    heavy = 1e4 * torch.ones(1, len(steps), dtype=torch.float64)
    dense = np.linalg.lstsq(torch.cat([columns, heavy]).numpy(), torch.cat([wanted, heavy[0, :1]]).numpy(), rcond=None)[
        0
    ]
    residual = float((columns @ torch.as_tensor(x) - wanted).norm() / wanted.norm())
    least = float((columns @ torch.as_tensor(dense) - wanted).norm() / wanted.norm())
    assert x.sum() == pytest.approx(1)
    assert residual == pytest.approx(least, rel=0.02, abs=2e-4)
    assert error == pytest.approx(residual, rel=0.05, abs=2e-3)


def test_what_was_kept_is_given_back() -> None:
    x, error = combination([100, 100, 200, 200], [0.05, 0.1, 0.05, 0.1], 200, 0.1)
    assert x == pytest.approx([0, 0, 0, 1], abs=1e-9)
    assert error < 1e-6


class Normed(nn.Module):
    """With statistics and a frozen weight."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.width = width
        self.first, self.last = nn.Linear(2, width), nn.Linear(width, 2)
        self.norm = nn.BatchNorm1d(width)
        self.frozen = nn.Parameter(torch.ones(width), requires_grad=False)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.last(torch.tanh(self.norm(self.first(x)) * self.frozen + c[:, None]))


STEPS = 160


@pytest.fixture
def run(points: Tensor, tmp_path: Path) -> tuple[Path, Tensor, sde.ScoreModel]:
    """A run with snapshots: its checkpoint, the weights after every step, the model it left."""
    model, raw, path = sde.ScoreModel(Normed(), sde.VP()), [], tmp_path / "model.safetensors"

    def watch(step: Any) -> None:
        raw.append(weights(model))

    sde.fit(
        model, points, STEPS, batch=32, lr=1e-2, every=1, save_every=STEPS, ema=Power((0.05, 0.1), 16), callback=watch,
        decay="constant", checkpoint=path, progress=False, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    return path, torch.stack(raw), model


def weights(model: sde.ScoreModel) -> Tensor:
    return torch.cat([p.detach().double().reshape(-1) for p in model.parameters() if p.requires_grad])


@pytest.mark.parametrize("width", [0.05, 0.1, 0.07, 0.15, 0.2])
@pytest.mark.parametrize("last", [STEPS, 100])
def test_reconstruction(width: float, last: int, run: tuple[Path, Tensor, sde.ScoreModel]) -> None:
    """Against the average over the true history; the tracked ones at a snapshot to rounding."""
    path, raw, model = run
    again = reconstruct(path, width, step=None if last == STEPS else last, types=[Normed])
    direct = profile(width, last) @ raw[:last]
    apart = min(float((direct - profile(w, last) @ raw[:last]).norm()) for w in {0.05, 0.1, 0.2} - {width})
    assert apart > 1e-3
    assert float((weights(again) - direct).norm()) < (1e-3 if width in (0.05, 0.1) else 0.1) * apart
    assert not again.training
    if last == STEPS:  # what is not trained is the last state's
        assert torch.equal(again.net.norm.running_var, model.net.norm.running_var)
    assert torch.equal(again.net.frozen, model.net.frozen)


def test_snapshots_are_models(run: tuple[Path, Tensor, sde.ScoreModel]) -> None:
    path, _, model = run
    folder = path.with_name("model.averages")
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        f"{n:08d}-{w}.safetensors" for n in range(10, STEPS + 1, 10) for w in (0.05, 0.1)
    )
    last = sde.load(folder / f"{STEPS:08d}-0.05.safetensors", types=[Normed])
    assert torch.equal(weights(last), weights(model))
    for where in (folder, str(folder), sorted(folder.iterdir())):
        assert torch.allclose(weights(reconstruct(where, 0.05, types=[Normed])), weights(model), atol=1e-6)


def test_few_snapshots_are_warned_of(run: tuple[Path, Tensor, sde.ScoreModel]) -> None:
    folder = run[0].with_name("model.averages")
    last = [p for p in folder.iterdir() if p.name.startswith(f"{STEPS:08d}")]
    with pytest.warns(UserWarning, match=r"2 snapshots make the average of sigma_rel=0\.02 with a relative error of"):
        reconstruct(last, 0.02, types=[Normed])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reconstruct(folder, 0.15, types=[Normed])


def test_another_runs_snapshots_are_swept(run: tuple[Path, Tensor, sde.ScoreModel], points: Tensor) -> None:
    """A new run in the same place: the average must not be over both."""
    path, _, _ = run
    folder = path.with_name("model.averages")
    (folder / "notes.txt").touch()
    model = sde.ScoreModel(Normed(), sde.VP())
    with pytest.raises(KeyboardInterrupt):
        sde.fit(
            model, points, 30, every=10, ema=Power(0.1, 3), checkpoint=path, resume=False, progress=False,
            callback=lambda step: (_ for _ in ()).throw(KeyboardInterrupt()) if step.step == 20 else None,
        )  # fmt: skip
    assert sorted(p.name for p in folder.iterdir()) == [
        "00000010-0.1.safetensors",
        "00000020-0.1.safetensors",
        "notes.txt",
    ]


def test_what_is_refused(run: tuple[Path, Tensor, sde.ScoreModel], tmp_path: Path, small: Callable) -> None:
    path, folder = run[0], run[0].with_name("model.averages")
    with pytest.raises(ValueError, match=r"sigma_rel must lie in \(0, 0\.28\], got 0\.3"):
        reconstruct(path, 0.3)
    with pytest.raises(ValueError, match="step 5 lies before the first snapshot"):
        reconstruct(path, 0.1, step=5)
    with pytest.raises(FileNotFoundError, match=r"no snapshots at .*other\.averages: train with ema=sde\.train\.Power"):
        reconstruct(tmp_path / "other.safetensors", 0.1)
    with pytest.raises(CheckpointError, match=r"plain is no snapshot"):
        reconstruct([sde.save(small(), tmp_path / "plain")], 0.1)
    sde.fit(small(), torch.randn(50, 2), 4, ema=Power(0.1, 1), checkpoint=tmp_path / "b.safetensors", progress=False)
    shutil.copy(tmp_path / "b.averages" / "00000004-0.1.safetensors", folder)
    with pytest.raises(CheckpointError, match="is of another model than"):
        reconstruct(path, 0.1, types=[Normed])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Power(0.0), r"sigma_rel must lie in \(0, 0\.28\], got 0\.0"),
        (lambda: Power(0.29), r"got 0\.29"),
        (lambda: Power((0.1, math.nan)), "sigma_rel must lie"),
        (lambda: Power(()), r"got \(\)"),
        (lambda: Power((0.1, 0.1)), "one width twice"),
        (lambda: Power(0.1, snapshots=-1), "snapshots must be a whole number of at least 0, got -1"),
    ],
)
def test_profiles_that_are_none(call: Callable, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


def test_without_snapshots_or_checkpoint_no_files(points: Tensor, small: Callable, tmp_path: Path) -> None:
    sde.fit(small(), points, 4, ema=Power(0.1), progress=False)
    sde.fit(small(), points, 4, ema=Power(0.1, 0), checkpoint=tmp_path / "m", progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
