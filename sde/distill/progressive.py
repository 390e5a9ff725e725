r"""Progressive distillation: a student learns to go in one step where its teacher goes in two.

On a grid of 2 N steps, a teacher's two DDIM steps from t over m to s end at some x_s. One step of DDIM ends there if

    x0* = (x_s - k x_t) / (alpha_s - k alpha_t),        k = sigma_s / sigma_t,

which is what the student's x0 regresses at the N times of every other node,

    loss = E_t E_{x0, eps} (1 / scale^2 + alpha^2 / sigma^2) |x0(x_t, t) - x0*|^2 / d.

The weight is Salimans & Ho's "SNR + 1", the unweighted error of v or of edm's output. The student is the next round's
teacher: 16 steps, 8, 4, 2, 1. x0* is a function of x_t, so that its noise is none and the best student is exact.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sde.distill.engine import Distillation, check, precise, train
from sde.distill.jump import jump, scalar, span
from sde.score import Model, ScoreModel
from sde.shape import expand, scaled
from sde.solvers import grids
from sde.train import History, inputs
from sde.train.fit import Callback
from sde.train.settings import Settings


class Stage(NamedTuple):
    """What a round leaves: sample it by `sde.sample(stage.model, shape, times=stage.times, solver=sde.DDIM())`.

    Attributes:
        steps: DDIM steps that the model was made for.
        model: The student, in eval mode.
        times: Its grid, from t_max down to t_min, (steps + 1,), float64: the only times that it knows.
        history: What training logged.
    """

    steps: int
    model: ScoreModel
    times: Tensor
    history: History


def halved(teacher: Model, x: Tensor, t: Tensor, m: Tensor, s: Tensor, **cond: Any) -> Tensor:
    r"""The x0 by which one DDIM step from t to s ends where two of the teacher's end, over m.

    Args:
        teacher: Any model under a scalar SDE.
        x: States at t, (B, \*D).
        t: Times, () or (B,).
        m: Times between, of the same shape.
        s: Times to go to, of the same shape.
        **cond: Passed to the teacher.

    References:
        Salimans & Ho (2022), 2202.00512, algorithm 2 and appendix G.

    Example:
        >>> import torch, sde
        >>> from sde import distill
        >>> point = sde.ExactScore(sde.Gaussian([3.0], 0.0), sde.VP())  # one datum: every step is exact
        >>> t, m, s = torch.tensor([[0.9], [0.5], [0.1]], dtype=torch.float64)
        >>> distill.halved(point, torch.randn(1, 1), t, m, s).round(decimals=3)
        tensor([[3.]])
    """
    sde = scalar(teacher)
    y = jump(teacher, jump(teacher, x, t, m, **cond), m, s, **cond)
    k, c = span(sde, t, s)
    return scaled(expand(1 / c, x), y) - scaled(expand(k / c, x), x)


class _Halving:
    """The loss of a round on the teacher's grid."""

    def __init__(self, teacher: Model, times: Tensor) -> None:
        self.teacher, self.times = teacher, times

    def __call__(self, run: Distillation, x0: Tensor, eps: Tensor, cond: dict[str, Tensor]) -> Tensor:
        model, sde, n = run.model, scalar(run.model), (len(self.times) - 1) // 2
        i = 2 * (n * run.quantiles(len(x0))).long().clamp_max(n - 1)
        t, m, s = self.times[i], self.times[i + 1], self.times[i + 2]
        x = sde.mixed(x0, t, eps)
        with torch.no_grad():
            target = halved(self.teacher, x, t, m, s, **cond)
        weight = torch.exp(sde.log_snr(t)) + model.scale**-2
        off = (model(x, t, **cond).x0 - target).flatten(1).square().mean(1)
        return (weight.to(off.dtype) * off).mean()


