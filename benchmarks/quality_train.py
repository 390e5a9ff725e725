r"""Training of `benchmarks.quality`: one network through `sde.fit_steps`, for so many seconds of training.

The clock counts what training takes and nothing else: it starts when the third step is done (the first ones compile)
and rests while averages are written. It never lets the host run more than a few steps ahead of the GPU, so that it
tells the time of the steps that are done. Of its seconds s, of S in all, the rate is

    lr min(1, s / 10) (1 - s / S),

the same for every network however many steps it makes.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sde
from sde.train.resume import averaged

AHEAD = 4
"""Steps that the host may be ahead of the device."""
UNCOUNTED = 3


@dataclass(frozen=True)
class Plan:
    """What all networks are given alike."""

    marks: tuple[float, ...] = (60.0, 120.0, 240.0, 330.0)
    batch: int = 256
    lr: float = 8e-4
    warmup: float = 10.0
    clip: float = 1.0
    widths: tuple[float, ...] = (0.1, 0.2)
    samples: int = 10_000
    at_once: int = 500
    evaluations: tuple[int, ...] = (18, 35)
    test: int = 1000
    bits_at_once: int = 250
    bits_steps: int = 32
    tiny: bool = False

    def rate(self, seconds: float) -> float:
        """Share of the peak learning rate."""
        return min(1.0, (seconds + 0.1) / self.warmup) * max(0.0, 1 - seconds / self.marks[-1])


TINY = Plan(
    marks=(0.1, 0.2), batch=4, warmup=0.05, samples=16, at_once=8, evaluations=(3, 4), test=8, bits_at_once=4,
    bits_steps=2, tiny=True,
)  # fmt: skip


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Clock:
    """Seconds of training: see the module."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.steps, self.began, self.rested = device, 0, math.inf, 0.0
        self.running: deque[torch.cuda.Event] = deque()

    @property
    def seconds(self) -> float:
        return max(0.0, time.perf_counter() - self.began - self.rested)

    def tick(self) -> None:
        """A step was handed to the device."""
        self.steps += 1
        if self.device.type == "cuda":
            event = torch.cuda.Event()
            event.record()
            self.running.append(event)
            if len(self.running) > AHEAD:
                self.running.popleft().synchronize()
        if self.steps == UNCOUNTED:
            wait(self.device)
            self.began = time.perf_counter()

    @contextmanager
    def resting(self) -> Iterator[float]:
        """Not counted; gives the seconds at which the device had done all."""
        wait(self.device)
        now, at = time.perf_counter(), self.seconds
        try:
            yield at
        finally:
            self.rested += time.perf_counter() - now


def snapshot(folder: Path, name: str, mark: float, width: float) -> Path:
    """Where an average is kept."""
    return folder / f"{name}-{mark:g}s-{width:g}.safetensors"


def train(model: sde.ScoreModel, data: Tensor, plan: Plan, folder: Path, name: str) -> list[dict[str, Any]]:
    """Train, and leave the averages of all marks in the folder; what was done by each mark."""
    from safetensors.torch import save_file

    device = data.device
    clock, left, found, losses = Clock(device), list(plan.marks), [], []
    run = sde.fit_steps(
        model, data, 10**8, batch=plan.batch, lr=plan.lr, warmup=0, decay=lambda n, of: plan.rate(clock.seconds),
        ema=sde.train.Power(plan.widths, snapshots=0), clip=plan.clip, flip=True, dequantize=1.0,
        precision="bfloat16", compile=not plan.tiny, generator=torch.Generator(device).manual_seed(0),
    )  # fmt: skip
    began = time.perf_counter()
    with closing(run):  # pyright: ignore[reportArgumentType]
        for step in run:
            clock.tick()
            losses.append(step.loss)
            if clock.steps == UNCOUNTED:
                print(f"  {name}: the first {UNCOUNTED} steps took {time.perf_counter() - began:.0f} s", flush=True)
            if clock.seconds < left[0]:
                continue
            with clock.resting() as seconds:
                loss = float(torch.stack(losses).mean())
                if not math.isfinite(loss):
                    raise FloatingPointError(f"the loss of {name} is {loss} after {step.step} steps")
                for i, width in enumerate(plan.widths):
                    state = {k: v.detach().cpu().contiguous() for k, v in averaged(step.run, i).items()}
                    save_file(state, snapshot(folder, name, left[0], width))
                row = {"mark": left[0], "seconds": seconds, "step": step.step, "loss": loss}
                row["images"] = step.step * plan.batch
                found.append(row)
                print(f"  {name}: {seconds:.1f} s, {step.step} steps, loss {loss:.4f}", flush=True)
                left.pop(0)
                losses.clear()
            if not left:
                break
    return found
