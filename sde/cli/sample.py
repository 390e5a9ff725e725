"""`sde sample`: draws from a trained model, as a file of numbers and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

import sde
from sde.cli import common
from sde.cli.choice import make
from sde.cli.config import Sample
from sde.cli.mistakes import Mistake, unknown
from sde.cli.parse import parse

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = (".npz", ".safetensors", ".png")


def sample(argv: Sequence[str]) -> int:
    """Run the command; 0 if all went well."""
    subject, config = parse(Sample, "sample", argv)
    path = common.existing(subject, "checkpoint", ".safetensors")
    out = config.out or path.parent / "samples.npz"
    if out.suffix not in FORMATS:
        raise unknown("file format", out.suffix, FORMATS, f"Pass out={out.with_suffix('.npz')}, say")
    device = common.checked_device(config.device)
    x = draw(common.load(path, device), config, device)
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix != ".png":
        write(out, x)
    print(f"wrote {len(x)} samples of shape {tuple(x.shape[1:])}: {out}")
    drawn = picture(x)
    if drawn is not None:
        print(f"wrote a picture of them: {common.save(drawn, out.with_suffix('.png'))}")
    return 0


def draw(model: sde.ScoreModel, config: Sample, device: torch.device) -> Tensor:
    """All samples, a batch at a time from one generator."""
    if config.n < 1 or config.batch < 1:
        raise Mistake(f"n and batch must be at least 1, got n={config.n} and batch={config.batch}")
    solver = make("solver", config.solver) if config.solver else None
    times = make("grid", config.grid, sde=model.sde, steps=config.steps, scale=model.data_scale())
    rng, shape, parts = common.generator(config.seed), common.event_shape(model), []
    for start in range(0, config.n, config.batch):
        size = min(config.batch, config.n - start)
        given = common.with_labels(model, size, config.label)
        noise = given.prior(torch.empty(size, *shape, device=device), rng)
        x = sde.sample(given, x=noise, times=times, solver=solver, eta=config.eta, generator=rng)
        parts.append(common.position(model, x).cpu())
    return torch.cat(parts)


def write(path: Path, x: Tensor) -> None:
    """Samples as `x` in a file of numpy's or of safetensors."""
    if path.suffix == ".npz":
        import numpy as np

        np.savez_compressed(path, x=x.numpy())
    else:
        from safetensors.torch import save_file

        save_file({"x": x.contiguous()}, path)


def read(path: Path) -> Tensor | None:
    """Samples that `write` wrote; None for a file of tensors that holds none, as a model's does."""
    from safetensors import SafetensorError, safe_open

    try:
        if path.suffix == ".npz":
            import numpy as np

            with np.load(path) as file:
                return torch.from_numpy(file["x"])
        with safe_open(path, framework="pt") as file:
            return file.get_tensor("x") if list(file.keys()) == ["x"] else None
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise Mistake(f"{path} holds no samples, and no model: {error}") from error


def picture(x: Tensor) -> Axes | None:
    """A scatter of points, or a grid of images; None for what has no picture."""
    if x.ndim == 2 and x.shape[1] == 2:
        return sde.plot.scatter(x)
    if x.ndim == 4 and x.shape[1] in (1, 3):
        return sde.plot.grid(x[:100], ncols=10)
    return None
