"""`sde restore`: an image from a damaged one, several times, and how far the answers differ.

The image is y = A(x0) + noise n, in grey levels of [-1, 1]. What is drawn is x0 given y, by a score model and a method
of `sde.inverse`; answer i has a generator of its own, as in `sde sample`. With `degrade=true` the image is x0 itself:
the damage is done first, and the truth stands beside the answers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import sde
from sde import inverse
from sde.cli import common, pictures
from sde.cli.choice import Choice, make
from sde.cli.config import Restore
from sde.cli.mistakes import Mistake, unknown
from sde.cli.parse import parse
from sde.cli.sample import generators, is_image

TASKS = {
    "inpaint": "box=top,left,height,width, hidden=bottom, share=0.5 (pixels seen) or mask=FILE (white is filled)",
    "denoise": "noise=0.5, or estimated",
    "super-resolve": "factor=4, pool=true for means of pixels in place of bicubic",
    "colorize": "a grey image, by a model of colour images",
    "deblur": "width=1.5 of a Gaussian blur, or length=9 angle=30 of a motion",
}
"""Task to what it can be told."""
SEED_OF_DAMAGE = 2**31
"""Number of the generator of the damage, which no sample has."""


class Restored(NamedTuple):
    """What came out: draws (n, C, H, W), their mean, and what was estimated."""

    x: Tensor
    mean: Tensor
    noise: float


def restore(argv: Sequence[str]) -> int:
    """Run the command; 0 if all went well."""
    task = argv[0] if argv and "=" not in argv[0] and not argv[0].startswith("-") else None
    subject, config = parse(Restore, "restore", argv[1:] if task else argv)
    if task not in TASKS:
        raise (
            Mistake("which task? " + "; ".join(f"{k}: {v}" for k, v in TASKS.items()))
            if task is None
            else unknown("task", task, TASKS)
        )
    if config.n < 1 or config.batch < 1 or config.steps < 1:
        raise Mistake(f"n, batch and steps must be at least 1, got {config.n}, {config.batch} and {config.steps}")
    model = common.load(common.checkpoint(config.model), common.checked_device(config.device))
    event = common.event_shape(model)
    if not is_image(event):
        raise Mistake(f"{config.model} makes samples of shape {event}, no images: pass model=fashion-mnist, say")
    operator = damage(task, event, config)
    name, truth, y = observed(subject, operator, config)
    found = answers(task, model, inverse.Observation(operator, y, config.noise or 0.0), config)
    out = config.out or Path("out/restore") / f"{name}-{task}"
    finish(out, f"{task} {name}", y, truth, found)
    return 0


def damage(task: str, event: tuple[int, ...], config: Restore) -> inverse.LinearOperator:
    """A, by what the task was told."""
    if task == "denoise":
        return inverse.Identity(event)
    if task == "inpaint":
        return mask(event, config)
    if task == "super-resolve":
        return inverse.AveragePool(event, config.factor) if config.pool else inverse.Bicubic(event, config.factor)
    if task == "colorize":
        if event[0] != 3:
            raise Mistake(
                f"colorize needs a model of colour images, {config.model} makes grey ones: model=cifar10, say"
            )
        return inverse.Grey(event)
    if config.length is not None:
        return inverse.Blur.motion(event, config.length, config.angle)
    return inverse.Blur.gaussian(event, config.width)


def mask(event: tuple[int, ...], config: Restore) -> inverse.Mask:
    """What is seen, by the one key that says it."""
    keys = {"box": config.box, "hidden": config.hidden, "share": config.share, "mask": config.mask}
    said = [key for key, value in keys.items() if value is not None]
    if len(said) > 1:
        raise Mistake(f"{' and '.join(said)} each say what is hidden: pass one of them")
    if config.share is not None:
        return inverse.Mask.random(event, config.share, generators(config.seed, [SEED_OF_DAMAGE - 1])[0])
    if config.hidden is not None:
        return inverse.Mask.halved(event, config.hidden)  # pyright: ignore[reportArgumentType]
    if config.mask is not None:
        white = pictures.read(config.mask, (1, *event[1:]), resize=config.resize)
        return inverse.Mask((white[0] < 0).expand(event))
    if config.box is None:
        box = [side // 4 for side in event[-2:]] + [side // 2 for side in event[-2:]]  # the middle
    else:
        try:
            box = [int(number) for number in config.box.split(",")]
        except ValueError:
            box = []
        if len(box) != 4:
            raise Mistake(f"box must be top,left,height,width in pixels, got {config.box!r}: box=8,8,12,12, say")
    return inverse.Mask.box(event, *box)


def observed(
    subject: str | None, operator: inverse.LinearOperator, config: Restore
) -> tuple[str, Tensor | None, Tensor]:
    """A name, the truth (1, C, H, W) where it is known, and y."""
    clean = config.degrade or config.data is not None
    if (subject is None) == (config.data is None):
        raise Mistake("which image? Pass a file (.png, .npz), or data=fashion_mnist index=3 for one of a data set")
    shape = tuple(operator.event if clean else operator.measured)
    if config.data is not None:
        name, image = f"{config.data.name}-{config.index}", from_data(config.data, config.index, shape)
    else:
        name, image = Path(str(subject)).stem, pictures.read(Path(str(subject)), shape, resize=config.resize)
    if not clean:
        # What is hidden may hold anything, and says nothing.
        return name, None, operator(image) if isinstance(operator, inverse.Mask) else image
    rng = generators(config.seed, [SEED_OF_DAMAGE])
    if isinstance(operator, inverse.Identity) and config.noise is None:
        raise Mistake("how much noise is degrade=true to add? Pass noise=0.5, say; grey levels run from -1 to 1")
    return name, image, inverse.observe(operator, image, config.noise or 0.0, rng).y


def from_data(choice: Choice, index: int, shape: tuple[int, ...]) -> Tensor:
    """One image of a data set, of those kept for tests where it has such."""
    data = make("data", choice, train=False)
    if not 0 <= index < len(data.x):
        raise Mistake(f"index must be 0 to {len(data.x) - 1}, got {index}: {choice.name} has {len(data.x)} images")
    image = data.x[index : index + 1]
    if tuple(image.shape[1:]) != shape:
        raise Mistake(f"{choice.name} has samples of shape {tuple(image.shape[1:])}, the model {shape}: pass model=...")
    return sde.data.from_uint8(image) if image.dtype is torch.uint8 else image


def answers(task: str, model: sde.ScoreModel, seen: inverse.Observation, config: Restore) -> Restored:
    """Draws of x0 given y."""
    device = model.placement()[0]
    noise = config.noise
    if task == "denoise":
        if noise is None:
            noise = float(inverse.estimate_noise(model, seen.y.to(device), generator=generators(config.seed, [0])))
            print(f"noise estimated: {noise:.3g} in grey levels from -1 to 1")
        seen = inverse.Observation(seen.operator, seen.y, noise)
    seen, drawn = seen.to(device), []
    for first in range(0, config.n, config.batch):
        which = range(first, min(first + config.batch, config.n))
        given = model if config.label is None else common.with_labels(model, which, config.label)
        drawn.append(draw(given, task, seen, config, generators(config.seed, which)).float().cpu())
    x = torch.cat(drawn)
    mean = x.mean(0)
    if task == "denoise" and config.method is None:
        given = model if config.label is None else common.with_labels(model, [0], config.label)
        mean = inverse.denoise(given, seen.y, seen.noise)[0].float().cpu()  # one call knows it
    return Restored(x, mean, seen.noise)


def draw(model: sde.Model, task: str, seen: inverse.Observation, config: Restore, rng: list[torch.Generator]) -> Tensor:
    """A draw for each generator."""
    solver = make("solver", config.solver) if config.solver else None
    if task == "denoise" and config.method is None:
        y, n = seen.y, len(rng)
        return inverse.posterior_samples(model, y, seen.noise, n, config.steps, solver, generator=rng)[:, 0]
    choice = config.method or Choice("DDRM")
    ours: dict[str, Any] = {"model": model, "observation": seen}
    if solver or choice.name in ("Replacement", "RePaint"):
        ours["solver"] = solver or sde.Ancestral()
    method = make("method", choice, **ours)
    # Fresh noise in every step mends what a method's step got wrong; without it errors add up to the end.
    guided, by = (method, solver or sde.Ancestral()) if isinstance(method, sde.Model) else (model, method)
    event = seen.operator.event
    x = model.prior(torch.empty(len(rng), *event, device=model.placement()[0]), rng)
    return sde.sample(guided, x=x, steps=config.steps, solver=by, eta=config.eta, generator=rng)


def finish(out: Path, title: str, y: Tensor, truth: Tensor | None, found: Restored) -> None:
    """Numbers, draws and a picture into a folder."""
    import numpy as np

    out.mkdir(parents=True, exist_ok=True)
    spread = found.x.std(0, correction=0)
    arrays = {"x": found.x, "mean": found.mean, "std": spread, "y": y, **({} if truth is None else {"truth": truth})}
    np.savez_compressed(
        out / "restored.npz", allow_pickle=False, noise=found.noise, **{k: v.numpy() for k, v in arrays.items()}
    )
    print(f"wrote {len(found.x)} answers, their mean and standard deviation: {out / 'restored.npz'}")
    print(f"wrote the answers: {common.save(sde.plot.grid(found.x[:100]), out / 'samples.png')}")
    drawn = pictures.compare(y, truth, found.x, found.mean, spread)
    print(f"wrote them beside what was seen: {common.save(drawn, out / 'restored.png', title)}")
    if truth is not None:
        of_mean, of_each = (psnr(v, truth) for v in (found.mean[None], found.x))
        print(f"peak signal to noise: {of_mean:.1f} dB of the mean, {of_each:.1f} dB of an answer")


def psnr(x: Tensor, truth: Tensor) -> float:
    """Peak signal-to-noise ratio in dB, of grey levels from -1 to 1, of the mean squared error over all of x."""
    return 10 * math.log10(4 / max(float((x.clamp(-1, 1) - truth).square().mean()), 1e-12))
