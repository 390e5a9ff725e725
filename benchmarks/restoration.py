"""Images restored by each method: how near to the truth, how near to data, at equal evaluations of one network.

Held-out images are observed in four ways, by a box mask, by means of 4×4 pixels, by a Gaussian blur and, in colour, by
their grey alone, each with noise of .05 on a scale of 2. Every method draws two samples for each observation. Quality
has two sides, and no method has both: the mean of many samples is nearest to the truth (PSNR), while a single sample
looks like data (Fréchet distance). PSNR is of a peak of 2, from -1 to 1, of one mean squared error over all images.

`measure(model, images)` takes any model of any images; on CIFAR-10 say
`measure(sde.load("cifar10.safetensors"), sde.data.cifar10(train=False).x)`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sde
from benchmarks import harness
from benchmarks.harness import number
from sde import inverse, metrics, plot

NOISE = 0.05
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


def restore(model: Any, observation: Any, method: Method, shape: tuple[int, ...], steps: int, seed: int = 0) -> Tensor:
    """Samples of one method."""
    model, solver = method(model, observation)
    how: dict[str, Any] = {"steps": steps, "generator": torch.Generator().manual_seed(seed), "progress": False}
    return sde.sample(model, shape, solver=solver, **how)


def measure(
    model: Any,
    images: Tensor,
    data: str,
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
        count: How many are restored, each twice.
        evaluations: Of the network, for each sample.
        tasks: Of TASKS; colourisation is left out where there is no colour.
        methods: Of METHODS.
        shown: Images of the picture.
        tell: Called with a line when a method is through.
    """
    truth, rest = images[:count], images[count : count + 4000]
    event, device = truth.shape[1:], model.placement()[0]
    net = metrics.RandomConv(channels=event[0])
    real = metrics.moments(net, rest, progress=False)
    far = lambda x: float(metrics.frechet_distance(metrics.moments(net, x.clamp(-1, 1), progress=False), real))  # noqa: E731
    book = Book(count=count, evaluations=evaluations, data=data, floor=far(images[-2 * count :]))
    for task in tasks or tuple(t for t in TASKS if t != "colourisation" or event[0] == 3):
        operator = TASKS[task](event)
        seen = inverse.observe(operator, truth, NOISE, torch.Generator().manual_seed(1))
        twice = inverse.Observation(operator, seen.y.repeat(2, 1, 1, 1), NOISE).to(device)
        plain = operator.pinv(seen.y)
        drawn = book.pictures[task] = {
            "truth": truth[:shown],
            "observed": (seen.y if task == "deblurring" else plain)[:shown],
        }
        book.rows.append(Row(task, "A⁺ y", psnr(plain, truth), psnr(plain, truth), far(plain), _misfit(seen, plain)))
        for name in methods or tuple(METHODS):
            counter, began = Counter(model), time.monotonic()
            steps = max(2, evaluations // REPEATS.get(name, 1))
            try:
                x = restore(model, twice, METHODS[name], (2 * count, *event), steps).cpu()
            except ValueError as error:
                book.rows.append(Row(task, name, *[math.nan] * 4, failed=str(error)))
                continue
            finally:
                counter.hook.remove()
            pair = x.reshape(2, count, *event)
            row = Row(task, name, psnr(pair[0], truth), psnr(pair.mean(0), truth), far(x), _misfit(seen, pair[0]))
            row.calls, row.seconds = counter.calls, time.monotonic() - began
            book.rows.append(row)
            drawn[name] = pair[0, :shown]
            tell(f"{task}, {name}: {row.seconds:.0f} s")
    return book


def spread(model: Any, images: Tensor, book: Book, samples: int = 8, shown: int = 6) -> None:
    """Posterior mean and standard deviation by MMPS for the picture."""
    event = images.shape[1:]
    for task, drawn in book.pictures.items():
        operator = TASKS[task](event)
        seen = inverse.observe(operator, images[: book.count], NOISE, torch.Generator().manual_seed(1))
        many = inverse.Observation(operator, seen.y[:shown].repeat(samples, 1, 1, 1), NOISE)
        x = restore(model, many, METHODS["MMPS"], (samples * shown, *event), max(2, book.evaluations // 2))
        x = x.reshape(samples, shown, *event)
        drawn["mean (MMPS)"], drawn["deviation (MMPS)"] = x.mean(0), 2 * x.std(0).clamp(max=1) - 1


def on_fashion_mnist(samples: int = 8, shown: int = 6, **how: Any) -> Book:
    """The shipped network on the test images."""
    model = sde.pretrained("fashion-mnist").requires_grad_(False)
    images = sde.data.fashion_mnist(train=False).x
    book = measure(model, images, "Fashion-MNIST, the shipped network, no class told", shown=shown, tell=print, **how)
    spread(model, images, book, samples, shown)
    return book


def _misfit(seen: Any, x: Tensor) -> float:
    """Root mean square of y - A x over the noise, in what A sees: 1 for the truth."""
    shown = seen.operator(torch.ones(1, *x.shape[1:])) != 0 if isinstance(seen.operator, inverse.Mask) else None
    r = seen.residual(x) / NOISE
    return float((r[:, shown[0]] if shown is not None else r).square().mean().sqrt())


def report(book: Book) -> str:
    """The Markdown page."""
    parts = [
        "# Restoring images: nearness to the truth, and to data",
        f"{harness.machine()}. {book.data}; {book.count} held-out images, two samples each, about {book.evaluations} "
        "evaluations of the network for each sample, one network and one set of noises for all.",
        (__doc__ or "").split("\n\n")[1].replace("\n", " "),
        f"Fréchet distance in random convolutions (`metrics.RandomConv`; no FID), {2 * book.count} samples against "
        f"4000 other held-out images. As many images of the data are {number(book.floor)} away: less cannot be told "
        "from data, and the distance of so few has an error of a tenth or more. Misfit is |y − A x| in units of the "
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
    parts += ["![Restorations](restoration.png)"]
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
