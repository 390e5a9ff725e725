"""What is known: y = A(x0) + noise n with n ~ N(0, I), and what it says of an x0."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sde.inverse.operator import LinearOperator, Operator
from sde.random import Generator, randn_like
from sde.shape import sum_event


class Observation(nn.Module):
    r"""An observation y = A(x0) + noise n, n ~ N(0, I).

    Args:
        operator: A.
        y: What was observed: (B, \*E), one for each sample, or (1, \*E), one for all.
        noise: Standard deviation of the noise, 0 for none.

    Raises:
        ValueError: If y is not shaped as the operator's output, holds values that are not finite, or noise is negative.

    Example:
        >>> import torch, sde
        >>> seen = sde.inverse.Mask(torch.tensor([True, False]))
        >>> observation = sde.inverse.Observation(seen, torch.tensor([[0.3, 0.0]]), noise=0.1)
        >>> observation.residual(torch.tensor([[0.5, 7.0]]))
        tensor([[-0.2000,  0.0000]])
    """

    y: Tensor

    def __init__(self, operator: Operator, y: Tensor, noise: float = 0.0) -> None:
        super().__init__()
        if not y.is_floating_point():
            raise TypeError(f"y must be floating, got {y.dtype}: use y.float()")
        needed = operator.measured
        if y.ndim != 1 + len(needed) or y.shape[1:] != needed:
            raise ValueError(
                f"y has shape {tuple(y.shape)}, and {type(operator).__name__} makes (B, {', '.join(map(str, needed))}) "
                f"of (B, {', '.join(map(str, operator.event))}): pass y = operator(x0) with its batch axis"
            )
        if not bool(torch.isfinite(y).all()):
            raise ValueError(f"y holds {int((~torch.isfinite(y)).sum())} values that are not finite: clean it first")
        if not (math.isfinite(noise) and noise >= 0):
            raise ValueError(f"noise must be 0 or more, got {noise}: it is a standard deviation")
        self.operator, self.noise = operator, float(noise)
        self.register_buffer("y", y.detach().clone())

    def residual(self, x0: Tensor) -> Tensor:
        r"""y - A(x0): (B, \*E).

        Raises:
            ValueError: If there are neither one observation nor as many as samples, or x0 does not fit the operator.
        """
        self.operator.check(x0)
        if len(self.y) not in (1, len(x0)):
            raise ValueError(
                f"y holds {len(self.y)} observations for {len(x0)} samples: pass one, or one for each of them "
                "(y.repeat_interleave(k, 0) for k samples of each)"
            )
        return self.y.to(x0) - self.operator(x0)

    def log_likelihood(self, x0: Tensor) -> Tensor:
        """Log p(y | x0): (B,).

        Raises:
            ValueError: If noise is 0: y is then a set, not a density.
        """
        self.check_noisy("log_likelihood")
        r = self.residual(x0)
        return sum_event(-((r / self.noise) ** 2) / 2 - math.log(self.noise) - math.log(2 * math.pi) / 2)

    def check_linear(self, method: str) -> LinearOperator:
        """The operator, or an error for a method that needs a linear one."""
        if not isinstance(self.operator, LinearOperator):
            raise ValueError(
                f"{method} needs a linear operator with its singular values, got {type(self.operator).__name__}: use "
                "DPS, or an operator of sde.inverse"
            )
        return self.operator

    def check_noisy(self, method: str) -> None:
        """An error for a method that divides by the observation's noise where there is none."""
        if self.noise == 0:
            raise ValueError(
                f"{method} divides by the observation's noise, and noise=0: pass the noise that the observation has "
                "(1e-2 of its scale, say), or use Replacement, DDNM or DDRM, which take none"
            )


def observe(operator: Operator, x0: Tensor, noise: float = 0.0, generator: Generator = None) -> Observation:
    r"""Draw of an observation of x0 (B, \*D): y = A(x0) + noise n.

    Example:
        >>> import torch, sde
        >>> seen = sde.inverse.Mask(torch.tensor([True, False]))
        >>> sde.inverse.observe(seen, torch.ones(3, 2)).y
        tensor([[1., 0.],
                [1., 0.],
                [1., 0.]])
    """
    clean = operator(operator.check(x0))
    return Observation(operator, clean + noise * randn_like(clean, generator) if noise > 0 else clean, noise)
