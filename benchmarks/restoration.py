"""Images restored by each method: how near to the truth, how near to data, at equal evaluations of one network.

Held-out images are observed in four ways, by a box mask, by means of 4×4 pixels, by a Gaussian blur and, in colour, by
their grey alone, each with noise of .05 on a scale of 2. Every method draws two samples for each observation. Quality
has two sides, and no method has both: the mean of many samples is nearest to the truth (PSNR), while a single sample
looks like data (Fréchet distance). PSNR is of a peak of 2, from -1 to 1, of one mean squared error over all images.

`measure(model, images, data, eyes)` takes any model of any images; all runs where the model is.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import sde
from benchmarks import harness
from benchmarks.features import resnet56
from benchmarks.harness import number
from sde import inverse, metrics, plot

NOISE = 0.05
AT_ONCE = 256
"""Images of one call of `sde.sample`."""
Method = Callable[[Any, Any], tuple[Any, Any]]
"""From model and observation to the model and the solver that `sde.sample` takes."""

TASKS: dict[str, Callable[[torch.Size], Any]] = {
    "inpainting": lambda event: inverse.Mask.box(event, *_box(event)),
    "super-resolution": lambda event: inverse.AveragePool(event, factor=4),
    "deblurring": lambda event: inverse.Blur.gaussian(event, width=1.5),
    "colourisation": lambda event: inverse.Grey(event),
}
METHODS: dict[str, Method] = {
    "Replacement": lambda m, o: (m, inverse.Replacement(sde.Ancestral(), o)),
    "RePaint": lambda m, o: (m, inverse.RePaint(sde.Ancestral(), o, jump=4, resamplings=4)),
    "DDRM": lambda m, o: (m, inverse.DDRM(o)),
    "DDNM": lambda m, o: (inverse.DDNM(m, o), sde.Ancestral()),
    "DiffPIR": lambda m, o: (inverse.DiffPIR(m, o), sde.Ancestral()),
    "DPS": lambda m, o: (m, inverse.DPSSolver(o, zeta=3.0)),
    "PiGDM": lambda m, o: (m, inverse.PiGDMSolver(o)),
    "MMPS": lambda m, o: (inverse.MMPS(m, o), sde.Ancestral()),
}
REPEATS = {"RePaint": 4}
"""Evaluations of a method in each step of its grid, beside its solver's."""


def _box(event: torch.Size) -> tuple[int, int, int, int]:
    """Top, left, height, width of the hidden middle: a good third of each side."""
    high, wide = round(event[-2] * 0.4), round(event[-1] * 0.4)
    return (event[-2] - high) // 2, (event[-1] - wide) // 2, high, wide


@dataclass
class Row:
    task: str
    method: str
    psnr: float
    psnr_mean: float
    frechet: float
    misfit: float
    calls: int = 0
    seconds: float = 0.0
    failed: str = ""


@dataclass
class Book:
    rows: list[Row] = field(default_factory=list)
    pictures: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    count: int = 0
    evaluations: int = 0
    floor: float = math.nan
    data: str = ""
    eyes: str = ""
    device: str = ""


def psnr(x: Tensor, truth: Tensor) -> float:
    """Decibels of the mean squared error against a peak of 2."""
    return -10 * math.log10(float((x.clamp(-1, 1) - truth).square().mean()) / 4)


class Counter:
    """Evaluations of a network."""

    def __init__(self, model: Any) -> None:
        self.calls = 0
        self.hook = model.net.register_forward_pre_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.calls += 1


def restore(
    model: Any,
    observation: Any,
    method: Method,
    shape: tuple[int, ...],
    steps: int,
    seed: int = 0,
    batch: int = AT_ONCE,
) -> Tensor:
    """Samples of one method, as many at once as fit, one to each row of the observation."""
    generator, parts = torch.Generator(observation.y.device).manual_seed(seed), []
    for y in observation.y.split(AT_ONCE):
        guided, solver = method(model, inverse.Observation(observation.operator, y, observation.noise))
        how: dict[str, Any] = {"steps": steps, "generator": generator, "progress": False}
        parts.append(sde.sample(guided, (len(y), *shape[1:]), solver=solver, **how))
    return torch.cat(parts)


