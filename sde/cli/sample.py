"""`sde sample`: draws from a trained model, as numbers, as images, as a picture of them.

Sample i is drawn by a generator of its own, seeded by the seed and i: it is the same sample in any batch, on any number
of GPUs. Batches are kept as they are finished (`sde.cli.parts`), so that the same command goes on with a draw that was
stopped; `accelerate launch -m sde sample ...` shares it among GPUs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import sde
from sde.cli import common
from sde.cli.choice import make
from sde.cli.config import Sample
from sde.cli.mistakes import Mistake, unknown
from sde.cli.parse import parse, to_tree
from sde.cli.parts import Parts

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = (".npz", ".safetensors", ".png")
SHOWN = 100
"""Images of a grid, at most."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ELSEWHERE = {"out", "resume", "device", "compile"}
"""What may differ between a draw and its continuation."""


def sample(argv: Sequence[str]) -> int:
    """Run the command; 0 if all went well."""
    subject, config = parse(Sample, "sample", argv)
    if config.n < 1 or config.batch < 1:
        raise Mistake(f"n and batch must be at least 1, got n={config.n} and batch={config.batch}")
    path = common.checkpoint(subject)
    out = config.out or Path("out/sample") / path.stem / "samples.npz" if common.shipped(path) else config.out
    out = out or path.parent / "samples.npz"
    if out.suffix and out.suffix not in FORMATS:
        raise unknown("file format", out.suffix, FORMATS, f"Pass out={out.with_suffix('.npz')}, or a folder for images")
    device = common.checked_device(common.local(config.device))
    model = common.load(path, device)
    if not out.suffix and not is_image(common.event_shape(model)):
        raise Mistake(f"out={out} is a folder, which is for images: pass out={out.with_suffix('.npz')}")
    parts = Parts(out.with_name(f"{out.name}.parts"), settings(path, config), config.n, config.batch, not config.resume)
    try:
        draw(model, config, device, parts)
    except KeyboardInterrupt:
        print(f"\nstopped with {parts.done()} of {config.n} samples: the same command goes on from {parts.folder}")
        return 130
    if common.process()[0] == 0:
        finish(parts, out, config.n)
    return 0


def settings(path: Path, config: Sample) -> dict[str, Any]:
    """What has to be the same in the call that goes on."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {k: v for k, v in to_tree(config).items() if k not in ELSEWHERE} | {"model": digest}


def generators(seed: int, which: Iterable[int]) -> list[torch.Generator]:
    """One generator for each sample; different samples of a seed have different ones."""
    # A generator on the CPU looks at 32 bits of its seed: these are distinct for up to 2^32 samples.
    return [torch.Generator().manual_seed((1_000_003 * seed + i) % 2**32) for i in which]


def draw(model: sde.ScoreModel, config: Sample, device: torch.device, parts: Parts) -> None:
    """All batches that are missing."""
    from tqdm.auto import tqdm

    if config.precision not in DTYPES:
        raise unknown("precision", config.precision, DTYPES)
    if config.precision != "float32":
        model.net = sde.nets.Cast(model.net, DTYPES[config.precision])
    solver = make("solver", config.solver) if config.solver else None
    times = make("grid", config.grid, sde=model.sde, steps=config.steps, scale=model.data_scale())
    shape, (rank, processes) = common.event_shape(model), common.process()
    with tqdm(total=config.n, initial=parts.done(), desc="sampling", unit="sample", disable=rank > 0) as bar:
        for batch in parts.missing():
            rng = generators(config.seed, batch)
            given = common.with_labels(model, batch, config.label)
            noise = given.prior(torch.empty(len(batch), *shape, device=device), rng)
            x = sde.sample(
                given, x=noise, times=times, solver=solver, eta=config.eta, generator=rng, compile=config.compile
            )
            parts.put(batch, common.position(model, x).float().cpu())
            bar.update(len(batch))
        if rank == 0 and processes > 1:
            parts.wait(bar.update)


def finish(parts: Parts, out: Path, n: int) -> None:
    """From parts to the file or the folder that was asked for, and a picture."""
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix:
        x = torch.cat(list(parts))
        if out.suffix != ".png":
            write(out, x)
        print(f"wrote {n} samples of shape {tuple(x.shape[1:])}: {out}")
        drawn, to = picture(x), out.with_suffix(".png")
    else:
        write_images(out, parts, n)
        print(f"wrote {n} images: {out}")
        drawn, to = picture(next(iter(parts))), out.with_name(f"{out.name}-grid.png")
    if drawn is not None:
        print(f"wrote a picture of them: {common.save(drawn, to)}")
    parts.remove()


def is_image(shape: Sequence[int]) -> bool:
    """Whether samples of a shape are images: grey or in colour."""
    return len(shape) == 3 and shape[0] in (1, 3)


def write_images(folder: Path, batches: Iterable[Tensor], n: int) -> None:
    """Each sample as a PNG, numbered."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    digits, i = max(5, len(str(n - 1))), 0
    for x in batches:
        for pixels in sde.data.to_uint8(x).permute(0, 2, 3, 1).numpy():
            Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(
                folder / f"{i:0{digits}d}.png"
            )
            i += 1


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
    if is_image(x.shape[1:]):
        return sde.plot.grid(x[:SHOWN], ncols=10)
    return None
