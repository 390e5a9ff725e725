"""Moving pictures: frames, files, sizes, and errors before any work."""

import base64
import json
import re
import sys
import time

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.animation import FuncAnimation
from PIL import Image

from sde import plot
from sde.plot.movie import frames as drawn_frames


def moved(movie, k):
    """What frame k moves."""
    return movie._func(k)


def test_frames_show_the_states_at_the_same_share_of_each_run(run):
    a, b = run((30, 2), steps=40, noise=0.3), run((30, 2), steps=10, seed=1, noise=0.3)
    movie = plot.animate({"SDE": a, "ODE": b}, frames=5, n=20)
    assert isinstance(movie, FuncAnimation)
    for k in range(5):
        dots_a, clock_a, dots_b, clock_b = moved(movie, k)
        np.testing.assert_allclose(np.stack(dots_a.get_data(), 1), a.x[10 * k, :20], rtol=1e-5)
        np.testing.assert_allclose(np.stack(dots_b.get_data(), 1), b.x[[0, 2, 5, 8, 10][k], :20], rtol=1e-5)
        assert clock_a.get_text() == f"t = {1 - k / 4:.3g}"
        assert clock_b.get_text() == f"t = {[1, 0.8, 0.5, 0.2, 0][k]:.3g}"
    assert [ax.get_title() for ax in plt.gcf().axes] == ["SDE", "ODE"]
    assert len({ax.get_xlim() + ax.get_ylim() for ax in plt.gcf().axes}) == 1


def test_wide_noise_is_shrunk_by_a_factor_that_is_said(run):
    r = run((200, 2), noise=80.0)
    dots, clock = moved(plot.animate(r), 0)
    factor = float(re.fullmatch(r"t = 1, scale 1 : (\S+)", clock.get_text())[1])
    assert factor > 50
    np.testing.assert_allclose(np.stack(dots.get_data(), 1) * factor, r.x[0], rtol=0.06)
    assert moved(plot.animate(r), 20)[1].get_text() == "t = 0"
    assert moved(plot.animate(r, limits=3), 0)[1].get_text() == "t = 1"


def test_lines_grow_and_images_appear(run):
    r = run((90, 1))
    *lines, clock = moved(plot.animate(r, n=90), 7)
    assert len(lines) == 3
    np.testing.assert_allclose(lines[2].get_ydata(), r.x[:8, 2, 0], rtol=1e-5)
    assert clock.get_text() == "t = 0.65"
    assert [line.get_color() for line in lines] == list(plot.COLOURS[:3])

    pictures = run((4, 1, 3, 3))
    image, _ = moved(plot.animate({"digits": pictures}), 20)
    canvas = np.asarray(image.get_array())
    assert canvas.shape == (7, 7)
    np.testing.assert_allclose(canvas[4:, 4:], (pictures.x[-1, 3, 0] + 1) / 2, atol=1e-6)


def test_blitted_frames_differ_only_where_something_moved(run):
    r = run((30, 2), steps=4)
    movie = plot.animate({"SDE": r})
    first, *_, last = drawn_frames(plt.gcf(), movie._func, 5)
    assert first.shape == (335, 300, 3)
    changed = (first != last).any(-1)
    assert 0 < changed.mean() < 0.1
    figure = plt.gcf()
    (ax,) = figure.axes
    inside = ax.get_window_extent()
    below = changed[first.shape[0] - int(inside.y0) + 2 :]
    assert not below.any()  # labels and ticks stand still


def test_a_gif_is_small_quick_and_complete(run, tmp_path):
    runs = {"SDE": run((1000, 2), steps=200), "ODE": run((1000, 2), steps=200, seed=1)}
    path = tmp_path / "two.gif"
    before = time.process_time()
    plot.animate(runs, path, frames=60, fps=20, hold=1.0)
    assert time.process_time() - before < 10
    assert path.stat().st_size < 3e6
    with Image.open(path) as gif:
        assert gif.n_frames == 60
        assert gif.info["loop"] == 0
        assert gif.info["duration"] == 50
        assert gif.convert("RGB").getpixel((2, 2)) == (255, 255, 255)
        first = np.asarray(gif.convert("RGB")).astype(int)
        gif.seek(59)
        assert gif.info["duration"] == 1000
        assert np.abs(np.asarray(gif.convert("RGB")).astype(int) - first).max() > 100
    assert not plt.get_fignums()  # what is on disk need not stay in memory


def test_an_html_page_holds_every_frame(run, tmp_path):
    path = tmp_path / "run.HTML"
    plot.animate(run((100, 2)), str(path), frames=7, fps=10)
    page = path.read_text(encoding="utf-8")
    pictures = json.loads(re.search(r"const frames = (\[.*?\])", page)[1])
    assert len(pictures) == 7
    assert base64.b64decode(pictures[3]).startswith(b"\x89PNG")
    assert 'max="6"' in page
    assert "%" not in re.sub(r"\(k \+ 1\) % frames|100%", "", page)  # no placeholder is left


def test_an_mp4_holds_every_frame(run, tmp_path):
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    path = tmp_path / "run.mp4"
    plot.animate(run((100, 2)), path, frames=12, fps=10, hold=0.5)
    count, seconds = imageio_ffmpeg.count_frames_and_secs(str(path))
    assert count == 17
    assert seconds == pytest.approx(1.7, abs=0.15)


def test_a_missing_ffmpeg_is_said_before_any_work(monkeypatch, run, tmp_path):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(ImportError, match=r"pip install 'sde\[video\]', or write a .gif"):
        plot.animate(run((10, 2)), tmp_path / "run.mp4")
    assert not plt.get_fignums()


def test_wrong_arguments_are_refused_by_name(run, tmp_path):
    r = run((10, 2))
    with pytest.raises(ValueError, match=r"path must end in one of .gif, .mp4, .html, got 'run.avi'"):
        plot.animate(r, tmp_path / "run.avi")
    with pytest.raises(FileNotFoundError, match="path lies in a folder that does not exist"):
        plot.animate(r, tmp_path / "nowhere" / "run.gif")
    for name in ("frames", "fps", "n"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            plot.animate(r, **{name: 0})
    with pytest.raises(TypeError, match="trajectories must map titles to trajectories"):
        plot.animate({})
    with pytest.raises(ValueError, match=r"trajectories must all be points .* or all images"):
        plot.animate({"a": r, "b": run((3, 1, 4, 4))})
    with pytest.raises(ValueError, match=r"trajectories\['a'\] must have states"):
        plot.animate({"a": run((3, 5))})


def test_states_of_any_dtype_and_with_gradients_are_drawn(run):
    r = run((10, 2))
    r.x = r.x.bfloat16().requires_grad_()
    assert len(moved(plot.animate(r), 3)) == 2
    assert torch.is_grad_enabled()
