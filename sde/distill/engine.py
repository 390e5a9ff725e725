"""The engine of distillation: runs of `fit` whose loss is another, and what is refused before they start."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from sde.distill.jump import scalar
from sde.score import Model, ScoreModel
from sde.shape import placed
from sde.train import History, inputs
from sde.train.distributed import Alone
from sde.train.draws import Batch
from sde.train.fit import Callback, Session
from sde.train.run import Run
from sde.train.settings import Settings

STEEPEST = 10.0
"""Error of x0 at t_max, in units of the data's scale, for an error of 1 of the network's output."""


class Loss(Protocol):
    """What a run descends, a mean over samples; `run` says how far it is, and draws."""

    def __call__(self, run: Distillation, x0: Tensor, eps: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """Loss of data x0 and noise eps."""
        ...


class Distillation(Run):
    """A training run whose loss compares a model with a teacher, or with itself."""

    def __init__(
        self, model: ScoreModel, data: Tensor, cond: Mapping[str, Tensor], settings: Settings,
        generator: torch.Generator, loss: Loss,
    ) -> None:  # fmt: skip
        super().__init__(model, data, cond, settings, None, generator, Alone())
        self.asked = loss

    def _backward(self, batch: Batch, k: int) -> Tensor:
        z, eps, _, cond = batch
        loss = self.asked(self, z + self.model.mean.to(z), eps, cond) / k
        loss.backward()
        return loss.detach()

    def quantiles(self, n: int) -> Tensor:
        """One uniform draw from each n-th of [0, 1], on the data's device."""
        g = self.draws.generator
        v = placed(torch.rand(n, generator=g, device=g.device), self.draws.device, torch.float32)
        return (torch.arange(n, device=v.device) + v) / n


def precise(device: torch.device) -> torch.dtype:
    """Type of times on a device: MPS has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def train(
    model: ScoreModel,
    teacher: Model | None,
    data: Tensor,
    cond: Mapping[str, Tensor] | None,
    settings: Settings,
    generator: torch.Generator | None,
    loss: Loss,
    every: int,
    callback: Callback | Sequence[Callback] | None,
    progress: bool,
) -> History:
    """Run to the end; leaves the averaged weights in the model, in eval mode, and the teacher as it was."""
    inputs.whole("every", every, 1, say=100)
    inputs.check_settings(settings, generator)
    inputs.check(model, data, cond or {}, None)
    inputs.check_fits(settings, model, data, cond or {})
    check(model, teacher)
    inputs.warn_of_scale(model, data, stacklevel=3)
    if generator is None:
        generator = torch.Generator(data.device).manual_seed(int(torch.randint(2**62, ())))
    calls: list[Callable[..., Any]] = [callback] if callable(callback) else list(callback or ())
    was = teacher is not None and teacher.training
    if teacher is not None:
        teacher.eval()
    model.train()
    run = Distillation(model, data, cond or {}, settings, generator, loss)
    try:
        Session(run, None, every, every, calls, progress).through()
    finally:
        run.finish()
        model.eval()
        if teacher is not None:
            teacher.train(was)
    return run.history


def check(model: Any, teacher: Any) -> None:
    """Model and teacher fit together."""
    if not isinstance(model, ScoreModel):
        raise TypeError(f"model must be a ScoreModel, got {type(model).__name__}: ScoreModel(net, sde), the student")
    sde = scalar(model)
    top = model.levels(torch.tensor(sde.t_max, dtype=torch.float64))
    det = float(top.alpha * top.q - top.sigma * top.p)
    steep = float(top.sigma) / abs(det) / model.scale if det else float("inf")
    if steep > STEEPEST:
        raise ValueError(
            f"param {model.param!r} under {type(sde).__name__} makes x0 at t_max from {steep:.3g} times the network's "
            'output, which no network can learn: give the student param="edm", "v" or "x0"'
        )
    if teacher is None:
        return
    if not isinstance(teacher, Model):
        raise TypeError(
            f"teacher must be a Model, got {type(teacher).__name__}: a ScoreModel or ExactScore(target, sde)"
        )
    other = teacher.sde
    if type(other) is not type(sde) or (is_dataclass(other) and other != sde):
        raise ValueError(
            f"teacher and model must share their SDE, got {other} and {sde}: wrap it in Reschedule(teacher, sde)"
        )
    if {id(p) for p in teacher.parameters()} & {id(p) for p in model.parameters()}:
        raise ValueError("teacher and model share weights, which would change while they teach: copy.deepcopy one")
