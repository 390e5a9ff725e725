r"""Score models: what a network and a forward SDE make together.

A model answers model(x, t) with a `Point`: its estimate of the endpoints of x, from which score, velocity, x0 and eps
follow. A `ScoreModel` makes it from a network's raw output F = net(c_in u, c) by the parameterisation
(`sde.score.param`); an exact target makes it in closed form (`sde.score.exact`); guidance makes it from other models.
Solvers cannot tell.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from sde.forward import ForwardSDE, Point, ScalarSDE
from sde.forward.point import Pairs
from sde.nodes import Node, Table, by_value, remembered
from sde.random import Generator
from sde.score.param import PARAMS, SCALAR_ONLY, endpoints
from sde.shape import ROUNDING, Coefficient, as_time, expand, lincomb, placed, scaled


class Model(nn.Module):
    """Anything that estimates endpoints: `forward(x, t, **cond) -> Point`.

    Attributes:
        sde: Its forward SDE.
        coupled: True if trained with a coupling that ties eps to x0: it has a velocity and no score.
        tabulates: True where times are accepted as `sde.nodes.Node`; leave it False in your own.
    """

    sde: ForwardSDE
    coupled: bool = False
    tabulates: bool = False

    @abstractmethod
    def forward(self, x: Tensor, t: float | Tensor, **cond: Any) -> Point:
        r"""Point at states x (B, \*D) and times t, () or (B,)."""

    def move(
        self, x: Tensor, t: float | Tensor, c: Coefficient, c0: Coefficient, c1: Coefficient, **cond: Any
    ) -> Tensor:
        """c x + c0 x0 + c1 eps: what a one-step solver asks of a model under a scalar SDE."""
        return self(x, t, **cond).move(c, c0, c1)

    def traced(self, x: Tensor, t: float | Tensor) -> tuple[Point, Tensor, Tensor] | None:
        """Point, and the traces of the Jacobians of x0 and eps by x, (B,) each; None where no closed form is known.

        With them a likelihood costs no backward pass.
        """
        return None

    @abstractmethod
    def prior(self, x0_like: Tensor, generator: Generator = None, sde: ForwardSDE | None = None) -> Tensor:
        """Draw from the marginal at t_max of the model's data, or under another forward SDE; shaped for x0_like."""

    @abstractmethod
    def prior_log_prob(self, x: Tensor, sde: ForwardSDE | None = None) -> Tensor:
        """Log-density of the marginal at t_max: (B,)."""

    @abstractmethod
    def data_scale(self) -> float:
        """Standard deviation of the model's data: what time grids are scaled by."""

    @abstractmethod
    def data_mean(self) -> Tensor | None:
        """Mean of the model's data, or None for 0."""

    def given(self, **cond: Any) -> Model:
        """This model with its conditioning closed over, so that solvers carry no keywords.

        Example:
            >>> import torch, sde
            >>> net = sde.nets.MLP(dim=2, classes=3, width=8)
            >>> model = sde.ScoreModel(net, sde.VP()).given(label=torch.tensor([0, 2]))
            >>> model(torch.zeros(2, 2), 0.5).x0.shape
            torch.Size([2, 2])
        """
        return Given(self, **cond)

    def placement(self) -> tuple[torch.device, torch.dtype]:
        """Device and floating dtype of the model's states: its first tensor's, or what a network says (`nets.Cast`)."""
        said = next((getattr(m, "state_dtype") for m in self.modules() if hasattr(m, "state_dtype")), None)  # noqa: B009
        for tensor in chain(self.parameters(), self.buffers()):
            if tensor.is_floating_point():
                return tensor.device, said or tensor.dtype
        return torch.device("cpu"), torch.get_default_dtype()


