r"""Temperature: colder or hotter data, by noise levels that are told otherwise.

For Gaussian data N(m, C), data N(m, T C) at noise level rho = sigma / alpha have the denoiser of the former at
rho / sqrt(T),

    m + T C (T C + rho^2 I)^-1 (x / alpha - m) = m + C (C + rho^2 / T I)^-1 (x / alpha - m),

whatever C; a factor on the score alone would do for C = I only. With s(x, rho) the model's score in units where alpha
is 1, the rule's score is s(x, rho / sqrt(T)) / T, so that its probability flow is the model's own, started from noise
of variance T.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor

from sde.forward import ForwardSDE, Point, ScalarSDE
from sde.nodes import Node, Table
from sde.random import Generator
from sde.score.exact import ExactScore
from sde.score.guidance import no_coupling, noise_level
from sde.score.mixture import Mixture
from sde.score.model import Model, Wrapper
from sde.shape import as_time, expand, scaled


class Temperature(Wrapper):
    """A model of colder (T < 1) or hotter data: of p^(1/T), exactly where the data are Gaussian.

    For data that are no Gaussian each mode gets about T times its variance where there is noise on the way (eta=1). The
    flow (eta=0) is the model's own from noise of variance T: of two modes, colder noise reaches the inner flanks. How
    many samples are in each mode follows neither w nor w^(1/T).

    Args:
        model: Score model.
        temperature: T, the factor of the data's variance.

    Raises:
        ValueError: If temperature is not positive, or the model was trained with a coupling.

    Warns:
        UserWarning: Unless the model is the exact one of a Gaussian.

    References:
        Ingraham et al. (2023), Nature 623, 1070, appendix B, for T by scaling the score, exact for N(0, I).

    Example:
        >>> import torch, sde
        >>> vp, cov = sde.VP(), [[1.0, 0.6], [0.6, 0.5]]
        >>> cold = sde.Temperature(sde.ExactScore(sde.Gaussian([1.0, 0.0], cov), vp), 0.25)
        >>> wanted = sde.ExactScore(sde.Gaussian([1.0, 0.0], 0.25 * torch.tensor(cov)), vp)
        >>> x = torch.randn(5, 2)
        >>> torch.allclose(cold(x, 0.5).x0, wanted(x, 0.5).x0, atol=1e-5)
        True
    """

    def __init__(self, model: Model, temperature: float) -> None:
        if not (math.isfinite(temperature) and temperature > 0):
            raise ValueError(f"temperature must be positive and finite, got {temperature}: 1 changes nothing")
        no_coupling("Temperature", {"model": model})
        super().__init__(model)
        self.temperature, self.tabulates = temperature, model.tabulates
        target = model.target if isinstance(model, ExactScore) else None
        if temperature != 1 and not (isinstance(target, Mixture) and len(target.weights) == 1):
            warnings.warn(
                f"temperature={temperature:g} is exact for Gaussian data only: of other data the samples are not those "
                "of p^(1/T), and eta=1 comes nearer than eta=0",
                stacklevel=2,
            )

    def forward(self, x: Tensor, t: float | Tensor, **cond: Any) -> Point:  # noqa: D102
        if self.temperature == 1:
            return self.model(x, t, **cond)
        if type(t) is Node:
            table, factors = t.table.made(self, "colder", self._table)
            time, factor = table.all[t.index], factors[t.index]
        else:
            time, factor = self._colder(as_time(t))
        if isinstance(self.sde, ScalarSDE):
            y = scaled(expand(factor, x), x)
        else:  # a state of the other time that has the same statistic: the model reads no more of it
            y = self.sde.mean(self.sde.unmean(x, t), time)
        return Point(self.sde, x, t, self.model(y, time, **cond).x0)

    def _table(self, times: Tensor) -> tuple[Table, list[float]]:
        time, factor = self._colder(times)
        return Table(time), factor.tolist()

    def _colder(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Times of noise levels 1 / sqrt(T) as large, within the SDE's, and alpha there over alpha at t."""
        level = noise_level(self.sde, t)
        assert isinstance(level, Tensor)
        level = level / math.sqrt(self.temperature)
        time = self.sde.time_at(-2 * torch.log(level))
        if not isinstance(self.sde, ScalarSDE):
            return time, torch.ones_like(level)
        (alpha, sigma), (alpha1, sigma1) = self.sde.levels(t), self.sde.levels(time)
        # Where alpha is 0 the ratio is the other's, by way of the noise levels.
        by_noise = math.sqrt(self.temperature) * sigma1 / sigma
        return time, torch.where(alpha == 0, by_noise, alpha1 / alpha)

    def prior(self, x0_like: Tensor, generator: Generator = None, sde: ForwardSDE | None = None) -> Tensor:  # noqa: D102
        mean = self.data_mean()
        return (sde or self.sde).prior(x0_like, 0.0 if mean is None else mean.to(x0_like), self.data_scale(), generator)

    def prior_log_prob(self, x: Tensor, sde: ForwardSDE | None = None) -> Tensor:  # noqa: D102
        mean = self.data_mean()
        return (sde or self.sde).prior_log_prob(x, 0.0 if mean is None else mean, self.data_scale())

    def data_scale(self) -> float:  # noqa: D102
        return math.sqrt(self.temperature) * self.model.data_scale()
