r"""Consistency training and distillation: a network learns where the probability flow ends.

Along a path of the flow the consistency function f(x, t) is constant, and f(x, t_min) = x. On a ladder of times
t_min = t_0 < ... < t_N = t_max, two neighbours t > s of one path must agree, the later one being held:

    loss = E_i E_{x0, eps} w_i d(f(x_t, t), stop[f(x_s, s)]),          d(a, b) = sqrt(|a - b|^2 + c^2) - c,
    x_t = alpha_t x0 + sigma_t eps,         x_s = a step of the teacher's flow from x_t       (distillation)
                                            x_s = alpha_s x0 + sigma_s eps                    (training),

since with the posterior mean of x0 given x_t the second is such a step to first order in t - s. The error of f adds up
along the ladder, which therefore grows during a run, N doubling. With rho = sigma / alpha in units of the data's scale,
the ladder has equal steps in rho^(1/7), w_i = 1 / (rho_{i+1} - rho_i), and i has the share of a normal law of log rho
between neighbours. All is Song & Dhariwal's improved training: no averaged network holds the later end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sde.distill.engine import Distillation, precise, train
from sde.distill.jump import flow_step, jump, scalar
from sde.forward import ScalarSDE
from sde.score import Model, ScoreModel
from sde.solvers.grids import CAP
from sde.train import History, inputs
from sde.train.fit import Callback
from sde.train.settings import Settings

POWER = 7.0
"""Of the ladder, as Karras' grid."""


class Ladder(NamedTuple):
    """Times from t_min up, (N + 1,); of each of the N pairs of neighbours the weight, and the share of those below."""

    times: Tensor
    weight: Tensor
    below: Tensor


def ladder(sde: ScalarSDE, n: int, scale: float, mean: float, std: float, device: torch.device) -> Ladder:
    """N = n pairs of neighbours; an infinite ratio at t_max counts as `grids.CAP`."""
    ends = torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64)
    low, high = (torch.exp(-sde.log_snr(ends) / 2) / scale).tolist()
    high = high if math.isfinite(high) else CAP
    rho = torch.linspace(low ** (1 / POWER), high ** (1 / POWER), n + 1, dtype=torch.float64) ** POWER
    times = sde.time_at(-2 * torch.log(rho * scale))
    times[0], times[-1] = sde.t_min, sde.t_max
    share = torch.special.ndtr((torch.log(rho) - mean) / std).diff() + 1e-12
    made = times, 1 / rho.diff(), (share / share.sum()).cumsum(0)
    return Ladder(*(c.to(device, precise(device)) for c in made))