class Wrapper(Model):
    """A model made from another: same SDE, same prior, same conventions, unless it says otherwise."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model, self.sde, self.coupled = model, model.sde, model.coupled

    def prior(self, x0_like: Tensor, generator: Generator = None, sde: ForwardSDE | None = None) -> Tensor:  # noqa: D102
        return self.model.prior(x0_like, generator, sde or self.sde)

    def prior_log_prob(self, x: Tensor, sde: ForwardSDE | None = None) -> Tensor:  # noqa: D102
        return self.model.prior_log_prob(x, sde or self.sde)

    def data_scale(self) -> float:  # noqa: D102
        return self.model.data_scale()

    def data_mean(self) -> Tensor | None:  # noqa: D102
        return self.model.data_mean()


class Given(Wrapper):
    """A model with fixed conditioning, which lies where the model lies and moves with it: see `Model.given`."""

    def __init__(self, model: Model, **cond: Any) -> None:
        super().__init__(model)
        own = next(chain(model.parameters(), model.buffers()), None)
        placed = (lambda c: c) if own is None else (lambda c: c.to(own.device))
        self.cond = {name: placed(c) if isinstance(c, Tensor) else c for name, c in cond.items()}
        self.tabulates = model.tabulates

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.cond = {name: fn(c) if isinstance(c, Tensor) else c for name, c in self.cond.items()}
        return super()._apply(fn, recurse)

    def forward(self, x: Tensor, t: float | Tensor, **cond: Any) -> Point:  # noqa: D102
        return self.model(x, t, **{**self.cond, **cond})

    def move(  # noqa: D102
        self, x: Tensor, t: float | Tensor, c: Coefficient, c0: Coefficient, c1: Coefficient, **cond: Any
    ) -> Tensor:
        return self.model.move(x, t, c, c0, c1, **{**self.cond, **cond})


class Levels(NamedTuple):
    """What a schedule and a parameterisation say at times t, each in the shape of t: see `sde.score.param`."""

    alpha: Tensor
    sigma: Tensor
    dalpha: Tensor
    dsigma: Tensor
    p: Tensor
    q: Tensor
    c_in: Tensor
    clock: Tensor


@dataclass(frozen=True)
class Regression:
    """What a network is asked for: the parameterisation of data of a scale under a forward SDE."""

    sde: ForwardSDE
    param: str
    scale: float

    def levels(self, t: Tensor) -> Levels:
        """Schedule and parameterisation at a tensor of times, in its shape."""
        t = as_time(t)
        pair = self.sde.rates_of_statistic(t)
        return Levels(*pair, *PARAMS[self.param](*pair, self.scale), self.sde.clock(t))

    def numbers(self, t: Tensor) -> tuple[Tensor, Tensor, Pairs, Tensor]:
        """alpha, c_in, the pairs of the endpoints and the clock at times t (N,)."""
        at = self.levels(t)
        return at.alpha, at.c_in, endpoints(at.alpha, at.sigma, at.p, at.q), at.clock


ONE = 1.0
"""A gain that is no operation, known by being this very object."""

Row = tuple[Coefficient, Coefficient, Pairs, Tensor]
"""alpha, c_in, the endpoints' pairs, the clock."""


