"""Trained networks that come with the package, a few megabytes each: what they are is in their notes.

Their weights are kept in half precision and used in single precision; `sde/weights/README.md` says how each was
trained, and under which licence it may be used.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sde.score import ScoreModel
from sde.train.checkpoint import load, read

FOLDER = Path(__file__).parents[1] / "weights"


def shipped() -> dict[str, Path]:
    """Name to file of every network that comes with the package.

    Example:
        >>> import sde
        >>> "digits" in sde.train.shipped()
        True
    """
    return {path.stem: path for path in sorted(FOLDER.glob("*.safetensors"))}


def pretrained(name: str, device: torch.device | str = "cpu") -> ScoreModel:
    """A trained score model that comes with the package, in eval mode and float32.

    Args:
        name: One of `sde.train.shipped()`: "digits", "mnist", "fashion-mnist", "cifar10".
        device: Where to put it.

    Raises:
        ValueError: If there is none of that name; the message lists what there is.

    Example:
        >>> import torch, sde
        >>> model = sde.pretrained("digits")
        >>> given = model.given(label=torch.arange(10))
        >>> sde.sample(given, (10, 1, 8, 8), steps=8).shape
        torch.Size([10, 1, 8, 8])
    """
    there = shipped()
    key = str(name).lower().replace("_", "-")
    if key not in there:
        raise ValueError(
            f"name must be one of {', '.join(there)}, got {name!r}: sde.load(path) reads files of your own"
        )
    return load(there[key]).float().to(device)


def note(path: str | Path) -> dict[str, Any]:
    """What a file says of itself: how its model was trained, its licence; {} if nothing.

    Example:
        >>> import sde
        >>> sde.train.note(sde.train.shipped()["digits"])["licence"]
        'CC BY 4.0 (data), MIT (weights)'
    """
    found = read(path)[0].get("note")
    return dict(found) if isinstance(found, dict) else {}
