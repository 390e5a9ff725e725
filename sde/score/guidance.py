r"""Guidance: a model made from models, pulled further.

Classifier-free guidance goes w of the way from the unconditional to the conditional estimate of the endpoints,

    x0 = x0_u + w (x0_c - x0_u),        score = s_u + w (s_c - s_u):

at each t the score of p_t(x) p_t(c | x)^w, which sharpens the condition for w > 1. These densities are *not* the noised
versions of one density, so that a sampler along them does not end at p(x) p(c | x)^w: see the page on guidance.
Autoguidance is the same line with a weaker model in the unconditional one's place, both told the condition.

An interval confines guidance to noise levels low < sigma / alpha <= high, in units of the data: EDM's sigma, and the
same noise for every SDE. For a matrix SDE it is the noise of the statistic.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor

from sde.forward import ForwardSDE, Point, ScalarSDE
from sde.nodes import Node
from sde.score.model import Given, Model, ScoreModel, Wrapper
from sde.shape import as_time, expand

Band = tuple[float, float]
"""Noise levels sigma / alpha between which a model is guided: (low, high]."""


def noise_level(sde: ForwardSDE, t: float | Tensor) -> float | Tensor:
    """Ratio sigma / alpha of what the state says of x0: a float at a node of a grid, else a tensor shaped as t.

    Example:
        >>> import sde
        >>> float(noise_level(sde.Flow(), 0.5)), float(noise_level(sde.Flow(), 1.0))
        (1.0, inf)
    """
    if isinstance(sde, ScalarSDE):
        alpha, sigma = sde.levels(t)
    elif type(t) is Node:
        alpha, sigma = t.table.column(sde, "statistic", lambda u: sde.rates_of_statistic(u)[:2])[t.index]
    else:
        alpha, sigma = sde.rates_of_statistic(as_time(t))[:2]
    if isinstance(alpha, Tensor) or isinstance(sigma, Tensor):
        return sigma / alpha
    return sigma / alpha if alpha else math.inf


class Guidance(Wrapper):
    """What rules of guidance share: a model, a scale, and the noise levels where it counts.

    Args:
        model: What is guided.
        scale: Guidance weight.
        interval: Noise levels sigma / alpha, (low, high]; None for all.

    Raises:
        ValueError: If scale or interval is no number, or the interval is empty.

    Attributes:
        off: Scale at which the guided model is the plain one: what counts outside of the interval.
    """

    off: float = 0.0

    def __init__(self, model: Model, scale: float, interval: Band | None = None) -> None:
        if not math.isfinite(scale):
            raise ValueError(f"scale must be finite, got {scale}: {self.off:g} is no guidance")
        if interval is not None and not 0 <= interval[0] < interval[1]:
            raise ValueError(
                f"interval must be noise levels sigma / alpha with 0 <= low < high, got {interval}: (0.3, 5.0), say"
            )
        super().__init__(model)
        self.scale, self.interval = scale, interval

    def strength(self, t: float | Tensor) -> float | Tensor:
        """Scale at time t: a float for one time, (B,) for one to each sample."""
        if self.interval is None:
            return self.scale
        level, (low, high) = noise_level(self.sde, t), self.interval
        if isinstance(level, Tensor) and (level.ndim or level.device.type != "cpu"):  # a look would halt a GPU
            inside = (level > low) & (level <= high)
            return torch.where(inside, self.scale, self.off).to(level.dtype)
        return self.scale if low < float(level) <= high else self.off

    def extra_repr(self) -> str:
        """Scale and interval."""
        return f"scale={self.scale:g}" + ("" if self.interval is None else f", interval={self.interval}")

    @property
    def remedy(self) -> str:
        """What to change where a run explodes."""
        within = "a narrower interval" if self.interval else "guidance in an interval=(0.3, 5.0) of noise levels only"
        return f"a scale below {self.scale:g}, or {within}"


class CFG(Guidance):
    """Classifier-free guidance.

    Where both models are one network told different things, they are asked in one call of twice the batch; else in two.
    At scale 1 and outside of the interval the conditional one alone is asked, at scale 0 the other.

    Args:
        conditional: Model with its condition given.
        unconditional: The same model without one, or a weaker model (`Autoguidance`).
        scale: Guidance weight w; 1 is no guidance.
        interval: Noise levels sigma / alpha in (low, high] where to guide; None for all.

    Raises:
        ValueError: If the two models have different SDEs, scale is not finite, or the interval is empty.

    References:
        Ho & Salimans (2022), 2207.12598, whose weight is w - 1; Kynkäänniemi et al. (2024), 2404.07724, for intervals.

    Example:
        >>> import torch, sde
        >>> one, all_ = sde.Gaussian([1.0], 0.1), sde.Mixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1])
        >>> guided = sde.CFG(sde.ExactScore(one, sde.VP()), sde.ExactScore(all_, sde.VP()), scale=2.0)
        >>> guided(torch.zeros(1, 1), 0.5).x0.item() > 0
        True
    """

    off = 1.0

    def __init__(self, conditional: Model, unconditional: Model, scale: float, interval: Band | None = None) -> None:
        same_sde({"conditional": conditional, "unconditional": unconditional})
        super().__init__(conditional, scale, interval)
        self.unconditional = unconditional
        self.coupled = conditional.coupled or unconditional.coupled
        self.tabulates = conditional.tabulates and unconditional.tabulates

    @classmethod
    def of(cls, model: Model, scale: float, interval: Band | None = None, **cond: Any) -> CFG:
        """A conditional model guided towards a condition, away from itself without one.

        Example:
            >>> import torch, sde
            >>> model = sde.ScoreModel(sde.nets.MLP(dim=2, classes=3, width=8), sde.VP())
            >>> guided = sde.CFG.of(model, 2.0, label=torch.tensor([0, 1, 2, 2]))
            >>> sde.sample(guided, (4, 2), steps=4, progress=False).shape
            torch.Size([4, 2])
        """
        if not cond:
            raise ValueError("a condition is missing: pass label=torch.tensor([...]), one to each sample")
        return CFG(model.given(**cond), model, scale, interval)

    def forward(self, x: Tensor, t: float | Tensor, **cond: Any) -> Point:  # noqa: D102
        w = self.strength(t)
        if not isinstance(w, Tensor) and w in (0.0, 1.0):
            return self.model(x, t, **cond) if w else self.unconditional(x, t)
        other, one = self._both(x, t, cond)
        if not isinstance(w, Tensor):
            return other.lerp(one, w)
        x0, eps = (a + expand(w.to(a), a) * (b - a) for a, b in ((other.x0, one.x0), (other.eps, one.eps)))
        return Point(self.sde, x, t, x0, eps, self.coupled)

    def _both(self, x: Tensor, t: float | Tensor, cond: dict[str, Any]) -> tuple[Point, Point]:
        """The unconditional point and the conditional one."""
        (one, given), (other, bare) = opened(self.model), opened(self.unconditional)
        if isinstance(one, ScoreModel) and isinstance(other, ScoreModel) and alike(one, other):
            told = stacked(bare, given | cond, len(x), getattr(one.net, "classes", 0))
            if told is not None:
                return in_one_call(one, x, t, told)
        return self.unconditional(x, t), self.model(x, t, **cond)


class Autoguidance(CFG):
    """A model guided away from a weaker one: smaller, or trained for less time, on the same data.

    Both are told the same condition, if any, so that quality is what is extrapolated, and variety stays.

    Args:
        model: The better model, with its condition given.
        weaker: The weaker one, with the same condition given.
        scale: Guidance weight w; 1 is no guidance.
        interval: Noise levels sigma / alpha in (low, high] where to guide; None for all.

    References:
        Karras et al. (2024), 2406.02507, eq. 3.

    Example:
        >>> import torch, sde
        >>> good, weak = (sde.ExactScore(sde.Gaussian([0.0], c), sde.VP()) for c in (0.25, 0.5))  # the weak one is wide
        >>> x = sde.sample(sde.Autoguidance(good, weak, 1.5), (1000, 1), generator=torch.Generator().manual_seed(0))
        >>> x.std().item() < 0.5
        True
    """

    def __init__(self, model: Model, weaker: Model, scale: float, interval: Band | None = None) -> None:
        same_sde({"model": model, "weaker": weaker})
        super().__init__(model, weaker, scale, interval)


def same_sde(models: Mapping[str, Model]) -> None:
    """Raise ValueError unless the models, each under its name, share their SDE."""
    (first, one), *others = ((name, model.sde) for name, model in models.items())
    for name, other in others:
        if type(one) is not type(other) or (is_dataclass(one) and one != other):
            raise ValueError(
                f"{first} and {name} must share their SDE, got {one} and {other}: wrap one in Reschedule(model, sde)"
            )


def no_coupling(rule: str, models: Mapping[str, Model]) -> None:
    """Raise ValueError if a model that a rule wants a score of was trained with a coupling."""
    for name, model in models.items():
        if model.coupled:
            raise ValueError(
                f"{rule} needs a score, and {name} was trained with a coupling that ties eps to x0, so that it has a "
                "velocity only: train with coupling=None"
            )


def opened(model: Model) -> tuple[Model, dict[str, Any]]:
    """A model without its `Given` layers, and all that they tell it."""
    cond: dict[str, Any] = {}
    while type(model) is Given:
        model, cond = model.model, model.cond | cond
    return model, cond


def alike(one: ScoreModel, other: ScoreModel) -> bool:
    """Whether two models are one network, asked in one way; a run in parallel works on copies that share it."""
    return one is other or (
        one.net is other.net
        and one.mean is other.mean
        and one.sde is other.sde
        and (one.param, one.scale) == (other.param, other.scale)
    )


def stacked(first: dict[str, Any], second: dict[str, Any], n: int, classes: int) -> dict[str, Any] | None:
    """Conditions of n samples and of n more as those of 2 n; None where they are of different kinds.

    A label that is missing is the network's class number `classes`, "no class".
    """
    told: dict[str, Any] = {}
    for name in first | second:
        a, b = first.get(name), second.get(name)
        if name == "label" and classes:
            a, b = _or_nobody(a, b, classes), _or_nobody(b, a, classes)
        if isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape[:1] == (n,):
            if (a.shape, a.dtype, a.device) != (b.shape, b.dtype, b.device):
                return None
            told[name] = torch.cat([a, b])
        elif a is b:
            told[name] = a
        else:
            return None
    return told


def _or_nobody(label: Any, other: Any, classes: int) -> Any:
    return torch.full_like(other, classes) if label is None and isinstance(other, Tensor) else label


def in_one_call(model: ScoreModel, x: Tensor, t: float | Tensor, told: dict[str, Any]) -> tuple[Point, Point]:
    """Points of x told the first half of the conditions, and the second: one call of twice the batch."""
    n, both = len(x), torch.cat([x, x])
    times = torch.cat([t, t]) if isinstance(t, Tensor) and t.ndim and len(t) == n else t
    point = model(both, times, **told)
    halves = slice(n), slice(n, None)
    if not model.scalar:
        first, second = (Point(model.sde, x, t, point.x0[h], point.eps[h], model.coupled) for h in halves)
        return first, second
    # What the network was shown is the same twice; so are the pairs, and `lerp` mixes the raw outputs alone.
    u = x if point._u is both else point._u[:n]
    a0, b0, a1, b1 = (c[:n] if isinstance(c, Tensor) and c.ndim and len(c) == 2 * n else c for c in point._pairs)
    pairs = (a0, b0, a1, b1)
    first, second = (Point.of(model.sde, x, t, u, point._w[h], pairs, point._shift, model.coupled) for h in halves)
    return first, second
