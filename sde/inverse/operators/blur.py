r"""Blurs: circular convolution with a kernel, by the Fourier transform.

A convolution multiplies each Fourier coefficient by the kernel's, k^. Its singular values are \|k^\|, and as A and A'
have the same eigenvectors, filter and filter_measured are one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sde.inverse.operator import Function
from sde.inverse.operators.fixed import Fixed, picture


class Blur(Fixed):
    r"""Circular convolution of each channel with a kernel: what leaves the picture on one side comes in on the other.

    Args:
        event: Shape of a sample, (\*C, H, W).
        kernel: Weights (h, w) with odd sides, at most H and W, its middle at the pixel itself.

    Raises:
        ValueError: If the kernel has an even side, is larger than the picture, or is not finite.

    Example:
        >>> import torch, sde
        >>> mean_of_three = sde.inverse.Blur((1, 1, 4), torch.ones(1, 3) / 3)
        >>> mean_of_three(torch.tensor([[[[3.0, 0.0, 0.0, 0.0]]]])).round(decimals=4)
        tensor([[[[1., 1., 0., 1.]]]])
    """

    def __init__(self, event: Sequence[int], kernel: Tensor) -> None:
        height, width = picture(event, "Blur")
        fits = kernel.ndim == 2 and kernel.shape[0] <= height and kernel.shape[1] <= width
        if not fits or not all(side % 2 for side in kernel.shape) or not bool(torch.isfinite(kernel).all()):
            raise ValueError(
                f"kernel must be finite, with odd sides of at most {height} x {width}, got shape "
                f"{tuple(kernel.shape)}: choose a smaller width or length, or cut it"
            )
        h, w = kernel.shape
        whole = torch.zeros(height, width, dtype=torch.float64)
        whole[:h, :w] = kernel.detach().cpu().double()
        k = torch.fft.rfft2(whole.roll((-(h // 2), -(w // 2)), (0, 1)))
        super().__init__(event, event, float(k.abs().max()), k, k.abs())

    @classmethod
    def gaussian(cls, event: Sequence[int], width: float) -> Blur:
        r"""Gaussian blur.

        Args:
            event: Shape of a sample, (\*C, H, W).
            width: Standard deviation in pixels. The kernel ends at four of them, or at the picture's side.

        Raises:
            ValueError: If width is not positive.

        Example:
            >>> import torch, sde
            >>> blur = sde.inverse.Blur.gaussian((1, 28, 28), width=1.5)
            >>> torch.allclose(blur(torch.ones(1, 1, 28, 28)), torch.ones(1, 1, 28, 28))
            True
        """
        if not 0 < width < math.inf:
            raise ValueError(f"width must be positive, got {width}: it is a standard deviation in pixels, 1.5, say")

        def line(side: int) -> Tensor:
            reach = min(math.ceil(4 * width), (side - 1) // 2)
            u = torch.arange(-reach, reach + 1, dtype=torch.float64)
            k = torch.exp(-(u**2) / (2 * width**2))
            return k / k.sum()

        rows, columns = picture(event, "Blur.gaussian")
        return cls(event, line(rows)[:, None] * line(columns))

    @classmethod
    def motion(cls, event: Sequence[int], length: float, angle: float = 0.0) -> Blur:
        r"""Motion blur: the mean along a straight line through the pixel.

        Args:
            event: Shape of a sample, (\*C, H, W).
            length: Of the line in pixels.
            angle: Of the line against the rows in degrees, anticlockwise.

        Raises:
            ValueError: If length is less than 1 or the line is longer than the picture.

        Example:
            >>> import torch, sde
            >>> dot = torch.zeros(1, 1, 3, 5)
            >>> dot[0, 0, 1, 2] = 4.0
            >>> sde.inverse.Blur.motion((1, 3, 5), length=3).forward(dot).round(decimals=4)[0, 0, 1]
            tensor([0.0000, 1.3333, 1.3333, 1.3333, 0.0000])
        """
        if not (1 <= length < math.inf and math.isfinite(angle)):
            raise ValueError(f"length must be at least 1 and angle finite, got {length} and {angle}: 9 and 30, say")
        across, down = math.cos(math.radians(angle)), -math.sin(math.radians(angle))
        # Each pixel's weight is the length of the line within it, by 256 points to a pixel's length.
        places = (torch.arange(round(256 * length), dtype=torch.float64) + 0.5) / 256 - length / 2
        u = torch.arange(-math.ceil(length / 2), math.ceil(length / 2) + 1)
        rows, columns = ((u[:, None] == (slope * places + 0.5).floor()).double() for slope in (down, across))
        return cls(event, _trimmed(rows @ columns.T / len(places)))

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self._times(self.check(x), self.numbers(x)[0])

    def adjoint(self, y: Tensor) -> Tensor:  # noqa: D102
        return self._times(self.check_measured(y), self.numbers(y)[0].conj())

    def filter(self, x: Tensor, f: Function) -> Tensor:  # noqa: D102
        return self._times(self.check(x), f(self.numbers(x)[1]))

    def filter_measured(self, y: Tensor, f: Function) -> Tensor:  # noqa: D102
        return self._times(self.check_measured(y), f(self.numbers(y)[1]))

    def _times(self, x: Tensor, k: Tensor) -> Tensor:
        """The picture whose Fourier coefficients are k times those of x."""
        return torch.fft.irfft2(k * torch.fft.rfft2(x), s=x.shape[-2:])


def _trimmed(kernel: Tensor) -> Tensor:
    """Kernel without the outer rows and columns that are empty on both sides."""
    while len(kernel) > 1 and not bool(kernel[[0, -1]].any()):
        kernel = kernel[1:-1]
    while kernel.shape[1] > 1 and not bool(kernel[:, [0, -1]].any()):
        kernel = kernel[:, 1:-1]
    return kernel