def progressive(
    teacher: Model,
    data: Tensor,
    start: int = 16,
    stop: int = 1,
    steps: int = 1000,
    *,
    model: ScoreModel | None = None,
    times: Tensor | None = None,
    cond: Mapping[str, Tensor] | None = None,
    batch: int = 256,
    lr: float = 5e-4,
    warmup: int = 50,
    ema: float = 0.99,
    clip: float | None = 1.0,
    flip: bool = False,
    generator: torch.Generator | None = None,
    every: int = 100,
    callback: Callback | Sequence[Callback] | None = None,
    progress: bool = True,
) -> list[Stage]:
    r"""Halve the DDIM steps of a teacher, round by round.

    Args:
        teacher: Any model under a scalar SDE: trained, exact, or guided with a fixed weight, `CFG(m, m, 2.0)`, which is
            told the same cond. It is not changed.
        data: (N, \*D), floating; or uint8 (N, C, H, W), bytes of images.
        start: DDIM steps of the teacher, `stop` times a power of 2.
        stop: Steps of the last student.
        steps: Optimizer steps of each round.
        model: What the first student begins as, copied; param edm, v or x0 (velocity under Flow). Default: a copy of
            the teacher, if that is a ScoreModel.
        times: The teacher's grid, (start + 1,), from t_max down to t_min. Default: `grids.data_scaled`.
        cond: Conditioning of each datum, {"label": (N,)}, passed to both.
        batch: Samples a step.
        lr: Peak learning rate of each round; it rises over `warmup` steps and falls by a cosine.
        warmup: Steps over which it rises.
        ema: Decay of the average of the weights, 0 for none.
        clip: Largest norm of a gradient, None for no limit.
        flip: Turn every other image left to right, at random.
        generator: For data, times and noise.
        every: Steps between two entries of a history.
        callback: Called with each `Step` that is logged; one, or several.
        progress: A bar to each round.

    Returns:
        A `Stage` for each round, of start / 2, start / 4, ..., stop steps.

    Raises:
        TypeError, ValueError: If an argument does not fit: as `consistency`.

    References:
        Salimans & Ho (2022), 2202.00512; for guided teachers Meng et al. (2023), 2210.03142.

    Example:
        >>> import torch, sde
        >>> from sde import distill
        >>> data = torch.randn(500, 2)
        >>> teacher = sde.ScoreModel(sde.nets.MLP(dim=2, width=16), sde.VP())
        >>> stages = distill.progressive(teacher, data, start=4, steps=10, progress=False)
        >>> [stage.steps for stage in stages]
        [2, 1]
        >>> sde.sample(stages[-1].model, (8, 2), times=stages[-1].times, solver=sde.DDIM()).shape
        torch.Size([8, 2])
    """
    student = _student(teacher, model)
    check(student, teacher)
    rounds = _rounds(start, stop)
    grid = _grid(student, start, times)
    settings = Settings(steps=steps, batch=batch, lr=lr, warmup=warmup, ema=ema, clip=clip, flip=flip)
    stages, above = [], teacher
    for _ in range(rounds):
        student = copy.deepcopy(student)
        student.coupled = teacher.coupled
        device = data.device if isinstance(data, Tensor) else torch.device("cpu")
        loss = _Halving(above, grid.to(device, precise(device)))
        history = train(student, above, data, cond, settings, generator, loss, every, callback, progress)
        above, grid = student, grid[::2]
        stages.append(Stage(len(grid) - 1, student, grid, history))
    return stages


def _student(teacher: Model, model: ScoreModel | None) -> ScoreModel:
    if model is not None:
        return model
    if not isinstance(teacher, ScoreModel):
        raise TypeError(
            f"model is missing: {type(teacher).__name__} has no network to begin with, pass ScoreModel(net, sde)"
        )
    return copy.deepcopy(teacher)


def _rounds(start: int, stop: int) -> int:
    inputs.whole("stop", stop, 1, say=1)
    inputs.whole("start", start, 2, say=16)
    rounds = max(0, (start // stop).bit_length() - 1)
    if rounds < 1 or stop * 2**rounds != start:
        raise ValueError(f"start must be stop times a power of 2, got {start} and {stop}: pass start=16, stop=1, say")
    return rounds


def _grid(model: ScoreModel, start: int, times: Tensor | None) -> Tensor:
    if times is None:
        return grids.data_scaled(model.sde, start, scale=model.scale)
    times = torch.as_tensor(times, dtype=torch.float64, device="cpu")
    if times.shape != (start + 1,) or not bool((times.diff() < 0).all()):
        raise ValueError(f"times must be {start + 1} falling ones for start={start}, got shape {tuple(times.shape)}")
    return times
