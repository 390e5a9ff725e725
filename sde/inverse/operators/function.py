"""Any differentiable function, and operators one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from itertools import pairwise

import torch
from torch import Tensor

from sde.inverse.operator import LinearOperator, Operator
from sde.inverse.operators.matrix import Matrix

LARGEST = 4096
"""Coordinates of the largest sample whose operators are composed as a matrix: its decomposition takes a minute."""


class Function(Operator):
    r"""Any differentiable function of samples, for the methods that need its gradient alone.

    Args:
        fn: From x (B, \*D) to y (B, \*E), each sample apart.
        event: Shape D of a sample.

    Raises:
        ValueError: If fn does not keep the batch axis.

    Example:
        >>> import torch, sde
        >>> clipped = sde.inverse.Function(lambda x: (2 * x).clamp(-1, 1), event=(2,))
        >>> clipped(torch.tensor([[0.25, 3.0]]))
        tensor([[0.5000, 1.0000]])
    """

    def __init__(self, fn: Callable[[Tensor], Tensor], event: Sequence[int]) -> None:
        super().__init__(event)
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        y = self.fn(self.check(x))
        if y.ndim < 2 or len(y) != len(x):
            raise ValueError(
                f"fn made shape {tuple(y.shape)} of x of shape {tuple(x.shape)}: return (B, *E), an observation to a "
                "sample"
            )
        return y


def compose(last: Operator, *earlier: Operator) -> Operator:
    r"""One operator of several, the last one first, as in A B x: a `Matrix`, or a `Function` if one is not linear.

    Raises:
        ValueError: If the shapes do not fit one another, or samples are too large for a matrix.

    Example:
        >>> import torch, sde
        >>> event = (1, 8, 8)
        >>> blur, mask = sde.inverse.Blur.gaussian(event, width=1.0), sde.inverse.Mask.halved(event)
        >>> both, x = sde.inverse.compose(mask, blur), torch.randn(1, *event)
        >>> torch.allclose(both(x), mask(blur(x)), atol=1e-6)
        True
    """
    chain = (last, *earlier)
    for after, before in pairwise(chain):
        if after.event != before.measured:
            raise ValueError(
                f"{type(after).__name__} takes samples of shape {tuple(after.event)}, and {type(before).__name__} "
                f"before it makes {tuple(before.measured)}: make the first for event={tuple(before.measured)}"
            )

    def all_of_them(x: Tensor) -> Tensor:
        for operator in reversed(chain):
            x = operator(x)
        return x

    event = chain[-1].event
    linear = [operator for operator in chain if isinstance(operator, LinearOperator)]
    if len(linear) < len(chain):
        return Function(all_of_them, event)
    if event.numel() > LARGEST:
        raise ValueError(
            f"compose decomposes a matrix of {event.numel()} columns, more than {LARGEST}: wrap it in "
            "Function(lambda x: a(b(x)), event) for a method that needs gradients alone"
        )
    return Matrix(reduce(torch.matmul, [operator.matrix() for operator in linear]), event, last.measured)
