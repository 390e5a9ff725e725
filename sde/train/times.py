r"""Which times a network is trained at: distributions by their quantile functions.

A distribution of times is a map from u in [0, 1] to t. Training tabulates it once and draws u stratified over the
batch, u_i = (i + v_i) / B with v_i uniform: all samples together have the law, and the batch's loss far less variance.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from sde.forward import ForwardSDE, ScalarSDE, Tabulated
from sde.score import Levels


class Times(ABC):
    """A distribution of training times on [t_min, t_max]."""

    smooth: bool = True
    """False where the quantile function jumps, so that it may not be interpolated."""

    @abstractmethod
    def quantile(self, sde: ForwardSDE, u: Tensor, scale: float = 1.0) -> Tensor:
        """Time below which a share u of the training happens, for data of a given scale."""

    def correction(self, at: Levels, sde: ForwardSDE, scale: float = 1.0) -> Tensor | None:
        """Factor on the weight at given levels that makes the expectation that of uniform times; None for none."""
        return None

    def draw(self, sde: ForwardSDE, n: int, scale: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """n stratified draws, float64."""
        device = generator.device if generator else "cpu"
        v = torch.rand(n, generator=generator, device=device).cpu().double()
        return self.quantile(sde, (torch.arange(n) + v) / n, scale)


@dataclass(frozen=True)
class Uniform(Times):
    """Uniform in t: what likelihood weighting assumes.

    Example:
        >>> import torch, sde
        >>> float(sde.train.Uniform().quantile(sde.Flow(t_min=0.0), torch.tensor(0.25)))
        0.25
    """

    def quantile(self, sde: ForwardSDE, u: Tensor, scale: float = 1.0) -> Tensor:  # noqa: D102
        return sde.t_min + u * (sde.t_max - sde.t_min)


@dataclass(frozen=True)
class LogNormal(Times):
    """log(sigma / (alpha scale)) normal, cut to the SDE's range: most training where noise and data are alike.

    Args:
        mean: Of the log ratio of noise to data. EDM's -1.2 for data of scale .5 is -.5 here.
        std: Its standard deviation.

    References:
        Karras et al. (2022), 2206.00364, table 1; for Flow this is the logit-normal of Esser et al. (2024), 2403.03206.

    Example:
        >>> import torch, sde
        >>> round(float(sde.train.LogNormal(mean=0.0).quantile(sde.EDM(), torch.tensor(0.5))), 6)
        1.0
    """

    mean: float = -0.5
    std: float = 1.5

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and math.isfinite(self.std) and self.std > 0):
            raise ValueError(f"mean must be finite and std positive, got {self.mean} and {self.std}: keep -.5 and 1.5")

    def quantile(self, sde: ForwardSDE, u: Tensor, scale: float = 1.0) -> Tensor:  # noqa: D102
        if not isinstance(sde, ScalarSDE):
            raise ValueError(f"LogNormal times need a scalar SDE, got {type(sde).__name__}: use Uniform()")
        ends = torch.tensor([sde.t_max, sde.t_min], dtype=torch.float64)
        low, high = torch.special.ndtr(((sde.log_snr(ends) / -2 - math.log(scale)) - self.mean) / self.std).flip(0)
        log_ratio = self.mean + self.std * torch.special.ndtri(low + u * (high - low)) + math.log(scale)
        return sde.time_at(-2 * log_ratio)


@dataclass(frozen=True)
class Discrete(Times):
    """Uniform on the entries 1 .. N of a table, as DDPM is trained.

    Example:
        >>> import torch, sde
        >>> sde.train.Discrete().quantile(sde.Tabulated.linear(), torch.tensor([0.0, 0.9999]))
        tensor([   1., 1000.])
    """

    smooth = False

    def quantile(self, sde: ForwardSDE, u: Tensor, scale: float = 1.0) -> Tensor:  # noqa: D102
        if not isinstance(sde, Tabulated):
            raise ValueError(
                f"Discrete times need a Tabulated SDE, got {type(sde).__name__}: use Uniform() or LogNormal()"
            )
        return torch.floor(u * sde.t_max).clamp_max(sde.t_max - 1) + 1


@dataclass(frozen=True)
class LikelihoodTimes(Times):
    r"""Times in proportion to likelihood weighting's own loss, and the factor 1 / p(t) that keeps its expectation.

    p(t) ~ (g^2 / 2 sigma^2) r with r = snr / (1 + snr) and snr = (alpha scale / sigma)^2: likelihood weighting of an
    error of eps that is r, as it is for Gaussian data and about so for others. As g^2 / sigma^2 = -d log(snr) / dt,
    the law is uniform in log(1 + snr). Without r it would be uniform in log(snr), as in the papers: the same where
    noise is small, and without end where alpha goes to 0.

    References:
        Song, Durkan, Murray & Ermon (2021), 2101.09258, section 4.4; Kingma et al. (2021), 2107.00630, section 5.1.

    Example:
        >>> import torch, sde
        >>> times, edm = sde.train.LikelihoodTimes(), sde.EDM(0.01, 10.0)
        >>> round(float(times.quantile(edm, torch.tensor(0.5))), 4)  # 1 + 1 / t^2 = sqrt(10001 * 1.01)
        0.1002
    """

    def quantile(self, sde: ForwardSDE, u: Tensor, scale: float = 1.0) -> Tensor:  # noqa: D102
        first, last = self._ends(sde, scale)
        wanted = first + u.double() * (last - first)
        return sde.time_at(torch.log(torch.expm1(2 * wanted)) - 2 * math.log(scale))

    def correction(self, at: Levels, sde: ForwardSDE, scale: float = 1.0) -> Tensor:  # noqa: D102
        first, last = self._ends(sde, scale)
        alpha = at.alpha.clamp_min(1e-12)  # at alpha = 0 alone, where the weight is 0 and 1 / p is infinite
        rate = alpha * (alpha * at.dsigma - at.sigma * at.dalpha) / at.sigma * scale**2
        part = rate / ((alpha * scale) ** 2 + at.sigma**2)
        return (first - last) / ((sde.t_max - sde.t_min) * part)

    def _ends(self, sde: ForwardSDE, scale: float) -> list[float]:
        ends = self._mass(sde, torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64), scale).tolist()
        if not (math.isfinite(ends[0]) and ends[0] > ends[1]):
            raise ValueError(
                f"likelihood weighting has no finite integral from t_min={sde.t_min}, where sigma is 0: pass the SDE "
                "t_min=1e-3, say"
            )
        return ends

    @staticmethod
    def _mass(sde: ForwardSDE, t: Tensor, scale: float) -> Tensor:
        """Integral of the density from t to where no data are left: log(1 + snr) / 2."""
        alpha, sigma, _, _ = sde.rates_of_statistic(t)
        return torch.log1p((alpha * scale / sigma) ** 2) / 2


def default_times(sde: ForwardSDE) -> Times:
    """`Discrete` for a table, `LogNormal` for other scalar SDEs, `Uniform` for matrix ones."""
    if isinstance(sde, Tabulated):
        return Discrete()
    return LogNormal() if isinstance(sde, ScalarSDE) else Uniform()


class TimeTable:
    """The quantile function on a fine mesh, so that a draw costs one interpolation whatever the SDE."""

    def __init__(self, times: Times, sde: ForwardSDE, scale: float, device: torch.device, mesh: int = 1024) -> None:
        self.times, self.sde, self.scale = times, sde, scale
        u = torch.linspace(0, 1, mesh + 1, dtype=torch.float64)
        precise = torch.float32 if device.type == "mps" else torch.float64
        self.values = times.quantile(sde, u, scale).to(device, precise) if times.smooth else None

    def at(self, u: Tensor) -> Tensor:
        """Times at quantiles u, in the shape of u."""
        if self.values is None:
            return self.times.quantile(self.sde, u, self.scale)
        place = u.to(self.values) * (len(self.values) - 1)
        i = place.long().clamp_max(len(self.values) - 2)
        return torch.lerp(self.values[i], self.values[i + 1], place - i)
