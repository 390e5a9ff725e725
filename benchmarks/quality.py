r"""Time to quality on CIFAR-10: our U-Net and diffusers', in the same training, after the same seconds of it.

Both are trained by `sde.fit_steps`: EDM's loss, batches of 256 with flips and dequantisation, bfloat16, compiled, Adam,
clipping, power-function averages, one learning-rate rule in seconds (`quality_train`). At each mark the averages are
judged by

    Fréchet distance   of the features of ResNet-56 (`benchmarks.features`; no FID), 10k samples of the default sampler
                       against the 50k training images; test images against training images are the floor
    bits per dimension of 1k test images, Hutchinson's estimate, float32
    denoising error    |x̂(x + sigma eps) - x|² / d over the test images.

A training is some minutes and so is judging, so what is done is kept in a folder, result by result; the same call goes
on with what is missing.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import sde
from benchmarks import gpu_nets
from benchmarks.features import CifarResNet, resnet56
from benchmarks.quality_train import Plan, snapshot, train, wait
from sde.metrics import Moments, features, frechet_distance, moments

NETWORKS = ("unet", "diffusers-unet")
SIGMAS = (0.1, 0.5, 2.0)
GUESS = {"frechet": 20.0, "bits": 20.0, "denoising": 10.0}
"""Seconds that a result takes, until one of its kind is known."""


class Indexed(nn.Module):
    """A network whose clock is an index, 0 .. 999, told the clock of an SDE, spread over these."""

    def __init__(self, net: nn.Module, forward: sde.ForwardSDE) -> None:
        super().__init__()
        ends = forward.clock(torch.tensor([forward.t_min, forward.t_max], dtype=torch.float64))
        self.net, self.low, self.span = net, float(ends[0]), float(ends[1] - ends[0])

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.net(x, (c - self.low) * (999 / self.span))


class Called(nn.Module):
    """A network as it is judged: under autocast to a dtype, or as it is; compiled without touching the network."""

    def __init__(self, net: nn.Module, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.net, self.dtype = net, dtype

    def forward(self, x: Tensor, c: Tensor, label: Tensor | None = None) -> Tensor:
        told = {} if label is None else {"label": label}
        if self.dtype is None:
            return self.net(x, c, **told)
        with torch.autocast(x.device.type, self.dtype):
            return self.net(x, c, **told).to(x.dtype)


@dataclass
class Data:
    """Images as bytes on the device, and the network that looks at them with what it saw in the training images."""

    train: Tensor
    test: Tensor
    label: Tensor
    mean: Tensor
    scale: float
    eyes: nn.Module
    reference: Moments = field(init=False)
    floor: float = field(init=False)

    def __post_init__(self) -> None:
        self.reference = moments(self.eyes, self.train, batch=1000, progress=False)
        self.floor = float(frechet_distance(moments(self.eyes, self.test, batch=1000, progress=False), self.reference))


def data(plan: Plan, device: torch.device) -> Data:
    """CIFAR-10 and ResNet-56 out of the folder that SDE_DATA names; noise and an untrained network for a rehearsal."""
    if plan.tiny:
        generator = torch.Generator().manual_seed(0)
        x = torch.randint(256, (80, 3, 32, 32), dtype=torch.uint8, generator=generator)
        torch.manual_seed(0)
        return Data(x[:64], x[64:], torch.arange(16) % 10, torch.zeros(3, 32, 32), 0.58, CifarResNet(1).eval())
    given, test = sde.data.cifar10(bytes=True), sde.data.cifar10(train=False, bytes=True)
    assert test.label is not None
    eyes = resnet56().to(device)
    return Data(given.x.to(device), test.x.to(device), test.label.to(device), *given.statistics(), eyes)


def network(name: str, tiny: bool) -> sde.ScoreModel:
    """An untrained model, of mean 0 and scale 1 until it is told."""
    torch.manual_seed(0)
    net, forward = gpu_nets.NETWORKS[name](tiny), sde.EDM()
    return sde.ScoreModel(Indexed(net, forward) if isinstance(net, gpu_nets.Theirs) else net, forward)


class Judge:
    """A network on the device, ready to be sampled from and to be asked for bits."""

    def __init__(self, net: nn.Module, like: sde.ScoreModel, plan: Plan, data: Data, bits_compiled: bool) -> None:
        self.plan, self.data, self.device = plan, data, data.train.device
        self.net = net.to(self.device).requires_grad_(False).eval()
        if self.device.type == "cuda":
            self.net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        quick, exact = Called(self.net, torch.bfloat16), Called(self.net, None)
        if not plan.tiny:
            quick.compile(dynamic=False)
            if bits_compiled:
                exact.compile(dynamic=False)
        made = (like.sde, like.param, like.mean, like.scale)
        self.quick, self.exact = (sde.ScoreModel(n, *made).to(self.device).eval() for n in (quick, exact))

    def generator(self) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(1)

    def samples(self, n: int, steps: int, classes: int = 0) -> Iterator[Tensor]:
        """Samples in batches, by the default sampler; of all classes in turn, if there are any."""
        shape, generator = (self.plan.at_once, *self.data.train.shape[1:]), self.generator()
        told = torch.arange(self.plan.at_once, device=self.device) % max(1, classes)
        model = self.quick.given(label=told) if classes else self.quick
        for _ in range(-(-n // self.plan.at_once)):
            yield sde.sample(model, shape, steps, generator=generator, progress=False)

    def frechet(self, n: int, steps: int, classes: int = 0) -> Tensor:
        """Features of samples."""
        return features(self.data.eyes, self.samples(n, steps, classes), progress=False)[:n]

    def distance(self, seen: Tensor) -> float:
        return float(frechet_distance(seen, self.data.reference))

    def bits(self, n: int, told: bool = False) -> dict[str, float]:
        """Bits per dimension of the first test images."""
        plan, label = self.plan, self.data.label[:n] if told else None
        found = sde.bits_per_dim(
            self.exact, self.data.test[:n], label=label, steps=plan.bits_steps, batch=plan.bits_at_once,
            generator=self.generator(), progress=False,
        )  # fmt: skip
        return {"value": found.value, "error": found.error, "evaluations": float(found.evaluations)}

    @torch.no_grad()
    def denoising(self) -> list[float]:
        """Error at each of SIGMAS, over the test images."""
        generator, found, rows = self.generator(), [], self.plan.at_once
        x = sde.data.from_uint8(self.data.test)
        for sigma in SIGMAS:
            total = 0.0
            for part in x[: len(x) // rows * rows].split(rows):
                noisy = part + sigma * torch.randn(part.shape, generator=generator, device=self.device)
                total += float((self.quick(noisy, sigma).x0 - part).square().mean()) * len(part)
            found.append(total / (len(x) // rows * rows))
        return found


class Book:
    """Results of one network, on disk after each."""

    def __init__(self, folder: Path, name: str) -> None:
        self.path = folder / f"{name}.json"
        fresh: dict[str, Any] = {"network": name, "marks": [], "found": {}, "skipped": []}
        self.content = json.loads(self.path.read_text()) if self.path.exists() else fresh

    def keep(self) -> None:
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.content, indent=1))
        os.replace(part, self.path)


def place(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU, for rehearsal only"


def measure(
    plan: Plan, folder: Path, only: Sequence[str] = (), minutes: float = 8.0, device: torch.device | None = None
) -> list[dict[str, Any]]:
    """Train and judge what is missing, until the minutes are over; everything that the folder has."""
    folder.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * minutes
    if minutes > 0:
        device = device or torch.device("cuda" if torch.cuda.is_available() and not plan.tiny else "cpu")
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        seen = data(plan, device)
        print(f"data are ready; {end - time.monotonic():.0f} s are left", flush=True)
        for name in only or NETWORKS:
            _one(name, plan, folder, seen, end)
    return [
        Book(folder, path.stem).content for path in sorted(folder.glob("*.json")) if not path.stem.endswith(".model")
    ]


def _one(name: str, plan: Plan, folder: Path, seen: Data, end: float) -> None:
    book, device = Book(folder, name), seen.train.device
    blank = network(name, plan.tiny)
    model = sde.ScoreModel(blank.net, blank.sde, "edm", seen.mean, seen.scale).to(device)
    content = book.content
    content |= {"device": place(device), "floor": seen.floor, "torch": torch.__version__, "skipped": []}
    content["parameters"] = sum(p.numel() for p in model.parameters())
    there = [snapshot(folder, name, m, w).exists() for m in plan.marks for w in plan.widths]
    if not (content["marks"] and all(there)):
        if end - time.monotonic() < plan.marks[-1] + (0 if plan.tiny else 30):
            print(f"{name}: not trained, as too few minutes are left", flush=True)
            return
        content["found"] = {}
        content["marks"] = train(model, seen.train, plan, folder, name)
        book.keep()
        torch._dynamo.reset()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    judge = Judge(model.net, model, plan, seen, bits_compiled=False)
    judge.distance(judge.frechet(plan.at_once, 2))  # compiles
    took: dict[str, float] = {}
    for key, mark, width, work in jobs(plan, judge):
        kind = key.split(" / ")[0]
        if key in content["found"]:
            continue
        if end - time.monotonic() < 1.2 * took.get(kind, 0.0 if plan.tiny else GUESS[kind.split()[0]]):
            content["skipped"].append(key)
            continue
        load(model, snapshot(folder, name, mark, width))
        began = time.monotonic()
        try:
            content["found"][key] = work()
        except (ValueError, RuntimeError) as error:  # samples that are not finite, memory that is not there
            content["skipped"].append(f"{key}: {type(error).__name__}: {str(error)[:200]}")
        wait(device)
        took[kind] = time.monotonic() - began
        print(f"  {name} {key}: {content['found'].get(key)}; {took[kind]:.1f} s", flush=True)
        book.keep()
    book.keep()
    load(model, snapshot(folder, name, plan.marks[-1], plan.widths[0]))
    title = f"{name}: after {plan.marks[-1]:g} s of training, {plan.evaluations[0]} evaluations"
    draw(judge, folder / f"{name}.png", title)


def load(model: sde.ScoreModel, path: Path) -> None:
    from safetensors.torch import load_file

    model.load_state_dict(load_file(path))


Job = tuple[str, float, float, Callable[[], Any]]
"""Key, mark, width, work."""


def jobs(plan: Plan, judge: Judge) -> Iterator[Job]:
    """What is asked of the averages, the most important first."""
    (first, *others), (few, *more) = plan.widths, plan.evaluations

    def frechet(mark: float, width: float, steps: int) -> Job:
        work = lambda: judge.distance(judge.frechet(plan.samples, steps))  # noqa: E731
        return f"frechet {steps} / {mark:g} / {width:g}", mark, width, work

    def bits(mark: float, width: float) -> Job:
        return f"bits / {mark:g} / {width:g}", mark, width, lambda: judge.bits(plan.test)

    for mark in reversed(plan.marks):
        yield frechet(mark, first, few)
        yield f"denoising / {mark:g} / {first:g}", mark, first, judge.denoising
        yield bits(mark, first)
    yield from (frechet(mark, width, few) for width in others for mark in reversed(plan.marks))
    yield from (frechet(mark, first, steps) for steps in more for mark in reversed(plan.marks))
    yield from (bits(mark, width) for width in others for mark in reversed(plan.marks))


def draw(judge: Judge, path: Path, title: str, classes: int = 0, steps: int | None = None) -> None:
    """A grid of the first samples, of one noise for every network."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    count = 100 if classes else 64
    x = next(judge.samples(1, steps or judge.plan.evaluations[0], classes))[:count]
    figure, ax = plt.subplots(figsize=(8, 8.4), layout="constrained")
    sde.plot.grid(x, ncols=10 if classes else 8, ax=ax)
    ax.set_title(title)
    figure.savefig(path, dpi=100)
    plt.close(figure)