def measure(
    model: Any,
    images: Tensor,
    data: str,
    eyes: nn.Module,
    count: int = 16,
    evaluations: int = 30,
    tasks: tuple[str, ...] | None = None,
    methods: tuple[str, ...] | None = None,
    shown: int = 6,
    tell: Callable[[str], None] = lambda line: None,
) -> Book:
    """All methods on all tasks that fit the images.

    Args:
        model: Score model of such images.
        images: Held-out images (n, C, H, W) in [-1, 1]: the first are restored, the rest is what looks like data.
        data: What they are, for the page.
        eyes: Network whose features the Fréchet distance is of.
        count: How many are restored, each twice.
        evaluations: Of the network, for each sample.
        tasks: Of TASKS; colourisation is left out where there is no colour.
        methods: Of METHODS.
        shown: Images of the picture.
        tell: Called with a line when a method is through.
    """
    device = model.placement()[0]
    truth, rest = images[:count].to(device), images[count : count + 4000].to(device)
    event, eyes = truth.shape[1:], eyes.to(device)
    real = metrics.moments(eyes, rest, progress=False)
    far = lambda x: float(metrics.frechet_distance(metrics.moments(eyes, x.clamp(-1, 1), progress=False), real))  # noqa: E731
    book = Book(count=count, evaluations=evaluations, data=data, eyes=type(eyes).__name__)
    book.device = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    book.floor = far(images[-2 * count :].to(device))
    for task in tasks or tuple(t for t in TASKS if t != "colourisation" or event[0] == 3):
        operator = TASKS[task](event).to(device)
        seen = inverse.observe(operator, truth, NOISE, torch.Generator(device).manual_seed(1))
        twice = inverse.Observation(operator, seen.y.repeat(2, 1, 1, 1), NOISE)
        plain = operator.pinv(seen.y)
        drawn = book.pictures[task] = {
            "truth": truth[:shown].cpu(),
            "observed": (seen.y if task == "deblurring" else plain)[:shown].cpu(),
        }
        book.rows.append(Row(task, "A⁺ y", psnr(plain, truth), psnr(plain, truth), far(plain), _misfit(seen, plain)))
        for name in methods or tuple(METHODS):
            counter, began = Counter(model), time.monotonic()
            steps = max(2, evaluations // REPEATS.get(name, 1))
            try:
                x = restore(model, twice, METHODS[name], (2 * count, *event), steps)
            except ValueError as error:
                book.rows.append(Row(task, name, math.nan, math.nan, math.nan, math.nan, failed=str(error)))
                continue
            finally:
                counter.hook.remove()
            pair = x.reshape(2, count, *event)
            row = Row(task, name, psnr(pair[0], truth), psnr(pair.mean(0), truth), far(x), _misfit(seen, pair[0]))
            row.calls, row.seconds = counter.calls // -(-len(x) // AT_ONCE), time.monotonic() - began
            book.rows.append(row)
            drawn[name] = pair[0, :shown].cpu()
            tell(f"{task}, {name}: {row.seconds:.0f} s")
    return book


def spread(model: Any, images: Tensor, book: Book, samples: int = 8, shown: int = 6) -> None:
    """Posterior mean and standard deviation by MMPS for the picture."""
    event, device = images.shape[1:], model.placement()[0]
    for task, drawn in book.pictures.items():
        operator = TASKS[task](event).to(device)
        generator = torch.Generator(device).manual_seed(1)
        seen = inverse.observe(operator, images[: book.count].to(device), NOISE, generator)
        many = inverse.Observation(operator, seen.y[:shown].repeat(samples, 1, 1, 1), NOISE)
        x = restore(model, many, METHODS["MMPS"], (samples * shown, *event), max(2, book.evaluations // 2)).cpu()
        x = x.reshape(samples, shown, *event)
        drawn["mean (MMPS)"], drawn["deviation (MMPS)"] = x.mean(0), 2 * x.std(0).clamp(max=1) - 1


def on(name: str, samples: int = 8, shown: int = 6, **how: Any) -> Book:
    """A shipped network, "fashion-mnist" or "cifar10", on the test images of its data; on a GPU if there is one."""
    gpu = torch.cuda.is_available()
    model = sde.pretrained(name).requires_grad_(False).to("cuda" if gpu else "cpu")
    images = getattr(sde.data, name.replace("-", "_"))(train=False).x
    eyes = resnet56() if name == "cifar10" else metrics.RandomConv(channels=1)
    how = {"count": 256 if gpu else 16, **how}
    book = measure(model, images, f"{name}, the shipped network, no class told", eyes, shown=shown, tell=print, **how)
    spread(model, images, book, samples, shown)
    return book


def _misfit(seen: Any, x: Tensor) -> float:
    """Root mean square of y - A x over the noise, in what A sees: 1 for the truth."""
    r = seen.residual(x) / NOISE
    if isinstance(seen.operator, inverse.Mask):
        r = r[:, seen.operator(torch.ones_like(x[:1]))[0] != 0]
    return float(r.square().mean().sqrt())


EYES = {
    "RandomConv": "random convolutions (`metrics.RandomConv`; no FID)",
    "CifarResNet": "ResNet-56 (`benchmarks.features`; no FID)",
}


def report(book: Book, file: str = "restoration.png") -> str:
    """The Markdown page, with the picture of that name."""
    parts = [
        "# Restoring images: nearness to the truth, and to data",
        f"{harness.machine()}; network on: {book.device}. {book.data}; {book.count} held-out "
        f"images, two samples each, about {book.evaluations} evaluations of the network for "
        "each sample, one network and one set of noises for all.",
        (__doc__ or "").split("\n\n")[1].replace("\n", " "),
        f"Fréchet distance in the features of {EYES.get(book.eyes, book.eyes)}, {2 * book.count} samples against "
        f"4000 other held-out images. As many images of the data are {number(book.floor)} away: less cannot be told "
        "from data, and few samples are further away than many are. Misfit is |y − A x| in units of the "
        "noise, 1 for the truth. `calls` are the network's evaluations; DPS and PiGDM pay about as much again for a "
        "gradient, and MMPS four times as much.",
    ]
    for task in dict.fromkeys(row.task for row in book.rows):
        rows = [
            [r.method, number(r.psnr), number(r.psnr_mean), number(r.frechet), number(r.misfit), r.calls or "–",
             number(r.seconds, 2)]
            for r in book.rows if r.task == task
        ]  # fmt: skip
        header = ["method", "PSNR, one sample", "PSNR, mean of two", "Fréchet", "misfit", "calls", "seconds"]
        parts += [f"## {task.capitalize()}", harness.table(header, rows)]
    failed = [f"- {r.task}, {r.method}: {r.failed}" for r in book.rows if r.failed]
    parts += [f"![Restorations]({file})"]
    if failed:
        parts += ["## Not measured", "\n".join(failed)]
    return "\n\n".join(parts) + "\n"


def picture(book: Book, path: Path) -> None:
    """A column to each held-out image, a row to each method, a panel to each task."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        1, len(book.pictures), figsize=(4.2 * len(book.pictures), 7.0), layout="constrained", squeeze=False
    )
    for ax, (task, drawn) in zip(axes[0], book.pictures.items(), strict=True):
        shown = next(iter(drawn.values()))
        plot.grid(torch.cat([x.clamp(-1, 1) for x in drawn.values()]), ncols=len(shown), ax=ax)
        side = shown.shape[-1] + max(2, shown.shape[-1] // 14)
        ax.set_yticks([side * i + shown.shape[-1] / 2 for i in range(len(drawn))], list(drawn), fontsize=8)
        ax.set_title(task)
    figure.savefig(path, dpi=130)
    plt.close(figure)
