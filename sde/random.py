r"""Random numbers: generators in, tensors out, one Brownian path for many grids.

Numbers are drawn in float32 on the generator's own device, then placed and cast, so that one CPU seed gives one sample
on every device and in every dtype. A sequence of generators, one for each sample, makes a sample independent of the
batch that it was drawn in.

A solver's noise answers three questions. `increment(x, t, s)` is W(s) - W(t) of the Brownian motion that drives the
SDE, with variance |s - t|. `increment_and_area(x, t, s)` adds the double integral that strong order 1.5 needs,

    I = int_t^s (W(u) - W(t)) du,    var I = |h|^3 / 3,    cov(I, W(s) - W(t)) = h |h| / 2,    h = s - t.

`fresh(x)` is a standard normal draw for correctors, which must not reuse the predictor's noise. `WhiteNoise` draws each
increment anew; `BrownianPath` remembers the path, so that a coarse and a fine solve share one: a new time in between is
drawn from the law of W given all that is known of it, its bridge.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sde.shape import placed

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
    return placed(z, torch.device(device) if device else z.device, dtype)


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

    def increment_and_area(self, x: Tensor, t: float, s: float) -> tuple[Tensor, Tensor]:
        """W(s) - W(t) and the integral of W(u) - W(t) du from t to s, jointly.

        Right as it stands for noise that draws each interval once; noise that remembers has to override it.
        """
        h, w = float(s) - float(t), self.increment(x, t, s)
        return w, torch.add(w, self.fresh(x), alpha=math.sqrt(abs(h) / 3)).mul_(h / 2)

    def area(self, x: Tensor, t: float, s: float) -> Tensor:
        """The integral of W(u) - W(t) du from t to s, of a path that is remembered."""
        raise ValueError(
            f"{type(self).__name__} does not remember the increment that this area belongs to: "
            "ask for both by increment_and_area, or use a BrownianPath"
        )

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
    r"""A Brownian motion that is remembered, so that solves on different grids see the same path.

    Args:
        generator: For the values of W and, later, for the fresh draws of correctors.

    The path is bound to the first state that asks: its shape, dtype and device. Memory is one state for each
    distinct time, two once an area has been asked for. The values depend on the order in which times and areas are
    asked for, their joint law does not. Between two known times, h apart, W is its chord and a bridge X, and the area
    needs J = \int X du ~ N(0, h^3 / 12). A new time at distances p and q from the two is drawn as

        X ~ N(0, p q / h)                                           while J is not known,
        X | J ~ N(6 p q J / h^3, p q / h (1 - 3 p q / h^2))         once it is, and with R = J - h X / 2
        J1 | R ~ N(p^3 R / (p^3 + q^3), p^3 q^3 / 12 (p^3 + q^3)),  J2 = R - J1         in its two parts.

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
        self._bridges: list[Tensor | None] = []  # J of the interval after each time but the last

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

    def increment_and_area(self, x: Tensor, t: float, s: float) -> tuple[Tensor, Tensor]:
        """W(s) - W(t) and the integral of W(u) - W(t) du from t to s, of the remembered path."""
        w, area, start = self.increment(x, t, s), torch.zeros_like(x), self._at(x, float(t))
        first, last = (bisect.bisect_left(self._times, float(u)) for u in (min(t, s), max(t, s)))
        before = self._values[first] - start
        for i in range(first, last):
            h, after = self._times[i + 1] - self._times[i], self._values[i + 1] - start
            area.add_(before + after, alpha=h / 2).add_(self._bridge(x, i, h))
            before = after
        return w, area if s > t else -area

    def area(self, x: Tensor, t: float, s: float) -> Tensor:
        """The integral of W(u) - W(t) du from t to s, of the remembered path."""
        return self.increment_and_area(x, t, s)[1]

    def _bridge(self, x: Tensor, i: int, h: float) -> Tensor:
        known = self._bridges[i]
        if known is None:
            known = self._bridges[i] = self._normal(x, h**3 / 12)
        return known

    def _normal(self, x: Tensor, variance: float) -> Tensor:
        return randn_like(x, self.generator) * math.sqrt(variance)

    def _at(self, x: Tensor, t: float) -> Tensor:
        i = bisect.bisect_left(self._times, t)
        if i < len(self._times) and self._times[i] == t:
            return self._values[i]
        if not self._times:
            w = torch.zeros_like(x)
        elif i in (0, len(self._times)):  # outside what is known: an independent increment beyond the nearest time
            near = 0 if i == 0 else -1
            w = self._values[near] + self._normal(x, abs(t - self._times[near]))
            self._bridges.insert(i, None)
        else:
            a, b = self._times[i - 1], self._times[i]
            bend, *self._bridges[i - 1 : i] = self._parted(x, self._bridges[i - 1], t - a, b - t, b - a)
            w = torch.lerp(self._values[i - 1], self._values[i], (t - a) / (b - a)) + bend
        self._times.insert(i, t)
        self._values.insert(i, w)
        return w

    def _parted(
        self, x: Tensor, known: Tensor | None, p: float, q: float, h: float
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """X at a new time, and J of both its sides where that of the whole is known."""
        if known is None:
            return self._normal(x, q * p / h), None, None
        bend = known * (6 * p * q / h**3) + self._normal(x, p * q / h * max(1 - 3 * p * q / h**2, 0.0))
        rest, share = known - h / 2 * bend, p**3 / (p**3 + q**3)
        left = share * rest + self._normal(x, share * q**3 / 12)
        return bend, left, rest - left
