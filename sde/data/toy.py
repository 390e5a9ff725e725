"""Distributions in the plane that a small network learns in seconds, standardised by analytic moments.

A draw is one expression: a class k, a place u on that class's curve (or square), and Gaussian noise,

    raw = curve_k(u) + noise z,      x = (raw − m) / s,      s² = (Var raw_1 + Var raw_2) / 2,

with m and Var from integrals done on paper (beside each function), the noise's own variance included: x has
mean zero and mean variance one as a population, and every draw is on one scale. `noise` is in raw units, as
in the cited sources. Randomness comes from `generator`: one, or one for each point.
"""

import math
from numbers import Integral

import torch
from torch import Tensor

from sde.data.dataset import Dataset
from sde.random import Generator, rand, randn


def moons(n: int, noise: float = 0.05, generator: Generator = None) -> Dataset:
    """Two half circles that interlock; the label says which.

    Upper: (cos θ, sin θ). Lower: (1 − cos θ, ½ − sin θ). θ uniform on [0, π]. Mean (½, ¼); variances ¾ and
    9/16 − 1/π.

    References:
        Pedregosa et al. (2011), scikit-learn, `make_moons`; arXiv:1201.0490.

    Example:
        >>> moons(500).x.shape
        torch.Size([500, 2])
    """
    check(n, noise=noise)
    label, angle = _classes(n, 2, generator), math.pi * _uniform((n,), generator)
    side = 1 - 2 * label
    raw = torch.stack([label + side * angle.cos(), 0.5 * label + side * angle.sin()], -1)
    return _dataset("moons", raw, noise, generator, label, mean=(0.5, 0.25), variance=(21 / 16 - 1 / math.pi) / 2)


def circles(n: int, noise: float = 0.05, factor: float = 0.5, generator: Generator = None) -> Dataset:
    """Two circles about one centre, of radius 1 (label 0) and `factor` (label 1).

    Mean 0; variance (1 + factor²)/4 along each axis.

    References:
        Pedregosa et al. (2011), scikit-learn, `make_circles`; arXiv:1201.0490.

    Example:
        >>> circles(500).label.unique()
        tensor([0, 1])
    """
    check(n, noise=noise, factor=factor)
    label = _classes(n, 2, generator)
    raw = torch.where(label == 0, 1.0, factor)[:, None] * _unit(2 * math.pi * _uniform((n,), generator))
    return _dataset("circles", raw, noise, generator, label, variance=(1 + factor**2) / 4)


def swiss_roll(n: int, noise: float = 0.5, generator: Generator = None) -> Dataset:
    """A strip rolled up: r = θ, for θ uniform on [3π/2, 9π/2].

    (θ cos θ, θ sin θ). Mean (2, 2/3π); E r² = 9.75 π².

    References:
        Sohl-Dickstein et al. (2015), the first diffusion model's own toy set, arXiv:1503.03585;
        Pedregosa et al. (2011), scikit-learn, `make_swiss_roll`, seen along its axis.

    Example:
        >>> swiss_roll(500).label is None
        True
    """
    check(n, noise=noise)
    angle = 1.5 * math.pi * (1 + 2 * _uniform((n,), generator))
    mean = (2.0, 2 / (3 * math.pi))
    variance = (9.75 * math.pi**2 - mean[0] ** 2 - mean[1] ** 2) / 2
    return _dataset("swiss roll", angle[:, None] * _unit(angle), noise, generator, mean=mean, variance=variance)


def checkerboard(n: int, noise: float = 0.0, generator: Generator = None) -> Dataset:
    """The dark squares of a 4 × 4 board on [-2, 2]²: a density with sharp edges.

    A column, a pair of rows and a place in the square are uniform; the row's parity follows the column's.
    Each coordinate is uniform on [-2, 2]: mean 0, variance 4/3.

    References:
        Grathwohl et al. (2019), FFJORD, arXiv:1810.01367.

    Example:
        >>> bool(checkerboard(500).x.abs().max() <= 3**0.5)
        True
    """
    check(n, noise=noise)
    column, pair = _classes(n, 4, generator), _classes(n, 2, generator)
    corner = torch.stack([column, 2 * pair + column % 2], -1) - 2
    return _dataset("checkerboard", corner + _uniform((n, 2), generator), noise, generator, variance=4 / 3)


