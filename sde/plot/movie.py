"""Files of moving pictures: GIF, MP4 by imageio-ffmpeg, HTML as one page with its frames inside.

Frames are drawn on an Agg canvas by blitting: the still background is restored and only what moves is
drawn on it, twenty times as fast as drawing the whole figure. A GIF gets one palette for all frames, no dithering, and
from each frame only the box of pixels that changed, which keeps it small.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".gif", ".mp4", ".html")

Draw = Callable[[int], "list[Any]"]

PAGE = """<!doctype html>
<meta charset="utf-8"><title>Trajectories</title>
<style>body{font:15px sans-serif;margin:1em}img{max-width:100%}input{width:22em;vertical-align:middle}</style>
<img id="view" alt="Samples moving from noise to data"><p>
<button id="play">Pause</button> <input id="seek" type="range" min="0" max="%LAST%" value="0" aria-label="frame"></p>
<script>
const frames = %FRAMES%, view = document.getElementById("view");
const seek = document.getElementById("seek"), play = document.getElementById("play");
let k = 0, timer = null;
const show = i => { k = i; seek.value = i; view.src = "data:image/png;base64," + frames[i]; };
const next = () => { show((k + 1) % frames.length); wait(); };
const wait = () => { timer = setTimeout(next, %EACH% + (k == frames.length - 1 ? %HOLD% : 0)); };
const stop = () => { clearTimeout(timer); timer = null; play.textContent = "Play"; };
play.onclick = () => { if (timer) stop(); else { play.textContent = "Pause"; next(); } };
seek.oninput = () => { stop(); show(+seek.value); };
show(0); wait();
</script>
"""


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


def write(path: Path, figure: Figure, draw: Draw, count: int, fps: int, hold: float) -> None:
    """The animation as a file of the kind its suffix says; its figure is closed then.

    Args:
        path: .gif, .mp4 or .html.
        figure: with all that stands still.
        draw: puts what moves where frame k has it, and returns it.
        count: of frames.
        fps: frames a second.
        hold: seconds for which the last frame stays.
    """
    import matplotlib.pyplot as plt

    kind = {".gif": _gif, ".mp4": _mp4, ".html": _html}[path.suffix.lower()]
    kind(path, frames(figure, draw, count), fps, hold)
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
    images = _indexed(list(pictures))
    durations = [round(1000 / fps)] * (len(images) - 1) + [round(1000 * max(hold, 1 / fps))]
    images[0].save(path, save_all=True, append_images=images[1:], duration=durations, loop=0, optimize=False)


def _html(path: Path, pictures: Iterator[np.ndarray], fps: int, hold: float) -> None:
    encoded = []
    for image in _indexed(list(pictures)):
        buffer = io.BytesIO()
        image.save(buffer, "PNG", optimize=True)
        encoded.append(base64.b64encode(buffer.getvalue()).decode("ascii"))
    values = {
        "FRAMES": json.dumps(encoded),
        "LAST": str(len(encoded) - 1),
        "EACH": str(1000 / fps),
        "HOLD": str(1000 * hold),
    }
    page = PAGE
    for name, value in values.items():
        page = page.replace(f"%{name}%", value)
    path.write_text(page, encoding="utf-8")


def _indexed(pictures: list[np.ndarray]) -> list[Any]:
    """Pillow images of one palette, so that a colour that stays keeps its index and is not written again."""
    from PIL import Image

    some = np.concatenate([pictures[k] for k in sorted({0, len(pictures) // 2, len(pictures) - 1})])
    palette = Image.fromarray(some).quantize(64, dither=Image.Dither.NONE)
    colours = np.array(palette.getpalette()).reshape(-1, 3)
    colours[colours.min(1) > 245] = 255  # the paper is white, not the mean of nearly white
    palette.putpalette(colours.ravel().tolist())
    return [Image.fromarray(picture).quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]


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
        import imageio_ffmpeg  # pyright: ignore[reportMissingImports]  (an extra)
    except ImportError as error:
        raise ImportError("an .mp4 needs ffmpeg: pip install 'sde[video]', or write a .gif or .html") from error
    return imageio_ffmpeg
