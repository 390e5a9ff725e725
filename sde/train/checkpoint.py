r"""Checkpoints: one safetensors file that rebuilds its objects and cannot lie.

The file's header carries a manifest in JSON: the public classes of `sde` and the plain arguments they were made with,
and before it a SHA-256 over manifest and tensors. Nothing is unpickled. A file is written beside its place, flushed to
disk and renamed, so that a reader sees the old one or the new one and never half of it; an altered or truncated file is
refused. The same model makes the same bytes.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sde.score import ScoreModel
from sde.train.manifest import CheckpointError, describe, rebuild

FORMAT = 1

KEY = "sde"
"""Name of the header's entry: the hash, a space, the manifest."""

BESIDE = ("raw/", "ema/", "optimizer/", "generator/", "run/")
"""Names of tensors that belong to a training run and not to the model."""


def _digest(manifest: str, tensors: dict[str, Tensor]) -> str:
    sha = hashlib.sha256(manifest.encode())
    for name in sorted(tensors):
        t = tensors[name].detach().contiguous().cpu()
        sha.update(f"{name}{t.dtype}{tuple(t.shape)}".encode())
        sha.update(t.reshape(-1).view(torch.uint8).numpy().data if t.numel() else b"")
    return sha.hexdigest()


def write(path: str | Path, manifest: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    """Manifest and tensors to one file, atomically."""
    from safetensors.torch import save

    path = writable(path)
    text = json.dumps({"format": FORMAT, **manifest}, allow_nan=False)
    tensors = {k: v.detach().contiguous().cpu().clone() for k, v in tensors.items()}
    # One entry, as the order of several would differ from file to file.
    data = save(tensors, metadata={KEY: f"{_digest(text, tensors)} {text}"})
    write_whole(path, data)
    _sweep(path)
    return path


def write_whole(path: Path, data: bytes) -> None:
    """Bytes to a file that is there whole or not at all: written beside its place, flushed to disk and renamed."""
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        with part.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def writable(path: str | Path) -> Path:
    """The path, in a folder that is there.

    Raises:
        IsADirectoryError: If it is a folder itself.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"path {path} is a folder: name a file in it, {path / 'model.safetensors'}, say")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _sweep(path: Path) -> None:
    """Remove what writers that were killed left behind an hour ago or more; younger ones may still be at work."""
    for part in path.parent.glob(f"{glob.escape(path.name)}.*.part"):
        with contextlib.suppress(OSError):
            if time.time() - part.stat().st_mtime > 3600:
                part.unlink()


def read(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Manifest and tensors of a file, checked against its hash.

    Raises:
        FileNotFoundError: If there is none; the message lists what is there.
        CheckpointError: If it is truncated, altered or not one of ours.
    """
    path = Path(path)
    digest, text, tensors = _opened(path, whole=True)
    if _digest(text, tensors) != digest:
        raise CheckpointError(f"{path} was altered: its SHA-256 does not match its content; use an older one")
    return _parsed(text, path), tensors


def header(path: Path) -> dict[str, Any]:
    """The manifest alone, which nothing has been checked against; errors as `read`."""
    return _parsed(_opened(path, whole=False)[1], path)


def _opened(path: Path, whole: bool) -> tuple[str, str, dict[str, Tensor]]:
    """Hash, manifest and, of the whole file, tensors."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(_missing(path))
    try:
        with safe_open(path, framework="pt") as file:
            meta = file.metadata() or {}
            # Copies: what safe_open gives is the file itself, mapped, and would change with it.
            tensors = {k: file.get_tensor(k).clone() for k in file.keys()} if whole else {}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} is truncated or no safetensors file ({error}): use an older one") from error
    if KEY not in meta:
        raise CheckpointError(
            f"{path} has no manifest: it was not written by sde.save; load its tensors with safetensors"
        )
    digest, _, text = meta[KEY].partition(" ")
    return digest, text, tensors


def _missing(path: Path) -> str:
    if path.is_dir():
        return f"no checkpoint at {path}: it is a folder; {_listed(path)}"
    if path.parent.is_dir():
        return f"no checkpoint at {path}: {_listed(path.parent)}"
    return f"no checkpoint at {path}: there is no folder {path.parent}"


def _listed(folder: Path, most: int = 10) -> str:
    there = sorted(p.name for p in folder.iterdir() if p.is_file() and p.suffix != ".part")
    there.sort(key=lambda name: not name.endswith(".safetensors"))
    more = f" and {len(there) - most} more" if len(there) > most else ""
    return f"it holds {', '.join(there[:most])}{more}" if there else "it holds no files"


def _parsed(text: str, path: Path) -> dict[str, Any]:
    def refused(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    try:
        manifest = json.loads(text, parse_constant=refused)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} has a manifest that cannot be read ({error}): sde.save did not write it"
        ) from error
    if not isinstance(manifest, dict):
        raise CheckpointError(f"{path} has a manifest that is a {type(manifest).__name__}: sde.save did not write it")
    if manifest.get("format") != FORMAT:
        raise CheckpointError(f"{path} has format {manifest.get('format')}, this version reads {FORMAT}: update sde")
    return manifest


def save(model: ScoreModel, path: str | Path, **note: Any) -> Path:
    """A whole score model (network, SDE, parameterisation, weights) to one file.

    Args:
        model: Its network must be a class that keeps its arguments under their own names.
        path: File, usually *.safetensors.
        **note: Plain values kept in the manifest: the licence, how it was trained.

    Returns:
        The path.

    Raises:
        TypeError: If the model, or a note, cannot be written as JSON.

    Example:
        >>> import tempfile, torch, sde
        >>> model = sde.ScoreModel(sde.nets.MLP(dim=2, width=8), sde.VP())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     again = sde.load(sde.save(model, f"{folder}/model.safetensors"))
        >>> again.sde
        VP(beta_min=0.1, beta_max=20.0, t_min=0.001, t_max=1.0)
    """
    if not isinstance(model, ScoreModel):
        raise TypeError(f"model must be a ScoreModel, got {type(model).__name__}: save the ScoreModel inside it")
    try:
        json.dumps(note, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TypeError(f"a note must be plain values, got {note}: {error}") from error
    return write(path, {"model": describe(model), "note": note}, model.state_dict())


def load(path: str | Path, types: Sequence[type] = (), device: torch.device | str = "cpu") -> ScoreModel:
    """The score model of a file that `save` or a training checkpoint wrote, in eval mode, each weight in its own dtype.

    Args:
        path: File.
        types: Classes of one's own that the file may name.
        device: Where to put it.

    Raises:
        FileNotFoundError: If there is no file; the message lists what is there.
        CheckpointError: If it is truncated, altered, or describes what cannot be made.

    Example:
        >>> import sde
        >>> sde.load("no/such/model.safetensors")
        Traceback (most recent call last):
        FileNotFoundError: no checkpoint at ...: there is no folder ...
    """
    manifest, tensors = read(path)
    return filled(manifest, tensors, types).to(device).eval()


def filled(manifest: dict[str, Any], tensors: dict[str, Tensor], types: Sequence[type]) -> ScoreModel:
    """The score model of a manifest, with these weights."""
    weights = {k: v for k, v in tensors.items() if not k.startswith(BESIDE)}
    model = rebuild(manifest.get("model"), types, weights)
    if not isinstance(model, ScoreModel):
        raise CheckpointError(f"the manifest describes a {type(model).__name__}, no ScoreModel")
    kind = lambda t: (t.shape, t.is_floating_point(), t.is_complex())  # noqa: E731
    own = model.state_dict()
    if set(own) != set(weights) or any(kind(own[k]) != kind(weights[k]) for k in own):
        raise CheckpointError("weights do not fit the network of the manifest: names, shapes or kinds of number differ")
    dtypes = {w.dtype for k, w in weights.items() if k.startswith("net.") and w.is_floating_point()}
    if len(dtypes) == 1:  # constants of the network that no file holds are rounded as those of the one that was saved
        model.net.to(dtypes.pop())
    for name, value in model.state_dict(keep_vars=True).items():
        value.data = weights[name]
    return model
