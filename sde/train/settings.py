r"""What a run is told, and its learning rate.

    rate(n) = lr min(1, (n + 1) / warmup) decay(n)

of step n, counted from 0, of N: decay is 1 for "constant", 1 - n / N for "linear", (1 + cos(pi n / N)) / 2 for "cosine"
and 1 / sqrt(max(1, (n + 1) / warmup)) for "inverse_sqrt", which does not have to know where the run will end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, is_dataclass, replace
from functools import cached_property
from typing import Any, Literal, get_args

import torch

from sde.train.couple import Coupling
from sde.train.ema import Power
from sde.train.loss import Weight
from sde.train.objectives import DENOISING, Objective
from sde.train.times import Times

Precision = Literal["float32", "bfloat16", "float16"]
Decay = Literal["cosine", "linear", "constant", "inverse_sqrt"] | Callable[[int, int], float]
"""A name, or a function from (step counted from 0, steps) to the share of the peak learning rate."""

DECAYS: tuple[str, ...] = get_args(get_args(Decay)[0])
LOW: dict[str, torch.dtype] = {"bfloat16": torch.bfloat16, "float16": torch.float16}


NUMBER = "a number"
"""An average of which decay, a run that goes on may change."""


@dataclass(frozen=True)
class Settings:
    """The arguments of `fit` that a run follows at every step, under the same names: see there."""

    steps: int
    batch: int = 256
    lr: float = 1e-3
    warmup: int = 100
    decay: Decay = "cosine"
    ema: float | Power = 0.999
    clip: float | None = None
    loss: Objective = DENOISING
    weight: Weight | None = None
    times: Times | None = None
    coupling: Coupling | None = None
    flip: bool = False
    drop: float = 0.0
    dequantize: float = 0.0
    precision: Precision = "float32"
    accumulate: int = 1
    compile: bool | str = False
    channels_last: bool | None = None

    @cached_property
    def objective(self) -> Objective:
        """The loss, with weight, times and coupling in place of its own where they are given."""
        own = self.loss
        return replace(
            own,
            weight=self.weight or own.weight,
            times=self.times or own.times,
            coupling=self.coupling or own.coupling,
        )

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        return self.lr * min(1.0, (step + 1) / max(1, self.warmup)) * self._share(step)

    def _share(self, step: int) -> float:
        if callable(self.decay):
            return self.decay(step, self.steps)
        if self.decay == "cosine":
            return 0.5 * (1 + math.cos(math.pi * step / self.steps))
        if self.decay == "linear":
            return 1 - step / self.steps
        if self.decay == "inverse_sqrt":
            return 1 / math.sqrt(max(1.0, (step + 1) / max(1, self.warmup)))
        return 1.0

    def kept(self) -> dict[str, Any]:
        """What has to be the same in the call that goes on, as JSON."""
        return {
            "steps": self.steps,
            "batch": self.batch,
            "ema": f"Power({list(self.ema.each)}, {self.ema.snapshots})" if isinstance(self.ema, Power) else NUMBER,
            "flip": self.flip,
            "drop": self.drop,
            "dequantize": self.dequantize,
            "precision": self.precision,
            "loss": self.objective.kind,
            "weight": told(self.objective.weight),
            "times": told(self.objective.times),
            "coupling": told(self.objective.coupling),
        }


BEFORE = {
    "ema": NUMBER,
    "flip": False,
    "drop": 0.0,
    "dequantize": 0.0,
    "precision": "float32",
    "loss": DENOISING.kind,
}
"""What a file says that was written before there was a choice."""

UNSAID = ("weight", "times", "coupling")
"""What older files do not say, though there was a choice."""


def told(choice: object) -> str:
    """A function by its name, an object by its class and arguments.

    Example:
        >>> from sde import train
        >>> told(train.unit), told(train.min_snr(3.0)), told(train.LogNormal()), told(None)
        ('unit', 'min_snr(3)', 'LogNormal(mean=-0.5, std=1.5)', 'None')
    """
    if choice is None or is_dataclass(choice):
        return repr(choice)
    return str(getattr(choice, "__name__", type(choice).__name__))