def rungs(curriculum: tuple[int, int], step: int, steps: int) -> int:
    """N at a step of a run: from the first number it doubles, in stages of equal length, up to the second.

    References:
        Song & Dhariwal (2023), 2310.14189, section 3.4.

    Example:
        >>> [rungs((10, 80), step, 100) for step in (0, 24, 25, 50, 75, 99)]
        [10, 10, 20, 40, 80, 80]
    """
    first, last = curriculum
    stages = math.ceil(math.log2(last / first)) + 1
    return min(first * 2 ** (step * stages // steps), last)


def huber(scale: float, numbers: int) -> float:
    """Default c, in units of the data: the paper's .00054 sqrt(d) for data of scale 1/2, and for d < 3072 CIFAR-10's.

    For points the paper's rule would make c so small that a median is learned, which differs from the mean.

    References:
        Song & Dhariwal (2023), 2310.14189, section 3.3.
    """
    return 2 * 0.00054 * math.sqrt(max(numbers, 3072)) * scale


class _Agreement:
    """The loss of a run."""

    def __init__(
        self, teacher: Model | None, curriculum: tuple[int, int], law: tuple[float, float], order: int, c: float
    ):
        self.teacher, self.curriculum, self.law, self.order, self.c = teacher, curriculum, law, order, c
        self.made: dict[int, Ladder] = {}

    def __call__(self, run: Distillation, x0: Tensor, eps: Tensor, cond: dict[str, Tensor]) -> Tensor:
        model, sde, n = run.model, scalar(run.model), rungs(self.curriculum, run.step, run.settings.steps)
        if n not in self.made:
            self.made[n] = ladder(sde, n, model.scale, *self.law, x0.device)
        times, weight, below = self.made[n]
        i = torch.searchsorted(below, run.quantiles(len(x0)).to(below)).clamp_max(n - 1)
        s, t = times[i], times[i + 1]
        x = sde.mixed(x0, t, eps)
        with torch.no_grad():
            y = sde.mixed(x0, s, eps)
            if self.teacher is not None:
                y = flow_step(self.teacher, x, t, s, self.order, **cond)
            end = jump(model, y, s, **cond)
        off = (jump(model, x, t, **cond) - end).flatten(1).square().sum(1)
        return (weight[i].to(off.dtype) * (torch.sqrt(off + self.c**2) - self.c)).mean() / model.scale


def consistency(
    model: ScoreModel,
    data: Tensor,
    steps: int = 5000,
    *,
    teacher: Model | None = None,
    cond: Mapping[str, Tensor] | None = None,
    batch: int = 256,
    lr: float = 1e-3,
    warmup: int = 100,
    ema: float = 0.999,
    clip: float | None = 1.0,
    curriculum: tuple[int, int] = (10, 160),
    law: tuple[float, float] = (-0.4, 2.0),
    order: int = 2,
    c: float | None = None,
    flip: bool = False,
    generator: torch.Generator | None = None,
    every: int = 100,
    callback: Callback | Sequence[Callback] | None = None,
    progress: bool = True,
) -> History:
    r"""Train a model to be a consistency model: distil a teacher, or learn from data alone.

    The model stays a `ScoreModel`, but its x0 no longer is a posterior mean: its jump to t_min, and that alone, is what
    was learned. Sample it by `sde.sample(model, shape, steps=1, solver=Multistep())`, or with 2 to 4 steps; score,
    likelihood and other solvers mean nothing for it. A copy of the teacher is the best beginning.

    Args:
        model: The student, trained in place; any scalar SDE, param edm, v or x0 (velocity under Flow).
        data: (N, \*D), floating; or uint8 (N, C, H, W), bytes of images.
        steps: Optimizer steps in all.
        teacher: Any model under the same SDE: trained, exact, or guided with a fixed weight, `CFG(m, m, 2.0)`, which is
            told the same cond. None: consistency training, from data alone.
        cond: Conditioning of each datum, {"label": (N,)}, passed to both.
        batch: Samples a step.
        lr: Peak learning rate; it rises over `warmup` steps and falls by a cosine.
        warmup: Steps over which it rises.
        ema: Decay of the average of the weights which the model is left with, 0 for none.
        clip: Largest norm of a gradient, None for no limit.
        curriculum: Pairs of neighbours N on the ladder, at first and at last.
        law: Mean and standard deviation of log(sigma / (alpha scale)). The paper's (-1.1, 2) for scale 1/2.
        order: Of the teacher's step along its flow, 1 or 2: its evaluations.
        c: Width of the pseudo-Huber distance, in units of the data. Default: the paper's for CIFAR-10, .06
            times the data's scale, growing as sqrt(d) beyond d = 3072.
        flip: Turn every other image left to right, at random.
        generator: For data, times and noise.
        every: Steps between two entries of the history.
        callback: Called with each `Step` that is logged; one, or several.
        progress: A bar.

    Returns:
        The history.

    Raises:
        TypeError, ValueError: If an argument does not fit: a matrix SDE, a parameterisation that cannot tell x0 at
            t_max, a teacher of another SDE, or none for a coupled model.

    References:
        Song, Dhariwal, Chen & Sutskever (2023), 2303.01469; Song & Dhariwal (2023), 2310.14189.

    Example:
        >>> import torch, sde
        >>> from sde import distill
        >>> target = sde.Mixture([0.5, 0.5], [[-1.0], [1.0]], [0.04, 0.04])
        >>> teacher, data = sde.ExactScore(target, sde.EDM()), target.sample(500).float()
        >>> model = sde.ScoreModel(sde.nets.MLP(dim=1, width=16), sde.EDM())
        >>> distill.consistency(model, data, steps=20, teacher=teacher, every=10, progress=False).step
        [10, 20]
        >>> sde.sample(model, (4, 1), steps=1, solver=distill.Multistep()).shape
        torch.Size([4, 1])
    """
    _check(model, teacher, curriculum, law, order, c)
    settings = Settings(steps=steps, batch=batch, lr=lr, warmup=warmup, ema=ema, clip=clip, flip=flip)
    width = (
        huber(model.scale, data[0].numel()) if c is None and isinstance(data, Tensor) and data.ndim > 1 else c or 0.0
    )
    loss = _Agreement(teacher, curriculum, law, order, width)
    history = train(model, teacher, data, cond, settings, generator, loss, every, callback, progress)
    model.coupled = teacher is not None and teacher.coupled
    return history


def _check(
    model: ScoreModel, teacher: Model | None, curriculum: tuple[int, int], law: tuple[float, float], order: int,
    c: float | None,
) -> None:  # fmt: skip
    if not isinstance(model, ScoreModel):
        raise TypeError(f"model must be a ScoreModel, got {type(model).__name__}: ScoreModel(net, sde), the student")
    if teacher is None and model.coupled:
        raise ValueError(
            "consistency training draws eps apart from x0, and this model was trained with a coupling that ties them, "
            "so that its flow is another: pass it as teacher, and a copy as model"
        )
    if len(curriculum) != 2 or curriculum[1] < curriculum[0]:
        raise ValueError(f"curriculum must be two numbers that do not fall, got {curriculum}: pass (10, 160), say")
    for n in curriculum:
        inputs.whole("curriculum", n, 1, say=10)
    if len(law) != 2 or not (math.isfinite(law[0]) and math.isfinite(law[1]) and law[1] > 0):
        raise ValueError(f"law must be a finite mean and a positive standard deviation, got {law}: keep (-.4, 2)")
    if order not in (1, 2):
        raise ValueError(f"order must be 1 or 2, got {order!r}: 2 is Heun's rule, with two evaluations")
    if c is not None and not (math.isfinite(c) and c > 0):
        raise ValueError(f"c must be positive and finite, got {c}: leave it out for the paper's")
