"""Images in [-1, 1], shape (n, channels, height, width), and the way between them and bytes.

    x = byte / 127.5 − 1,      byte = round(127.5 (x + 1)), clamped to 0..255

Every image in the package is on this scale; this file is the only place that knows another one.
"""

import torch
from torch import Tensor

from sde.data.dataset import Dataset


def digits() -> Dataset:
    """Real handwritten digits out of the box: 1797 images of 8 × 8 pixels, labels 0 to 9, no download.

    x is (1797, 1, 8, 8), float32 in [-1, 1]; raw grey levels are 0 to 16, 0 being the background, so `mean` =
    `scale` = 8.

    References:
        Alpaydin and Kaynak (1998), Optical recognition of handwritten digits, UCI; in scikit-learn's wheel as
        `load_digits`.

    Example:
        >>> digits()
        Dataset('digits', x=(1797, 1, 8, 8), classes=10)
    """
    from sklearn.datasets import load_digits

    pixels, label = load_digits(return_X_y=True)
    x = torch.as_tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 8 - 1
    return Dataset(x, torch.as_tensor(label, dtype=torch.int64), mean=8.0, scale=8.0, name="digits")


def to_uint8(x: Tensor) -> Tensor:
    """Images in [-1, 1] as bytes: rounded to the nearest of 256 levels, clamped beyond them.

    Raises:
        ValueError: if `x` has NaN, which no byte can stand for.

    Example:
        >>> to_uint8(torch.tensor([-1.0, 0.0, 1.0, 3.0]))
        tensor([  0, 128, 255, 255], dtype=torch.uint8)
    """
    if not x.is_floating_point():
        raise TypeError(f"x must be floats in [-1, 1], got {x.dtype}: it may be bytes already")
    if x.isnan().any():
        raise ValueError("x must have no NaN: find the step that made the first one, or pass x.nan_to_num()")
    return ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def from_uint8(x: Tensor) -> Tensor:
    """Bytes as float32 images in [-1, 1]; `to_uint8` takes them back exactly.

    Example:
        >>> from_uint8(torch.tensor([0, 255], dtype=torch.uint8))
        tensor([-1.,  1.])
    """
    if x.dtype != torch.uint8:
        raise TypeError(f"x must be torch.uint8, got {x.dtype}: pass x.to(torch.uint8) if it holds 0 to 255")
    return x.float() / 127.5 - 1
