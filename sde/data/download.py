"""Where the files of a data set come from: a folder of one's own, the cache, the publisher, in this order.

SDE_DATA      a folder with the files, for work without a network:
                  mnist/train-images-idx3-ubyte.gz ...          the publisher's four
                  fashion_mnist/train-images-idx3-ubyte.gz ...  the publisher's four
                  cifar10/cifar-10-binary.tar.gz
cache         pooch.os_cache("sde"), such as ~/.cache/sde; the same layout

Every file is held to its sha256 each time, wherever it comes from. A download grows in NAME.part beside its place: one
that breaks off goes on where it stopped, at the next mirror or in the next process, and the file appears under its name
only when it is whole and right. Processes that want the same file wait for the first of them.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

PATIENCE = 3
"""Attempts at one mirror that bring nothing more before the next mirror's turn."""
PAUSE = 1.0
"""Seconds between two attempts."""
TIMEOUT = (10, 30)
"""Seconds to connect, and between two pieces."""


@dataclass(frozen=True)
class Source:
    """One published file.

    Attributes:
        path: where it lies below SDE_DATA and the cache, with "/".
        size: in bytes.
        sha256: of the file.
        mirrors: addresses of folders that have it under its own name.
    """

    path: str
    size: int
    sha256: str
    mirrors: tuple[str, ...]


def offline(path: str) -> Path | None:
    """The file of that path below SDE_DATA, if it is there.

    Raises:
        FileNotFoundError: if SDE_DATA names something that is no folder.
    """
    named = os.environ.get("SDE_DATA")
    if not named:
        return None
    folder = Path(named).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"SDE_DATA names {named!r}, which is no folder: mend it, or unset it to download")
    return folder / path if (folder / path).is_file() else None


def locate(source: Source) -> Path:
    """The file of a source on this machine; downloaded if need be.

    Raises:
        ValueError: if the file in SDE_DATA is not the published one.
        ConnectionError: if no mirror has it; the message says what else can be done.
        ImportError: if a download is needed and pooch is not installed.
    """
    own = offline(source.path)
    if own is not None:
        if not _is(own, source):
            raise ValueError(f"{own} is not the published file (its sha256 differs): replace it, or unset SDE_DATA")
        return own
    target = cache_folder() / source.path
    return target if _is(target, source) else fetch(source, target)


def cache_folder() -> Path:
    """The folder of this user's downloads."""
    return Path(_pooch().os_cache("sde"))


def fetch(source: Source, target: Path) -> Path:
    """Download to a place: every mirror in turn, for as long as it brings something."""
    pooch, part, failures = _pooch(), target.with_name(target.name + ".part"), {}
    downloader = partial(resume, part=part, size=source.size)
    target.parent.mkdir(parents=True, exist_ok=True)
    with _alone(target), _quiet(pooch.get_logger()):
        for mirror in source.mirrors:
            idle = 0
            while idle < PATIENCE:
                before = _length(part)
                try:
                    pooch.retrieve(
                        mirror + target.name,
                        f"sha256:{source.sha256}",
                        target.name,
                        target.parent,
                        downloader=downloader,
                    )
                    return target
                except (OSError, ValueError) as error:  # a broken connection; a wrong file, which pooch deletes
                    failures[mirror] = str(error).split("Caused by ")[-1]
                idle = 0 if _length(part) > before else idle + 1
                time.sleep(PAUSE if idle < PATIENCE else 0)
    tried = "\n".join(f"  {mirror}: {why:.240}" for mirror, why in failures.items())
    raise ConnectionError(
        f"{source.path} could not be downloaded:\n{tried}\nTry again where there is a network (what has come is kept). "
        f"Or put the file by hand at {target}, or into a folder that the environment variable SDE_DATA names, as "
        f"{source.path} in it"
    )


def resume(url: str, output_file: str, pooch: Any = None, *, part: Path, size: int) -> None:
    """A downloader for pooch: goes on with what is in `part`, and moves it to `output_file` when it is whole.

    Raises:
        ConnectionError: if the server breaks off, or offers a file of another size.
    """
    if _length(part) > size:
        part.unlink()
    if _length(part) < size:
        _append(url, part, size)
    os.replace(part, output_file)


def _append(url: str, part: Path, size: int) -> None:
    import requests
    from tqdm.auto import tqdm
    from urllib3.exceptions import HTTPError

    have = _length(part)
    # Without "identity" a server may pack the body once more, and its ranges would be of that.
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        response.raise_for_status()
        begin = have if response.status_code == 206 else 0
        _check_offer(response, begin, size)
        bar = tqdm(total=size, initial=begin, desc=part.stem, unit="B", unit_scale=True, leave=False, delay=1)
        with part.open("ab" if begin else "wb") as file, bar:
            try:
                for piece in response.raw.stream(2**16, decode_content=False):
                    begin += len(piece)
                    if begin > size:
                        break
                    file.write(piece)
                    bar.update(len(piece))
            except HTTPError as error:
                raise ConnectionError(f"broke off after {begin} of {size} bytes ({error})") from error
    if begin > size:
        part.unlink()
        raise ConnectionError(f"sends more than the {size} bytes that the file has")
    if begin < size:
        raise ConnectionError(f"broke off after {begin} of {size} bytes")


def _check_offer(response: Any, begin: int, size: int) -> None:
    """The answer is the file from `begin` on: not a login page, nor another piece."""
    if response.status_code == 206:
        offered, wanted = response.headers.get("Content-Range", ""), f"bytes {begin}-{size - 1}/{size}"
    else:
        offered, wanted = response.headers.get("Content-Length", str(size)), str(size)
    if offered != wanted:
        raise ConnectionError(f"offers {offered!r} where the file has {wanted!r}")


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _is(path: Path, source: Source) -> bool:
    if not path.is_file() or path.stat().st_size != source.size:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == source.sha256


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """One process at a time; the operating system ends the lock of one that dies."""
    with target.with_name(target.name + ".lock").open("w") as lock:
        if sys.platform == "win32":
            import msvcrt

            while True:
                with suppress(OSError):
                    msvcrt.locking(lock.fileno(), msvcrt.LK_NBLCK, 1)
                    break
                time.sleep(0.2)
        else:
            import fcntl

            with suppress(OSError):  # some network file systems have no locks
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    """No line for each attempt: there is a bar, and in the end one message."""
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)


def _pooch() -> Any:
    try:
        import pooch
    except ImportError as error:
        raise ImportError(
            'downloads need pooch: pip install "sde[images]", or name a folder that has the files in SDE_DATA'
        ) from error
    return pooch
