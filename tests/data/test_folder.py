"""A folder of pictures: order, classes, crop and filter; what is no still picture is refused by name."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sde.data import image_folder


def save(path: Path, pixels: np.ndarray, **more: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **more)
    return path


def plain(level: int, shape: tuple[int, ...] = (8, 8, 3)) -> np.ndarray:
    return np.full(shape, level, np.uint8)


def levels(folder: Path, **more) -> list[int]:
    return image_folder(folder, 4, bytes=True, **more).x.float().mean((1, 2, 3)).round().int().tolist()


def test_order_is_that_of_paths_and_hidden_and_other_files_are_passed_over(tmp_path):
    for name, level in [("b/1.PNG", 3), ("a/2.png", 2), ("a/10.bmp", 1), ("z.png", 4), (".trash/x.png", 9)]:
        save(tmp_path / name, plain(level))
    save(tmp_path / "a" / "._2.png", plain(9))
    (tmp_path / "notes.txt").write_text("no picture")
    assert levels(tmp_path) == [1, 2, 3, 4]


def test_folders_become_classes(tmp_path):
    for name in ["cat/deep/1.png", "dog/1.png", "cat/2.png", "ant/1.png"]:
        save(tmp_path / name, plain(0))
    data = image_folder(tmp_path, 4, classes=True)
    assert data.label.tolist() == [0, 1, 1, 2]
    assert data.label.dtype == torch.int64
    assert image_folder(tmp_path, 4).label is None
    save(tmp_path / "loose.png", plain(0))
    with pytest.raises(ValueError, match=r"loose\.png lies in no class's folder"):
        image_folder(tmp_path, 4, classes=True)


def test_the_middle_square_comes_back_exactly_and_either_scale(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 13, 3), np.uint8)
    save(tmp_path / "wide.png", pixels)
    whole = image_folder(tmp_path, 8, bytes=True)
    assert (whole.x.dtype, whole.mean, whole.scale) == (torch.uint8, 127.5, 127.5)
    np.testing.assert_array_equal(whole.x[0].permute(1, 2, 0), pixels[:, 2:10])
    floats = image_folder(tmp_path, 8)
    torch.testing.assert_close(floats.x, whole.x.float() / 127.5 - 1)
    torch.testing.assert_close(floats.unstandardize(floats.x), whole.x.float())


def test_reduction_does_not_alias(tmp_path):
    """A board of single pixels is grey from afar; a filter that skips pixels sees black or white."""
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    save(tmp_path / "board.png", board)
    middle = image_folder(tmp_path, 8, channels=1, bytes=True).x[0, 0, 2:-2, 2:-2].float()
    assert (middle - 127.5).abs().max() < 3


def test_reduction_is_lanczos(tmp_path):
    """Against the kernel written out: sinc(u) sinc(u/3), u in pixels of the result, weights of sum one."""
    row = np.random.default_rng(0).integers(64, 192, 24)
    save(tmp_path / "rows.png", np.tile(row.astype(np.uint8), (24, 1)))
    u = (np.arange(24) + 0.5) / 3 - (np.arange(8)[:, None] + 0.5)
    weights = np.where(np.abs(u) < 3, np.sinc(u) * np.sinc(u / 3), 0)
    expected = weights @ row / weights.sum(1)
    got = image_folder(tmp_path, 8, channels=1, bytes=True).x[0, 0, 4].numpy()
    np.testing.assert_allclose(got, expected, atol=1)


def test_every_kind_of_pixel_becomes_8_bits_on_white(tmp_path):
    save(tmp_path / "a_grey.png", plain(100, (8, 8)))
    save(tmp_path / "b_half_clear.png", np.dstack([plain(100), plain(128, (8, 8))]))
    save(tmp_path / "c_clear.png", np.dstack([plain(100), plain(0, (8, 8))]))
    save(tmp_path / "d_16_bits.png", np.full((8, 8), 200 * 257, np.uint16))
    Image.fromarray(plain(1, (8, 8))).convert("P").save(tmp_path / "e_palette.png", transparency=1)
    assert levels(tmp_path) == [100, 177, 255, 200, 255]
    assert levels(tmp_path, channels=1) == [100, 177, 255, 200, 255]
    red = tmp_path / "colour"
    save(red / "red.png", plain(0) + np.array([200, 0, 0], np.uint8))
    assert image_folder(red, 4, bytes=True).x[0, :, 0, 0].tolist() == [200, 0, 0]
    assert image_folder(red, 4, channels=1, bytes=True).x[0, :, 0, 0].tolist() == [60]  # .299 red


def test_a_photograph_is_turned_as_its_camera_says(tmp_path):
    half = np.zeros((8, 8), np.uint8)
    half[:, 4:] = 255  # white on the right; orientation 6 turns it a quarter clockwise: white below
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "photo.png", half, exif=exif)
    x = image_folder(tmp_path, 8, channels=1, bytes=True).x[0, 0]
    assert (x[:4] == 0).all()
    assert (x[4:] == 255).all()


def animation(path: Path) -> None:
    frames = [Image.fromarray(plain(level)) for level in (0, 255)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def cut(path: Path) -> None:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(file, "PNG")
    path.write_bytes(file.getvalue()[:2000])


def bomb(path: Path) -> None:
    """A few bytes that say they are 60 000 × 60 000 pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))))


HOSTILE: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "animation": ("bad.gif", animation, "an animation"),
    "pages": ("bad.tiff", animation, "several pages"),
    "cut": ("bad.png", cut, "truncated"),
    "bomb": ("bad.png", bomb, "bomb|MAX_IMAGE_PIXELS"),
    "text": ("bad.jpg", lambda path: path.write_text("hello"), "cannot identify"),
    "empty": ("bad.webp", lambda path: path.touch(), "cannot identify"),
    "float pixels": ("bad.tiff", lambda path: save(path, np.zeros((8, 8), np.float32)), "mode F"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_is_no_still_picture_is_refused_by_name(tmp_path, case):
    name, make, why = HOSTILE[case]
    save(tmp_path / "good.png", plain(0))
    make(tmp_path / name)
    with pytest.raises(ValueError, match=rf"{name} cannot be used as a picture \(.*({why}).*\): remove or convert it"):
        image_folder(tmp_path, 8)


def test_a_large_picture_names_the_limit_that_may_be_raised(tmp_path, monkeypatch):
    save(tmp_path / "large.png", plain(0, (12, 12, 3)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with (
        pytest.warns(Image.DecompressionBombWarning),
        pytest.raises(ValueError, match=r"large\.png .*pass PIL\.Image\.MAX_IMAGE_PIXELS"),
    ):
        image_folder(tmp_path, 8)


def test_folders_and_arguments_that_cannot_be_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no picture in it: looked for \.bmp"):
        image_folder(tmp_path, 8)
    with pytest.raises(FileNotFoundError, match=r"path must be a folder of pictures, and '.*none' is none"):
        image_folder(tmp_path / "none", 8)
    for size in (0, 2.5, True):
        with pytest.raises(ValueError, match="size must be a whole number"):
            image_folder(tmp_path, size)
    with pytest.raises(ValueError, match=r"channels must be 1 \(grey\) or 3 \(colours\), got 4"):
        image_folder(tmp_path, 8, channels=4)


def test_the_bar_is_there_when_asked_for(tmp_path, capsys):
    save(tmp_path / "a.png", plain(0))
    image_folder(tmp_path, 8, progress=False)
    assert capsys.readouterr().err == ""
    image_folder(tmp_path, 8, progress=True)
    assert "reading" in capsys.readouterr().err
