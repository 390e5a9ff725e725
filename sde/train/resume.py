r"""A training run to one file and back, so that what goes on from it makes the same bits.

Beside the averaged model, which `sde.load` reads, the file holds the raw weights, the optimizer's slots, the losses
since the last entry of the history, and two states of the generator: now, and where the current chunk of steps began.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sde.train.checkpoint import CheckpointError, read, write
from sde.train.manifest import describe
from sde.train.run import History, Run


def save(run: Run, path: Path, history: History) -> None:
    """Everything to one file."""
    model = run.model
    # By identity, as a weight that two layers share has two names in the state, and one among the parameters.
    means = {id(p): mean if run.decay else p for p, mean in zip(run.parameters, run.ema, strict=True)}
    tensors: dict[str, Tensor] = dict(model.state_dict(keep_vars=True))
    for name, value in tensors.items():
        tensors[name] = means.get(id(value), value)
    tensors |= {f"raw/{k}": p for k, p in model.named_parameters() if p.requires_grad}
    for i, slots in run.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{i}/{k}": torch.as_tensor(v) for k, v in slots.items() if v is not None}
    tensors |= {"generator/now": run.generator.get_state(), "generator/chunk": run.chunk_state}
    if run.losses:
        tensors["run/losses"] = torch.stack(run.losses)
    made = {**_settings(run), "step": run.step, "history": asdict(history)}
    write(path, {"model": describe(model), "run": made}, tensors)


def _settings(run: Run) -> dict[str, Any]:
    """What has to be the same in the call that goes on."""
    return {"steps": run.steps, "batch": run.batch, "optimizer": type(run.optimizer).__name__}


def restore(run: Run, path: Path) -> History:
    """Go on where the file's run stood.

    Raises:
        CheckpointError: If the file holds no run, or one of another model, data type or setting.
    """
    manifest, tensors = read(path)
    made = manifest.get("run")
    if not isinstance(made, dict):
        raise CheckpointError(
            f"{path} holds a model and no training run: load it with sde.load, or pass resume=False to write over it"
        )
    if manifest.get("model") != describe(run.model):
        raise CheckpointError(f"{path} was trained as another model: pass resume=False, or another checkpoint path")
    for key, own in _settings(run).items():
        if made.get(key) != own:
            old = made.get(key)
            raise CheckpointError(
                f"{path} was trained with {key}={old}, now {key}={own}: pass {key}={old}, or resume=False"
            )
    try:
        return _restored(run, made, tensors)
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise CheckpointError(f"{path} holds no complete training run ({error!r}): pass resume=False") from error


def _restored(run: Run, made: dict[str, Any], tensors: dict[str, Tensor]) -> History:
    if not (isinstance(made["step"], int) and 0 < made["step"] <= run.steps):
        raise ValueError(f"step {made['step']} of {run.steps}")
    names = {id(p): k for k, p in run.model.named_parameters()}
    with torch.no_grad():
        for p, mean in zip(run.parameters, run.ema, strict=True):
            _fill(p, tensors[f"raw/{names[id(p)]}"])
            _fill(mean, tensors[names[id(p)]])
        trained = {id(p) for p in run.parameters}
        for name, value in run.model.state_dict(keep_vars=True).items():
            if id(value) not in trained:  # statistics of normalisation, frozen weights
                _fill(value, tensors[name])
    slots: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer/"):
            _, i, slot = key.split("/")
            slots.setdefault(int(i), {})[slot] = value
    history = History(**made["history"])
    run.optimizer.load_state_dict({**run.optimizer.state_dict(), "state": slots})
    run.generator.set_state(tensors["generator/now"])
    run.chunk_state, run.step = tensors["generator/chunk"], made["step"]
    if "run/losses" in tensors:
        run.losses = list(tensors["run/losses"].to(run.z.device).unbind())
    return history


def _fill(own: Tensor, value: Tensor) -> None:
    if (own.shape, own.dtype) != (value.shape, value.dtype):
        raise ValueError(f"{tuple(value.shape)} {value.dtype} in place of {tuple(own.shape)} {own.dtype}")
    own.copy_(value)
