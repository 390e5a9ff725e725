"""What the operators share: their numbers, once to each device and precision, and the shapes of what they take."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sde.inverse.operator import LinearOperator


class Fixed(LinearOperator):
    r"""A linear operator made of fixed numbers, which are handed out where x is and as precise as x.

    The numbers are kept in float64 on the CPU and copied once to each device and dtype, so that no call waits for one.

    Args:
        event: Shape D of what it observes.
        measured: Shape E of what it makes of one sample.
        norm: The largest singular value.
        numbers: Tensors that it is made of.
    """

    def __init__(self, event: Sequence[int], measured: Sequence[int], norm: float, *numbers: Tensor) -> None:
        super().__init__(event)
        self.norm, self._measured = float(norm), torch.Size(measured)
        self._numbers = tuple(n.detach().cpu() for n in numbers)
        self._copies: dict[tuple[torch.device, torch.dtype], tuple[Tensor, ...]] = {}

    @property
    def measured(self) -> torch.Size:
        """Shape E of what it makes of one sample."""
        return self._measured

    def numbers(self, x: Tensor) -> tuple[Tensor, ...]:
        """Its numbers on the device and in the precision of x."""
        key = x.device, x.dtype
        if key not in self._copies:
            with torch.inference_mode(False):  # they serve runs with gradients too
                self._copies[key] = tuple(
                    n.to(x.dtype.to_complex() if n.is_complex() else x.dtype).to(x.device) for n in self._numbers
                )
        return self._copies[key]

    def check_measured(self, y: Tensor) -> Tensor:
        """`y` itself, or an error that says which shape the operator makes."""
        if y.shape[1:] != self._measured:
            raise ValueError(
                f"y has shape {tuple(y.shape)}, and {type(self).__name__} makes "
                f"(B, {', '.join(map(str, self._measured))}): pass y = operator(x0) with its batch axis"
            )
        return y


def picture(event: Sequence[int], name: str) -> tuple[int, int]:
    """Height and width of samples that end in them, or an error."""
    if len(event) < 2:
        raise ValueError(
            f"{name} needs samples that end in height and width, got event={tuple(event)}: pass (1, 28, 28), say, or "
            "make a Matrix"
        )
    return event[-2], event[-1]


def blocks(event: Sequence[int], factor: int, name: str) -> tuple[int, int]:
    """Height and width after down-sampling by a factor that divides both, or an error."""
    height, width = picture(event, name)
    if factor < 1 or height % factor or width % factor:
        fits = [k for k in range(2, min(height, width) + 1) if height % k == width % k == 0]
        raise ValueError(f"factor must divide height {height} and width {width}, got {factor}: use one of {fits}")
    return height // factor, width // factor
