"""What a metric reads when there is nothing to read: the sampling floor.

Two finite samples of one distribution are a positive distance apart. A model's distance to the data means
something only beside this floor, taken at the same sample sizes: mean and standard deviation over repeated
pairs of independent draws of the truth.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sde.metrics._samples import at_least


class Floor(NamedTuple):
    """Mean and standard deviation of a metric between two draws of the truth.

    Example:
        >>> print(Floor(mean=0.0512, sd=0.0041))
        0.0512 ± 0.0041
    """

    mean: float
    sd: float

    def __str__(self) -> str:
        return f"{self.mean:.3g} ± {self.sd:.2g}"


def floor(
    metric: Callable[..., Any],
    truth: Tensor | Callable[..., Any],
    n: int,
    repeats: int = 10,
    generator: torch.Generator | None = None,
    m: int | None = None,
) -> Floor:
    r"""The sampling floor of a metric: its mean and sd between two independent draws of the truth.

    Args:
        metric: `metric(a, b)`, any of this room's; if it has a `generator` argument, it is handed this one.
        truth: `truth(n, generator=generator)`, giving a tensor or something with `.x` (a toy set, an exact
            target's `sample`); or a tensor of data (N, \*D), of which disjoint random parts are taken.
        n: points in the first draw: as many as the model's sample.
        repeats: how many pairs; at least 2.
        generator: where the draws come from.
        m: points in the second draw: as many as the data it is held against; n if not given.

    Example:
        >>> from sde.data import moons
        >>> from sde.metrics import energy_distance
        >>> mean, sd = floor(energy_distance, moons, n=200, repeats=3)
        >>> 0 < mean < 0.3
        True
    """
    m = n if m is None else m
    for name, value, least in (("n", n, 1), ("m", m, 1), ("repeats", repeats, 2)):
        at_least(name, value, least)
    draw = _halves(truth, n, m, generator) if isinstance(truth, Tensor) else _draws(truth, n, m, generator)
    extra = {"generator": generator} if "generator" in inspect.signature(metric).parameters else {}
    values = torch.tensor([float(metric(*draw(), **extra)) for _ in range(repeats)], dtype=torch.float64)
    return Floor(float(values.mean()), float(values.std()))


Draw = Callable[[], tuple[Tensor, Tensor]]


def _draws(truth: Callable[..., Any], n: int, m: int, generator: torch.Generator | None) -> Draw:
    def one(count: int) -> Tensor:
        drawn = truth(count, generator=generator)
        return drawn if isinstance(drawn, Tensor) else drawn.x

    return lambda: (one(n), one(m))


def _halves(data: Tensor, n: int, m: int, generator: torch.Generator | None) -> Draw:
    if n + m > len(data):
        raise ValueError(
            f"n + m = {n} + {m} points do not fit in the {len(data)} of truth: the draws are independent, "
            f"so pass n={len(data) // 2} at most, or a function that draws"
        )
    device = "cpu" if generator is None else generator.device

    def draw() -> tuple[Tensor, Tensor]:
        order = torch.randperm(len(data), generator=generator, device=device).to(data.device)
        return data[order[:n]], data[order[n : n + m]]

    return draw
