"""Files of moving pictures: GIF by Pillow, MP4 by imageio-ffmpeg, HTML by matplotlib.

Frames for GIF and MP4 are drawn on an Agg canvas by blitting: the still background is restored and only what moves is
drawn on it, twenty times as fast as drawing the whole figure. A GIF gets one palette for all frames, no dithering, and
from each frame only the box of pixels that changed, which keeps it small.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.animation import FuncAnimation
    from matplotlib.figure import Figure

SUFFIXES = (".gif", ".mp4", ".html")

Draw = Callable[[int], "list[Any]"]


def checked_path(path: str | PathLike[str]) -> Path:
    """The path, refused before any work is done where nothing could be written to it."""
    target = Path(path)
    if target.suffix.lower() not in SUFFIXES:
        raise ValueError(f"path must end in one of {', '.join(SUFFIXES)}, got {target.name!r}: pass 'run.gif', say")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"path lies in a folder that does not exist, {target.parent}: make it first")
    if target.suffix.lower() == ".mp4":
        _ffmpeg()
    return target


def write(path: Path, movie: FuncAnimation, draw: Draw, count: int, fps: int, hold: float) -> None:
    """The animation as a file of the kind its suffix says; its figure is closed then.

    Args:
        path: .gif, .mp4 or .html.
        movie: the animation, for HTML.
        draw: puts what moves where frame k has it, and returns it.
        count: of frames.
        fps: frames a second.
        hold: seconds for which the last frame stays.
    """
    import matplotlib
    import matplotlib.pyplot as plt

    figure: Any = movie._fig  # type: ignore[attr-defined]
    suffix = path.suffix.lower()
    if suffix == ".html":
        with matplotlib.rc_context({"animation.embed_limit": 200}):
            path.write_text(movie.to_jshtml(fps=fps, default_mode="loop"), encoding="utf-8")
    elif suffix == ".gif":
        _gif(path, frames(figure, draw, count), fps, hold)
    else:
        _mp4(path, frames(figure, draw, count), fps, hold)
    plt.close(figure)


def frames(figure: Figure, draw: Draw, count: int) -> Iterator[np.ndarray]:
    """RGB frames, (height, width, 3) bytes each."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    before = figure.canvas
    agg = FigureCanvasAgg(figure)
    try:
        draw(0)
        agg.draw()  # what is animated is left out of it
        still = agg.copy_from_bbox(figure.bbox)
        for k in range(count):
            agg.restore_region(still)
            for artist in draw(k):
                artist.axes.draw_artist(artist)
            yield np.asarray(agg.buffer_rgba())[..., :3].copy()
    finally:
        figure.set_canvas(before)


def _gif(path: Path, pictures: Iterator[np.ndarray], fps: int, hold: float) -> None:
    from PIL import Image

    images = [Image.fromarray(picture) for picture in pictures]
    # One palette for all, from the first, middle and last frame: a colour that stays keeps its index, and is not
    # written again.
    some = np.concatenate([np.asarray(images[k]) for k in sorted({0, len(images) // 2, len(images) - 1})])
    palette = Image.fromarray(some).quantize(32, dither=Image.Dither.NONE)
    indexed = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    durations = [round(1000 / fps)] * (len(images) - 1) + [round(1000 * max(hold, 1 / fps))]
    indexed[0].save(path, save_all=True, append_images=indexed[1:], duration=durations, loop=0, optimize=False)


def _mp4(path: Path, pictures: Iterator[np.ndarray], fps: int, hold: float) -> None:
    first = next(pictures)
    height, width = (size // 2 * 2 for size in first.shape[:2])  # players want even sizes
    writer = _ffmpeg().write_frames(
        str(path), (width, height), fps=fps, quality=7, macro_block_size=2, ffmpeg_log_level="error"
    )
    writer.send(None)
    picture = first
    writer.send(np.ascontiguousarray(picture[:height, :width]))
    for picture in pictures:
        writer.send(np.ascontiguousarray(picture[:height, :width]))
    for _ in range(round(hold * fps)):
        writer.send(np.ascontiguousarray(picture[:height, :width]))
    writer.close()


def _ffmpeg() -> Any:
    try:
        import imageio_ffmpeg
    except ImportError as error:
        raise ImportError("an .mp4 needs ffmpeg: pip install 'sde[video]', or write a .gif or .html") from error
    return imageio_ffmpeg
