"""Bad input to `fit`: refused at the call, by the argument's name, its value and a remedy."""

import inspect
import math
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sde
from sde.train.checkpoint import read
from sde.train.settings import Settings

NAN = float("nan")


class Bare(nn.Module):
    """A network without weights."""

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return x


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "data of whole numbers": ({"data": torch.zeros(5, 2, dtype=torch.int64)}, TypeError, r"data .*int64.*float\(\)"),
    "data as a list": ({"data": [[0.0, 1.0]]}, TypeError, r"data .*list.*as_tensor"),
    "data in a row": ({"data": torch.zeros(5)}, ValueError, r"data must be \(N, \*D\).*\(5,\)"),
    "no data": ({"data": torch.zeros(0, 2)}, ValueError, r"data .*\(0, 2\)"),
    "data of no size": ({"data": torch.zeros(5, 0)}, ValueError, r"data .*\(5, 0\)"),
    "a NaN": ({"data": torch.tensor([[0.0, NAN], [1.0, 2.0]])}, ValueError, "data holds 1 values .*clean it"),
    "infinity": ({"data": torch.tensor([[math.inf, 0], [0, -math.inf]])}, ValueError, "data holds 2 values"),
    "no steps": ({"steps": 0}, ValueError, "steps must be at least 1, got 0: pass steps="),
    "negative steps": ({"steps": -3}, ValueError, "steps .*got -3"),
    "half a step": ({"steps": 2.5}, TypeError, r"steps must be a whole number, got 2\.5: pass"),
    "true steps": ({"steps": True}, TypeError, "steps .*got True"),
    "no batch": ({"batch": 0}, ValueError, "batch must be at least 1, got 0: pass batch="),
    "a batch of text": ({"batch": "256"}, TypeError, "batch must be a whole number, got '256'"),
    "negative warm-up": ({"warmup": -1}, ValueError, "warmup must be at least 0, got -1"),
    "no entries": ({"every": 0}, ValueError, "every must be at least 1, got 0"),
    "no rate": ({"lr": 0.0}, ValueError, r"lr must be positive and finite, got 0\.0: pass lr="),
    "a negative rate": ({"lr": -1e-3}, ValueError, r"lr .*got -0\.001"),
    "a rate of NaN": ({"lr": NAN}, ValueError, "lr .*got nan"),
    "a decay of one": ({"ema": 1.0}, ValueError, r"ema must lie in \[0, 1\), got 1\.0"),
    "a decay of NaN": ({"ema": NAN}, ValueError, "ema .*got nan"),
    "an average of text": ({"ema": "0.999"}, ValueError, r"ema must lie in \[0, 1\).*or pass sde\.train\.Power"),
    "a decay by another name": (
        {"decay": "cosinus"},
        ValueError,
        "decay must be one of cosine, linear, constant, inverse_sqrt or a function .*'cosinus'",
    ),
    "no parts": ({"accumulate": 0}, ValueError, "accumulate must be at least 1, got 0"),
    "unequal parts": ({"accumulate": 3}, ValueError, "batch must divide by accumulate, got 256 and 3"),
    "a norm of zero": ({"clip": 0.0}, ValueError, r"clip must be a positive norm or None, got 0\.0: pass clip=1\.0"),
    "a norm of NaN": ({"clip": NAN}, ValueError, "clip .*got nan"),
    "half a precision": (
        {"precision": "half"},
        ValueError,
        "precision must be float32, bfloat16 or float16, got 'half'",
    ),
    "a number to compile": ({"compile": 3}, TypeError, "compile must be True, False or a mode of torch.compile, got 3"),
    "all labels hidden": ({"drop": 1.0}, ValueError, r"drop must lie in \[0, 1\), got 1\.0"),
    "no labels to hide": ({"drop": 0.1}, ValueError, r"drop=0\.1 hides labels, and there are none: pass cond="),
    "no class for none": (
        {"drop": 0.1, "cond": {"label": torch.zeros(5, dtype=torch.int64)}},
        ValueError,
        "drop=0.1 needs a network with classes",
    ),
    "a cell below nothing": ({"dequantize": -1}, ValueError, "dequantize must be a width in bytes .*got -1"),
    "a cell of NaN": ({"dequantize": NAN}, ValueError, "dequantize must be a width in bytes .*got nan"),
    "points to dequantise": (
        {"dequantize": 1.0},
        ValueError,
        r"dequantize=1\.0 spreads bytes, got data of torch.float",
    ),
    "points to flip": ({"flip": True}, ValueError, r"flip needs images \(N, C, H, W\), got data of shape \(5, 2\)"),
    "points in channels": ({"channels_last": True}, ValueError, r"channels_last needs images .*\(5, 2\)"),
    "bytes in a row": (
        {"data": torch.zeros(5, 2, dtype=torch.uint8)},
        ValueError,
        r"uint8 data are image bytes .*\(5, 2\)",
    ),
    "mixed precision of bfloat16": (
        {"model": sde.ScoreModel(sde.nets.MLP(), sde.VP()).bfloat16(), "precision": "bfloat16"},
        ValueError,
        r"keeps float32 weights, the model has torch\.bfloat16: pass model\.float\(\)",
    ),
    "no checkpoints": ({"save_every": 0}, ValueError, "save_every must be at least 1, got 0"),
    "two generators": (
        {"generator": [torch.Generator(), torch.Generator()]},
        TypeError,
        r"generator must be one torch.Generator or None, got list",
    ),
    "too few labels": ({"cond": {"label": torch.zeros(3)}}, ValueError, "cond 'label' has 3 rows for 5 data"),
    "labels as a list": ({"cond": {"label": [0] * 5}}, TypeError, "cond 'label' must be a tensor .*list"),
    "one label": ({"cond": {"label": torch.tensor(1)}}, TypeError, "cond 'label' must be a tensor of one row for each"),
    "labels elsewhere": ({"cond": {"label": torch.zeros(5, device="meta")}}, ValueError, "'label' lies on meta.*cpu"),
    "data elsewhere": ({"data": torch.zeros(5, 2, device="meta")}, ValueError, r"data .*meta.*data.to\('cpu'\)"),
    "labels unasked for": ({"cond": {"label": torch.zeros(5)}}, ValueError, "without classes: make it with classes="),
    "another dimension": ({"data": torch.randn(5, 3)}, ValueError, "3 coordinates .*dim=2"),
    "another mean": (
        {"model": sde.ScoreModel(sde.nets.MLP(), sde.VP(), mean=[0.0, 0.0, 0.0])},
        ValueError,
        r"data have shape \(5, 2\), the model's mean \(3,\): make it with mean=data.mean\(0\)",
    ),
    "a mean that would widen the data": (
        {"data": torch.randn(5, 1), "model": sde.ScoreModel(sde.nets.MLP(), sde.VP(), mean=[0.0, 0.0])},
        ValueError,
        r"data have shape \(5, 1\), the model's mean \(2,\)",
    ),
    "a network alone": ({"model": sde.nets.MLP()}, TypeError, "model must be a ScoreModel, got MLP"),
    "an exact model": (
        {"model": sde.ExactScore(sde.Gaussian([0.0, 0.0], 1.0), sde.VP())},
        TypeError,
        "model must be a ScoreModel, got ExactScore",
    ),
    "nothing to train": (
        {"model": sde.ScoreModel(Bare(), sde.VP())},
        ValueError,
        "no parameter that requires a gradient",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused(case: str, small: Callable) -> None:
    changed, kind, words = BAD[case]
    call = {"model": small(), "data": torch.randn(5, 2), "steps": 2, "progress": False, **changed}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(kind, match=words):
            sde.fit(call.pop("model"), call.pop("data"), call.pop("steps"), **call)


LATE = ("no entries", "no checkpoints", "labels unasked for", "another dimension")
"""What steps are not told, and what the network is the first to see."""


@pytest.mark.parametrize("case", [c for c in BAD if c not in LATE])
def test_steps_are_refused_at_the_call(case: str, small: Callable) -> None:
    """Not at the first step of the generator."""
    changed, kind, words = BAD[case]
    call = {"model": small(), "data": torch.randn(5, 2), "steps": 2, **changed}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(kind, match=words):
            sde.fit_steps(call.pop("model"), call.pop("data"), call.pop("steps"), **call)


def test_whole_numbers_of_numpy_are_whole_numbers(points: Tensor, small: Callable, tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    sde.fit(small(), points, numpy.int64(2), batch=numpy.int32(4), checkpoint=tmp_path / "a", progress=False)


@pytest.mark.parametrize(
    ("mean", "scale", "warned"),
    [(0.0, 1.0, False), (0.0, 2.9, False), (0.0, 0.4, False), (0.0, 3.1, True), (0.0, 0.3, True), (5.0, 1.0, True)],
)
def test_a_wrong_scale_is_warned_of(mean: float, scale: float, warned: bool, points: Tensor, small: Callable) -> None:
    points = (points - points.mean()) / points.square().mean().sqrt()
    for train in (lambda m: sde.fit(m, points, 1, progress=False), lambda m: sde.fit_steps(m, points, 1)):
        model = small(mean=mean, scale=scale)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            train(model)
        assert bool(caught) == warned
        if warned:
            assert re.search(
                r"data lie .* its scale is .*ScoreModel\(\.\.\., mean=data\.mean\(0\)", str(caught[0].message)
            )
            assert Path(caught[0].filename).name == "test_inputs.py"  # the line to change


def test_bytes_of_a_wrong_scale_are_warned_of(small: Callable, seeded: Callable) -> None:
    photos = torch.randint(256, (9000, 1, 1, 2), generator=seeded(0), dtype=torch.uint8)
    with pytest.warns(UserWarning, match=r"data lie 0\.58.* its scale is 2"):
        sde.fit(small(scale=2.0), photos, 1, progress=False)


def test_steps_have_the_defaults_of_fit() -> None:
    """Two lists of them, the same names and values."""
    fit = {k: v.default for k, v in inspect.signature(sde.fit).parameters.items()}
    for name, parameter in inspect.signature(Settings).parameters.items():
        assert parameter.default == (inspect.Parameter.empty if name == "steps" else fit[name])


# A loss that is lost.


class Poisoned(torch.optim.SGD):
    """Makes every weight NaN at one step, after its loss was computed."""

    at, steps = 0, 0

    def step(self, closure: Callable | None = None) -> None:  # type: ignore[override]
        super().step(closure)
        Poisoned.steps += 1
        if Poisoned.steps == Poisoned.at:
            for group in self.param_groups:
                for p in group["params"]:
                    p.data.fill_(NAN)


def poisoned(model: sde.ScoreModel, at: int) -> Poisoned:
    Poisoned.at, Poisoned.steps = at, 0
    return Poisoned(model.parameters(), lr=1e-3)


def test_a_loss_that_is_not_finite_is_an_error(points: Tensor, small: Callable) -> None:
    with pytest.raises(FloatingPointError, match=r"loss is (nan|inf) at step \d+.*lower lr=1e\+30, or standardise"):
        sde.fit(small(), points, 50, lr=1e30, warmup=0, every=5, progress=False)


@pytest.mark.parametrize("at", [11, 14, 20, 25])
def test_the_last_good_checkpoint_is_kept(at: int, points: Tensor, small: Callable, tmp_path: Path) -> None:
    """Also where the weights are lost in the very step that is logged, whose loss is finite still."""
    path, model = tmp_path / "run.safetensors", small()
    with pytest.raises(FloatingPointError, match=f"the last good checkpoint is {re.escape(str(path))}"):
        sde.fit(model, points, 25, every=10, checkpoint=path, optimizer=poisoned(model, at), progress=False)
    assert all(bool(torch.isfinite(v).all()) for v in read(path)[1].values())  # raw weights as well as averages
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_before_the_first_checkpoint_none_is_promised(points: Tensor, small: Callable, tmp_path: Path) -> None:
    model = small()
    with pytest.raises(FloatingPointError) as caught:
        sde.fit(model, points, 25, every=10, checkpoint=tmp_path / "run", optimizer=poisoned(model, 3), progress=False)
    assert "checkpoint" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_interruption_does_not_save_what_is_lost(points: Tensor, small: Callable, tmp_path: Path) -> None:
    path, model = tmp_path / "run.safetensors", small()

    def stop(step: Any) -> None:
        if step.step == 20:
            for p in model.parameters():
                p.data.fill_(NAN)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sde.fit(model, points, 40, every=10, checkpoint=path, callback=stop, progress=False)
    assert all(bool(torch.isfinite(v).all()) for v in read(path)[1].values())


# What cannot be saved is refused before it is trained.


class Lambda(nn.Module):
    """Keeps a function."""

    def __init__(self, act: Callable = torch.tanh) -> None:
        super().__init__()
        self.act, self.layer = act, nn.Linear(2, 2)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.act(self.layer(x))


def test_a_model_that_cannot_be_saved(points: Tensor, tmp_path: Path) -> None:
    model = sde.ScoreModel(Lambda(), sde.VP())
    before = model.net.layer.weight.clone()
    with pytest.raises(TypeError, match=r"ScoreModel\.net\.act is .*which a checkpoint cannot hold: write a class"):
        sde.fit(model, points, 5, checkpoint=tmp_path / "a.safetensors", progress=False)
    assert torch.equal(before, model.net.layer.weight)
    sde.fit(model, points, 5, progress=False)  # without a checkpoint nothing is asked of it


def test_a_checkpoint_that_is_a_folder(points: Tensor, small: Callable, tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match=r"is a folder: name a file in it, .*model\.safetensors"):
        sde.fit(small(), points, 5, checkpoint=tmp_path, progress=False)
