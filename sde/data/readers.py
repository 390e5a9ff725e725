"""Readers of the files in which the known image sets are published, for bytes that nobody has vouched for.

    idx            gzip of: 0, 0, 8 (bytes), number of axes; each axis as a big-endian int32; the bytes
    CIFAR binary   tar.gz of batches of 10 000 records: label, 1024 red, 1024 green, 1024 blue bytes
    strips         zip of 000.webp, 001.webp, ...: 500 images one above the other, lossless; and labels.npy

What a set should hold is known beforehand, so each reader is told it, reads no more than that, and refuses anything
else. Nothing is unpacked to disk and nothing is unpickled: an archive is a stream from which known names are read.
"""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np

RECORD = 1 + 3 * 32 * 32
"""Bytes of a CIFAR image and its label."""

BATCH = 10_000
STRIP = 500


def read_idx(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    r"""The bytes of a gzipped idx file, uint8, of the shape that it must have.

    Raises:
        ValueError: for any other content; no more than that shape's bytes are ever unpacked.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "labels.gz"
        >>> _ = path.write_bytes(gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 9])))
        >>> read_idx(path, (2,))
        array([7, 9], dtype=uint8)
    """
    size = prod(shape)
    head = struct.pack(f">HBB{len(shape)}i", 0, 8, len(shape), *shape)
    with _named(path), gzip.open(path) as file:
        found = file.read(len(head))
        if found[:4] != head[:4]:
            raise ValueError(f"it begins with {found[:4].hex(' ')}, an idx file of such data with {head[:4].hex(' ')}")
        if found != head:
            axes = struct.unpack(f">{len(found[4:]) // 4}i", found[4 : len(found) // 4 * 4])
            raise ValueError(f"it says that it holds {axes}, not {shape}")
        body = file.read(size + 1)
        if len(body) != size:
            more = "more than" if len(body) > size else f"{len(body)} of"
            raise ValueError(f"it holds {more} {size} bytes of {shape}")
    return np.frombuffer(body, np.uint8).reshape(shape)


def read_cifar(path: Path, names: list[str], batch: int = BATCH) -> np.ndarray:
    """The records of the named batches of CIFAR's binary archive, (n, 3073), uint8, in the order of the names.

    Args:
        path: the archive.
        names: of the batches, such as "data_batch_1.bin".
        batch: records in each.

    Raises:
        ValueError: for a link, a device, a path that leads out of the archive's folder, a size that is not that of a
            batch, a batch that is missing or there twice, or more data than the set has.
    """
    size, found = batch * RECORD, {}
    with _named(path), gzip.open(path) as file, _tar(_Capped(file, 6 * size + 2**20)) as tar:
        for member in tar:
            name = _within(member, "cifar-10-batches-bin")
            if name not in names:
                continue
            if name in found:
                raise ValueError(f"{name} is in it twice")
            stream = tar.extractfile(member)
            if stream is None or member.size != size:
                raise ValueError(f"{name} holds {member.size} bytes, not {size}")
            found[name] = np.frombuffer(stream.read(), np.uint8).reshape(batch, RECORD)
        missing = [name for name in names if name not in found]
        if missing:
            raise ValueError(f"{missing[0]} is not in it")
    return np.concatenate([found[name] for name in names])


def read_strips(path: Path, count: int) -> np.ndarray:
    """The images and labels of a zip of strips as CIFAR records, (count, 3073), uint8.

    Raises:
        ValueError: for names that such a file does not have, more data than `count` images need, an image that is not a
            strip, or labels that are not one byte for each.
    """
    from PIL import Image

    names = [f"{k:03d}.webp" for k in range(count // STRIP)]
    records = np.empty((count, RECORD), np.uint8)
    with _named(path), zipfile.ZipFile(path) as archive:
        if sorted(archive.namelist()) != sorted([*names, "labels.npy"]):
            raise ValueError(f"it must hold {names[0]} to {names[-1]} and labels.npy, and nothing else")
        for k, name in enumerate(names):
            with Image.open(io.BytesIO(_member(archive, name, 2 * STRIP * RECORD)), formats=["WEBP"]) as image:
                if image.size != (32, 32 * STRIP) or image.mode != "RGB" or getattr(image, "n_frames", 1) != 1:
                    raise ValueError(f"{name} is {image.mode} of {image.size}, not RGB of {(32, 32 * STRIP)}")
                pixels = np.asarray(image).reshape(STRIP, 32, 32, 3)
            records[k * STRIP : (k + 1) * STRIP, 1:] = pixels.transpose(0, 3, 1, 2).reshape(STRIP, -1)
        records[:, 0] = _labels(_member(archive, "labels.npy", 1000 + count), count)
    return records


def check_labels(path: Path, labels: np.ndarray, classes: int) -> None:
    """Refuses a label that is no class."""
    if labels.max() >= classes:
        raise ValueError(f"{path}: it holds the label {labels.max()}, and classes are 0 to {classes - 1}")


def _within(member: tarfile.TarInfo, folder: str) -> str:
    """The name of a plain file in the folder, or "" for a folder; all else is refused."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or "\\" in member.name or path.parts[:1] != (folder,):
        raise ValueError(f"{member.name!r} does not lie in {folder}/")
    if not (member.isdir() or member.type in (tarfile.REGTYPE, tarfile.AREGTYPE)) or member.issparse():
        raise ValueError(f"{member.name!r} is a link, a device or another thing that is no plain file")
    return "" if member.isdir() else "/".join(path.parts[1:])


def _member(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    with archive.open(name) as file:
        content = file.read(most + 1)  # the size that the zip itself states may be a lie
    if len(content) > most:
        raise ValueError(f"{name} unpacks to more than {most} bytes")
    return content


def _labels(content: bytes, count: int) -> np.ndarray:
    """The bytes of an .npy file, read by its header alone: an array of objects would be a pickle."""
    file = io.BytesIO(content)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("labels.npy is not of version 1.0")
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    body = file.read()
    if shape != (count,) or dtype != np.uint8 or len(body) != count:
        raise ValueError(f"labels.npy holds {dtype} of shape {shape}, not uint8 of {(count,)}")
    return np.frombuffer(body, np.uint8)


def _tar(stream: Any) -> tarfile.TarFile:
    return tarfile.open(fileobj=stream, mode="r|")  # "|": forwards only, by `read` alone


class _Capped:
    """A stream that refuses to give more than so many bytes: a bomb goes off at the cap."""

    def __init__(self, stream: IO[bytes] | gzip.GzipFile, most: int):
        self.stream, self.most, self.left = stream, most, most

    def read(self, n: int) -> bytes:
        data = self.stream.read(min(n, self.left + 1))
        self.left -= len(data)
        if self.left < 0:
            raise ValueError(f"it unpacks to more than {self.most} bytes")
        return data


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Whatever a reader trips over becomes a ValueError that names the file and what to do."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (ValueError, OSError, EOFError, KeyError, struct.error, zlib.error) as error:
        raise _refusal(path, error) from error
    except (tarfile.TarError, zipfile.BadZipFile, RuntimeError, NotImplementedError, SyntaxError) as error:
        raise _refusal(path, error) from error


def _refusal(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"{path}: {error or type(error).__name__}: the file is damaged or another one; delete it and get it anew"
    )
