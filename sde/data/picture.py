"""Any grey picture as a density in the plane.

    P(pixel) ∝ max(white − grey, 0),      raw = the pixel's corner + a uniform place within it

in units of pixels, the first axis to the right and the second upwards, so that a scatter of the draw looks
like the picture. The density is piecewise constant, so its moments are sums over pixels: Var raw = Var(pixel
centres) + 1/12.
"""

import math
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde.data.dataset import Dataset
from sde.data.toy import check
from sde.random import Generator, rand


def from_picture(
    picture: Any, n: int, *, white: float = 1.0, invert: bool = False, generator: Generator = None
) -> Dataset:
    """Points drawn from a grey picture, denser where it is darker.

    Args:
        picture: a path, a PIL image, or an array or tensor of shape (height, width) or (height, width, 3 or
            4): integers in 0..255, booleans, or floats in 0..1, 0 being black. Colours become luminance;
            transparency becomes white.
        n: how many points.
        white: the grey level from which on there are no points; lower it for a photograph of grey paper.
        invert: denser where it is brighter.
        generator: where the randomness comes from.

    Raises:
        ValueError: for a shape or a range that is no picture, or a picture that is white throughout.

    Example:
        >>> ring = [[0, 0, 0], [0, 255, 0], [0, 0, 0]]
        >>> data = from_picture(np.array(ring, dtype=np.uint8), 2000)
        >>> bool((data.x.abs().amax(1) * data.scale > 0.5).all())  # none in the white pixel
        True
    """
    check(n)
    grey = _grey(picture)
    weight = white - (1 - grey if invert else grey)
    weight = np.where(weight > 1e-9, weight, 0)  # the luminance of white is 1 but for rounding
    if not weight.any():
        raise ValueError(
            f"picture has no pixel darker than white={white}, so no density: "
            "pass invert=True for light on dark, or raise white"
        )
    p = np.flipud(weight / weight.sum())  # row 0 at the bottom
    (m1, v1), (m2, v2) = _moments(p.sum(0)), _moments(p.sum(1))
    mean, scale = torch.tensor([m1, m2], dtype=torch.float64), math.sqrt((v1 + v2) / 2 + 1 / 12)
    u = rand((n, 4), generator, dtype=torch.float32)
    where, within = u.cpu().double().split(2, dim=1)
    raw = _pixels(p, where) + within
    x = ((raw - mean) / scale).float().to(u.device)
    return Dataset(x, None, mean.float(), scale, "picture")


def _moments(p: np.ndarray) -> tuple[float, float]:
    """Mean and variance of the centre of the pixel, along one axis."""
    centre = np.arange(len(p)) + 0.5
    mean = float(p @ centre)
    return mean, float(p @ (centre - mean) ** 2)


def _pixels(p: np.ndarray, u: Tensor) -> Tensor:
    """Pixels (column, row), (n, 2): the cumulative sum of the table p inverted at uniforms u, (n, 2)."""
    # torch.multinomial stops at 2^24 categories, which a photograph passes, and one float32 uniform has too
    # few bits for so many: the second supplies the lower ones.
    cumulative = torch.as_tensor(np.cumsum(p))
    index = torch.searchsorted(cumulative, (u[:, 0] + u[:, 1] * 2.0**-24) * cumulative[-1], right=True)
    index = index.clamp(max=p.size - 1)
    return torch.stack([index % p.shape[1], index // p.shape[1]], -1)


def _grey(picture: Any) -> np.ndarray:
    """The picture as float64 grey levels, (height, width), 0 black and 1 white."""
    if isinstance(picture, str | PathLike):
        from PIL import Image

        with Image.open(picture) as image:
            picture = np.asarray(image.convert("RGBA"))
    elif hasattr(picture, "convert"):
        picture = np.asarray(picture.convert("RGBA"))
    array = picture.detach().cpu().numpy() if isinstance(picture, Tensor) else np.asarray(picture)
    if array.ndim not in (2, 3) or 0 in array.shape or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise ValueError(
            f"picture must be (height, width) or (height, width, 3 or 4), got {array.shape}: permute its axes"
        )
    values = array.astype(np.float64) / (255.0 if np.issubdtype(array.dtype, np.integer) else 1.0)
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
        raise ValueError(
            f"picture must hold integers in 0..255 or floats in 0..1, got {array.dtype} "
            f"in {array.min()}..{array.max()}: rescale it"
        )
    if values.ndim == 2:
        return values
    luminance = values[..., :3] @ np.array([0.299, 0.587, 0.114])
    return luminance if values.shape[2] == 3 else 1 - values[..., 3] * (1 - luminance)
