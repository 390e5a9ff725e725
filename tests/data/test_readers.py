"""Readers of published files: what is right comes back, what is hostile is refused before it does harm."""

import gzip
import io
import os
import pickle
import struct
import tarfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sde.data.readers import RECORD, check_labels, read_cifar, read_idx, read_strips

FOLDER = "cifar-10-batches-bin"
NAMES = ["data_batch_1.bin", "data_batch_2.bin"]
N = 7


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def idx(data: np.ndarray, magic: int = 0x0800) -> bytes:
    return struct.pack(f">{1 + data.ndim}I", magic + data.ndim, *data.shape) + data.tobytes()


def batches(rng: np.random.Generator) -> dict[str, bytes]:
    return {name: rng.integers(0, 10, N * RECORD, np.uint8).tobytes() for name in NAMES}


def member(name: str, content: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, content


def tar(path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return path


def good(rng: np.random.Generator) -> list[tuple[tarfile.TarInfo, bytes]]:
    return [
        member(FOLDER, type=tarfile.DIRTYPE),
        member(f"{FOLDER}/readme.html", b"<html>"),
        *[member(f"{FOLDER}/{name}", content) for name, content in reversed(batches(rng).items())],
    ]


def strip(pixels: np.ndarray, kind: str = "WEBP", **more: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **({"lossless": True} if kind == "WEBP" else {}), **more)
    return file.getvalue()


def npy(array: np.ndarray, **more: object) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **more)
    return file.getvalue()


def strips(path: Path, **parts: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name.replace("__", "."), content)
    return path


def test_idx_comes_back(tmp_path, rng):
    for shape in [(5,), (3, 4, 2)]:
        data = rng.integers(0, 256, shape, np.uint8)
        (tmp_path / "f.gz").write_bytes(gzip.compress(idx(data)))
        np.testing.assert_array_equal(read_idx(tmp_path / "f.gz", shape), data)


IMAGES = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
HOSTILE_IDX: dict[str, tuple[bytes, str]] = {
    "no gzip": (idx(IMAGES), "Not a gzipped file"),
    "empty": (b"", "it begins with"),
    "gzip of nothing": (gzip.compress(b""), "it begins with"),
    "cut gzip": (gzip.compress(os.urandom(64) + idx(IMAGES))[:40], "it begins with|end-of-stream|ended before"),
    "cut within": (gzip.compress(idx(np.frombuffer(os.urandom(24), np.uint8).reshape(2, 3, 4)))[:-12], "ended before"),
    "broken gzip": (gzip.compress(idx(IMAGES))[:10] + b"\xff" * 40, "invalid block type"),
    "wrong checksum": (gzip.compress(idx(IMAGES))[:-8] + bytes(8), "CRC check failed"),
    "labels for images": (gzip.compress(idx(IMAGES[0, 0])), "it begins with 00 00 08 01"),
    "floats": (gzip.compress(idx(IMAGES, magic=0x0D00)), "it begins with 00 00 0d 03"),
    "other count": (gzip.compress(idx(IMAGES[:1])), r"holds \(1, 3, 4\), not \(2, 3, 4\)"),
    "negative count": (gzip.compress(struct.pack(">4i", 0x0803, -2, 3, 4)), r"holds \(-2, 3, 4\)"),
    "huge count": (gzip.compress(struct.pack(">4i", 0x0803, 2**31 - 1, 2**31 - 1, 4)), r"holds \(2147483647"),
    "header alone": (gzip.compress(struct.pack(">I", 0x0803)), r"holds \(\), not"),
    "too short": (gzip.compress(idx(IMAGES)[:-1]), "holds 23 of 24 bytes"),
    "too long": (gzip.compress(idx(IMAGES) + b"\0"), "more than 24 bytes"),
    "pickle": (gzip.compress(pickle.dumps(IMAGES)), "it begins with 80"),
}


@pytest.mark.parametrize("case", HOSTILE_IDX)
def test_hostile_idx_is_refused_by_name(tmp_path, case):
    content, why = HOSTILE_IDX[case]
    path = tmp_path / "images.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"(?s)images\.gz: .*({why}).*get it anew"):
        read_idx(path, (2, 3, 4))


def bomb(head: bytes, size: int = 2**26) -> bytes:
    """A gzip file that unpacks to `size` bytes."""
    pack = zlib.compressobj(9, zlib.DEFLATED, 31)
    return pack.compress(head) + b"".join(pack.compress(bytes(2**20)) for _ in range(size >> 20)) + pack.flush()


def peak(function: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_bombs_go_off_at_the_cap(tmp_path):
    images, archive = tmp_path / "images.gz", tmp_path / "cifar.tar.gz"
    images.write_bytes(bomb(idx(IMAGES)))
    head = tarfile.TarInfo(f"{FOLDER}/readme.html")
    head.size = 2**26
    archive.write_bytes(bomb(head.tobuf()))
    pax = tarfile.TarInfo("x")
    pax.type, pax.size = tarfile.XHDTYPE, 2**26  # a header that would be held in memory whole
    header = tmp_path / "header.tar.gz"
    header.write_bytes(bomb(pax.tobuf()))

    def refused() -> None:
        with pytest.raises(ValueError, match="more than 24 bytes"):
            read_idx(images, (2, 3, 4))
        for path in (archive, header):
            with pytest.raises(ValueError, match="unpacks to more than"):
                read_cifar(path, NAMES, N)

    assert peak(refused) < 2**24


def test_cifar_comes_back_in_the_order_of_the_names(tmp_path, rng):
    content = batches(np.random.default_rng(0))
    records = read_cifar(tar(tmp_path / "c.tar.gz", good(rng)), NAMES, N)
    assert records.shape == (2 * N, RECORD)
    assert records.tobytes() == content[NAMES[0]] + content[NAMES[1]]
    assert [p.name for p in tmp_path.iterdir()] == ["c.tar.gz"]  # nothing is unpacked


LINK = {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}
HOSTILE_TAR: dict[str, tuple[list[tuple[tarfile.TarInfo, bytes]], str]] = {
    "traversal": ([member(f"{FOLDER}/../../evil", b"x")], "does not lie in"),
    "absolute": ([member("/etc/evil", b"x")], "does not lie in"),
    "backslash": ([member(f"{FOLDER}\\..\\..\\evil", b"x")], "does not lie in"),
    "other folder": ([member("evil/data_batch_1.bin", b"x")], "does not lie in"),
    "symlink": ([member(f"{FOLDER}/a", **LINK)], "a link, a device"),
    "symlink as a batch": ([member(f"{FOLDER}/data_batch_1.bin", **LINK)], "a link, a device"),
    "hard link": ([member(f"{FOLDER}/a", type=tarfile.LNKTYPE, linkname="/etc/passwd")], "a link, a device"),
    "device": ([member(f"{FOLDER}/a", type=tarfile.CHRTYPE)], "a link, a device"),
    "pipe": ([member(f"{FOLDER}/a", type=tarfile.FIFOTYPE)], "a link, a device"),
    "sparse": ([member(f"{FOLDER}/a", type=tarfile.GNUTYPE_SPARSE)], "a link, a device"),
    "short batch": ([member(f"{FOLDER}/data_batch_1.bin", bytes(N * RECORD - 1))], "holds 21510 bytes, not 21511"),
    "long batch": ([member(f"{FOLDER}/data_batch_1.bin", bytes(N * RECORD + 1))], "holds 21512 bytes, not 21511"),
    "twice": ([member(f"{FOLDER}/data_batch_1.bin", bytes(N * RECORD))] * 2, "in it twice"),
    "missing": ([member(f"{FOLDER}/data_batch_1.bin", bytes(N * RECORD))], "data_batch_2.bin is not in it"),
    "pickle": ([member(f"{FOLDER}/data_batch_1", pickle.dumps({}))], "data_batch_1.bin is not in it"),
    "nothing": ([], "data_batch_1.bin is not in it"),
}


@pytest.mark.parametrize("case", HOSTILE_TAR)
def test_hostile_archive_is_refused_by_name(tmp_path, case):
    members, why = HOSTILE_TAR[case]
    with pytest.raises(ValueError, match=rf"c\.tar\.gz: .*{why}.*get it anew"):
        read_cifar(tar(tmp_path / "c.tar.gz", members), NAMES, N)
    assert [p.name for p in tmp_path.iterdir()] == ["c.tar.gz"]


def test_every_cut_of_an_archive_is_refused(tmp_path, rng):
    whole = tar(tmp_path / "c.tar.gz", good(rng)).read_bytes()
    for length in [0, 1, 10, 100, len(whole) // 2, len(whole) - 4000]:
        (tmp_path / "cut.tar.gz").write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"cut\.tar\.gz: .*get it anew"):
            read_cifar(tmp_path / "cut.tar.gz", NAMES, N)
    (tmp_path / "cut.tar.gz").write_bytes(gzip.compress(b"no tar at all" * 100))
    with pytest.raises(ValueError, match=r"cut\.tar\.gz"):
        read_cifar(tmp_path / "cut.tar.gz", NAMES, N)


PIXELS = np.random.default_rng(0).integers(0, 256, (1000, 32, 32, 3), np.uint8)
LABELS = np.random.default_rng(1).integers(0, 10, 1000, np.uint8)
GOOD = {
    "000__webp": strip(PIXELS[:500].reshape(-1, 32, 3)),
    "001__webp": strip(PIXELS[500:].reshape(-1, 32, 3)),
    "labels__npy": npy(LABELS),
}


def test_strips_come_back(tmp_path):
    records = read_strips(strips(tmp_path / "s.zip", **GOOD), 1000)
    np.testing.assert_array_equal(records[:, 0], LABELS)
    np.testing.assert_array_equal(records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), PIXELS)


HOSTILE_STRIPS: dict[str, tuple[dict[str, bytes], str]] = {
    "missing strip": ({"001__webp": b""}, "and nothing else"),
    "traversal": ({"../evil": b"x"}, "and nothing else"),
    "no image": ({"001__webp": b"RIFF"}, "cannot identify"),
    "a PNG": ({"001__webp": strip(PIXELS[500:].reshape(-1, 32, 3), "PNG")}, "cannot identify"),
    "other size": ({"001__webp": strip(PIXELS[:400].reshape(-1, 32, 3))}, "not RGB of"),
    "other type": ({"labels__npy": npy(LABELS.astype(np.int8))}, "int8 of shape"),
    "objects": ({"labels__npy": npy(np.array([print] * 50), allow_pickle=True)}, "object of shape"),
    "other count": ({"labels__npy": npy(LABELS[:999])}, r"shape \(999,\)"),
    "cut labels": ({"labels__npy": npy(LABELS)[:-1]}, "labels.npy holds"),
    "no npy": ({"labels__npy": pickle.dumps([1])}, "magic"),
    "bomb": ({"labels__npy": npy(LABELS) + bytes(10**6)}, "unpacks to more than 2000 bytes"),
}


@pytest.mark.parametrize("case", HOSTILE_STRIPS)
def test_hostile_strips_are_refused_by_name(tmp_path, case):
    parts, why = HOSTILE_STRIPS[case]
    content = {name: part for name, part in (GOOD | parts).items() if part or name not in parts}
    with pytest.raises(ValueError, match=rf"s\.zip: .*({why}).*get it anew"):
        read_strips(strips(tmp_path / "s.zip", **content), 1000)


def test_a_zip_that_lies_about_its_size_is_refused(tmp_path):
    path = strips(tmp_path / "s.zip", **GOOD)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"s\.zip: .*not a zip"):
        read_strips(path, 1000)


def test_a_label_out_of_range_is_refused():
    check_labels(Path("f"), np.array([0, 9], np.uint8), 10)
    with pytest.raises(ValueError, match="f: it holds the label 10, and classes are 0 to 9"):
        check_labels(Path("f"), np.array([0, 10], np.uint8), 10)


def test_a_file_that_is_not_there_says_so(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_idx(tmp_path / "none.gz", (1,))
