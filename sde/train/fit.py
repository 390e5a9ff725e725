r"""Training: one loop, interruptible at any step.

`fit` runs to the end and returns a history; `fit_steps` is the generator under it, one value a step. What does not
depend on the network (times, indices, every coefficient of the loss) is drawn and computed for `CHUNK` steps at once,
so that a step is little more than the network's own forward, backward and optimizer.

The weights that a model is left with are their exponential moving average (EMA),

    ema <- ema + (1 - d_n) (theta - ema),        d_n = min(d, (1 + n) / (10 + n)),

and the learning rate rises linearly over `warmup` steps and falls to zero as half a cosine.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sde.score import ScoreModel
from sde.train import inputs
from sde.train.checkpoint import writable
from sde.train.couple import Coupling
from sde.train.interrupt import deferred
from sde.train.loss import Rows, Weight, regression, rows, shaped, unit
from sde.train.manifest import describe
from sde.train.resume import restore, save
from sde.train.times import Times, TimeTable, default_times

CHUNK = 32


@dataclass
class History:
    """What training logged: what `sde.plot.history` draws.

    Attributes:
        step: Steps done at each entry.
        loss: Mean loss since the entry before.
        lr: Learning rate.
        seconds: Time since training began, of all its sessions.
    """

    step: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    lr: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def add(self, step: int, loss: float, lr: float, seconds: float) -> None:
        """One more entry."""
        self.step.append(step)
        self.loss.append(loss)
        self.lr.append(lr)
        self.seconds.append(seconds)


class Step(NamedTuple):
    """One step of training: its number (from 1), its loss (a tensor on the device) and its learning rate."""

    step: int
    loss: Tensor
    lr: float


class Run:
    """The state of a training run: everything that a resumed one needs to go on with the same bits."""

    def __init__(
        self,
        model: ScoreModel,
        data: Tensor,
        cond: Mapping[str, Tensor],
        steps: int,
        batch: int,
        lr: float,
        warmup: int,
        ema: float,
        weight: Weight,
        times: Times,
        coupling: Coupling | None,
        optimizer: torch.optim.Optimizer | None,
        generator: torch.Generator,
    ) -> None:
        self.model, self.cond, self.steps, self.batch = model, dict(cond), steps, batch
        self.lr, self.warmup, self.decay, self.weight, self.coupling = lr, warmup, ema, weight, coupling
        self.z = (data - model.mean.to(data)).to(model.placement()[1]).contiguous()
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = optimizer or torch.optim.Adam(self.parameters, lr=lr, fused=self._fused())
        self.ema = [p.detach().clone() for p in self.parameters]
        self.generator, self.step = generator, 0
        self.losses: list[Tensor] = []  # since the last entry of the history
        self.table = TimeTable(times, model.sde, model.scale, data.device)
        probe = weight(model.levels(self.table.at(torch.linspace(0, 1, 9, dtype=torch.float64))), model.scale)
        self.weighted = not bool(torch.allclose(probe, torch.ones_like(probe)))

    def _fused(self) -> bool:
        return all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in self.parameters)

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        rise = min(1.0, (step + 1) / max(1, self.warmup))
        return self.lr * rise * 0.5 * (1 + math.cos(math.pi * step / self.steps))

    def _chunk(self) -> tuple[list[Tensor], list[Rows]]:
        """Indices and loss coefficients of the next CHUNK steps."""
        n, g = len(self.z), self.generator
        index = torch.randint(n, (CHUNK, self.batch), generator=g, device=g.device).to(self.z.device)
        v = torch.rand(CHUNK, self.batch, generator=g, device=g.device).to(self.z.device)
        u = (torch.arange(self.batch, device=v.device) + v) / self.batch
        made = shaped(rows(self.model, self.table.at(u), self.weight), self.z)
        return list(index.unbind(0)), [Rows(*columns) for columns in zip(*(c.unbind(0) for c in made), strict=True)]

    def __iter__(self) -> Iterator[Step]:
        z, params, opt, weighted, generator = self.z, self.parameters, self.optimizer, self.weighted, self.generator
        values = [p.detach() for p in params]  # views of the weights that the optimizer changes in place
        while self.step < self.steps:
            offset = self.step % CHUNK
            if offset == 0:
                self.chunk_state = generator.get_state()
                index, coefficients = self._chunk()
            else:  # resumed inside a chunk: draw it again, then go on from the generator's own state
                now = generator.get_state()
                generator.set_state(self.chunk_state)
                index, coefficients = self._chunk()
                generator.set_state(now)
            for i, row in list(zip(index, coefficients, strict=True))[offset : offset + self.steps - self.step]:
                lr = self.rate(self.step)
                for group in opt.param_groups:
                    group["lr"] = lr
                eps = torch.randn(self.batch, *z.shape[1:], generator=generator, device=generator.device)
                x = z[i]
                eps = eps.to(x)
                if self.coupling is not None:
                    eps = self.coupling(x, eps)
                cond = {k: c[i] for k, c in self.cond.items()}
                loss = regression(self.model, x, eps, row, weighted, **cond)
                for p in params:
                    p.grad = None
                loss.backward()
                opt.step()
                self.step += 1
                if self.decay:
                    d = min(self.decay, (1 + self.step) / (10 + self.step))
                    torch._foreach_lerp_(self.ema, values, 1 - d)  # pyright: ignore[reportPrivateImportUsage]
                yield Step(self.step, loss.detach(), lr)

    def finite(self) -> bool:
        """Whether every weight is a number."""
        return all(bool(torch.isfinite(p).all()) for p in self.parameters)

    def finish(self) -> None:
        """Leave the averaged weights in the model."""
        if self.decay and self.step:
            with torch.no_grad():
                for p, e in zip(self.parameters, self.ema, strict=True):
                    p.copy_(e)


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
