r"""Learned dequantisation: in which part of its cell an integer is best put.

A density p over real numbers gives the integer b the probability P(b), the integral of p over the cell of b. For any
law q(y | b) on that cell,

    - log P(b)  <=  E_q [ log q(y | b) - log p(y) ],        with equality where q is p cut to the cell.

Uniform q is what `fit(dequantize=...)` and `bits_per_dim` take. A learned one fits itself to p, so that p need not be
flat on cells. Here q is a logistic law moved, stretched and bent into the cell, coordinate by coordinate:

    y = b + width (sigmoid(m(b) + e^{s(b)} l) - 1/2),       l logistic.

At m = s = 0 it is uniform, which is where it starts: learning only lowers the bound. Coordinates are independent given
b, where Flow++ has a whole flow: less tight, and one network that gives two numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from sde.random import Generator, rand


class Dequantiser(nn.Module):
    r"""A law on the cell of each datum, uniform until it is trained by `fit_dequantiser`.

    Args:
        net: From data (B, C, \*) to m and s, (B, 2 C, \*), the two halves of axis 1: a `Linear(d, 2 * d)`, say, or a
            `Conv2d(c, 2 * c, 3, padding=1)`. Its output is multiplied by a weight that starts at 0.
        width: Of a cell in the data's units: 2 / 255 for bytes on [-1, 1].

    Raises:
        ValueError: If width is not positive.

    References:
        Ho, Chen, Srinivas, Duan & Abbeel (2019), 1902.00275, section 3.1; Theis et al. (2016), 1511.01844, section 3.1.

    Example:
        >>> import torch, sde
        >>> dequantiser = sde.train.Dequantiser(torch.nn.Linear(2, 4))
        >>> y, log_q = dequantiser(torch.tensor([[0.0, 3.0]]))
        >>> bool(((y - torch.tensor([[0.0, 3.0]])).abs() < 0.5).all()), float(log_q.detach())  # uniform on a cell
        (True, 0.0)
    """

    def __init__(self, net: nn.Module, width: float = 1.0) -> None:
        super().__init__()
        if not (width > 0 and math.isfinite(width)):
            raise ValueError(f"width must be positive, got {width}: a cell of bytes on [-1, 1] is 2 / 255 wide")
        self.net, self.width = net, width
        self.gain = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor, generator: Generator = None) -> tuple[Tensor, Tensor]:
        r"""One draw y for each datum x (B, \*D), and log q(y | x) in nats, (B,)."""
        m, s = (g * part for g, part in zip(self.gain, self.net(x).chunk(2, 1), strict=True))
        if m.shape != x.shape:
            raise ValueError(
                f"net makes halves of shape {tuple(m.shape)} for data {tuple(x.shape)}: let axis 1 be twice as long"
            )
        u = rand(x.shape, generator, dtype=x.dtype, device=x.device).clamp(2.0**-24, 1 - 2.0**-24)
        noise = torch.logit(u)
        bent = m + torch.exp(s) * noise
        log_q = _steepness(noise) - s - _steepness(bent) - math.log(self.width)
        return x + self.width * (torch.sigmoid(bent) - 0.5), log_q.flatten(1).sum(1)

    def bound(self, x: Tensor, log_prob: Callable[[Tensor], Tensor], generator: Generator = None) -> Tensor:
        r"""log q(y | x) - log p(y) at one draw of each datum, (B,): its mean bounds -log P from above, in nats.

        Over d log 2 these are bits per dimension; no offset is missing, as q is a density in the data's own units.

        Args:
            x: Data, (B, \*D).
            log_prob: The model's, of (B, \*D): `lambda y: sde.log_prob(model, y)`, say, or a lower bound of it.
            generator: Of the draw.
        """
        y, log_q = self(x, generator)
        return log_q - log_prob(y)


def fit_dequantiser(
    dequantiser: Dequantiser,
    data: Tensor,
    log_prob: Callable[[Tensor], Tensor],
    steps: int = 1000,
    batch: int = 256,
    lr: float = 1e-2,
    also: Sequence[nn.Module] = (),
    generator: torch.Generator | None = None,
) -> list[float]:
    r"""Lower the bound by Adam, its rate falling to 0 linearly; the loss of every step, in nats.

    Args:
        dequantiser: What is trained.
        data: (N, \*D), values at the middle of their cells.
        log_prob: Differentiable: `lambda y: sde.log_prob(model, y, differentiable=True)`, or cheaper a lower bound, as
            minus the loss `sde.train.maximum_likelihood()` of y.
        steps: Of Adam.
        batch: Data in each.
        lr: First learning rate.
        also: Modules trained with it on the same bound: the score model that log_prob asks.
        generator: Of batches and noise.

    Raises:
        ValueError: If steps or batch is below 1.

    Example:
        >>> import torch, sde
        >>> dequantiser = sde.train.Dequantiser(torch.nn.Linear(1, 2))
        >>> peak = torch.distributions.Normal(0.0, 0.1)  # all on the cell of 0, and far from flat there
        >>> losses = sde.train.fit_dequantiser(
        ...     dequantiser,
        ...     torch.zeros(64, 1),
        ...     lambda y: peak.log_prob(y).sum(1),
        ...     200,
        ...     generator=torch.Generator().manual_seed(0),
        ... )
        >>> losses[0] > 2, losses[-1] < 0.2
        (True, True)
    """
    if steps < 1 or batch < 1:
        raise ValueError(f"steps and batch must be at least 1, got {steps} and {batch}: pass 1000 and 256, say")
    trained = [p for module in (dequantiser, *also) for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=lr)
    losses, device = [], generator.device if generator else "cpu"
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - step / steps)
        x = data[torch.randint(len(data), (batch,), generator=generator, device=device).to(data.device)]
        loss = dequantiser.bound(x, log_prob, generator).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses).tolist()


def _steepness(x: Tensor) -> Tensor:
    """Logarithm of the sigmoid's derivative."""
    return logsigmoid(x) + logsigmoid(-x)
