r"""Training: one loop, interruptible at any step.

`fit` runs to the end and returns a history; `fit_steps` is the generator under it, one value a step. The steps
themselves are in `sde.train.run`, and what a file keeps of them in `sde.train.resume`.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sde.score import ScoreModel
from sde.train import inputs
from sde.train.checkpoint import writable
from sde.train.couple import Coupling
from sde.train.interrupt import deferred
from sde.train.loss import Weight, unit
from sde.train.manifest import describe
from sde.train.resume import restore, save
from sde.train.run import History, Run, Step
from sde.train.times import Times, default_times


def fit_steps(
    model: ScoreModel,
    data: Tensor,
    steps: int,
    *,
    cond: Mapping[str, Tensor] | None = None,
    batch: int = 256,
    lr: float = 1e-3,
    warmup: int = 100,
    ema: float = 0.999,
    weight: Weight = unit,
    times: Times | None = None,
    coupling: Coupling | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[Step]:
    """Training step by step; arguments as `fit`.

    When the generator ends, or is left early and closed, the averaged weights are put into the model, in eval mode.

    Example:
        >>> import torch, sde
        >>> model = sde.ScoreModel(sde.nets.MLP(dim=2, width=8), sde.VP())
        >>> [s.step for s in sde.fit_steps(model, torch.randn(100, 2), steps=3, batch=16)]
        [1, 2, 3]
    """
    return _until_left(
        _start(model, data, steps, cond, batch, lr, warmup, ema, weight, times, coupling, optimizer, generator)
    )


def _until_left(run: Run) -> Iterator[Step]:
    try:
        yield from run
    finally:
        run.finish()
        run.model.eval()


def _start(
    model: ScoreModel,
    data: Tensor,
    steps: int,
    cond: Mapping[str, Tensor] | None,
    batch: int,
    lr: float,
    warmup: int,
    ema: float,
    weight: Weight,
    times: Times | None,
    coupling: Coupling | None,
    optimizer: torch.optim.Optimizer | None,
    generator: torch.Generator | None,
) -> Run:
    cond = cond or {}
    inputs.check_numbers(steps, batch, warmup, lr, ema, generator)
    inputs.check(model, data, cond, coupling)
    inputs.warn_of_scale(model, data, stacklevel=3)
    steps, batch = int(steps), int(batch)
    if generator is None:  # a generator of its own, seeded from the global one, so that a run can be resumed
        generator = torch.Generator(data.device).manual_seed(int(torch.randint(2**62, ())))
    model.coupled = coupling is not None
    model.train()
    times = times or default_times(model.sde)
    return Run(model, data, cond, steps, batch, lr, warmup, ema, weight, times, coupling, optimizer, generator)


def fit(
    model: ScoreModel,
    data: Tensor,
    steps: int = 5000,
    *,
    cond: Mapping[str, Tensor] | None = None,
    batch: int = 256,
    lr: float = 1e-3,
    warmup: int = 100,
    ema: float = 0.999,
    weight: Weight = unit,
    times: Times | None = None,
    coupling: Coupling | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    generator: torch.Generator | None = None,
    every: int = 100,
    callback: Callable[[Step], Any] | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = True,
    progress: bool = True,
) -> History:
    r"""Train a score model on data by denoising score matching; leaves the averaged weights in it, in eval mode.

    Args:
        model: Score model; make it with the data's mean and scale.
        data: (N, \*D), floating, on the model's device.
        steps: Optimizer steps in all.
        cond: Tensors of N rows that go to the network with their data: {"label": y}.
        batch: Samples a step, drawn with replacement.
        lr: Peak learning rate of Adam; it falls to zero as half a cosine.
        warmup: Steps over which it rises.
        ema: Decay of the average of the weights; 0 for none.
        weight: Weight over noise levels: `sde.train.unit` (default), `constant`, `likelihood`, `min_snr(5.0)`.
        times: Distribution of times. Default: `Discrete` for a table, `Uniform` for a matrix SDE, else `LogNormal`.
        coupling: `sde.train.optimal_transport`, or None for independent noise. A coupled model has no score.
        optimizer: In place of Adam; its learning rate is set at every step.
        generator: For data, times and noise.
        every: Steps between two entries of the history (and two checkpoints).
        callback: Called with each `Step` that is logged.
        checkpoint: File that is kept up to date, and written on interruption; a later call goes on from it.
        resume: False to start anew though the checkpoint is there.
        progress: A bar.

    Returns:
        The history, for `sde.plot.history`.

    Raises:
        TypeError, ValueError: If an argument does not fit; FloatingPointError if the loss is not finite.

    References:
        Vincent (2011), Neural Comput. 23, 1661; Song et al. (2021), 2011.13456; Karras et al. (2022), 2206.00364.

    Example:
        >>> import torch, sde
        >>> data = torch.randn(500, 2)
        >>> model = sde.ScoreModel(sde.nets.MLP(dim=2, width=16), sde.VP(), mean=data.mean(0), scale=float(data.std()))
        >>> history = sde.fit(model, data, steps=20, every=10, progress=False)
        >>> history.step
        [10, 20]
    """
    inputs.whole("every", every, 1, say=100)
    path, history = _place(checkpoint, model), History()
    run = _start(model, data, steps, cond, batch, lr, warmup, ema, weight, times, coupling, optimizer, generator)
    try:
        if path and resume and path.exists():
            history = restore(run, path)
        _loop(run, history, every, callback, path, progress)
    finally:
        run.finish()
        model.eval()
    return history


def _place(checkpoint: str | Path | None, model: ScoreModel) -> Path | None:
    """Where to keep the run, and that it can be kept: better refused now than after the first hundred steps."""
    if checkpoint is None:
        return None
    describe(model)
    return writable(checkpoint)


def _loop(
    run: Run,
    history: History,
    every: int,
    callback: Callable[[Step], Any] | None,
    path: Path | None,
    progress: bool,
) -> None:
    from tqdm.auto import tqdm

    began = time.monotonic() - (history.seconds[-1] if history.seconds else 0.0)
    bar = tqdm(total=run.steps, initial=run.step, desc="training", unit="step", disable=not progress)
    steps, losses = iter(run), run.losses
    with bar, deferred() as check, _kept(run, history, path, steps):
        for now in steps:
            losses.append(now.loss)
            if now.step % every == 0 or now.step == run.steps:
                mean = _mean(run, path)
                bar.update(now.step - bar.n)
                bar.set_postfix(loss=f"{mean:.4f}")
                history.add(now.step, mean, now.lr, time.monotonic() - began)
                if path:
                    save(run, path, history)
                if callback:
                    callback(now)
            check()


def _mean(run: Run, path: Path | None) -> float:
    """Mean loss since the last entry, which begins anew; an error where it or a weight is no number any more."""
    mean = float(torch.stack(run.losses).mean())
    run.losses.clear()
    if not (math.isfinite(mean) and run.finite()):
        raise FloatingPointError(
            f"loss is {mean} at step {run.step}, or a weight is: lower lr={run.lr:g}, or standardise the data"
            + (f"; the last good checkpoint is {path}" if path and path.exists() else "")
        )
    return mean


@contextmanager
def _kept(run: Run, history: History, path: Path | None, steps: Iterator[Step]) -> Iterator[None]:
    """Save what is interrupted."""
    try:
        yield
    except KeyboardInterrupt:
        # Inside a step (a second Ctrl-C) weights and generator belong to different steps: the last file is better.
        whole = inspect.getgeneratorstate(steps) == inspect.GEN_SUSPENDED  # pyright: ignore[reportArgumentType]
        if path and whole and run.finite():
            save(run, path, history)
        if path and path.exists():
            print(f"stopped at step {run.step} of {run.steps}: the same call goes on from {path}")  # noqa: T201
        raise
