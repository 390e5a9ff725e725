r"""The targets of the accuracy benchmark: exact mixtures, their seeds, and the problems made of them.

A problem is a target, an SDE, and starts x_T drawn from the exact marginal at t_max; its solution is the probability
flow down to t_min. Every target is standardised, x0 -> (x0 - mean) / scale with one number for the scale, as one does
with data, so that all candidates see mean 0 and scale 1 and the same noise levels (VP: beta .1 .. 20, t from 1 to 1e-3;
EDM: sigma from 80 to .002, in units of the data's scale). Errors are in those units too.

`raw` is the same problem before standardisation, x = alpha m + s x': the target as it was written, under
alpha(t), s sigma(t). Its flow is the image of the standardised one, so that a sampler which standardises by itself must
reach the same error, to rounding.

The list and the seeds were fixed before any default was tuned on them. `unseen(seed)` draws others: dimension, number
of modes, scale, offset, anisotropy, how far apart modes are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import sde

SEEDS = {"start": 20260, "unseen": tuple(range(501, 513))}
"""Of the starts (plus the target's place in the list), and of the unseen targets in the committed table."""

FORWARD: dict[str, sde.ScalarSDE] = {"VP": sde.VP(0.1, 20.0, 1e-3, 1.0), "EDM": sde.EDM(0.002, 80.0)}


def _draw(seed: int) -> Callable[..., Tensor]:
    """Normal numbers of a shape, from one generator."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)


def _covariances(normal: Callable[..., Tensor], variances: Tensor) -> Tensor:
    """Covariances with the given eigenvalues (K, d), along random axes."""
    k, d = variances.shape
    axes = torch.linalg.qr(normal(k, d, d)).Q
    covs = axes @ (variances[..., None] * axes.mT)
    return (covs + covs.mT) / 2


def _uniform(normal: Callable[..., Tensor], *shape: int) -> Tensor:
    return torch.special.ndtr(normal(*shape))


def ring() -> sde.Mixture:
    """Eight modes on a ring of radius 1.5, standard deviation .15, unequal weights."""
    angle = torch.arange(8, dtype=torch.float64) * (2 * math.pi / 8)
    means = 1.5 * torch.stack([angle.cos(), angle.sin()], 1)
    return sde.Mixture([0.30, 0.20, 0.15, 0.12, 0.09, 0.07, 0.05, 0.02], means, [0.15**2] * 8)


def pair() -> sde.Mixture:
    """Two unlike modes far from the origin, one broad and slanted, one narrow and round."""
    return sde.Mixture(
        [0.7, 0.3], [[28.0, 31.0], [33.0, 30.0]], [[[0.64, 0.3], [0.3, 0.36]], [[0.04, 0.0], [0.0, 0.04]]]
    )


def fine() -> sde.Mixture:
    """Fifteen modes a hundredth as wide as the data."""
    normal = _draw(11)
    return sde.Mixture([1.0] * 15, 2 * _uniform(normal, 15, 2) - 1, [(0.01 / math.sqrt(3)) ** 2] * 15)


def nested() -> sde.Mixture:
    """Three clusters of three modes, structure at scales 1, .1 and .02."""
    normal = _draw(12)
    outer, inner = normal(3, 2), 0.12 * normal(3, 3, 2)
    weights = _uniform(normal, 9) + 0.2
    return sde.Mixture(weights, (outer[:, None] + inner).flatten(0, 1), [0.02**2] * 9)


def large() -> sde.Mixture:
    """Six modes in three dimensions, standard deviation about 40."""
    normal = _draw(13)
    variances = (6 * torch.exp(0.5 * normal(6, 3))) ** 2
    return sde.Mixture(_uniform(normal, 6) + 0.1, 40 * normal(6, 3), _covariances(normal, variances))


def small() -> sde.Mixture:
    """Ten modes along two arcs, standard deviation about .02."""
    u = torch.linspace(0, math.pi, 5, dtype=torch.float64)
    upper = torch.stack([u.cos(), u.sin()], 1)
    lower = torch.stack([1 - u.cos(), 0.4 - u.sin()], 1)
    return sde.Mixture([1.0] * 10, 0.025 * torch.cat([upper, lower]), [0.003**2] * 10)


def spiral() -> sde.Mixture:
    """Sixteen elongated modes along a spiral, six times as long as wide."""
    u = torch.linspace(0.6, 3.6, 16, dtype=torch.float64) * math.pi
    means = torch.stack([u * u.cos(), u * u.sin()], 1) / 4
    along = torch.stack([u.cos() - u * u.sin(), u.sin() + u * u.cos()], 1)
    along = along / along.norm(dim=1, keepdim=True)
    outer = along[:, :, None] * along[:, None, :]
    covs = 0.3**2 * outer + 0.05**2 * (torch.eye(2, dtype=torch.float64) - outer)
    return sde.Mixture([1.0] * 16, means, covs)


def squares() -> sde.Mixture:
    """Twenty-five equal modes on a square grid."""
    at = torch.arange(5, dtype=torch.float64) - 2
    return sde.Mixture([1.0] * 25, torch.cartesian_prod(at, at), [0.1**2] * 25)


def broad() -> sde.Mixture:
    """Four overlapping Gaussians with one peak: almost nothing for a sampler to decide."""
    means = [[0.0, 0.0], [0.8, 0.3], [-0.5, 0.9], [0.2, -1.2]]
    return sde.Mixture([0.4, 0.3, 0.2, 0.1], means, [[1.0, 0.6], [0.5, 1.2], [0.8, 0.8], [1.5, 0.4]])


def tails() -> sde.Mixture:
    """One centre, three widths: a peak within heavy tails."""
    return sde.Mixture([0.5, 0.35, 0.15], [[0.0, 0.0], [0.1, 0.0], [0.0, -0.2]], [0.05**2, 0.5**2, 2.5**2])


def sixteen() -> sde.Mixture:
    """Eight anisotropic modes in 16 dimensions."""
    normal = _draw(14)
    variances = (0.25 * torch.exp(0.6 * normal(8, 16))) ** 2
    return sde.Mixture(_uniform(normal, 8) + 0.1, normal(8, 16), _covariances(normal, variances))


def sixty_four() -> sde.Mixture:
    """Six modes in 64 dimensions, each four-dimensional but for a floor of noise of .05."""
    normal = _draw(15)
    planes = 0.7 * normal(6, 64, 4)
    covs = planes @ planes.mT + 0.05**2 * torch.eye(64, dtype=torch.float64)
    return sde.Mixture(_uniform(normal, 6) + 0.1, normal(6, 64), (covs + covs.mT) / 2)


TARGETS: dict[str, Callable[[], sde.Mixture]] = {
    "ring": ring, "pair": pair, "fine": fine, "nested": nested, "large": large, "small": small, "spiral": spiral,
    "squares": squares, "broad": broad, "tails": tails, "sixteen": sixteen, "sixty-four": sixty_four,
}  # fmt: skip


def unseen(seed: int) -> sde.Mixture:
    """A random target: 1 to 32 dimensions, 2 to 20 modes as wide as .02 to .5 of a scale of .02 to 50, offset to 30."""
    normal = _draw(seed)
    pick = [float(u) for u in _uniform(normal, 6)]
    d, k = (1, 2, 2, 3, 4, 8, 16, 32)[int(8 * pick[0])], 2 + int(19 * pick[1])
    scale = 0.02 * (50 / 0.02) ** pick[2]
    width = 0.02 * (0.5 / 0.02) ** pick[3]
    offset = 30 * pick[4] ** 3 * normal(d)
    spread = torch.exp(pick[5] * normal(k, d))  # of the axes: up to a factor of e and more
    weights = -torch.log(_uniform(normal, k)) + 0.02
    means = normal(k, d) + offset
    return sde.Mixture(weights, scale * means, _covariances(normal, (scale * width * spread) ** 2))


def standard(target: sde.Mixture) -> sde.Mixture:
    """The target of mean 0 and scale 1 with the same shape."""
    return sde.Mixture(target.weights, (target.means - target.mean) / target.scale, target.covs / target.scale**2)


class Stretched(sde.ScalarSDE):
    """Another SDE with its noise in the data's units: alpha, s sigma."""

    def __init__(self, inner: sde.ScalarSDE, scale: float) -> None:
        self.inner, self.scale = inner, scale
        self.t_min, self.t_max = inner.t_min, inner.t_max

    def alpha(self, t: Tensor) -> Tensor:
        return self.inner.alpha(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.scale * self.inner.sigma(t)


@dataclass(frozen=True)
class Problem:
    """A standardised target under an SDE, with the states every run starts from.

    Attributes:
        target: Name of the target.
        kind: VP or EDM.
        truth: The target as it was written.
        x: States at t_max, (B, d), float64.
    """

    target: str
    kind: str
    truth: sde.Mixture
    x: Tensor

    @property
    def name(self) -> str:
        return f"{self.target} / {self.kind}"

    @property
    def forward(self) -> sde.ScalarSDE:
        return FORWARD[self.kind]

    @property
    def model(self) -> sde.ExactScore:
        """What samplers are given."""
        return sde.ExactScore(standard(self.truth), self.forward)

    def raw(self) -> tuple[sde.ExactScore, Tensor]:
        """The same problem in the target's own units: model and starts."""
        s = self.truth.scale
        forward = sde.EDM(0.002 * s, 80.0 * s) if self.kind == "EDM" else Stretched(self.forward, s)
        return sde.ExactScore(self.truth, forward), self.end(self.x, self.forward.t_max)

    def end(self, x: Tensor, t: float | None = None) -> Tensor:
        """A standardised state at time t (default t_min) in the target's own units."""
        alpha = float(self.forward.levels(self.forward.t_min if t is None else t)[0])
        return alpha * self.truth.mean + self.truth.scale * x


def problem(target: str, kind: str, batch: int | None = None) -> Problem:
    """A problem by the name of its target, or `unseen SEED`; 1000 starts, 500 in more than four dimensions."""
    word, _, seed = target.partition(" ")
    truth = unseen(int(seed)) if word == "unseen" else TARGETS[target]()
    place = int(seed) if word == "unseen" else list(TARGETS).index(target)
    batch = batch or (1000 if truth.event[0] <= 4 else 500)
    generator = torch.Generator().manual_seed(SEEDS["start"] + place)
    at = torch.empty(batch, *truth.event, dtype=torch.float64)
    return Problem(target, kind, truth, sde.ExactScore(standard(truth), FORWARD[kind]).prior(at, generator))
