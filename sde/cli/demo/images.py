"""`sde demo images`: what networks that come with the package draw, by the same lines as points.

Every class is drawn from noise by the probability flow; one image of each of a few classes is followed on its way,
by the probability flow and by the reverse SDE from the same noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

import sde
from sde.cli import common
from sde.cli.demo.core import follow
from sde.cli.demo.page import Table
from sde.cli.demo.report import Report, Sizes

NETWORKS = {"digits": "Handwritten digits, 8 × 8", "fashion-mnist": "Fashion-MNIST, 28 × 28"}
"""Which, and their headings."""


def images(report: Report, size: Sizes, seed: int) -> None:
    """Grids, births, and what they cost."""
    table = Table(
        "What it took",
        ["", "weights", "images", "evaluations of the network", "seconds", "images / s"],
        "Each image takes as many evaluations as the solver has steps. Seconds on this machine's processor.",
    )
    for number, (name, heading) in enumerate(NETWORKS.items()):
        report.heading(heading)
        model, rng = sde.pretrained(name), common.generators(seed, name)
        classes, rows = int(getattr(model.net, "classes", 0)), size.rows
        given = model.given(label=torch.arange(classes).repeat(rows))
        noise = given.prior(torch.empty(rows * classes, *common.event_shape(model)), next(rng))
        report.say(f"drawing {len(noise)} images, {size.image_steps} evaluations each")
        before = report.seconds()
        x = sde.sample(given, x=noise, steps=size.image_steps)
        took = report.seconds() - before
        note = sde.train.note(sde.train.shipped()[name])
        names = note.get("classes", [str(k) for k in range(classes)])
        about = (
            f"{heading}: each column told its class, all from noise by the probability flow. {note.get('about', '')}"
        )
        about = f"{about} {note.get('about', '')}"
        report.figure(f"{2 * number + 1}-{name}.png", about, columns(x, names, heading))
        both = births(model, noise[:classes], size, next(rng))
        way = "One image from noise, on the left, to what it becomes: above by the reverse SDE, below by the "
        way += "probability flow, from the same noise."
        report.figure(f"{2 * number + 2}-{name}-birth.png", way, both)
        weights = sum(p.numel() for p in model.parameters())
        table.add(name, f"{weights:,}", len(x), size.image_steps * len(x), took, len(x) / took)
    report.table(table)


def columns(x: torch.Tensor, names: Sequence[str], title: str) -> Any:
    """A grid with one column a class, its name below."""
    ax = sde.plot.grid(x, ncols=len(names))
    pitch = ax.images[0].get_array().shape[1] / len(names)  # pyright: ignore[reportOptionalMemberAccess]
    ax.set_xticks([pitch * (k + 0.5) - 0.5 for k in range(len(names))], names)
    ax.tick_params(axis="x", length=0)
    ax.set_title(title)
    return ax


def births(model: sde.ScoreModel, noise: torch.Tensor, size: Sizes, rng: torch.Generator) -> Any:
    """One image on its way, by both ways from the same noise."""
    import matplotlib.pyplot as plt

    which = len(noise) - 1
    given = model.given(label=torch.tensor([which]))
    ways = follow(given, noise[which:], size.image_frames, rng)
    with sde.plot.style():
        figure, axes = plt.subplots(2, 1, figsize=(11, 3.4), gridspec_kw={"hspace": 0.5})
    for ax, (name, way) in zip(axes, ways.items(), strict=True):
        sde.plot.birth(way, times=11, ax=ax)
        ax.set_title(name)
    return figure
