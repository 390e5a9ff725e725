r"""A training run to one file and back, so that what goes on from it makes the same bits.

Beside the averaged model, which `sde.load` reads, the file holds the raw weights, further averages, the optimizer's
slots, the losses since the last entry of the history, the scale of a float16 loss, and two states of the generator:
now, and where the current chunk of steps began. Torch's global generators are kept if the run drew from them, as
dropout does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sde.train.checkpoint import CheckpointError, read, write
from sde.train.distributed import fill
from sde.train.manifest import describe
from sde.train.run import History, Run, global_states, set_global_states
from sde.train.settings import BEFORE, UNSAID


def save(run: Run, path: Path) -> None:
    """Everything to one file."""
    tensors = averaged(run, 0)
    names = {id(p): k for k, p in run.model.named_parameters()}
    tensors |= {f"raw/{names[id(p)]}": p for p in run.parameters}
    for i, means in enumerate(run.averages.means[1:], start=1):
        tensors |= {f"ema/{i}/{names[id(p)]}": e for p, e in zip(run.parameters, means, strict=True)}
    for i, slots in run.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{i}/{k}": torch.as_tensor(v) for k, v in slots.items() if v is not None}
    tensors |= {"generator/now": run.draws.generator.get_state(), "generator/chunk": run.draws.begun}
    states = global_states(run.draws.device)
    if run.drawn or any(not torch.equal(states[k], v) for k, v in run.states.items()):
        tensors |= {f"generator/global/{k}": v for k, v in states.items()}
    if run.losses:
        tensors["run/losses"] = run.team.mean(torch.stack(run.losses))
    made = {**run.settings.kept(), "optimizer": type(run.optimizer).__name__}
    made |= {"step": run.step, "history": asdict(run.history)}
    if run.scaler is not None:
        made["scaler"] = run.scaler.state_dict()
    put(run, path, {"model": describe(run.model), "run": made}, tensors)


def put(run: Run, path: Path, manifest: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write a file; several processes gather its tensors, and the first one writes."""
    whole = {}
    for name, value in tensors.items():
        gathered = run.team.whole(value)
        if run.team.main:
            whole[name] = gathered if gathered is value else gathered.cpu()
    if run.team.main:
        write(path, manifest, whole)


def averaged(run: Run, which: int) -> dict[str, Tensor]:
    """The model's state with the averages of one profile in place of the weights."""
    # By identity, as a weight that two layers share has two names in the state, and one among the parameters.
    pairs = zip(run.parameters, run.averages.means[which], strict=True) if run.averages.means else ()
    means = {id(p): e for p, e in pairs}
    state: dict[str, Tensor] = run.model.state_dict(keep_vars=True)
    return {k: means.get(id(v), v) for k, v in state.items()}


def restore(run: Run, path: Path) -> None:
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
    for key, own in {**run.settings.kept(), "optimizer": type(run.optimizer).__name__}.items():
        old = made.get(key, own if key in UNSAID else BEFORE.get(key))
        if old != own:
            raise CheckpointError(
                f"{path} was trained with {key}={old}, now {key}={own}: pass {key}={old}, or resume=False"
            )
    own, state = run.draws.generator, tensors.get("generator/now")
    if state is not None and state.shape != own.get_state().shape:
        raise CheckpointError(
            f"{path} was trained with a generator on another kind of device, and its state cannot go on {own.device}: "
            "go on where the run began, or pass resume=False (sde.load(path) gives the model on any device)"
        )
    try:
        _restored(run, made, tensors)
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise CheckpointError(f"{path} holds no complete training run ({error!r}): pass resume=False") from error


def _restored(run: Run, made: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    step, history = made["step"], _history(made["history"])
    if not (isinstance(step, int) and 0 < step <= run.settings.steps):
        raise ValueError(f"step {step} of {run.settings.steps}")
    names = {id(p): k for k, p in run.model.named_parameters()}
    with torch.no_grad():
        _fill_all(run.parameters, [tensors[f"raw/{names[id(p)]}"] for p in run.parameters])
        for i, means in enumerate(run.averages.means):
            start = f"ema/{i}/" if i else ""
            _fill_all(means, [tensors[start + names[id(p)]] for p in run.parameters])
        trained = {id(p) for p in run.parameters}
        for name, value in run.model.state_dict(keep_vars=True).items():
            if id(value) not in trained:  # statistics of normalisation, frozen weights
                _fill(value, tensors[name])
    run.optimizer.load_state_dict({**run.optimizer.state_dict(), "state": _slots(run, tensors)})
    if run.scaler is not None and "scaler" in made:
        run.scaler.load_state_dict(made["scaler"])
    run.draws.generator.set_state(tensors["generator/now"])
    states = {k: tensors[f"generator/global/{k}"] for k in run.states if f"generator/global/{k}" in tensors}
    run.drawn = bool(states)
    set_global_states(run.draws.device, states)
    run.draws.begun, run.step, run.history = tensors["generator/chunk"], step, history
    if "run/losses" in tensors:
        run.losses = list(tensors["run/losses"].to(run.draws.device).unbind())


def _slots(run: Run, tensors: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """State of the optimizer, each tensor laid out in memory as its weight is."""
    weights = [p for group in run.optimizer.param_groups for p in group["params"]]
    slots: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer/"):
            _, i, slot = key.split("/")
            p = weights[int(i)]
            if value.shape == p.shape:
                own = torch.empty_like(p, dtype=value.dtype)
                fill(own, value)
                value = own
            slots.setdefault(int(i), {})[slot] = value
    return slots


def _history(made: Mapping[str, Any]) -> History:
    """The history of a file, which may be older than its column of throughputs."""
    history = History(**made)
    missing = len(history.step) - len(history.throughput)
    history.throughput = [0.0] * missing + history.throughput
    return history


def _fill_all(own: Sequence[Tensor], values: Iterable[Tensor]) -> None:
    for to, value in zip(own, values, strict=True):
        _fill(to, value)


def _fill(own: Tensor, value: Tensor) -> None:
    if (own.shape, own.dtype) != (value.shape, value.dtype):
        raise ValueError(f"{tuple(value.shape)} {value.dtype} in place of {tuple(own.shape)} {own.dtype}")
    fill(own, value)
