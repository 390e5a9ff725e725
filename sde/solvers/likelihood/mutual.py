r"""What the error of denoising says of information: I-MMSE.

A noisy observation y = alpha x0 + sigma n of d numbers, snr = alpha^2 / sigma^2, tells of x0

    d I(x0; y) / d snr = mmse(snr) / 2,        mmse(snr) = E |x0 - E[x0 | y]|^2,

so that the ideal denoiser's error, added up over noise levels, is the information, and with it the entropy:

    I(x0; x_t) = 1/2 int_0^{snr_t} mmse d snr,        h(x_t) = I(x0; x_t) + d log sigma_t + d/2 log(2 pi e).

A model's error is at least that large: what it adds up to is an upper bound on h, and is -E log p at least (it is
minus the mean of `elbo`). Told a condition c, errors fall, and by how much is I(x0; c). The coordinate is v = log(1 +
c^2 snr) for data of scale c, in which a Gaussian of that scale has d/2 at all v. Its own denoiser's error on the same
draw, whose mean over the noise is known, is taken off and added again: what is drawn is the difference. Below
snr_tmax, where hardly anything is left, x0 is taken for Gaussian: an error of the order of snr^2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sde.forward import ForwardSDE
from sde.random import Generator, rand
from sde.score import Model
from sde.shape import as_time, expand, sum_event

CELLS = 32


@dataclass(frozen=True)
class Information:
    r"""Mutual information of data and their noisy states, in nats, and the entropy that follows.

    Attributes:
        times: Edges of the K cells of time, increasing from t_min to t_max, (K + 1,), float64.
        parts: What each cell holds by each datum, 1/2 int |x0 - x0(x_t)|^2 d snr, (n, K), float64.
        start: What is known at t_max already.
        offset: d log sigma + d/2 log(2 pi e) at t_min: entropy minus information.

    Example:
        >>> import torch, sde
        >>> model = sde.ExactScore(sde.Gaussian([0.0, 0.0], 1.0), sde.EDM(0.1, 10.0))
        >>> found = sde.solvers.mutual_information(model, model.target.sample(1000, torch.Generator().manual_seed(0)))
        >>> round(float(found.curve[0]), 1), round(math.log(1 + 100), 1)  # d/2 log(1 + snr)
        (4.6, 4.6)
    """

    times: Tensor
    parts: Tensor
    start: float
    offset: float

    @property
    def curve(self) -> Tensor:
        """I(x0; x_t) at each of `times`, (K + 1,), falling."""
        return torch.cat([self.by_time.flip(0).cumsum(0).flip(0), self.by_time.new_zeros(1)]) + self.start

    @property
    def curve_error(self) -> Tensor:
        """Standard errors of `curve`, (K + 1,)."""
        sums = torch.cat([self.parts.flip(1).cumsum(1).flip(1), self.parts.new_zeros(len(self.parts), 1)], 1)
        return sums.std(0) / math.sqrt(len(sums))

    @property
    def by_time(self) -> Tensor:
        """What each cell adds, (K,)."""
        return self.parts.mean(0)

    @property
    def entropy(self) -> float:
        """Differential entropy of the marginal at t_min (for a matrix SDE, of its statistic)."""
        return float(self.curve[0]) + self.offset

    @property
    def entropy_error(self) -> float:
        """Its standard error."""
        return float(self.curve_error[0])


@dataclass(frozen=True)
class ConditionInformation:
    """Mutual information of data and a condition, in nats.

    Attributes:
        times: Edges of the K cells of time, (K + 1,).
        parts: What each cell holds by each datum, (n, K).

    Example:
        >>> found = ConditionInformation(torch.tensor([0.1, 0.5, 1.0]), torch.tensor([[0.2, 0.1], [0.4, 0.1]]))
        >>> round(found.value, 3), round(found.error, 3)
        (0.4, 0.1)
    """

    times: Tensor
    parts: Tensor

    @property
    def value(self) -> float:
        """I(x0; c), up to what noise at t_min hides and noise at t_max leaves."""
        return float(self.parts.sum(1).mean())

    @property
    def error(self) -> float:
        """Its standard error over data."""
        return float(self.parts.sum(1).std() / math.sqrt(len(self.parts)))

    @property
    def by_time(self) -> Tensor:
        """What each cell adds, (K,): at which noise the condition helps."""
        return self.parts.mean(0)


@torch.no_grad()
def mutual_information(
    model: Model,
    x: Tensor,
    times: Tensor | Sequence[float] | None = None,
    *,
    cells: int = CELLS,
    generator: Generator = None,
) -> Information:
    r"""Mutual information I(x0; x_t) of data and their noisy states, and their entropy, by the error of denoising.

    Exact up to Monte-Carlo error where the model is; an upper bound on both else. One evaluation for each cell.

    Args:
        model: Score model in eval mode, under any forward SDE.
        x: Data at t = 0, (n, \*D), float32 or float64.
        times: Edges of the cells, from t_min up to t_max. Default: equal widths in log(1 + snr).
        cells: How many of these.
        generator: Of times and noise; one generator, or one for each sample.

    Raises:
        TypeError: If x is not float32 or float64.
        ValueError: If the model was trained with a coupling, or an argument does not fit.

    References:
        Guo, Shamai & Verdu (2005), cs/0412108; Kong, Brekelmans & Ver Steeg (2023), 2302.03792.

    Example:
        >>> import torch, sde
        >>> model = sde.ExactScore(sde.Gaussian([0.0], 1.0), sde.VP())
        >>> x = model.target.sample(1000, torch.Generator().manual_seed(0))
        >>> found = sde.solvers.mutual_information(model, x)
        >>> round(found.entropy, 1), round(math.log(2 * math.pi * math.e) / 2, 1)
        (1.4, 1.4)
    """
    _check(model, x, cells)
    levels = _Levels(model, x)
    edges = levels.edges(times, cells)
    mean = levels.expected(edges)
    drawn = [
        levels.error(model, *at) - levels.reference(*at)
        for at in levels.draws(edges, rand((len(x), len(edges) - 1), generator, dtype=torch.float64), generator)
    ]
    d, sigma = x[0].numel(), levels.numbers(torch.tensor(model.sde.t_min, dtype=torch.float64))[1]
    offset = d * (math.log(float(sigma)) + math.log(2 * math.pi * math.e) / 2)
    parts = torch.stack(drawn, 1).cpu().double() * -edges.diff() + mean
    return Information(levels.time_of(edges), parts, d / 2 * float(edges[-1]), offset)


@torch.no_grad()
def condition_information(
    model: Model,
    conditional: Model,
    x: Tensor,
    times: Tensor | Sequence[float] | None = None,
    *,
    cells: int = CELLS,
    generator: Generator = None,
) -> ConditionInformation:
    r"""Mutual information I(x0; c) of data and a condition: how much better the data are denoised that are told it.

    I(x0; c) = 1/2 int (mmse(snr) - mmse(snr | c)) d snr, both errors on the same draws. Neither a bound from above nor
    from below where the models are not exact.

    Args:
        model: Score model that is not told.
        conditional: The model that is, `model.given(label=labels)` say, with one label for each row of x.
        x: Data at t = 0, (n, \*D).
        times: Edges of the cells of time, as in `mutual_information`.
        cells: How many where no times are given.
        generator: Of times and noise.

    References:
        Guo, Shamai & Verdu (2005), cs/0412108; Kong et al. (2024), 2310.07972.

    Example:
        >>> import torch, sde
        >>> vp, side = sde.VP(), torch.ones(500, 1, dtype=torch.float64)
        >>> both = sde.ExactScore(sde.Mixture([0.5, 0.5], [[-3.0], [3.0]], [0.1, 0.1]), vp)
        >>> one = sde.ExactScore(sde.Gaussian([3.0], 0.1), vp)  # a condition that says: the right one
        >>> x = one.target.sample(2000, torch.Generator().manual_seed(0))
        >>> found = sde.solvers.condition_information(both, one, x, generator=torch.Generator().manual_seed(1))
        >>> abs(found.value - math.log(2)) < 4 * found.error < 0.1
        True
    """
    _check(model, x, cells)
    _check(conditional, x, cells)
    if conditional.sde is not model.sde and type(conditional.sde) is not type(model.sde):
        raise ValueError(f"model and conditional must share an SDE, got {model.sde} and {conditional.sde}")
    levels = _Levels(model, x)
    edges = levels.edges(times, cells)
    drawn = [
        levels.error(model, *at) - levels.error(conditional, *at)
        for at in levels.draws(edges, rand((len(x), len(edges) - 1), generator, dtype=torch.float64), generator)
    ]
    return ConditionInformation(levels.time_of(edges), torch.stack(drawn, 1).cpu().double() * -edges.diff())


def _check(model: Model, x: Tensor, cells: int) -> None:
    if model.coupled:
        raise ValueError(
            "this model was trained with a coupling that ties eps to x0, so that its x0 is no mean of x0 given the "
            "state: train with coupling=None"
        )
    if x.ndim < 2 or len(x) < 2:
        raise ValueError(f"x must be (n, *D) with n at least 2, got shape {tuple(x.shape)}")
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"x must be float32 or float64, got {x.dtype}: use x.float()")
    if isinstance(cells, bool) or not isinstance(cells, int) or cells < 1:
        raise ValueError(f"cells must be a whole number of at least 1, got {cells!r}: keep {CELLS}")


class _Levels:
    """Noise levels of one data set, by v = log(1 + c^2 snr), and errors of denoising at them."""

    def __init__(self, model: Model, x: Tensor) -> None:
        self.sde: ForwardSDE = model.sde
        self.x, self.c, mean = x, model.data_scale() or 1.0, model.data_mean()
        self.m: Tensor | float = 0.0 if mean is None else mean.to(x)

    def numbers(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma, _, _ = self.sde.rates_of_statistic(t)
        return alpha, sigma

    def coordinate(self, t: Tensor) -> Tensor:
        alpha, sigma = self.numbers(t)
        return torch.log1p((alpha * self.c / sigma) ** 2)

    def edges(self, times: Tensor | Sequence[float] | None, cells: int) -> Tensor:
        first, last = self.sde.t_min, self.sde.t_max
        if times is None:
            ends = self.coordinate(torch.tensor([first, last], dtype=torch.float64))
            v = torch.lerp(ends[0], ends[1], torch.linspace(0, 1, cells + 1, dtype=torch.float64))
        else:
            t = torch.as_tensor(times, dtype=torch.float64).detach().cpu()
            near = t.ndim == 1 and len(t) > 1 and abs(float(t[0]) - first) <= 1e-6 * first
            if not near or abs(float(t[-1]) - last) > 1e-6 * last or bool((t.diff() <= 0).any()):
                raise ValueError(f"times must run up from t_min={first:g} to t_max={last:g}, got {t}")
            v = self.coordinate(t.clamp(first, last))
        if not bool(v.isfinite().all()):
            raise ValueError(f"t_min={first:g} has no noise, and would tell without end: pass the SDE t_min=1e-3, say")
        return v

    def time_of(self, v: Tensor) -> Tensor:
        return self.sde.time_at(torch.log(torch.expm1(v)) - 2 * math.log(self.c))

    def draws(self, edges: Tensor, u: Tensor, generator: Generator) -> list[tuple[Tensor, Tensor]]:
        """A time in each cell for each datum, uniform in v, and the state there."""
        u = u.cpu().clamp_min(1e-6)  # v = 0 may be alpha = 0
        t = self.time_of(torch.lerp(edges[1:].expand_as(u), edges[:-1].expand_as(u), u))
        at = [as_time(row.to(self.x.device)) for row in t.unbind(1)]
        return [(row, self.sde.perturb(self.x, row, generator).x) for row in at]

    def weight(self, t: Tensor) -> Tensor:
        """Half of d snr / dv."""
        alpha, sigma = self.numbers(t)
        return (1 / self.c**2 + (alpha / sigma) ** 2) / 2

    def error(self, model: Model, t: Tensor, state: Tensor) -> Tensor:
        return self.weight(t) * sum_event((self.x - model(state, t).x0) ** 2).to(t)

    def reference(self, t: Tensor, state: Tensor) -> Tensor:
        """The error of the Gaussian's denoiser."""
        y, alpha, sigma = self.sde.statistic(state, t)
        gain = alpha * self.c**2 / ((alpha * self.c) ** 2 + sigma**2)
        on = lambda c: torch.as_tensor(expand(c.reshape(-1), y) if isinstance(c, Tensor) else c).to(y.dtype)  # noqa: E731
        off = self.x - self.m - on(gain) * (y - on(alpha) * self.m)
        return self.weight(t) * sum_event(off**2).to(t)

    def expected(self, edges: Tensor) -> Tensor:
        """Its mean over the noise, added up over each cell, by each datum: (n, K), float64."""
        left = torch.exp(-edges)  # 1 / (1 + S), S = c^2 snr, rising
        spread = (sum_event((self.x - self.m).cpu().double() ** 2) / self.c**2)[:, None]
        d = self.x[0].numel()
        return (spread * left.diff() - d * (edges.diff() + left.diff())) / 2
