r"""Training: one loop, interruptible at any step.

`fit` runs to the end and returns a history; `fit_steps` is the generator under it, one value a step. The steps
themselves are in `sde.train.run`, and what a file keeps of them in `sde.train.resume`.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sde.score import ScoreModel
from sde.train import inputs
from sde.train.checkpoint import writable
from sde.train.couple import Coupling
from sde.train.distributed import Together, team
from sde.train.ema import Power
from sde.train.interrupt import deferred
from sde.train.loss import Weight
from sde.train.manifest import describe
from sde.train.objectives import DENOISING, Objective
from sde.train.resume import restore, save
from sde.train.run import History, Run, Step
from sde.train.settings import Decay, Precision, Settings
from sde.train.snapshots import keep
from sde.train.times import Times

if TYPE_CHECKING:
    from accelerate import Accelerator

Callback = Callable[[Step], Any]


def fit_steps(
    model: ScoreModel,
    data: Tensor,
    steps: int,
    *,
    cond: Mapping[str, Tensor] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    generator: torch.Generator | None = None,
    accelerator: Accelerator | None = None,
    **settings: Any,
) -> Iterator[Step]:
    """Training step by step; arguments and defaults as `fit`, up to `channels_last`.

    When the generator ends, or is left early and closed, the averaged weights are put into the model, in eval mode.

    Example:
        >>> import torch, sde
        >>> model = sde.ScoreModel(sde.nets.MLP(dim=2, width=8), sde.VP())
        >>> [s.step for s in sde.fit_steps(model, torch.randn(100, 2), steps=3, batch=16)]
        [1, 2, 3]
    """
    return _until_left(_start(model, data, cond, Settings(steps, **settings), optimizer, generator, accelerator))


def _until_left(run: Run) -> Iterator[Step]:
    try:
        yield from run
    finally:
        run.finish()
        run.model.eval()


def _start(
    model: ScoreModel,
    data: Tensor,
    cond: Mapping[str, Tensor] | None,
    settings: Settings,
    optimizer: torch.optim.Optimizer | None,
    generator: torch.Generator | None,
    accelerator: Accelerator | None,
) -> Run:
    cond, several = cond or {}, team(accelerator)
    if isinstance(several, Together):
        model, data, cond = several.place(model, data, cond)
    inputs.check_settings(settings, generator)
    inputs.check(model, data, cond, settings.objective.coupling)
    inputs.check_fits(settings, model, data, cond)
    inputs.check_team(settings, several)
    inputs.warn_of_scale(model, data, stacklevel=3)
    settings = replace(settings, steps=int(settings.steps), batch=int(settings.batch))
    if generator is None:  # a generator of its own, seeded from the global one, so that a run can be resumed
        generator = torch.Generator(data.device).manual_seed(int(torch.randint(2**62, ())))
    model.coupled = settings.objective.coupling is not None
    model.train()
    return Run(model, data, cond, settings, optimizer, generator, several)


def fit(
    model: ScoreModel,
    data: Tensor,
    steps: int = 5000,
    *,
    cond: Mapping[str, Tensor] | None = None,
    batch: int = 256,
    lr: float = 1e-3,
    warmup: int = 100,
    decay: Decay = "cosine",
    ema: float | Power = 0.999,
    clip: float | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    loss: Objective = DENOISING,
    weight: Weight | None = None,
    times: Times | None = None,
    coupling: Coupling | None = None,
    generator: torch.Generator | None = None,
    flip: bool = False,
    drop: float = 0.0,
    dequantize: float = 0.0,
    precision: Precision = "float32",
    accumulate: int = 1,
    compile: bool | str = False,
    channels_last: bool | None = None,
    accelerator: Accelerator | None = None,
    every: int = 100,
    save_every: int | None = None,
    callback: Callback | Sequence[Callback] | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = True,
    progress: bool = True,
) -> History:
    r"""Train a score model on data, by denoising or another loss; leaves the averaged weights in it, in eval mode.

    Args:
        model: Score model; make it with the data's mean and scale. One that was trained goes on from the weights it
            has, with a new optimizer.
        data: (N, \*D), floating, on the model's device; or uint8 (N, C, H, W), bytes of images, which are brought to
            [-1, 1] when they are drawn.
        steps: Optimizer steps in all.
        cond: Tensors of N rows that go to the network with their data: {"label": y}.
        batch: Samples a step, drawn with replacement.

        lr: Peak learning rate.
        warmup: Steps over which it rises.
        decay: How it falls: "cosine" or "linear" to zero, "inverse_sqrt", "constant", or a function of (step, steps).
        ema: Decay of the average of the weights, 0 for none; or `sde.train.Power(...)`, whose snapshots lie beside the
            checkpoint for `sde.train.reconstruct`.
        clip: Largest norm of the gradient of all weights; None for any.
        optimizer: In place of Adam; its learning rate is set at every step.

        loss: What is learned: `sde.train.Denoising()` (default), `Implicit()`, `Sliced()`, `maximum_likelihood()`,
            `min_snr_loss()`, `edm_loss()`, `flow_matching()`; its weight, times and coupling hold unless given here.
        weight: Weight over noise levels: `sde.train.unit`, `constant`, `noise`, `likelihood`, `min_snr(5.0)`.
        times: Distribution of times. Default: `Discrete` for a table, `Uniform` for a matrix SDE, else `LogNormal`.
        coupling: `sde.train.optimal_transport`; without it noise is independent. A coupled model has no score.
        generator: For data, times and noise. On the data's device it keeps a GPU from waiting.
        flip: Turn every other image left to right, at random.
        drop: Share of the labels told as "no class", for classifier-free guidance.
        dequantize: Width, in bytes, of the cell that each byte is spread over by uniform noise: 1 for photographs,
            255/16 for the 17 levels of scikit-learn's digits. `bits_per_dim` asks for it wherever the SDE's least noise
            is below a third of a cell; samples hardly change.

        precision: "bfloat16" or "float16" for the network's own arithmetic; weights, averages and loss stay float32.
        accumulate: Parts that a batch goes through the network in, one after the other, where it does not fit at once.
        compile: True, or a mode of `torch.compile`, for the network; the model itself stays the plain one.
        channels_last: Memory layout of images and weights. Default: on CUDA.
        accelerator: An `accelerate.Accelerator`, for several GPUs by DDP or FSDP2; made by itself under `accelerate
            launch`. `batch` is that of all processes together, and the numbers are those of one.

        every: Steps between two entries of the history.
        save_every: Steps between two checkpoints. Default: as `every`.
        callback: Called with each `Step` that is logged; one, or several. Of several processes, in each: `step.main`.
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
    save_every = every if save_every is None else save_every
    inputs.whole("save_every", save_every, 1, say=1000)
    calls = [callback] if callable(callback) else list(callback or ())
    path = _place(checkpoint, model)
    settings = Settings(
        steps=steps, batch=batch, lr=lr, warmup=warmup, decay=decay, ema=ema, clip=clip,
        loss=loss, weight=weight, times=times, coupling=coupling, flip=flip, drop=drop, dequantize=dequantize,
        precision=precision, accumulate=accumulate, compile=compile, channels_last=channels_last,
    )  # fmt: skip
    run = _start(model, data, cond, settings, optimizer, generator, accelerator)
    try:
        if path and resume and path.exists():
            restore(run, path)
        Session(run, path, every, save_every, calls, progress).through()
    finally:
        run.finish()
        model.eval()
    return run.history


