"""Interrupted and resumed training makes the bits of uninterrupted training, whatever interrupts it."""

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sde
from sde.train import CheckpointError, History, optimal_transport
from sde.train.checkpoint import read, write

STEPS = 70

Train = Callable[..., tuple[sde.ScoreModel, History]]


class Normed(nn.Module):
    """A network with statistics of its own (batch norm), a weight used twice, and one that is frozen."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.width = width
        self.first, self.last = nn.Linear(2, width), nn.Linear(width, 2)
        self.middle, self.again = nn.Linear(width, width), nn.Linear(width, width)
        self.again.weight = self.middle.weight
        self.norm = nn.BatchNorm1d(width)
        self.frozen = nn.Parameter(torch.randn(width), requires_grad=False)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        h = self.norm(self.first(x)) * self.frozen + c[:, None]
        return self.last(torch.tanh(self.again(torch.tanh(self.middle(h)))))


class Interrupting(nn.Module):
    """Lets something happen inside a forward pass."""

    calls = 0
    happen: Callable[[int], None] | None = None

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.width, self.net = width, sde.nets.MLP(dim=2, width=width, depth=1)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        Interrupting.calls += 1
        if Interrupting.happen is not None:
            Interrupting.happen(Interrupting.calls)
        return self.net(x, c)


@pytest.fixture
def train(points: Tensor, small: Callable, seeded: Callable) -> Train:
    """One call of `fit`, the same at every call: a fresh model, a fresh generator."""

    def run(
        path: Path | None, make: Callable[[], sde.ScoreModel] = small, **kwargs: Any
    ) -> tuple[sde.ScoreModel, History]:
        torch.manual_seed(11)
        model = make()
        rate = kwargs.pop("rate", None)
        if rate is not None:
            kwargs["optimizer"] = rate(model.parameters())
        call = {"batch": 8, "every": 10, "lr": 1e-2, "warmup": 5, "generator": seeded(5), **kwargs}
        return model, sde.fit(model, points, STEPS, checkpoint=path, progress=False, **call)

    return run


def stopping(*steps: int) -> Callable[[Any], None]:
    """A callback that interrupts at each of these steps, once."""
    left = list(steps)

    def callback(step: Any) -> None:
        if left and step.step == left[0]:
            left.pop(0)
            raise KeyboardInterrupt

    return callback


def to_the_end(
    train: Train, path: Path, callback: Callable | None = None, **kwargs: Any
) -> tuple[sde.ScoreModel, History, int]:
    """Call again until it is through; with how many interruptions."""
    for interruptions in range(100):
        try:
            return *train(path, callback=callback, **kwargs), interruptions
        except KeyboardInterrupt:
            assert path.exists()
    raise AssertionError("never through")


def same(a: History, b: History) -> bool:
    return (a.step, a.loss, a.lr) == (b.step, b.loss, b.lr)


# Interruption between steps.


@pytest.mark.parametrize(
    ("every", "stops"),
    [
        (1, [1, 31, 32, 33, 63, 64, 65, 69, 70]),  # about the edges of a chunk of steps; at 70 nothing is left to do
        (10, [10, 50, 60]),
        (7, [7, 14, 63]),
    ],
)
def test_same_bits(every: int, stops: list[int], train: Train, bits: Callable, tmp_path: Path) -> None:
    whole, history = train(None, every=every)
    model, again, interruptions = to_the_end(train, tmp_path / "run", stopping(*stops), every=every)
    assert interruptions == len(stops)
    assert torch.equal(bits(whole), bits(model))
    assert same(history, again)
    assert again.seconds == sorted(again.seconds)


KINDS: dict[str, dict[str, Any]] = {
    "a table": {"make": lambda: sde.ScoreModel(sde.nets.MLP(2, 8, 1), sde.Tabulated.linear(20))},
    "a matrix SDE": {"make": lambda: sde.ScoreModel(sde.nets.MLP(2, 8, 1), sde.CLD())},
    "a coupling": {
        "make": lambda: sde.ScoreModel(sde.nets.MLP(2, 8, 1), sde.Flow(), "velocity"),
        "coupling": optimal_transport,
    },
    "labels": {
        "make": lambda: sde.ScoreModel(sde.nets.MLP(2, 8, 1, classes=3), sde.VP()),
        "cond": {"label": torch.arange(200) % 3},
    },
    "no average": {"ema": 0.0},
    "float64": {"make": lambda: sde.ScoreModel(sde.nets.MLP(2, 8, 1), sde.VP()).double()},
    "bfloat16": {"make": lambda: sde.ScoreModel(sde.nets.MLP(2, 8, 1), sde.VP()).bfloat16()},
    "statistics and shared weights": {"make": lambda: sde.ScoreModel(Normed(), sde.VP(), mean=[0.1, -0.1])},
    "momentum": {"rate": lambda p: torch.optim.SGD(p, lr=1.0, momentum=0.9)},
    "plain descent": {"rate": lambda p: torch.optim.SGD(p, lr=1.0)},
    "AdamW": {"rate": lambda p: torch.optim.AdamW(p, lr=1.0, weight_decay=0.1, amsgrad=True)},
    "a weight": {"weight": sde.train.min_snr(5.0)},
    "two averages": {"ema": sde.train.Power((0.1, 0.05))},
    "float16": {"precision": "float16", "clip": 1.0},
    "parts in bfloat16": {"precision": "bfloat16", "accumulate": 4, "decay": "inverse_sqrt"},
    "files at odd steps": {"save_every": 9},
}


@pytest.mark.parametrize("kind", KINDS)
def test_same_bits_of_every_kind(kind: str, train: Train, bits: Callable, tmp_path: Path) -> None:
    whole, history = train(None, **KINDS[kind])
    path = tmp_path / "run"
    model, again, _ = to_the_end(train, path, stopping(20, 40), **KINDS[kind])
    assert torch.equal(bits(whole), bits(model))
    assert same(history, again)
    loaded = sde.load(path, types=[Normed])  # what the file holds is what `fit` left
    assert torch.equal(bits(loaded), bits(model))
    assert {k: v.dtype for k, v in loaded.state_dict().items()} == {k: v.dtype for k, v in model.state_dict().items()}


def test_a_generator_of_its_own(train: Train, bits: Callable, tmp_path: Path) -> None:
    """Without a generator the file knows the seed that was drawn."""
    whole, _ = train(None, generator=None)
    path = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(path, generator=None, callback=stopping(50))
    model = sde.ScoreModel(sde.nets.MLP(2, 16, 1, features=8), sde.VP())
    torch.manual_seed(12345)  # of no account now
    points = torch.randn(200, 2, generator=torch.Generator().manual_seed(99)) @ torch.tensor([[1.0, 0.6], [0.0, 0.8]])
    sde.fit(model, points, STEPS, batch=8, every=10, lr=1e-2, warmup=5, checkpoint=path, progress=False)
    assert torch.equal(bits(whole), bits(model))


def test_a_file_from_before_there_was_a_choice(train: Train, bits: Callable, tmp_path: Path) -> None:
    """It says nothing of precision, flips and the like, nor of throughput."""
    whole, history = train(None)
    path = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(path, callback=stopping(40))
    manifest, tensors = read(path)
    manifest.pop("format")
    for name in ("ema", "flip", "drop", "dequantize", "precision"):
        del manifest["run"][name]
    del manifest["run"]["history"]["throughput"]
    write(path, manifest, tensors)
    model, again = train(path)
    assert torch.equal(bits(whole), bits(model))
    assert same(history, again)
    assert len(again.throughput) == len(again.step)


def test_called_again_after_the_end(train: Train, bits: Callable, tmp_path: Path) -> None:
    model, history = train(tmp_path / "run")
    written = (tmp_path / "run").read_bytes()
    again, same_history = train(tmp_path / "run")
    assert torch.equal(bits(model), bits(again))
    assert history == same_history
    assert (tmp_path / "run").read_bytes() == written


def test_an_interrupted_model_is_averaged_and_says_where_it_is(
    train: Train, points: Tensor, small: Callable, seeded: Callable, bits: Callable, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    model, path = small(), tmp_path / "run.safetensors"
    with pytest.raises(KeyboardInterrupt):
        sde.fit(model, points, 50, every=10, checkpoint=path, callback=stopping(20), progress=False)
    assert f"stopped at step 20 of 50: the same call goes on from {path}" in capsys.readouterr().out
    assert not model.training
    assert torch.equal(bits(sde.load(path)), bits(model))


# Interruption inside a step.


@pytest.fixture
def inside() -> Any:
    """Let something happen at the n-th forward pass of an `Interrupting` network."""

    def arrange(happen: Callable[[int], None] | None) -> None:
        Interrupting.calls, Interrupting.happen = 0, staticmethod(happen) if happen else None

    yield arrange
    arrange(None)


def interrupting() -> sde.ScoreModel:
    return sde.ScoreModel(Interrupting(), sde.VP())


@pytest.mark.parametrize("at", [1, 17, 32, 33, 60, 70])
def test_control_c_waits_for_the_end_of_the_step(
    at: int, train: Train, bits: Callable, tmp_path: Path, inside: Callable
) -> None:
    whole, history = train(None, interrupting)
    inside(lambda n: signal.raise_signal(signal.SIGINT) if n == at else None)
    path = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(path, interrupting)
    assert read(path)[0]["run"]["step"] == at
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    model, again = train(path, interrupting)
    assert torch.equal(bits(whole), bits(model))
    assert same(history, again)


def test_a_second_control_c_does_not_wait(train: Train, bits: Callable, tmp_path: Path, inside: Callable) -> None:
    """It tears a step, so nothing is saved, and the run goes on from the last entry."""
    whole, history = train(None, interrupting)

    def twice(n: int) -> None:
        if n == 45:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("the second one waited")

    inside(twice)
    path = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(path, interrupting)
    assert read(path)[0]["run"]["step"] == 40
    model, again = train(path, interrupting)
    assert torch.equal(bits(whole), bits(model))
    assert same(history, again)


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt(), SystemExit()])
def test_whatever_is_raised_inside_a_step(
    error: BaseException, train: Train, bits: Callable, tmp_path: Path, inside: Callable
) -> None:
    whole, _ = train(None, interrupting)

    def fail(n: int) -> None:
        if n == 45:
            raise error

    inside(fail)
    with pytest.raises(type(error)):
        train(tmp_path / "run", interrupting)
    model, _ = train(tmp_path / "run", interrupting)
    assert torch.equal(bits(whole), bits(model))


def test_somebody_elses_handler_is_left_alone(train: Train, inside: Callable) -> None:
    heard = []
    before = signal.signal(signal.SIGINT, lambda *_: heard.append(1))
    try:
        inside(lambda n: signal.raise_signal(signal.SIGINT) if n == 3 else None)
        train(None, interrupting)
    finally:
        signal.signal(signal.SIGINT, before)
    assert heard == [1]


# Killed.

SCRIPT = textwrap.dedent(
    """
    import sys, torch, sde
    torch.manual_seed(0)
    model = sde.ScoreModel(sde.nets.MLP(dim=2, width=16, depth=1), sde.VP())
    data = torch.randn(100, 2, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(2)
    sde.fit(model, data, 600, batch=8, every=20, checkpoint=sys.argv[1], generator=generator, progress=False,
            callback=lambda step: print(step.step, flush=True))
    """
)


def _killed(path: Path, seconds: float) -> int:
    """Run the script, kill it some time after its first checkpoint; the last step that it spoke of."""
    command = [sys.executable, "-c", SCRIPT, str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdout is not None
        first = child.stdout.readline()
        time.sleep(seconds)
        child.kill()  # SIGKILL: no handler, no finally
        return int((first + child.stdout.read()).split()[-1])


@pytest.mark.parametrize("kills", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_killed_at_a_random_moment(kills: int, bits: Callable, tmp_path: Path) -> None:
    path, moment = tmp_path / "run.safetensors", random.Random()  # any moment has to do
    for _ in range(kills):
        reached = _killed(path, moment.uniform(0.0, 0.3))
        step = read(path)[0]["run"]["step"]
        assert step % 20 == 0
        assert reached <= step <= reached + 20
        if step == 600:
            break
    models = []
    for checkpoint in (path, None):
        torch.manual_seed(0)
        model = sde.ScoreModel(sde.nets.MLP(dim=2, width=16, depth=1), sde.VP())
        data = torch.randn(100, 2, generator=torch.Generator().manual_seed(1))
        generator = torch.Generator().manual_seed(2)
        sde.fit(model, data, 600, batch=8, every=600, checkpoint=checkpoint, generator=generator, progress=False)
        models.append(bits(model))
    assert torch.equal(*models)


# What does not fit is refused.


@pytest.fixture
def half(train: Train, tmp_path: Path) -> Path:
    """The file of a run that was stopped at step 50 of 70."""
    path = tmp_path / "half.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(path, callback=stopping(50))
    return path


def other(**changed: Any) -> Callable[[], sde.ScoreModel]:
    net = sde.nets.MLP(2, 16, 1, features=8)
    return lambda: sde.ScoreModel(**{"net": net, "sde": sde.VP(), **changed})


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "batch": ({"batch": 9}, "was trained with batch=8, now batch=9: pass batch=8"),
    "SDE": ({"make": other(sde=sde.SubVP())}, "was trained as another model: pass resume=False"),
    "number of the SDE": ({"make": other(sde=sde.VP(beta_max=20.5))}, "another model"),
    "param": ({"make": other(param="eps")}, "another model"),
    "scale": ({"make": other(scale=1.01)}, "another model"),
    "mean": ({"make": other(mean=[0.0, 0.1])}, "another model"),
    "width": ({"make": other(net=sde.nets.MLP(2, 17, 1, features=8))}, "another model"),
    "network": ({"make": other(net=Normed())}, "another model"),
    "dtype": ({"make": lambda: other()().double()}, r"holds no complete training run .*float32.*float64"),
    "coupling": ({"make": other(), "coupling": optimal_transport}, "another model"),
    "optimizer": ({"rate": torch.optim.AdamW}, "optimizer=Adam, now optimizer=AdamW"),
    "precision": ({"precision": "bfloat16"}, "precision=float32, now precision=bfloat16"),
    "averages": ({"ema": sde.train.Power(0.1)}, r"was trained with ema=a number, now ema=Power\(\[0\.1\], 16\): pass"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_another_run_is_refused(what: str, half: Path, train: Train) -> None:
    changed, words = REFUSED[what]
    before = half.read_bytes()
    with pytest.raises(CheckpointError, match=words):
        train(half, **changed)
    assert half.read_bytes() == before


def test_other_steps_are_refused(half: Path, small: Callable, points: Tensor) -> None:
    """They are in the learning rate's schedule."""
    with pytest.raises(CheckpointError, match="was trained with steps=70, now steps=200: pass steps=70, or resume=F"):
        sde.fit(small(), points, 200, batch=8, checkpoint=half, progress=False)


def test_a_generator_of_another_kind_of_device_is_refused(half: Path, train: Train) -> None:
    manifest, tensors = read(half)
    manifest.pop("format")
    write(half, manifest, {**tensors, "generator/now": torch.zeros(16, dtype=torch.uint8)})  # a CUDA one has 16 bytes
    with pytest.raises(CheckpointError, match=r"another kind of device, and its state cannot go on cpu: go on where"):
        train(half)


def test_starting_anew(half: Path, train: Train, bits: Callable) -> None:
    whole, _ = train(None)
    model, history = train(half, resume=False)
    assert torch.equal(bits(whole), bits(model))
    assert history.step[0] == 10


def test_a_model_without_a_run(tmp_path: Path, small: Callable, train: Train) -> None:
    path = sde.save(small(), tmp_path / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"holds a model and no training run: load it with sde\.load, or pass resume"
    ):
        train(path)


@pytest.mark.parametrize("change", ["step", "no step", "history", "generator", "raw", "slot", "list", "late"])
def test_a_run_that_was_forged_is_refused(change: str, half: Path, train: Train) -> None:
    """With a right hash: what is missing or strange is one error, with a remedy."""
    manifest, tensors = read(half)
    run = manifest["run"]
    if change == "step":
        run["step"] = "50"
    elif change == "late":
        run["step"] = 71
    elif change == "no step":
        del run["step"]
    elif change == "history":
        run["history"] = {"step": [1], "os.system": ["true"]}
    elif change == "list":
        manifest["run"] = [1, 2]
    elif change == "generator":
        tensors["generator/now"] = tensors["generator/now"][:-1]
    elif change == "raw":
        tensors = {k: v for k, v in tensors.items() if not k.startswith("raw/")}
    else:
        tensors["optimizer/a/b/c"] = torch.zeros(1)
    manifest.pop("format")
    write(half, json.loads(json.dumps(manifest)), tensors)
    with pytest.raises(CheckpointError, match="resume=False"):
        train(half)
