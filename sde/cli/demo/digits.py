"""Handwritten digits: the same lines on images, with classes, and the question whether they are new."""

from __future__ import annotations

import math

import torch
from torch import Tensor

import sde
from sde.cli import common
from sde.cli.demo.core import draw, follow, learn
from sde.cli.demo.page import Table
from sde.cli.demo.report import Report, Sizes, distance
from sde.metrics import energy_distance, floor, sliced_wasserstein, wasserstein

EXACTLY = "donot_use_mm_for_euclid_dist"  # the quicker product form leaves a copy at a distance above zero


def digits(report: Report, size: Sizes, seed: int) -> None:
    """Training, sampling, pictures and table."""
    report.heading("Handwritten digits, by the same lines")
    rng = common.generators(seed, "digits")
    data = sde.data.digits()
    with common.initial_weights(seed):
        net = sde.nets.MLP(dim=64, width=size.width, depth=3, classes=10)
    told = {"cond": {"label": data.label}, "generator": next(rng)}
    model, history = learn(data.x, net, steps=size.digits_steps, batch=128, lr=2e-3, ema=0.995, **told)
    sde.save(model, report.out / "digits.safetensors")
    report.figure("6-digits-training.png", "Training on the 1797 digits.", sde.plot.history(history))
    pictures(report, model, data.x, size, next(rng))
    assert data.label is not None
    order = torch.randperm(len(data), generator=next(rng))
    some, others = order[: 2 * size.samples].chunk(2)
    noise = model.prior(torch.empty(len(some), 1, 8, 8), next(rng))
    drawn = {f"network, {way}": x for way, x in draw(model.given(label=data.label[some]), noise, next(rng)).items()}
    exact = sde.ExactScore(sde.Empirical(data.x), sde.VP())
    drawn["exact score of the data set, ODE"] = sde.sample(exact, x=noise, steps=16)
    report.table(distances(drawn, data.x, data.x[others], size, next(rng)))


def pictures(report: Report, model: sde.ScoreModel, data: Tensor, size: Sizes, rng: torch.Generator) -> None:
    """New digits beside their nearest training digits; the same with distances; one digit being born."""
    import matplotlib.pyplot as plt

    given = model.given(label=torch.arange(10).repeat(6))
    way = follow(given, model.prior(torch.empty(60, 1, 8, 8), rng), size.frames, rng)["reverse SDE"]
    new = way.x[-1]
    nearest = data[torch.cdist(new.flatten(1), data.flatten(1)).argmin(1)]
    with sde.plot.style():
        figure, axes = plt.subplots(1, 2, figsize=(11, 3.7), gridspec_kw={"wspace": 0.06})
    for ax, title, x in zip(axes, ("new digits", "nearest training digits"), (new, nearest), strict=True):
        sde.plot.grid(x, ncols=10, ax=ax)
        ax.set_title(title)
    about = "New digits, each column told its class, and beside them the training digit nearest to each."
    report.figure("7-digits.png", about, figure)
    report.figure(
        "8-neighbours.png",
        "The same in numbers: a distance far below 1 would be a copy.",
        sde.plot.neighbours(new[:10], data),
    )
    report.figure(
        "9-birth.png",
        "One digit being born, from noise on the left, by the reverse SDE.",
        sde.plot.birth(way, index=2, times=12),
    )


def distances(drawn: dict[str, Tensor], data: Tensor, others: Tensor, size: Sizes, rng: torch.Generator) -> Table:
    """Distances to real digits, and how far samples lie from the training digit next to them."""
    n = len(others)
    table = Table(
        f"Distance of {n} samples to {n} of the digits",
        ["", "sliced W2", "exact W2", "energy distance", "nearest training digit"],
        "The floor is what two halves of the digits are apart. Last column: median distance to the nearest training "
        "digit, in units of that from one training digit to the next. The exact score of a finite data set gives back "
        "the data (near 0); a network near 1 drew digits of its own.",
    )
    measures = [sliced_wasserstein, wasserstein, energy_distance]
    repeats = max(2, size.repeats // 3)
    table.add("floor: two halves of the digits", *(floor(f, data, n - 1, repeats, rng) for f in measures), 1.0)
    for name, x in drawn.items():
        table.add(name, *(distance(f, x, others, n) for f in measures), nearest_share(x, data))
    return table


def nearest_share(x: Tensor, data: Tensor) -> float:
    """Median distance to the nearest of the data, in units of the median distance among them."""
    flat = data.flatten(1)
    among = torch.cdist(flat, flat, compute_mode=EXACTLY).fill_diagonal_(math.inf).amin(1).median()
    return float(torch.cdist(x.flatten(1), flat, compute_mode=EXACTLY).amin(1).median() / among)
