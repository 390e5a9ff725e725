"""`sde plot`: pictures of a trained model, or of a file of samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sde
from sde.cli import common
from sde.cli.config import Plot
from sde.cli.mistakes import Mistake, unknown
from sde.cli.parse import parse
from sde.cli.sample import picture, read
from sde.train import checkpoint

Runs = dict[str, sde.Trajectory]


def plot(argv: Sequence[str]) -> int:
    """Run the command; 0 if all went well."""
    subject, config = parse(Plot, "plot", argv)
    path = common.existing(subject, "file", ".safetensors", ".npz")
    folder = config.out or path.parent
    x = read(path)
    drawers = of_model(common.load(path), path, config) if x is None else of_samples(x, path, config)
    if config.what != "all" and config.what not in drawers:
        raise unknown(f"picture of {path.name}", config.what, ["all", *drawers])
    for what in [w for w in drawers if w != "movie"] if config.what == "all" else [config.what]:
        print(f"wrote {drawers[what](folder / f'{path.stem}-{what}.png')}", flush=True)
    return 0


Drawers = dict[str, Callable[[Path], Path]]


def of_samples(x: Tensor, path: Path, config: Plot) -> Drawers:
    """What can be drawn of a file of samples."""
    drawn = picture(x[: config.n])
    if drawn is None:
        raise Mistake(f"{path} holds samples that have no picture: points of the plane and images have")
    return {"samples": lambda out: common.save(drawn, out)}


def of_model(model: sde.ScoreModel, path: Path, config: Plot) -> Drawers:
    """What can be drawn of a model: it depends on what its samples are."""
    event, noise, runs = (
        common.event_shape(model),
        _noise(model, config),
        _Lazy(lambda: both_ways(model, noise, config)),
    )
    drawers: Drawers = {}
    last = lambda: list(runs().values())[-1]  # noqa: E731
    plain = not (model.coupled or isinstance(model.sde, sde.MatrixSDE) or getattr(model.net, "classes", 0))
    if event == (2,) and plain:  # one score for each place of the plane
        drawers["score"] = lambda out: common.save(score_strip(model, last()), out)
    if event == (2,):
        drawers["snapshots"] = lambda out: common.save(sde.plot.snapshots(last()), out)
    if event in ((1,), (2,)):
        drawers["paths"] = lambda out: common.save(sde.plot.compare_paths(runs()), out)
    elif len(event) == 3:
        drawers["paths"] = lambda out: common.save(sde.plot.birth(last()), out)
    if picture(torch.zeros(1, *event)) is not None:
        drawers["samples"] = lambda out: common.save(picture(last().x[-1]), out)  # pyright: ignore[reportArgumentType]
    run = checkpoint.read(path)[0].get("run")
    if run:
        history = sde.History(**run["history"])
        drawers["history"] = lambda out: common.save(sde.plot.history(history), out)
    if event in ((1,), (2,)) or len(event) == 3:
        drawers["movie"] = lambda out: movie(runs(), out.with_suffix(".gif"))
    return drawers


def both_ways(model: sde.ScoreModel, noise: Tensor, config: Plot) -> Runs:
    """From the same noise by the reverse SDE and by the probability flow; a coupled model knows only the latter."""
    given = common.with_labels(model, range(len(noise)))
    times = sde.grids.data_scaled(model.sde, config.steps, model.data_scale())
    ways = {"reverse SDE": 1.0, "probability flow": 0.0}
    runs = {}
    for name, eta in ways.items():
        if eta and model.coupled:
            continue
        solver = sde.Heun()
        with torch.no_grad():
            states = sde.trajectory(sde.ReverseSDE(given, eta), noise, times, solver, common.generator(config.seed + 1))
            runs[name] = sde.record(states)
    return {name: run.map(lambda x: common.position(model, x)) for name, run in runs.items()}


def score_strip(model: sde.ScoreModel, run: sde.Trajectory) -> Any:
    """The learned score on the density of a run, at four of its times."""
    rows = torch.linspace(0, len(run.t) - 1, 4).round().long().tolist()
    import matplotlib.pyplot as plt

    with sde.plot.style(), torch.no_grad():
        figure, axes = plt.subplots(1, len(rows), figsize=(2.7 * len(rows), 2.9), layout="constrained")
        for ax, k in zip(axes, rows, strict=True):
            radius = 1.15 * float(run.x[k].abs().quantile(0.998))
            sde.plot.density(run.x[k], radius, ax=ax, resolution=120)
            sde.plot.score_field(lambda x, t=run.t[k]: model(x, t), radius, ax=ax, color="white")
            ax.set_title(f"t = {run.t[k]:.3g}")
    return figure


def movie(runs: Runs, path: Path) -> Path:
    """The runs side by side as a GIF."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sde.plot.animate(runs, path)
    return path


def _noise(model: sde.ScoreModel, config: Plot) -> Tensor:
    if config.n < 1:
        raise Mistake(f"n must be at least 1, got {config.n}")
    return model.prior(torch.empty(config.n, *common.event_shape(model)), common.generator(config.seed))


class _Lazy:
    """A value computed when it is first asked for."""

    def __init__(self, make: Callable[[], Runs]) -> None:
        self.make, self.value = make, None

    def __call__(self) -> Runs:
        if self.value is None:
            self.value = self.make()
        return self.value