def _place(checkpoint: str | Path | None, model: ScoreModel) -> Path | None:
    """Where to keep the run, and that it can be kept: better refused now than after the first hundred steps."""
    if checkpoint is None:
        return None
    describe(model)
    return writable(checkpoint)


class Session:
    """One call of `fit`: the loop around a run, and when it logs, saves and calls back."""

    def __init__(
        self, run: Run, path: Path | None, every: int, save_every: int, callbacks: Sequence[Callback], progress: bool
    ) -> None:
        self.run, self.path, self.every, self.save_every = run, path, every, save_every
        self.callbacks, self.progress, self.busy = callbacks, progress, False
        seconds = run.history.seconds
        self.began = time.monotonic() - (seconds[-1] if seconds else 0.0)
        self.since, self.lap, self.trained = run.step, time.monotonic(), 0.0

    def through(self) -> None:
        """All steps that are left."""
        from tqdm.auto import tqdm

        run, steps, last = self.run, iter(self.run), self.run.settings.steps
        ema = run.settings.ema
        due = ema.due(last) if self.path and isinstance(ema, Power) else ()
        quiet = not (self.progress and run.team.main)
        bar = tqdm(total=last, initial=run.step, desc="training", unit="step", disable=quiet)
        with bar, deferred() as check, self._kept(steps):
            for now in steps:
                run.losses.append(now.loss)
                logged = now.step % self.every == 0 or now.step == last
                saved = self.path and (now.step % self.save_every == 0 or now.step == last)
                if logged or saved or now.step in due:
                    mean = self._mean()
                    self.trained += time.monotonic() - self.lap
                    if logged:
                        self._log(now, mean, bar)
                    if self.path and now.step in due:
                        self.busy = True
                        keep(run, self.path)
                        self.busy = False
                    if self.path and saved:
                        save(run, self.path)
                    if logged:
                        for call in self.callbacks:
                            call(now)
                    self.lap = time.monotonic()
                check()

    def _mean(self) -> float:
        """Mean loss since the last entry; an error where it or a weight is no number any more."""
        run, path = self.run, self.path
        mean = float(run.team.mean(torch.stack(run.losses)).mean())  # here, and nowhere else, the device is waited for
        if not (math.isfinite(mean) and run.finite()):
            raise FloatingPointError(
                f"loss is {mean} at step {run.step}, or a weight is: lower lr={run.settings.lr:g}, or standardise the "
                "data" + (f"; the last good checkpoint is {path}" if path and path.exists() else "")
            )
        return mean

    def _log(self, now: Step, mean: float, bar: Any) -> None:
        """One more entry of the history."""
        self.run.losses.clear()
        speed = (now.step - self.since) * self.run.settings.batch / max(self.trained, 1e-9)
        self.run.history.add(now.step, mean, now.lr, time.monotonic() - self.began, speed)
        self.trained, self.since = 0.0, now.step
        bar.update(now.step - bar.n)
        bar.set_postfix_str(f"loss={mean:.4f}, {speed:.4g} samples/s")

    @contextmanager
    def _kept(self, steps: Iterator[Step]) -> Iterator[None]:
        """Save what is interrupted."""
        run, path = self.run, self.path
        try:
            yield
        except KeyboardInterrupt:
            # Inside a step (a second Ctrl-C) weights and generator belong to different steps: the last file is better.
            whole = inspect.getgeneratorstate(steps) == inspect.GEN_SUSPENDED  # pyright: ignore[reportArgumentType]
            # Nor do several processes stop at the same step.
            if path and whole and run.team.size == 1 and not (self.busy or run.swapped) and run.finite():
                save(run, path)
            if path and path.exists() and run.team.main:
                print(f"stopped at step {run.step} of {run.settings.steps}: the same call goes on from {path}")  # noqa: T201
            raise
