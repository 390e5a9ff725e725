r"""Checkpoints: one safetensors file that rebuilds its objects and cannot lie.

The file's header carries a manifest in JSON: the public classes of `sde` and the plain arguments they were made with,
and a SHA-256 over manifest and tensors. Nothing is unpickled. A file is written beside its place, flushed to disk and
renamed, so that a reader sees the old one or the new one and never half of it; an altered or truncated file is refused.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import sde.forward
import sde.nets
import sde.score
from sde.score import ScoreModel

FORMAT = 1


class CheckpointError(ValueError):
    """A checkpoint that cannot be read: missing, truncated, altered, or of an unknown class."""


def _types(extra: Sequence[type] = ()) -> dict[str, type]:
    public = [getattr(room, name) for room in (sde.forward, sde.nets, sde.score) for name in room.__all__]
    return {c.__name__: c for c in (*public, *extra) if inspect.isclass(c)}


def describe(obj: Any) -> Any:
    """An object as JSON: numbers, strings, lists, or {class, args} with the arguments that its constructor was given.

    Raises:
        TypeError: If an argument is none of these, or was not kept under its own name.

    Example:
        >>> import sde
        >>> sde.train.describe(sde.VE(0.01, 50.0))
        {'class': 'VE', 'args': {'sigma_min': 0.01, 'sigma_max': 50.0, 't_min': 1e-05, 't_max': 1.0}}
    """
    if obj is None or isinstance(obj, bool | int | float | str):
        return obj
    if isinstance(obj, Tensor):
        return obj.tolist()
    if isinstance(obj, list | tuple):
        return [describe(o) for o in obj]
    if inspect.isfunction(obj) or not hasattr(type(obj), "__init__"):
        raise TypeError(f"{obj!r} cannot be saved: only classes with plain arguments are; save its state_dict instead")
    names = [p.name for p in inspect.signature(type(obj)).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    missing = [n for n in names if not hasattr(obj, n)]
    if missing:
        raise TypeError(
            f"{type(obj).__name__} does not keep its argument {missing[0]!r}: store it as self.{missing[0]}"
        )
    return {"class": type(obj).__name__, "args": {n: describe(getattr(obj, n)) for n in names}}


def rebuild(made: Any, types: Sequence[type] = ()) -> Any:
    """The object that `describe` described, from public classes of `sde` and the given types only."""
    if isinstance(made, list):
        return [rebuild(m, types) for m in made]
    if not isinstance(made, dict):
        return made
    known = _types(types)
    name, args = made.get("class"), made.get("args")
    if name not in known:
        raise CheckpointError(
            f"unknown class {name!r}: known are {', '.join(sorted(known))}; pass types=[{name}] to load one of your own"
        )
    accepted = inspect.signature(known[name]).parameters
    if not isinstance(args, dict) or not set(args) <= set(accepted):
        raise CheckpointError(f"{name} takes {', '.join(accepted)}, the checkpoint gives {args!r}")
    try:
        return known[name](**{k: rebuild(v, types) for k, v in args.items()})
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{name} cannot be made from {args!r}: {error}") from error


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

    path = Path(path)
    text = json.dumps({"format": FORMAT, **manifest}, allow_nan=False)
    tensors = {k: v.detach().contiguous().cpu().clone() for k, v in tensors.items()}
    data = save(tensors, metadata={"manifest": text, "sha256": _digest(text, tensors)})
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def read(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Manifest and tensors of a file, checked against its hash.

    Raises:
        FileNotFoundError: If there is none; the message lists what is there.
        CheckpointError: If it is truncated, altered or not one of ours.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        there = sorted(p.name for p in path.parent.glob("*.safetensors")) if path.parent.is_dir() else []
        raise FileNotFoundError(
            f"no checkpoint at {path}: {'found ' + ', '.join(there) if there else 'none in that folder'}"
        )
    try:
        with safe_open(path, framework="pt") as file:
            meta = file.metadata() or {}
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is truncated or no safetensors file ({error}): use an older one") from error
    if "manifest" not in meta or "sha256" not in meta:
        raise CheckpointError(
            f"{path} has no manifest: it was not written by sde.save; load its tensors with safetensors"
        )
    if _digest(meta["manifest"], tensors) != meta["sha256"]:
        raise CheckpointError(f"{path} was altered: its SHA-256 does not match its content; use an older one")
    manifest = json.loads(meta["manifest"])
    if manifest.get("format") != FORMAT:
        raise CheckpointError(f"{path} has format {manifest.get('format')}, this version reads {FORMAT}: update sde")
    return manifest, tensors


def save(model: ScoreModel, path: str | Path, **note: Any) -> Path:
    """A whole score model (network, SDE, parameterisation, weights) to one file.

    Args:
        model: Its network must be a class that keeps its arguments under their own names.
        path: File, usually *.safetensors.
        **note: Plain values kept in the manifest: the licence, how it was trained.

    Example:
        >>> import tempfile, torch, sde
        >>> model = sde.ScoreModel(sde.nets.MLP(dim=2, width=8), sde.VP())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     again = sde.load(sde.save(model, f"{folder}/model.safetensors"))
        >>> again.sde
        VP(beta_min=0.1, beta_max=20.0, t_min=0.001, t_max=1.0)
    """
    return write(path, {"model": describe(model), "note": note}, model.state_dict())


def load(path: str | Path, types: Sequence[type] = (), device: torch.device | str = "cpu") -> ScoreModel:
    """The score model of a file that `save` or a training checkpoint wrote, in eval mode.

    Args:
        path: File.
        types: Classes of one's own that the file may name.
        device: Where to put it.
    """
    manifest, tensors = read(path)
    return _filled(manifest, tensors, types).to(device).eval()


def _filled(manifest: dict[str, Any], tensors: dict[str, Tensor], types: Sequence[type]) -> ScoreModel:
    model = rebuild(manifest.get("model"), types)
    if not isinstance(model, nn.Module):
        raise CheckpointError(f"the manifest describes a {type(model).__name__}, no model")
    own = model.state_dict()
    weights = {k: v for k, v in tensors.items() if "/" not in k}
    if set(own) != set(weights) or any(own[k].shape != weights[k].shape for k in own):
        raise CheckpointError("weights do not fit the network of the manifest: names or shapes differ")
    for name, value in model.state_dict(keep_vars=True).items():
        value.data = weights[name]  # dtypes as saved
    return model  # pyright: ignore[reportReturnType]
