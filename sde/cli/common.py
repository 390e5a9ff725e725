"""What the commands share: seeds, models from files, pictures to files."""

from __future__ import annotations

import itertools
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import sde
from sde.cli.mistakes import Mistake, listed, unknown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def generator(seed: int, device: str | torch.device = "cpu") -> torch.Generator:
    """A generator of a seed."""
    return torch.Generator(device).manual_seed(seed)


def generators(seed: int, purpose: str) -> Iterator[torch.Generator]:
    """Generators for one draw each, so that a change in one leaves the others alone."""
    for k in itertools.count():
        yield generator(zlib.crc32(f"{seed} {purpose} {k}".encode()))


@contextmanager
def initial_weights(seed: int) -> Iterator[None]:
    """Networks made inside have the weights of that seed; torch draws them from its global state, which is put back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def process() -> tuple[int, int]:
    """Number of this process among those that a launcher started together, and how many they are."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def local(device: str) -> str:
    """The device of this process, where a launcher started one for each GPU."""
    return f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" and "LOCAL_RANK" in os.environ else device


def say(text: str) -> None:
    """A line on the screen, of the first process alone."""
    if process()[0] == 0:
        print(text, flush=True)


def checked_device(name: str) -> torch.device:
    """The device of a name, if this machine has it."""
    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError) as error:
        there = [
            *["cpu"],
            *(["cuda"] if torch.cuda.is_available() else []),
            *(["mps"] if torch.backends.mps.is_available() else []),
        ]
        raise Mistake(f"device {name!r} cannot be used here ({error}): there are {', '.join(there)}") from error


def existing(name: str | None, what: str, *suffixes: str) -> Path:
    """The file of a name, or a mistake that lists the files of its kind nearby."""
    path = Path(name or "")
    if name is not None and path.is_file():
        return path
    found = sorted(str(p) for s in suffixes for p in _nearby(path, s))
    hint = "" if found else "`sde train moons` makes one"
    raise Mistake(f"which {what}? {listed(found, hint)}") if name is None else unknown(what, name, found, hint)


def _nearby(path: Path, suffix: str) -> list[Path]:
    folders = {folder for folder in (path, path.parent) if folder.is_dir()}
    found = {p for folder in folders for p in folder.glob(f"*{suffix}")} | set(Path("out").glob(f"**/*{suffix}"))
    return sorted(found)[:20]


def checkpoint(name: str | None) -> Path:
    """The file of a model: a path, or the name of a network that comes with the package."""
    there = sde.train.shipped()
    key = (name or "").lower().replace("_", "-")
    return there[key] if key in there and not Path(key).exists() else existing(name, "checkpoint", ".safetensors")


def shipped(path: Path) -> bool:
    """Whether a file is one of those that come with the package, beside which nothing is written."""
    return path in sde.train.shipped().values()


def load(path: Path, device: str | torch.device = "cpu") -> sde.ScoreModel:
    """The model of a file that `sde train` or `sde.save` wrote."""
    try:
        return (sde.load(path).float() if shipped(path) else sde.load(path)).to(device)
    except (sde.train.CheckpointError, OSError) as error:
        raise Mistake(str(error)) from error


def event_shape(model: sde.ScoreModel) -> tuple[int, ...]:
    """Shape of one sample: that of the mean the model was made with, or what its network takes."""
    net = model.net
    if len(model.mean.shape) < 3 and hasattr(net, "channels") and hasattr(net, "size"):
        return int(getattr(net, "channels")), int(getattr(net, "size")), int(getattr(net, "size"))  # noqa: B009
    return tuple(model.mean.shape) or (int(getattr(net, "dim", 1)),)


def position(model: sde.ScoreModel, x: torch.Tensor) -> torch.Tensor:
    """Of the state of a matrix SDE the channel that data live in, which is the first; any other state as it is."""
    return x[:, 0] if isinstance(model.sde, sde.MatrixSDE) else x


def with_labels(model: sde.ScoreModel, which: Sequence[int], label: int | None = None) -> sde.Model:
    """The model given a class for each sample, by default that of its number in turn; itself if it knows none."""
    classes = int(getattr(model.net, "classes", 0))
    if not classes:
        if label is not None:
            raise Mistake(f"label={label}: this model knows no classes; train one with conditional=true")
        return model
    if label is not None and not 0 <= label < classes:
        raise Mistake(f"label must be 0 to {classes - 1}, got {label}")
    y = torch.tensor([i % classes if label is None else label for i in which])
    return model.given(label=y.to(model.placement()[0]))


def save(picture: Figure | Axes, path: Path, title: str = "") -> Path:
    """A picture to a PNG, closed then."""
    import matplotlib.pyplot as plt

    figure: Any = getattr(picture, "figure", None) or picture
    path.parent.mkdir(parents=True, exist_ok=True)
    if title:
        figure.suptitle(title)
    with sde.plot.style():
        figure.savefig(path)
    plt.close(figure)
    return path