class ScoreModel(Model):
    r"""Network, forward SDE and parameterisation: the model that is trained.

    Args:
        net: Called as net(x, c, \*\*cond) with x (B, \*D) of about unit variance and c (B,) the SDE's clock; returns
            like x.
        sde: Forward SDE, scalar or matrix.
        param: What the net's raw output means: edm (default), eps, x0, v, velocity, score; see `sde.score.param`.
        mean: Mean of the data, a number or a tensor that broadcasts against one sample.
        scale: Standard deviation of the data, one number.
        coupled: Set by training with a coupling (law 11).

    Raises:
        ValueError: If param is unknown, or not defined for a matrix SDE.

    Example:
        >>> import torch, sde
        >>> model = sde.ScoreModel(sde.nets.MLP(dim=2, width=32), sde.VP())
        >>> model(torch.zeros(4, 2), t=torch.rand(4)).score.shape
        torch.Size([4, 2])
    """

    tabulates = True
    mean: Tensor

    def __init__(
        self,
        net: nn.Module,
        sde: ForwardSDE,
        param: str = "edm",
        mean: float | Sequence[float] | Tensor = 0.0,
        scale: float = 1.0,
        coupled: bool = False,
    ) -> None:
        super().__init__()
        if param not in PARAMS:
            raise ValueError(f"param must be one of {', '.join(PARAMS)}, got {param!r}")
        if param in SCALAR_ONLY and not isinstance(sde, ScalarSDE):
            raise ValueError(
                f"param {param!r} is not defined for the matrix SDE {type(sde).__name__}: use edm, v, eps or x0"
            )
        if not (scale > 0 and math.isfinite(scale)):
            raise ValueError(f"scale must be positive and finite, got {scale}: pass the data's standard deviation")
        self.net, self.sde, self.param, self.scale, self.coupled = net, sde, param, float(scale), coupled
        self.scalar = isinstance(sde, ScalarSDE)
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.get_default_dtype()).clone())
        if not bool(torch.isfinite(self.mean).all()):
            raise ValueError(
                f"mean must be finite, got {self.mean}: pass the data's mean, a number or one sample's shape"
            )
        self.centred = not bool(self.mean.any())
        self.register_load_state_dict_post_hook(ScoreModel._recentre)

    def _recentre(self, _: Any) -> None:
        """A loaded mean may be another than the one the model was made with."""
        self.centred = not bool(self.mean.any())

    @property
    def regression(self) -> Regression:
        """What the network's output means."""
        return Regression(self.sde, self.param, self.scale)

    def levels(self, t: Tensor) -> Levels:
        """The numbers of the regression at a tensor of times, in its shape: what training needs."""
        return self.regression.levels(t)

    def forward(self, x: Tensor, t: float | Tensor, **cond: Any) -> Point:  # noqa: D102
        y = x if self.scalar else self.sde.unmean(x, t)
        alpha, c_in, pairs, clock = self._row(y, t) if type(t) is Node else self._coefficients(y, t)
        u, shift = y, None
        if not self.centred:
            shift = self.mean.to(y.dtype)
            u = y - (alpha * shift).to(y.dtype) if isinstance(alpha, Tensor) else torch.sub(y, shift, alpha=alpha)
        raw = self._raw(u, c_in, clock, cond)
        if self.scalar:
            return Point.of(self.sde, x, t, u, raw, pairs, shift, self.coupled)
        x0 = lincomb(pairs[0], u, pairs[1], raw)
        return Point(self.sde, x, t, x0 if shift is None else x0 + shift, coupled=self.coupled)

    def move(  # noqa: D102
        self, x: Tensor, t: float | Tensor, c: Coefficient, c0: Coefficient, c1: Coefficient, **cond: Any
    ) -> Tensor:
        if type(t) is not Node or not self.centred or self._forward_hooks or self._forward_pre_hooks:
            return super().move(x, t, c, c0, c1, **cond)
        # As self(x, t).move(c, c0, c1) without the Point, which costs as much as all else around the tensors.
        _, c_in, (a0, b0, a1, b1), clock = self._row(x, t)
        raw = self._raw(x, c_in, clock, cond)
        return lincomb(c + c0 * a0 + c1 * a1, x, c0 * b0 + c1 * b1, raw)

    def _raw(self, u: Tensor, c_in: Coefficient, clock: Tensor, cond: dict[str, Any]) -> Tensor:
        """F, the network's raw output."""
        # As self.net(...), without the search through parameters and buffers that nn.Module makes for a name.
        net = self._modules["net"]
        raw: Tensor = net(u if c_in is ONE else scaled(c_in, u), clock, **cond)  # pyright: ignore[reportOptionalCall]
        if raw.shape != u.shape:
            raise ValueError(
                f"net returned shape {tuple(raw.shape)} for x of shape {tuple(u.shape)}: return one like x"
            )
        return raw

    def _row(self, y: Tensor, t: Node) -> Row:
        size = y.shape[0]
        column = t.table.columns.get((id(self), size))
        if column is None:
            column = t.table.keep(self, size, self._rows(y, t.table))
        return column[t.index]

    def _rows(self, y: Tensor, table: Table) -> list[Row]:
        """For each time of a grid its numbers, and the clock as the network takes it: (B,)."""
        owner, size, dtype = self.regression, y.shape[0], torch.promote_types(y.dtype, torch.float32)

        def make() -> list[Row]:
            numbers = table.numbers(owner, "numbers", owner.numbers)
            with torch.inference_mode(False):  # they serve runs with gradients too
                clock = placed(torch.tensor([row[3] for row in numbers], dtype=dtype), y.device, dtype)
                clocks = clock.unsqueeze(1).expand(-1, size).unbind(0)
            return [
                (alpha, ONE if abs(c_in - 1) < ROUNDING else c_in, pairs, c)
                for (alpha, c_in, pairs, _), c in zip(numbers, clocks, strict=True)
            ]

        # A view of one number in several places cannot be written to, so that no network can spoil it for the next run.
        if y.is_cpu and size > 1 and by_value(owner):
            return remembered((owner, "rows", table.values, size, dtype), make)
        return make()

    def _coefficients(self, y: Tensor, t: float | Tensor) -> Row:
        """The same at one time for all samples, or one for each, shaped to multiply y."""
        t = as_time(t)
        self.sde.check_time(t)
        expand(t, y)  # refuses a wrong shape by name
        at = self.levels(t.to(y.device) if t.ndim else t)  # a single time stays where it is, and acts as a number
        clock = placed(at.clock, y.device, torch.promote_types(y.dtype, torch.float32)).expand(len(y))
        a0, b0, a1, b1 = (expand(c, y) for c in endpoints(at.alpha, at.sigma, at.p, at.q))
        return expand(at.alpha, y), expand(at.c_in, y), (a0, b0, a1, b1), clock

    def prior(self, x0_like: Tensor, generator: Generator = None, sde: ForwardSDE | None = None) -> Tensor:  # noqa: D102
        return (sde or self.sde).prior(x0_like, self.mean.to(x0_like), self.scale, generator)

    def prior_log_prob(self, x: Tensor, sde: ForwardSDE | None = None) -> Tensor:  # noqa: D102
        return (sde or self.sde).prior_log_prob(x, self.mean, self.scale)

    def data_scale(self) -> float:  # noqa: D102
        return self.scale

    def data_mean(self) -> Tensor | None:  # noqa: D102
        return None if self.centred else self.mean
