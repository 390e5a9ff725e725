"""One image from a file, and what was seen beside what was restored."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

import sde
from sde.cli.mistakes import Mistake

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WAYS = "pass resize=true to fit it, or another model"


def read(path: Path, shape: tuple[int, ...], resize: bool = False) -> Tensor:
    """The image of a file, (1, C, H, W) in [-1, 1].

    Args:
        path: A picture, or .npz with an array `x` (C, H, W), (1, C, H, W) or (H, W): bytes, or grey levels in [-1, 1].
        shape: (C, H, W) that it must have.
        resize: Bring another size, or colours, to that shape.
    """
    if not path.is_file():
        raise Mistake(f"no image {path}: pass a file (.png, .npz), or data=fashion_mnist index=3")
    return _from_array(path, shape) if path.suffix == ".npz" else _from_picture(path, shape, resize)


def _from_picture(path: Path, shape: tuple[int, ...], resize: bool) -> Tensor:
    from PIL import Image, UnidentifiedImageError

    channels, height, width = shape
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB") if opened.mode in ("P", "RGBA", "CMYK", "LA") else opened.copy()
    except UnidentifiedImageError as error:
        raise Mistake(f"{path} is no picture: pass a .png, or .npz with an array x") from error
    mode = "L" if channels == 1 else "RGB"
    if image.mode not in (mode, "1") and not resize and not (image.mode == "RGB" and _is_grey(image)):
        wanted = "grey" if channels == 1 else "in colour"
        raise Mistake(f"{path} is of mode {image.mode}, and must be {wanted} (mode {mode}): {WAYS}")
    if image.size != (width, height) and not resize:
        raise Mistake(f"{path} has {image.size[0]} x {image.size[1]} pixels, and must have {width} x {height}: {WAYS}")
    image = image.convert(mode)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.asarray(image).reshape(height, width, channels).copy())
    return sde.data.from_uint8(pixels.permute(2, 0, 1)[None].contiguous())


def _is_grey(image: Any) -> bool:
    pixels = np.asarray(image)
    return bool((pixels == pixels[..., :1]).all())


def _from_array(path: Path, shape: tuple[int, ...]) -> Tensor:
    try:
        with np.load(path) as file:
            array = torch.from_numpy(file["x"])
    except (KeyError, ValueError, OSError) as error:
        raise Mistake(f"{path} holds no image: it needs an array x of shape {shape}, bytes or in [-1, 1]") from error
    if tuple(array.shape) not in (shape, (1, *shape), shape[1:] if shape[0] == 1 else shape):
        raise Mistake(
            f"x in {path} has shape {tuple(array.shape)}, and must have {shape}: resize it, or pass another model"
        )
    array = sde.data.from_uint8(array) if array.dtype is torch.uint8 else array.float()
    if not bool(torch.isfinite(array).all()) or float(array.abs().max()) > 20:
        raise Mistake(
            f"x in {path} must be bytes or grey levels of about [-1, 1], got up to {float(array.abs().max()):g}"
        )
    return array.reshape(1, *shape)


def compare(y: Tensor, truth: Tensor | None, x: Tensor, mean: Tensor, spread: Tensor) -> Figure:
    """What was seen, the truth, mean and standard deviation above as many of the answers."""
    import matplotlib.pyplot as plt

    above = {"seen": y[0], **({} if truth is None else {"truth": truth[0]}), "mean": mean}
    columns = len(above) + 1
    with sde.plot.style():
        figure, axes = plt.subplots(2, columns, figsize=(1.6 * columns + 0.7, 4.1), layout="constrained")
        for ax in axes.flat:
            ax.set_axis_off()
        for ax, (name, image) in zip(axes[0], above.items(), strict=False):
            _show(ax, image, name)
        for i, (ax, image) in enumerate(zip(axes[1], x, strict=False)):
            _show(ax, image, f"answer {i + 1}")
        # In the mean over colours; in the last column, where the bar moves no other picture.
        drawn = axes[0, -1].imshow(spread.mean(0), cmap="viridis", vmin=0, interpolation="nearest")
        axes[0, -1].set_title("std. deviation")
        figure.colorbar(drawn, ax=axes[0, -1], fraction=0.046).set_label("grey levels (black to white: 2)", size=7)
    return figure


def _show(ax: Any, image: Tensor, title: str) -> None:
    pixels = ((image.permute(1, 2, 0) + 1) / 2).clamp(0, 1).numpy()
    ax.imshow(
        pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest"
    )
    ax.set_title(title)
