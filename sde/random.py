r"""Random numbers: generators in, tensors out, one Brownian path for many grids.

Numbers are drawn in float32 on the generator's own device, then moved and cast, so that one CPU seed gives one sample
on every device and in every dtype. A sequence of generators, one for each sample, makes a sample independent of the
batch that it was drawn in.

A solver's noise answers two questions. `increment(x, t, s)` is W(s) - W(t) of the Brownian motion that drives the SDE,
with variance |s - t|. `fresh(x)` is a standard normal draw for correctors, which must not reuse the predictor's noise.
`WhiteNoise` draws each increment anew; `BrownianPath` remembers W, so that a coarse and a fine solve share one path:
a new time between two known ones a < t < b is drawn from the Brownian bridge,

    W(t) | W(a), W(b)  ~  N( ((b - t) W(a) + (t - a) W(b)) / (b - a),  (b - t)(t - a) / (b - a) ).
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Generator = torch.Generator | Sequence[torch.Generator] | None
"""One generator for a batch, one for each sample of it, or None for torch's global one."""


def randn(
    shape: Sequence[int],
    generator: Generator = None,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    r"""Standard normal numbers.

    Args:
        shape: Shape (B, \*D).
        generator: One generator, a sequence of B generators, or None.
        dtype: Of the result; drawn in float32 before the cast. Default: torch's default dtype.
        device: Of the result. Default: the generator's.

    Raises:
        ValueError: If a sequence of generators has not one for each sample.

    Example:
        >>> one, two = torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)
        >>> torch.equal(randn((2, 3), [one, two])[1], randn((1, 3), torch.Generator().manual_seed(1))[0])
        True
    """
    return _draw(torch.randn, shape, generator, dtype, device)


def rand(
    shape: Sequence[int],
    generator: Generator = None,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Uniform numbers in [0, 1); arguments as `randn`.

    Example:
        >>> rand((4,), torch.Generator().manual_seed(0)).shape
        torch.Size([4])
    """
    return _draw(torch.rand, shape, generator, dtype, device)


def _draw(
    sampler: Callable[..., Tensor],
    shape: Sequence[int],
    generator: Generator,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
) -> Tensor:
    dtype = dtype or torch.get_default_dtype()
    if not dtype.is_floating_point:
        raise TypeError(f"dtype must be floating for random numbers, got {dtype}: use x.float()")
    if generator is None:
        z = sampler(tuple(shape), device=device, dtype=torch.float32)
    elif isinstance(generator, torch.Generator):
        z = sampler(tuple(shape), generator=generator, device=generator.device, dtype=torch.float32)
    else:
        if len(generator) != shape[0]:
            raise ValueError(
                f"generator holds {len(generator)} generators for a batch of {shape[0]}: "
                "pass one for each sample, or a single one"
            )
        z = torch.stack(
            [sampler(tuple(shape[1:]), generator=g, device=g.device, dtype=torch.float32) for g in generator]
        )
    return z.to(device=device or z.device, dtype=dtype)


def randn_like(x: Tensor, generator: Generator = None) -> Tensor:
    """Standard normal numbers in the shape, dtype and device of x.

    Example:
        >>> randn_like(torch.zeros(2, 3, dtype=torch.float64)).dtype
        torch.float64
    """
    if generator is None and x.dtype == torch.float32:
        return torch.randn_like(x, memory_format=torch.contiguous_format)
    return randn(x.shape, generator, dtype=x.dtype, device=x.device)


class Noise:
    """What a solver's step draws from: the increments of one Brownian motion, and fresh normals beside it."""

    def __init__(self, generator: Generator = None) -> None:
        self.generator = generator

    def increment(self, x: Tensor, t: float, s: float) -> Tensor:
        """W(s) - W(t), of variance |s - t|, in the shape of x."""
        raise NotImplementedError

    def normal(self, x: Tensor, t: float, s: float) -> Tensor:
        """The increment over [t, s] at unit variance, for steps that scale their noise themselves."""
        return self.increment(x, t, s) / math.sqrt(abs(s - t))

    def fresh(self, x: Tensor) -> Tensor:
        """A standard normal draw that shares nothing with the path."""
        return randn_like(x, self.generator)


class WhiteNoise(Noise):
    """Independent increments, drawn as they are asked for: the default of every solve.

    Example:
        >>> WhiteNoise().increment(torch.zeros(2, 3), 1.0, 0.5).shape
        torch.Size([2, 3])
    """

    def increment(self, x: Tensor, t: float, s: float) -> Tensor:
        """W(s) - W(t) for an interval that is visited once."""
        return self.normal(x, t, s).mul_(math.sqrt(abs(s - t)))

    def normal(self, x: Tensor, t: float, s: float) -> Tensor:
        """A standard normal draw."""
        return randn_like(x, self.generator)


class BrownianPath(Noise):
    """A Brownian motion that is remembered, so that solves on different grids see the same path.

    Args:
        generator: For the values of W and, later, for the fresh draws of correctors.

    The path is bound to the first state that asks: its shape, dtype and device. Memory is one state for each
    distinct time. The values depend on the order in which times are asked for, their joint law does not.

    Example:
        >>> path, x = BrownianPath(torch.Generator().manual_seed(0)), torch.zeros(4, 2)
        >>> whole = path.increment(x, 1.0, 0.0)
        >>> parts = path.increment(x, 1.0, 0.3) + path.increment(x, 0.3, 0.0)
        >>> torch.allclose(whole, parts, atol=1e-6)
        True
    """

    def __init__(self, generator: Generator = None) -> None:
        super().__init__(generator)
        self._times: list[float] = []
        self._values: list[Tensor] = []

    def increment(self, x: Tensor, t: float, s: float) -> Tensor:
        """W(s) - W(t) of the remembered path."""
        if self._values:
            own = self._values[0]
            if (own.shape, own.dtype, own.device) != (x.shape, x.dtype, x.device):
                raise ValueError(
                    f"x has shape {tuple(x.shape)} ({x.dtype}, {x.device}) but this path was drawn for "
                    f"{tuple(own.shape)} ({own.dtype}, {own.device}): make a BrownianPath for each batch"
                )
        w_t = self._at(x, float(t))
        return self._at(x, float(s)) - w_t

    def _at(self, x: Tensor, t: float) -> Tensor:
        i = bisect.bisect_left(self._times, t)
        if i < len(self._times) and self._times[i] == t:
            return self._values[i]
        if not self._times:
            w = torch.zeros_like(x)
        elif i in (0, len(self._times)):  # outside what is known: an independent increment beyond the nearest time
            near = 0 if i == 0 else -1
            w = self._values[near] + randn_like(x, self.generator) * math.sqrt(abs(t - self._times[near]))
        else:
            a, b = self._times[i - 1], self._times[i]
            mean = torch.lerp(self._values[i - 1], self._values[i], (t - a) / (b - a))
            w = mean + randn_like(x, self.generator) * math.sqrt((b - t) * (t - a) / (b - a))
        self._times.insert(i, t)
        self._values.insert(i, w)
        return w