def pinwheel(
    n: int,
    arms: int = 5,
    radial: float = 0.3,
    tangential: float = 0.1,
    twist: float = 0.25,
    generator: Generator = None,
) -> Dataset:
    """Gaussian arms that bend as they leave the centre; the label is the arm.

    (ρ, τ) = (1 + radial z₁, tangential z₂), turned by the angle 2πk/arms + twist e^ρ. Turning keeps lengths:
    mean 0 by symmetry, E r² = 1 + radial² + tangential². Needs two arms or more.

    References:
        Johnson et al. (2016), Composing graphical models with neural networks, arXiv:1603.06277.

    Example:
        >>> pinwheel(500, arms=3).label.unique()
        tensor([0, 1, 2])
    """
    check(n, radial=radial, tangential=tangential)
    if arms < 2:
        raise ValueError(f"arms must be at least 2, got {arms}: one arm has its mean elsewhere; pass arms=5")
    label = _classes(n, arms, generator)
    z1, z2 = _normal((n, 2), generator).unbind(-1)
    rho, tau = 1 + radial * z1, tangential * z2
    angle = 2 * math.pi / arms * label + twist * rho.exp()
    along = _unit(angle)
    across = torch.stack([-along[:, 1], along[:, 0]], -1)
    raw = rho[:, None] * along + tau[:, None] * across
    return _dataset("pinwheel", raw, 0.0, generator, label, variance=(1 + radial**2 + tangential**2) / 2)


def eight_gaussians(n: int, noise: float = 0.1, generator: Generator = None) -> Dataset:
    """Eight Gaussians of standard deviation `noise` on the unit circle; the label is the Gaussian.

    Mean 0; variance ½ + noise² along each axis.

    References:
        Grathwohl et al. (2019), FFJORD, arXiv:1810.01367 (there .125 of the radius).

    Example:
        >>> len(eight_gaussians(500).label.unique())
        8
    """
    check(n, noise=noise)
    label = _classes(n, 8, generator)
    return _dataset("eight Gaussians", _unit(math.pi / 4 * label), noise, generator, label, variance=0.5)


def spirals(n: int, noise: float = 0.3, generator: Generator = None) -> Dataset:
    """Two arms wound one and a half times round each other; the label is the arm.

    ± θ (−cos θ, sin θ), θ = 3π √u, u uniform on [0, 1]: even in area. Mean 0 by symmetry; E r² = 9π²/2.

    References:
        Grathwohl et al. (2019), FFJORD, arXiv:1810.01367, "2spirals".

    Example:
        >>> spirals(500).label.unique()
        tensor([0, 1])
    """
    check(n, noise=noise)
    label, angle = _classes(n, 2, generator), 3 * math.pi * _uniform((n,), generator).sqrt()
    raw = ((1 - 2 * label) * angle)[:, None] * _unit(math.pi - angle)
    return _dataset("spirals", raw, noise, generator, label, variance=2.25 * math.pi**2)


def s_curve(n: int, noise: float = 0.1, generator: Generator = None) -> Dataset:
    """The letter S: two three-quarter circles, one on the other.

    (sin θ, sign θ (cos θ − 1)), θ uniform on [−3π/2, 3π/2]. Mean 0: both are odd. Variances ½ and 3/2 + 4/3π.

    References:
        Pedregosa et al. (2011), scikit-learn, `make_s_curve`, seen along its axis.

    Example:
        >>> s_curve(500).x.dtype
        torch.float32
    """
    check(n, noise=noise)
    angle = 3 * math.pi * (_uniform((n,), generator) - 0.5)
    raw = torch.stack([angle.sin(), angle.sign() * (angle.cos() - 1)], -1)
    return _dataset("S curve", raw, noise, generator, variance=1 + 2 / (3 * math.pi))


def _dataset(
    name: str,
    raw: Tensor,
    noise: float,
    generator: Generator,
    label: Tensor | None = None,
    mean: tuple[float, float] = (0.0, 0.0),
    variance: float = 1.0,
) -> Dataset:
    """Noise added, and both coordinates brought to mean zero and mean variance one."""
    if noise > 0:
        raw = raw + noise * _normal(tuple(raw.shape), generator)
    centre, scale = torch.tensor(mean), math.sqrt(variance + noise**2)
    return Dataset((raw - centre.to(raw.device)) / scale, label, centre, scale, name)


def check(n: int, **lengths: float) -> None:
    """Refuses a number of points or a length that is none."""
    if not isinstance(n, Integral) or n < 1:
        raise ValueError(f"n must be a whole number of points, at least 1, got {n}: pass n=1000, say")
    for name, value in lengths.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} must be zero or more, got {value}: it is a length, in raw units")


def _classes(n: int, k: int, generator: Generator) -> Tensor:
    return (k * _uniform((n,), generator)).long().clamp(max=k - 1)


def _uniform(shape: tuple[int, ...], generator: Generator) -> Tensor:
    return rand(shape, generator, dtype=torch.float32)


def _normal(shape: tuple[int, ...], generator: Generator) -> Tensor:
    return randn(shape, generator, dtype=torch.float32)


def _unit(angle: Tensor) -> Tensor:
    return torch.stack([angle.cos(), angle.sin()], -1)
