"""Unlike networks, one code: how nearly models that share nothing but their data encode the same points.

On eight Gaussians of unequal weight two MLPs of other width, depth, time features and first weights stand beside the
exact score, whose code is the truth. On digits, their 17 grey levels spread by uniform noise in training and after, a
U-Net and a DiT learnt 1400 images, and encode 397 of these and 397 that neither has seen. The Gaussian of the data's
mean and covariance is a control: what networks agree on beyond it was learnt. Distances are root mean squares by
coordinate, in units of the noise at t_max.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import sde
from benchmarks import harness
from benchmarks.harness import number
from benchmarks.pictures import _pyplot
from sde import data, inverse, plot

LEARNT, GAUSSIAN = 1400, "Gaussian"


@dataclass(frozen=True)
class Budget:
    """Optimizer steps, points that are encoded, and steps to their codes."""

    points: int = 4000
    digits: int = 2000
    asked: int = 397
    steps: int = 100


FULL, TINY = Budget(), Budget(points=4, digits=2, asked=20, steps=6)


@dataclass
class Found:
    """Of one data set: agreement by pair of models, and the distances between codes of different points."""

    name: str
    pairs: dict[str, inverse.CodeAgreement] = field(default_factory=dict)
    different: Tensor = field(default_factory=lambda: torch.zeros(0))


def ring() -> sde.Mixture:
    angle = torch.arange(8) * math.pi / 4
    means = 1.5 * torch.stack([angle.cos(), angle.sin()], 1)
    return sde.Mixture([0.30, 0.20, 0.15, 0.12, 0.09, 0.07, 0.05, 0.02], means, [0.0225] * 8).double()


def trained(net: nn.Module, x: Tensor, steps: int, seed: int, **how: Any) -> sde.ScoreModel:
    y = x / 127.5 - 1 if x.dtype == torch.uint8 else x
    model = sde.ScoreModel(net, sde.EDM(), mean=y.mean(0), scale=float((y - y.mean(0)).std()))
    sde.fit(model, x, steps, generator=torch.Generator().manual_seed(seed), progress=False, **how)
    return model.double()


def control(x: Tensor) -> sde.Model:
    """The exact model of a Gaussian of the data's mean and covariance, which is positive by a hair."""
    flat = x.flatten(1).double()
    cov = torch.cov(flat.T) + 1e-4 * torch.eye(flat.shape[1], dtype=torch.float64)
    return sde.ExactScore(sde.Gaussian(flat.mean(0).reshape(x.shape[1:]), cov), sde.EDM())


def compared(name: str, models: Mapping[str, sde.Model], x: Tensor, steps: int) -> Found:
    codes = {k: inverse.encode(m, x, steps) / m.sde.t_max for k, m in models.items()}
    found = Found(name)
    for one, other in itertools.combinations(codes, 2):
        found.pairs[f"{one}, {other}"] = inverse.compare_codes(codes[one], codes[other])
    first = next(iter(codes.values())).flatten(1)
    found.different = (first - first.roll(1, 0)).square().mean(1).sqrt()
    return found


def measure(budget: Budget = FULL) -> list[Found]:
    g, law = torch.Generator().manual_seed(0), ring()
    x = law.sample(20_000, g).float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        nets = {
            "MLP 64 wide": sde.nets.MLP(2, width=64),
            "MLP 40 wide": sde.nets.MLP(2, width=40, depth=5, time="sinusoidal"),
        }
        unet = sde.nets.UNet(1, size=8, width=32, multipliers=(1, 2), blocks=1, attention=(4,), head=32)
        dit = sde.nets.DiT(1, size=8, patch=2, width=96, depth=4, heads=4)
    models: dict[str, sde.Model] = {"exact": sde.ExactScore(law, sde.EDM()), GAUSSIAN: control(x)}
    models |= {k: trained(net, x, budget.points, i, lr=2e-3) for i, (k, net) in enumerate(nets.items())}
    found = [compared("eight Gaussians", models, law.sample(budget.asked, g), budget.steps)]
    digits = data.digits(bytes=True).x
    digits = digits[torch.randperm(len(digits), generator=g)]
    spread = digits.double() / 127.5 - 1 + (torch.rand(digits.shape, generator=g).double() - 0.5) / 8
    seen, unseen = spread[:LEARNT], spread[LEARNT:]
    how: dict[str, Any] = {"batch": 128, "lr": 2e-3, "ema": 0.998, "clip": 1.0, "dequantize": 255 / 16}
    images: dict[str, sde.Model] = {
        "U-Net": trained(unet, digits[:LEARNT], budget.digits, 3, **how),
        "DiT": trained(dit, digits[:LEARNT], budget.digits, 4, **how),
        GAUSSIAN: control(seen),
    }
    for kind, x in (("digits that both learnt", seen), ("unseen digits", unseen)):
        found.append(compared(kind, images, x[: budget.asked], budget.steps))
    return found


def picture(books: list[Found], path: Path) -> None:
    """Distributions of the distances between two codes of a point."""
    plt = _pyplot()
    fig, axes = plt.subplots(1, len(books), figsize=(4.6 * len(books), 3.8), layout="constrained")
    for ax, book in zip(axes, books, strict=True):
        for (name, agreement), colour in zip(book.pairs.items(), plot.COLOURS, strict=False):
            d = agreement.distances.sort().values
            ax.plot(d, torch.linspace(0, 1, len(d)), label=name, color=colour)
        d = book.different.sort().values
        ax.plot(d, torch.linspace(0, 1, len(d)), "--", color="black", label="two different points")
        ax.set(title=f"{book.name}: two codes of a point", xscale="log", xlim=(1e-3, 6), ylabel="share of points below")
        ax.set(xlabel="RMS by coordinate (units of the noise)")
        ax.legend(fontsize=8)
    fig.savefig(path, dpi=110)
    plt.close(fig)


def report(books: list[Found]) -> str:
    """The page."""
    parts = [
        "# Unlike networks, one code",
        harness.machine() + ".",
        (__doc__ or "").split(chr(10), 2)[2].strip().replace("\n", " ")
        + " `same` is the distance between two models' codes of one point, `apart` that of one model's codes of two "
        "points: codes that know nothing of each other have a ratio of 1. `matched` is the share of points whose "
        "code is nearest to their own by the other model.",
        "![Distances between codes](codes.png)",
    ]
    for book in books:
        rows = [
            [k, number(a.same), number(a.apart), number(a.ratio), f"{a.correlation:.4f}", f"{a.matched:.3f}"]
            for k, a in book.pairs.items()
        ]
        parts += [
            f"## {book.name}, {len(book.different)} points",
            harness.table(["models", "same", "apart", "ratio", "correlation", "matched"], rows),
        ]
    return "\n\n".join(parts) + "\n"
