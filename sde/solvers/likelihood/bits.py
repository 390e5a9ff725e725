r"""Bits per dimension: what an image costs to store by a model's density, in bits for each of its numbers.

A model has a density over real numbers, an image has integers b in 0 .. levels − 1. Spread uniformly over its cell, it
has a density that bounds what is asked for (Jensen, with u uniform on the cell [−½, ½)^d; Theis et al. 2016):

    − log P(b) = − log ∫ p(b + u) du  ≤  − E_u log p(b + u).

The model lives on another scale, x = low + Δ b with Δ = (high − low) / (levels − 1), where a cell is Δ wide and has
density Δ^d p_x. So each of the d numbers costs

    bits per dimension = − log2 p_x(x + Δ u) / d − log2 Δ.

The last term is the *offset*: log2 127.5 = 6.994 for 256 levels on [−1, 1], 3 for the 17 levels of scikit-learn's
digits. (Papers that map bytes by (b + u) / 128 − 1 add 7: their cells are 1/128 wide.) The cell is centred on x, where
the image was in training. A model that knows nothing, uniform over all levels, needs log2(levels): 8 bits.

Training must have seen dequantised images too (noise of a cell's width): else the model's density lies in spikes at the
levels, as narrow as its t_min allows, and misses most of each cell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sde.forward import ScalarSDE
from sde.random import Generator, rand
from sde.score import Model
from sde.solvers.exponential.adams import Adams
from sde.solvers.likelihood.log_prob import log_likelihood, times_up
from sde.solvers.likelihood.traces import ExactTrace, Hutchinson
from sde.solvers.progress import bar
from sde.solvers.solver import Solver

STEPS = 64
"""Steps of `Adams(2)`, whose low order forgives structure that is too fine for them: twice as many tell the error."""


@dataclass(frozen=True)
class BitsPerDim:
    r"""Bits per dimension of images, with their errors.

    Attributes:
        bits: Of each image by each probe, (n, K), float64.
        evaluations: Of the model for each image, each a forward pass and K backward passes.

    Example:
        >>> print(BitsPerDim(torch.tensor([[3.0, 3.2], [2.8, 3.4]]), evaluations=128))
        3.1000 ± 0.0000 bits per dimension (2 images)
    """

    bits: Tensor
    evaluations: int

    @property
    def value(self) -> float:
        """The mean."""
        return float(self.bits.mean())

    @property
    def error(self) -> float:
        """Standard error of the mean: from images, and from the noise and the probes that each drew for itself."""
        return float(self.bits.mean(1).std() / math.sqrt(len(self.bits))) if len(self.bits) > 1 else math.nan

    @property
    def probe_error(self) -> float:
        """The part of it that comes from probes and that more of them would lessen; nan for one probe."""
        n, k = self.bits.shape
        return float((self.bits.var(1).mean() / (n * k)).sqrt()) if k > 1 else math.nan

    def merge(self, other: BitsPerDim) -> BitsPerDim:
        """With the images of another part of the test set; over processes, `sde.metrics.gather(found.bits)`."""
        return BitsPerDim(torch.cat([self.bits, other.bits.to(self.bits.device)]), self.evaluations)

    def __str__(self) -> str:
        return f"{self.value:.4f} ± {self.error:.4f} bits per dimension ({len(self.bits)} images)"


@torch.no_grad()
def bits_per_dim(
    model: Model,
    x: Tensor,
    *,
    levels: int = 256,
    low: float = -1.0,
    high: float = 1.0,
    offset: float | None = None,
    dequantize: bool = True,
    label: Tensor | None = None,
    probes: int = 1,
    steps: int = STEPS,
    times: Tensor | Sequence[float] | None = None,
    solver: Solver | None = None,
    batch: int = 256,
    generator: Generator = None,
    progress: bool | None = None,
) -> BitsPerDim:
    r"""Bits per dimension of images under a model's probability flow: −log2 p(x + Δ u) / d + offset, over images.

    It bounds the cost of the quantised images from above (see the module), through `log_prob` with Hutchinson's
    estimate. Cost for each image: `steps` times the solver's evaluations (1 for `Adams`), each one forward pass and
    `probes` backward passes; nothing waits for the GPU between the first and the last of a batch.

    Args:
        model: Score model in eval mode, exact or trained; its device decides.
        x: Images (n, \*D): bytes 0 .. levels − 1 as uint8, or floats low + Δ b on the model's scale.
        levels: How many values a number takes: 256 for bytes, 17 for scikit-learn's digits.
        low: Where level 0 lies on the model's scale.
        high: Where the last level lies.
        offset: Bits to add for each number. Default: −log2 Δ; another where x was scaled further, for each number by
            the log2 of what it was multiplied with.
        dequantize: Add Δ u, uniform on the cell; False for data that have no levels, or are spread already.
        label: Classes (n,) for a conditional model.
        probes: Probes of random signs for each image; 0 for the exact trace, d backward passes. One is best for a mean
            over many images, two or more tell their own error.
        steps: Steps of the default grid, `times_up`.
        times: Another grid, from t_min up to t_max.
        solver: Default: `Adams(2)`; for a matrix SDE `RK4`.
        batch: Images at a time.
        generator: Of the cells' noise and the probes; one generator, or one for each image: then an image's bits do not
            depend on the batch that it is in.
        progress: True for a bar, False for none. Default: one that appears after two seconds.

    Returns:
        `BitsPerDim`, whose `value` and `error` are the mean over images and its standard error.

    Raises:
        ValueError: If x does not lie on the levels, or an argument does not fit.

    References:
        Theis et al. (2016), 1511.01844; Song et al. (2021), 2011.13456, appendix D.2.

    Example:
        >>> import torch, sde
        >>> x = torch.randint(0, 256, (64, 1, 4, 4), dtype=torch.uint8)  # uniform bytes: no model does below 8 bits
        >>> model = sde.ExactScore(sde.Gaussian(torch.zeros(1, 4, 4), 1 / 3), sde.VP())
        >>> 8 < bits_per_dim(model, x, generator=torch.Generator().manual_seed(0)).value < 8.4
        True
    """
    if levels < 2 or not low < high or not math.isfinite(high - low):
        raise ValueError(
            f"levels must be at least 2 from low to high, got {levels} from {low} to {high}: 256, -1, 1, say"
        )
    if x.ndim < 2 or not len(x):
        raise ValueError(f"x must be (n, *D) with n at least 1, got shape {tuple(x.shape)}")
    if probes < 0 or batch < 1:
        raise ValueError(f"probes must be at least 0 and batch at least 1, got {probes} and {batch}")
    for name, rows in (("label", label), ("generator", None if isinstance(generator, torch.Generator) else generator)):
        if rows is not None and len(rows) != len(x):
            raise ValueError(f"{name} must be one for each of the {len(x)} images, got {len(rows)}")
    width = (high - low) / (levels - 1)
    offset = -math.log2(width) if offset is None else offset
    device, dtype = model.placement()
    grid = times_up(model, steps) if times is None else times
    rule = solver or (Adams(2) if isinstance(model.sde, ScalarSDE) else None)
    found, calls = [], 0
    with bar(len(x), "bits per dimension", "image", progress) as done:
        for first in range(0, len(x), batch):
            rows = slice(first, first + batch)
            own = generator if generator is None or isinstance(generator, torch.Generator) else generator[rows]
            y = _scaled(x[rows].to(device), low, width, levels, dtype, dequantize)
            if dequantize:
                y = y + width * (rand(y.shape, own, dtype=y.dtype, device=device) - 0.5)
            given = model if label is None else model.given(label=label[rows].to(device))
            trace = Hutchinson(probes) if probes else ExactTrace()
            nats = log_likelihood(given, y, grid, rule, trace=trace, generator=own)
            calls = nats.evaluations
            found.append(nats.values.cpu().double() / (-math.log(2) * y[0].numel()) + offset)
            done(len(y))
    return BitsPerDim(torch.cat(found), calls)


def _scaled(x: Tensor, low: float, width: float, levels: int, dtype: torch.dtype, check: bool) -> Tensor:
    """Images on the model's scale, refused where they are on no level."""
    if x.is_floating_point():
        y, level = x.to(torch.promote_types(dtype, torch.float32)), (x.double() if x.device.type != "mps" else x)
        level = (level - low) / width
        off = float((level - level.round()).abs().max()) if check else 0.0
    elif x.dtype == torch.uint8:
        level, off = x, 0.0
        y = low + width * x.to(torch.promote_types(dtype, torch.float32))
    else:
        raise TypeError(f"x must be uint8 or floating, got {x.dtype}: use x.to(torch.uint8)")
    if check and (off > 0.05 or float(level.min()) < -0.05 or float(level.max()) > levels - 0.95):
        raise ValueError(
            f"x must lie on {levels} levels from {low:g} to {low + width * (levels - 1):g}, got values from "
            f"{float(x.min()):g} to {float(x.max()):g}, up to {off:.2g} of a level off: say which levels, low and high "
            "they have, or pass dequantize=False for data without levels"
        )
    return y
