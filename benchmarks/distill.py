"""Samples in 1, 2 and 4 evaluations: a teacher, progressive and consistency distillation, consistency training.

One network learns each data set by `sde.fit`; its copies are distilled. A consistency model without a teacher starts
from nothing, with as many steps as teacher and student took together. Points are judged by sliced W2 to fresh data,
digits by the Fréchet distance in the eyes of a random convolutional network. Seconds are of the CPU.
"""

from __future__ import annotations

import copy
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
from benchmarks.pictures import BLUE, GREY, _pyplot
from sde import data, distill, metrics

EVALUATIONS = (1, 2, 4)
TEACHER, CD, CT, PD = "teacher", "consistency distillation", "consistency training", "progressive distillation"


@dataclass(frozen=True)
class Budget:
    """Optimizer steps, and the network."""

    teacher: int = 4000
    student: int = 4000
    round: int = 1200
    start: int = 16
    width: int = 128
    depth: int = 3
    samples: int = 10_000


POINTS = Budget()
DIGITS = Budget(teacher=3000, student=2500, round=700, width=256, samples=1797)
TINY = Budget(teacher=5, student=5, round=2, start=8, width=8, depth=1, samples=50)


@dataclass
class Found:
    """Of one data set."""

    name: str
    unit: str
    shape: tuple[int, ...]
    budget: Budget
    floor: float = 0.0
    many: float = 0.0
    distances: dict[str, dict[int, float]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    pictures: dict[str, Tensor] = field(default_factory=dict)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def judged(name: str, budget: Budget) -> tuple[data.Dataset, Callable[[Tensor], float], float, str]:
    """Training data, the distance of samples, that of as many data, and what it is."""
    if name == "digits":
        whole = data.digits()
        net = metrics.RandomConv(channels=1)
        seen = metrics.features(net, whole.x)
        order = torch.randperm(len(whole.x), generator=seeded(9))
        one, two = seen[order[: len(order) // 2]], seen[order[len(order) // 2 :]]
        far = lambda x: float(metrics.frechet_distance(metrics.features(net, x), seen))  # noqa: E731
        return whole, far, float(metrics.frechet_distance(one, two)), "Fréchet distance"
    make = {"two moons": data.moons, "eight Gaussians": data.eight_gaussians}[name]
    truth, other = (make(budget.samples, generator=seeded(s)).x for s in (11, 12))
    w2 = lambda x: float(metrics.sliced_wasserstein(x, truth, generator=seeded(13)))  # noqa: E731
    return make(20_000, generator=seeded(10)), w2, w2(other), "sliced W2"


def on(name: str, budget: Budget) -> Found:
    """All methods on one data set."""
    given, far, floor, unit = judged(name, budget)
    x = given.x
    found = Found(name, unit, tuple(x.shape[1:]), budget, floor)
    edm, shape = sde.EDM(), (budget.samples, *x.shape[1:])

    def fresh() -> sde.ScoreModel:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = sde.nets.MLP(dim=x[0].numel(), width=budget.width, depth=budget.depth)
        return sde.ScoreModel(net, edm, mean=x.mean(0), scale=float((x - x.mean(0)).std()))

    def timed(method: str, run: Callable[[], Any]) -> Any:
        began = time.process_time()
        made = run()
        found.seconds[method] = time.process_time() - began
        print(f"  {name}, {method}: {found.seconds[method]:.0f} s", flush=True)
        return made

    def drawn(model: sde.Model, **how: Any) -> Tensor:
        return sde.sample(model, shape, generator=seeded(14), progress=False, **how)

    def keep(method: str, samples: dict[int, Tensor]) -> None:
        found.distances[method] = {n: far(s) for n, s in samples.items()}
        found.pictures[method] = samples[1][:3000]

    common: dict[str, Any] = {"progress": False, "generator": seeded(15)}
    teacher = fresh()
    timed(TEACHER, lambda: sde.fit(teacher, x, budget.teacher, **common))
    keep(TEACHER, {n: drawn(teacher, steps=n) for n in EVALUATIONS})
    found.many = far(drawn(teacher, steps=32))
    stages = timed(PD, lambda: distill.progressive(teacher, x, budget.start, 1, budget.round, **common))
    by = {s.steps: drawn(s.model, times=s.times, solver=sde.DDIM()) for s in stages if s.steps in EVALUATIONS}
    keep(PD, by)
    student, alone = copy.deepcopy(teacher), fresh()
    timed(CD, lambda: distill.consistency(student, x, budget.student, teacher=teacher, **common))
    keep(CD, {n: drawn(student, steps=n, solver=distill.Multistep()) for n in EVALUATIONS})
    timed(CT, lambda: distill.consistency(alone, x, budget.teacher + budget.student, **common))
    keep(CT, {n: drawn(alone, steps=n, solver=distill.Multistep()) for n in EVALUATIONS})
    found.pictures["data"] = x[:3000]
    return found


def measure(points: Budget = POINTS, digits: Budget = DIGITS) -> list[Found]:
    return [on("two moons", points), on("eight Gaussians", points), on("digits", digits)]


def picture(books: list[Found], path: Path) -> None:
    """Samples of one evaluation, a row to each data set."""
    plt = _pyplot()

    names = [TEACHER, PD, CD, CT, "data"]
    fig, axes = plt.subplots(len(books), len(names), figsize=(3 * len(names), 3 * len(books)), squeeze=False)
    for row, book in zip(axes, books, strict=True):
        for ax, name in zip(row, names, strict=True):
            shown = book.pictures[name]
            far = "" if name == "data" else f"\n{book.unit} {number(book.distances[name][1])}"
            if len(book.shape) == 1:
                colour = GREY if name == "data" else BLUE
                ax.scatter(*shown.T.numpy(), s=1.5, alpha=0.4, color=colour, linewidths=0)
                ax.set(xlim=(-2.6, 2.6), ylim=(-2.6, 2.6), aspect="equal", xlabel="x₁ (data's units)", ylabel="x₂")
            else:
                tiles = torch.nn.functional.pad(shown[:25].reshape(5, 5, 8, 8), (1, 1, 1, 1), value=0.0)
                ax.imshow(tiles.permute(0, 2, 1, 3).reshape(50, 50).numpy(), cmap="gray", vmin=-1, vmax=1)
                ax.set(xticks=[], yticks=[])
            ax.set_title(f"{book.name}: {name}{far}", fontsize=9)
    fig.suptitle("Samples of one evaluation of the network", fontsize=13)
    fig.tight_layout()
    fig.savefig(path, dpi=110)
    plt.close(fig)


def report(books: list[Found], shown: str = "distill.png") -> str:
    """The page."""
    parts = [
        "# Samples in few evaluations",
        harness.machine() + ".",
        f"{__doc__.split(chr(10), 2)[2].strip()} EDM, residual MLPs; the teacher's sampler is `sde.sample`'s default, "
        "progressive students take DDIM on the grid they were made for, consistency models `distill.Multistep` on the "
        "default grid. One seed.".replace("\n", " "),
        f"![Samples of one evaluation]({shown})",
    ]
    for book in books:
        b = book.budget
        parts.append(f"## {book.name}: {book.unit}")
        rows = [
            [name, *(number(book.distances[name].get(n)) for n in EVALUATIONS), f"{book.seconds[name]:.0f}"]
            for name in (TEACHER, PD, CD, CT)
        ]
        parts.append(harness.table(["method", *(f"{n} evaluation{'s' * (n > 1)}" for n in EVALUATIONS), "CPU s"], rows))
        parts.append(
            f"The teacher with 32 evaluations: {number(book.many)}; data among themselves: {number(book.floor)}. "
            f"{b.samples} samples; a network of width {b.width}; {b.teacher} steps of the teacher, {b.student} of "
            f"consistency distillation, {b.round} of each of {b.start.bit_length() - 1} rounds of progressive "
            f"distillation from {b.start} steps of DDIM, {b.teacher + b.student} of consistency training."
        )
    return "\n\n".join(parts) + "\n"
