"""Two moons: the exact score before any training, then a network's, beside each other in pictures and numbers."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

import sde
from sde.cli import common
from sde.cli.demo.core import draw, follow, learn
from sde.cli.demo.page import Table
from sde.cli.demo.report import Report, Sizes, distance
from sde.metrics import energy_distance, floor, sliced_wasserstein, wasserstein

TIMES, BOUNDS = [1.0, 0.5, 0.25, 0.12, 0.001], [3.2, 3.0, 2.8, 2.6, 2.5]
ODE = "probability-flow ODE"


def moons(report: Report, size: Sizes, seed: int) -> None:
    """Exact score, training, sampling, table and film."""
    report.heading("Two moons")
    exact = sde.ExactScore(density(k=size.components), sde.VP())
    report.figure(
        "1-exact-score.png",
        "No training yet: the exact score of the moons under VP. Arrows point to where the density (colour) grows. "
        "At t = 1 the data are noise; on the way to t = 0 the arrows come to point at the moons.",
        sde.plot.score_strip(exact, TIMES, BOUNDS, log_prob=exact.log_prob),
    )
    rng = common.generators(seed, "moons")
    with common.initial_weights(seed):
        net = sde.nets.MLP(dim=2, width=64, depth=3)
    data = sde.data.moons(size.data, generator=next(rng)).x
    model, history = learn(data, net, steps=size.moons_steps, lr=5e-3, ema=0.995, generator=next(rng))
    sde.save(model, report.out / "moons.safetensors")
    report.figure(
        "2-training.png",
        "Training: the denoising loss, which cannot fall to zero, as noise hides what it fell on; the learning rate.",
        sde.plot.history(history),
    )
    compare_scores(report, exact, model)
    noise = model.prior(torch.empty(size.samples, 2), next(rng))
    learned, truth = draw(model, noise, next(rng)), draw(exact, noise, next(rng))
    fresh = sde.data.moons(size.samples, generator=next(rng)).x
    report.figure(
        "4-samples.png",
        "Data; samples of the network by two ways from one and the same noise; what the exact score makes of it.",
        sde.plot.compare({"data": fresh, **learned, "exact score, ODE": truth[ODE]}),
    )
    report.table(distances(learned, truth, fresh, size, next(rng)))
    show_ways(report, follow(model, noise[:1000], size.frames, next(rng)))


def density(noise: float = 0.05, k: int = 64) -> sde.Mixture:
    """The moons' own density as a mixture: Gaussians along the arcs, closer together than they are wide.

    `sde.data.moons` draws from it, but for the midpoint rule along the arcs, whose error no sample of this size shows.
    (A `sde.Empirical` of a large draw is no such truth: its exact score gives back the points it was made of.)
    """
    angle = (torch.arange(k, dtype=torch.float64) + 0.5) * (math.pi / k)
    upper = torch.stack([angle.cos(), angle.sin()], 1)
    lower = torch.stack([1 - angle.cos(), 0.5 - angle.sin()], 1)
    data = sde.data.moons(1, noise=noise, generator=common.generator(0))  # for its mean and scale alone
    variance = torch.full((2 * k,), (noise / data.scale) ** 2, dtype=torch.float64)
    return sde.Mixture(torch.ones(2 * k), data.standardize(torch.cat([upper, lower])), variance)


def compare_scores(report: Report, exact: sde.ExactScore, model: sde.ScoreModel) -> None:
    """The learned score below the exact one."""
    import matplotlib.pyplot as plt

    some = [1, 3, 4]
    times, bounds = [TIMES[k] for k in some], [BOUNDS[k] for k in some]
    with sde.plot.style(), torch.no_grad():
        figure, rows = plt.subplots(2, len(some), figsize=(8.4, 5.8), layout="constrained")
        for row, of, name in zip(rows, (exact, model), ("exact", "learned"), strict=True):
            sde.plot.score_strip(of, times, bounds, log_prob=exact.log_prob, axes=row)
            row[0].set_ylabel(f"{name} score\nx₂")
    report.figure("3-learned-score.png", "The exact score, and the network's, over the same exact density.", figure)


def distances(
    learned: dict[str, Tensor], truth: dict[str, Tensor], fresh: Tensor, size: Sizes, rng: torch.Generator
) -> Table:
    """Distances to fresh data, beside what two draws of the data are apart and what the exact score reaches."""
    n, few = size.samples, size.transport
    table = Table(
        f"Distance of {n} samples to {n} fresh draws of the data",
        ["", "sliced W2", f"exact W2 ({few})", "energy distance"],
        "The floor is what two draws of the data are apart. The exact score is that of the moons' own density, "
        f"a mixture of {2 * size.components} Gaussians along the arcs: it shows what solver and finite noise leave.",
    )
    measures: list[tuple[Callable[..., Tensor], int]] = [
        (sliced_wasserstein, n),
        (wasserstein, few),
        (energy_distance, n // 2),
    ]
    table.add("floor: two draws of the data", *(floor(f, sde.data.moons, m, size.repeats, rng) for f, m in measures))
    for whose, samples in (("exact score", truth), ("network", learned)):
        for way, x in samples.items():
            table.add(f"{whose}, {way}", *(distance(f, x, fresh, m) for f, m in measures))
    return table


def show_ways(report: Report, runs: dict[str, sde.Trajectory]) -> None:
    """Paths side by side, and the film."""
    report.figure(
        "5-paths.png",
        "Paths from the same noise (rings) to samples (dots); a path has one colour on both sides. The SDE wanders, "
        "the ODE goes smoothly; in distribution they agree at every time.",
        sde.plot.compare_paths(runs, n=7),
    )
    report.figure(
        "sde-ode.gif",
        "The same thousand draws of noise, by the reverse SDE on the left and by the ODE on the right.",
        lambda path: sde.plot.animate(runs, path, limits=2.9),
    )
