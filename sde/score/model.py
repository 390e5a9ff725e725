r"""Score models: what a network and a forward SDE make together.

A model answers model(x, t) with a `Point`: its estimate of the endpoints of x, from which score, velocity, x0 and eps
follow. A `ScoreModel` makes it from a network's raw output F = net(c_in u, c) by the parameterisation
(`sde.score.param`); an exact target makes it in closed form (`sde.score.exact`); guidance makes it from other models.
Solvers cannot tell.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sde.forward import ForwardSDE, Point, ScalarSDE
from sde.forward.point import Pairs
from sde.nodes import Node
from sde.random import Generator
from sde.score.param import PARAMS, SCALAR_ONLY, endpoints
from sde.shape import Coefficient, as_time, expand, lincomb, scaled


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
        """Device and floating dtype of the model's first tensor."""
        for tensor in [*self.parameters(), *self.buffers()]:
            if tensor.is_floating_point():
                return tensor.device, tensor.dtype
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
    """A model with fixed conditioning: see `Model.given`."""

    def __init__(self, model: Model, **cond: Any) -> None:
        super().__init__(model)
        self.cond = cond
        self.tabulates = model.tabulates

    def forward(self, x: Tensor, t: float | Tensor, **cond: Any) -> Point:  # noqa: D102
        return self.model(x, t, **{**self.cond, **cond})


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

    def levels(self, t: Tensor) -> Levels:
        """The numbers of the regression at a tensor of times, in its shape: what training needs."""
        t = as_time(t)
        pair = self.sde.rates_of_statistic(t)
        return Levels(*pair, *PARAMS[self.param](*pair, self.scale), self.sde.clock(t))

    def forward(self, x: Tensor, t: float | Tensor, **cond: Any) -> Point:  # noqa: D102
        scalar = isinstance(self.sde, ScalarSDE)
        y = x if scalar else self.sde.unmean(x, t)
        if type(t) is Node:
            column = t.table.columns.get((id(self), len(y)))
            if column is None:
                column = t.table.column(self, len(y), partial(self._coefficients, y))
            alpha, c_in, pairs, clock = column[t.index]
        else:
            alpha, c_in, pairs, clock = self._coefficients_on(y, t)
        shift = None if self.centred else self.mean.to(y.dtype)
        u = y if shift is None else y - (alpha * shift).to(y.dtype)
        raw = self.net(scaled(c_in, u), clock, **cond)
        if raw.shape != y.shape:
            raise ValueError(
                f"net returned shape {tuple(raw.shape)} for x of shape {tuple(y.shape)}: return one like x"
            )
        if scalar:
            return Point.of(self.sde, x, t, u, raw, pairs, shift, self.coupled)
        x0 = lincomb(pairs[0], u, pairs[1], raw)
        return Point(self.sde, x, t, x0 if shift is None else x0 + shift, coupled=self.coupled)

    def _coefficients(self, y: Tensor, t: Tensor) -> tuple[Coefficient, Coefficient, Pairs, Tensor]:
        """alpha, c_in and the endpoints' pairs at times t (N,), and the clock as the network takes it, (N, B)."""
        at = self.levels(t)
        clock = at.clock.to(y.device, torch.promote_types(y.dtype, torch.float32))
        # An input gain that is 1 but for rounding is 1, and costs no kernel (VP on data of unit scale).
        c_in = torch.where((at.c_in - 1).abs() < 1e-12, 1.0, at.c_in)
        return at.alpha, c_in, endpoints(at.alpha, at.sigma, at.p, at.q), clock[:, None].expand(-1, len(y))

    def _coefficients_on(self, y: Tensor, t: float | Tensor) -> tuple[Coefficient, Coefficient, Pairs, Tensor]:
        """The same at one time for all samples, or one for each, shaped to multiply y."""
        t = as_time(t)
        self.sde.check_time(t)
        expand(t, y)  # refuses a wrong shape by name
        at = self.levels(t.to(y.device) if t.ndim else t)  # a single time stays where it is, and acts as a number
        clock = at.clock.to(y.device, torch.promote_types(y.dtype, torch.float32)).expand(len(y))
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
