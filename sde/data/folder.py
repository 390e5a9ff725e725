"""A folder of pictures as a data set: the middle square of each, brought to one size.

Pillow's Lanczos filter widens with the factor of reduction, so that nothing aliases. Transparency becomes white, a
photograph is turned as its camera says, and whatever is no single still picture is refused by name.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sde.data.dataset import Dataset
from sde.data.images import images_dataset

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}


def image_folder(
    path: str | Path,
    size: int,
    *,
    channels: int = 3,
    classes: bool = False,
    bytes: bool = False,
    progress: bool | None = None,
) -> Dataset:
    """All pictures below a folder, in the order of their paths: x is (n, channels, size, size).

    Args:
        path: the folder; folders inside it are searched too, links to folders and hidden files are not.
        size: height and width to bring the middle square of each picture to, in pixels.
        channels: 3 for colours, 1 for grey.
        classes: whether the folders right inside `path` are classes; labels then count them in alphabetical order.
        bytes: uint8 in 0..255 instead of float32 in [-1, 1].
        progress: True for a bar, False for none. Default: one that appears after two seconds.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it has no picture; or one that is broken, moves, or unpacks to too many pixels: the message names
            the file.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> home = Path(tempfile.mkdtemp())
        >>> Image.new("RGB", (80, 60), "white").save(home / "white.png")
        >>> image_folder(home, 16)
        Dataset('...', x=(1, 3, 16, 16))
    """
    root = Path(path).expanduser()
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"size must be a whole number of pixels, at least 1, got {size!r}: pass size=32, say")
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 (grey) or 3 (colours), got {channels!r}")
    files = _pictures(root)
    label = _labels(root, files) if classes else None
    pixels = np.empty((len(files), channels, size, size), np.uint8)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        try:
            read = pool.map(lambda file: _square(file, size, channels), files)
            for k, square in enumerate(_with_bar(read, len(files), progress)):
                pixels[k] = square
        except BaseException:
            pool.shutdown(cancel_futures=True)  # the first broken file ends it, not the last
            raise
    return images_dataset(pixels, label, bytes, root.resolve().name or "images")


def _pictures(root: Path) -> list[Path]:
    if not root.is_dir():
        raise FileNotFoundError(f"path must be a folder of pictures, and {str(root)!r} is none")
    inside = [file.relative_to(root) for file in root.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file()]
    seen = [file for file in inside if not any(part.startswith(".") for part in file.parts)]
    if not seen:
        raise ValueError(f"path {str(root)!r} has no picture in it: looked for {', '.join(sorted(SUFFIXES))}")
    return [root / file for file in sorted(seen, key=lambda file: file.parts)]


def _labels(root: Path, files: list[Path]) -> np.ndarray:
    folders = [file.relative_to(root).parts[0] for file in files]
    loose = next((file for file in files if file.parent == root), None)
    if loose is not None:
        raise ValueError(f"{loose} lies in no class's folder: move it into one, or pass classes=False")
    return np.unique(folders, return_inverse=True)[1]


def _with_bar(read: Iterable[Any], total: int, progress: bool | None) -> Iterable[Any]:
    from tqdm.auto import tqdm

    delay = 0 if progress else 2
    return tqdm(read, total=total, desc="reading", unit="image", leave=False, delay=delay, disable=progress is False)


def _square(file: Path, size: int, channels: int) -> np.ndarray:
    """The middle of one picture, (channels, size, size), uint8."""
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as image:
            if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":  # a still and its preview
                raise ValueError("it is an animation or has several pages")
            if image.width * image.height > (Image.MAX_IMAGE_PIXELS or float("inf")):
                raise ValueError(f"its {image.size} pixels pass PIL.Image.MAX_IMAGE_PIXELS, which you may raise")
            flat = _flat(ImageOps.exif_transpose(image), "L" if channels == 1 else "RGB")
        side = min(flat.size)
        left, top = (flat.width - side) // 2, (flat.height - side) // 2
        square = flat.crop((left, top, left + side, top + side))
        square = square if side == size else square.resize((size, size), Image.Resampling.LANCZOS)
        return np.asarray(square).reshape(size, size, channels).transpose(2, 0, 1)
    except Exception as error:  # a decoder may raise anything over a file from outside
        raise ValueError(
            f"{file} cannot be used as a picture ({error or type(error).__name__}): remove or convert it"
        ) from error


def _flat(image: Image, mode: str) -> Image:
    """The picture on white, in 8 bits; Pillow's own conversions drop transparency and clip 16 bits."""
    from PIL import Image as pillow

    if image.mode.startswith("I;16"):
        image = pillow.fromarray((np.asarray(image).astype(np.float64) / 257).round().astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels are of mode {image.mode}, whose white is not known")
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = pillow.alpha_composite(pillow.new("RGBA", image.size, "white"), image)
    return image.convert(mode)
