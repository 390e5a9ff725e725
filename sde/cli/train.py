"""`sde train`: a recipe becomes a checkpoint, a history and a picture of it.

`accelerate launch -m sde train ...` trains on several GPUs: the first process speaks and writes.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import sde
from sde.cli import common
from sde.cli.choice import arguments, make
from sde.cli.config import Train
from sde.cli.mistakes import Mistake
from sde.cli.parse import parse, to_toml, to_tree
from sde.cli.sample import SHOWN, picture

CHANGEABLE = {"out", "resume", "device", "every", "save_every", "samples_every", "tensorboard", "compile", "accumulate"}
"""What may differ between a run and its continuation."""


def train(argv: Sequence[str]) -> int:
    """Run the command; 0 if all went well."""
    name, config = parse(Train, "train", argv, recipe=True)
    folder = config.out or Path("out/train") / (name or config.data.name)
    check_folder(folder, config)
    model, data, cond = build(config)
    folder.mkdir(parents=True, exist_ok=True)
    recipe, checkpoint = folder / "recipe.toml", folder / "model.safetensors"
    first = common.process()[0] == 0
    if first:
        recipe.write_text(to_toml(to_tree(config)) + "\n", encoding="utf-8")
    weights = sum(p.numel() for p in model.parameters())
    shape = tuple(data.shape[1:])
    common.say(f"{config.data.name}: {len(data)} samples of shape {shape}; SDE {config.sde.name}; {weights} weights")
    try:
        told: dict[str, Any] = {**fit_arguments(config), "callback": callbacks(model, config, folder)}
        history = sde.fit(model, data, checkpoint=checkpoint, cond=cond, **told)
    except KeyboardInterrupt:
        again = f"sde train {recipe} out={folder}"
        common.say(
            f"\nstopped. Go on with:  {again}"
            if checkpoint.exists()
            else f"\nstopped before the first checkpoint: {again}"
        )
        return 130
    if not first:
        return 0
    common.save(sde.plot.history(history), folder / "history.png")
    print(f"trained {history.step[-1]} steps in {history.seconds[-1]:.0f} s, loss {history.loss[-1]:.4f}")
    print(f"wrote {checkpoint}, {recipe} and {folder / 'history.png'}")
    print(f"draw from it:  sde sample {checkpoint}\nlook into it:  sde plot {checkpoint}")
    return 0


def build(config: Train) -> tuple[sde.ScoreModel, Any, dict[str, Any]]:
    """Model, data and conditioning that a configuration describes."""
    device = common.checked_device(common.local(config.device))
    drawn = make("data", config.data, n=20_000, bytes=True, generator=common.generator(config.seed))
    mean, scale = drawn.statistics()
    drawn = drawn.to(device)
    if config.conditional and drawn.label is None:
        raise Mistake(f"conditional=true, but {config.data.name} has no classes: leave it out")
    cond = {"label": drawn.label} if config.conditional else {}
    forward = make("sde", config.sde)
    event = drawn.x.shape[1:]
    ours = {"dim": event.numel(), "classes": int(drawn.label.max()) + 1 if config.conditional else 0}
    if len(event) == 3:
        ours |= {"channels": event[0], "size": event[1]}
    # A table's clock is an index, which needs other time features than a log noise level.
    if isinstance(forward, sde.Tabulated) and "time" in arguments("net", config.model.name):
        ours["time"] = "sinusoidal"
    with common.initial_weights(config.seed):
        net = make("net", config.model, **ours)
    try:
        return sde.ScoreModel(net, forward, config.param, mean, scale).to(device), drawn.x, cond
    except ValueError as error:
        raise Mistake(str(error)) from error


def fit_arguments(config: Train) -> dict[str, Any]:
    """What `sde.fit` is told beside model, data and file."""
    return {
        "steps": config.steps,
        "batch": config.batch,
        "lr": config.lr,
        "warmup": config.warmup,
        "decay": config.decay,
        "ema": config.ema,
        "clip": config.clip,
        "loss": make("loss", config.loss),
        "weight": make("weight", config.weight) if config.weight else None,
        "times": make("times", config.times) if config.times else None,
        "coupling": make("coupling", config.coupling) if config.coupling else None,
        "generator": common.generator(config.seed + 1, common.local(config.device)),
        "flip": config.flip,
        "drop": config.drop,
        "dequantize": config.dequantize,
        "precision": config.precision,
        "accumulate": config.accumulate,
        "compile": config.compile,
        "every": config.every,
        "save_every": config.save_every,
        "resume": config.resume,
    }


def callbacks(model: sde.ScoreModel, config: Train, folder: Path) -> list[Callable[[sde.train.Step], None]]:
    """What is done on the way: pictures of samples from one noise, and a log."""
    made: list[Callable[[sde.train.Step], None]] = []
    if config.samples_every:
        if config.samples_every % config.every:
            raise Mistake(f"samples_every={config.samples_every} must be a multiple of every={config.every}")
        made.append(_samples(model, config.samples_every, config.seed, folder / "samples"))
    if config.tensorboard:
        made.append(sde.train.tensorboard(folder / "tensorboard"))
    return made


def _samples(model: sde.ScoreModel, every: int, seed: int, folder: Path) -> Callable[[sde.train.Step], None]:
    noise = model.prior(
        torch.empty(SHOWN, *common.event_shape(model), device=model.placement()[0]), common.generator(seed)
    )

    def draw(step: sde.train.Step) -> None:
        if step.step % every:
            return
        with step.averaged() as now:
            x = sde.sample(common.with_labels(now, range(SHOWN)), x=noise, steps=18)
        drawn = picture(common.position(model, x).float().cpu())
        if drawn is not None and step.main:
            common.save(drawn, folder / f"step-{step.step:07d}.png", title=f"after {step.step} steps")

    return draw


def check_folder(folder: Path, config: Train) -> None:
    """Refuse to go on with a run under another configuration than it began with."""
    recipe = folder / "recipe.toml"
    if not config.resume or not (folder / "model.safetensors").exists() or not recipe.exists():
        return
    old, new = tomllib.loads(recipe.read_text(encoding="utf-8")), to_tree(config)
    changed = [k for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k) and k not in CHANGEABLE]
    if changed:
        was = ", ".join(f"{k} was {old.get(k, 'none')!r}, now {new.get(k, 'none')!r}" for k in changed)
        raise Mistake(
            f"{folder} holds another run ({was}): pass out=FOLDER for a new one, or resume=false to replace it"
        )
