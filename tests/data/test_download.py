"""Downloads against a server on this machine that breaks off, lies and loses files."""

import hashlib
import http.server
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from sde.data import download
from sde.data.download import Source, fetch, locate

CONTENT = np.random.default_rng(0).bytes(200_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Server:
    """A file server; what it does wrong is set by a test.

    Attributes:
        files: by path.
        cut: bytes after which an answer breaks off.
        ranges: whether it knows ranges.
        lengths: whether it says how much it sends; if not, it does not end.
        sent: bytes beyond the file.
        asked: (path, Range) of every request.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    cut: int | None = None
    ranges: bool = True
    lengths: bool = True
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    url: str = ""
    sent: int = 0

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        wanted = request.headers["Range"]
        self.asked.append((request.path, wanted))
        content = self.files.get(request.path)
        if content is None:
            return request.send_error(404)
        begin = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and self.ranges else 0
        request.send_response(206 if begin else 200)
        if self.lengths:
            request.send_header("Content-Length", str(len(content) - begin))
        if begin:
            request.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        request.end_headers()
        with suppress(OSError):  # of a client that has had enough
            request.wfile.write(content[begin:][: self.cut])
            while not self.lengths and self.sent < 2**27:
                self.sent += request.wfile.write(content)
        return None


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    state = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.answer(self)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        state.url = f"http://127.0.0.1:{running.server_port}/"
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield state
        running.shutdown()


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.delenv("SDE_DATA", raising=False)
    monkeypatch.setattr(download, "PAUSE", 0)
    monkeypatch.setattr(download, "cache_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache"


def source(*mirrors: str) -> Source:
    return Source("set/file.bin", len(CONTENT), SHA256, mirrors)


def left(cache: Path) -> set[str]:
    return {p.name for p in cache.rglob("*") if p.is_file()} - {"file.bin.lock"}


def test_a_file_comes_once_and_then_from_the_cache(server, cache):
    server.files["/file.bin"] = CONTENT
    path = locate(source(server.url))
    assert path == cache / "set" / "file.bin"
    assert path.read_bytes() == CONTENT
    assert left(cache) == {"file.bin"}
    assert len(server.asked) == 1
    assert locate(source(server.url)) == path
    assert len(server.asked) == 1


def test_a_broken_download_goes_on_where_it_stopped(server, cache):
    server.files["/file.bin"], server.cut = CONTENT, 30_000  # more often than it is asked without success
    assert locate(source(server.url)).read_bytes() == CONTENT
    assert [wanted for _, wanted in server.asked] == [None, *[f"bytes={30_000 * k}-" for k in range(1, 7)]]
    assert left(cache) == {"file.bin"}


def test_the_next_mirror_goes_on_where_the_last_one_stopped(server, cache):
    server.files["/good/file.bin"] = CONTENT
    part = cache / "set" / "file.bin.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(CONTENT[:1234])
    assert locate(source(server.url + "gone/", server.url + "good/")).read_bytes() == CONTENT
    assert server.asked == [("/gone/file.bin", "bytes=1234-")] * 3 + [("/good/file.bin", "bytes=1234-")]


def test_a_server_without_ranges_starts_again(server, cache):
    server.files["/file.bin"], server.ranges = CONTENT, False
    part = cache / "set" / "file.bin.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * 1234)
    assert locate(source(server.url)).read_bytes() == CONTENT


@pytest.mark.parametrize("length", [1234, len(CONTENT), len(CONTENT) + 1])
def test_a_part_of_another_file_is_thrown_away(server, cache, length):
    server.files["/file.bin"] = CONTENT
    part = cache / "set" / "file.bin.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * length)
    assert locate(source(server.url)).read_bytes() == CONTENT
    assert left(cache) == {"file.bin"}


def test_a_damaged_file_in_the_cache_is_replaced(server, cache):
    server.files["/file.bin"] = CONTENT
    path = locate(source(server.url))
    path.write_bytes(b"x" + CONTENT[1:])
    assert locate(source(server.url)).read_bytes() == CONTENT
    assert len(server.asked) == 2


OFFERS = {
    "a login page": (b"<html>please log in</html>", r"offers '26' where the file has '200000'"),
    "a longer file": (CONTENT + b"x", "offers '200001'"),
    "another file of that length": (CONTENT[::-1], "sha256|SHA256|hash"),
}


@pytest.mark.parametrize("case", OFFERS)
def test_a_wrong_file_never_gets_its_name(server, cache, case):
    content, why = OFFERS[case]
    server.files["/file.bin"] = content
    with pytest.raises(ConnectionError, match=why):
        locate(source(server.url))
    assert left(cache) == set()


def test_without_a_network_the_message_says_what_to_do(cache):
    gone = "http://127.0.0.1:9/"
    with pytest.raises(ConnectionError) as caught:
        locate(source(gone, gone + "other/"))
    message = str(caught.value)
    for part in ["set/file.bin could not be downloaded", gone, gone + "other/", "SDE_DATA", str(cache / "set")]:
        assert part in message


def test_an_endless_answer_is_cut_off(server, cache):
    server.files["/file.bin"], server.lengths = CONTENT, False
    with pytest.raises(ConnectionError, match="sends more than the 200000 bytes"):
        locate(source(server.url))
    assert server.sent < 2**26
    assert left(cache) == set()


def test_a_folder_of_ones_own_comes_first_and_is_held_to_the_checksum(server, cache, tmp_path, monkeypatch):
    own = tmp_path / "own" / "set" / "file.bin"
    own.parent.mkdir(parents=True)
    own.write_bytes(CONTENT)
    monkeypatch.setenv("SDE_DATA", str(tmp_path / "own"))
    assert locate(source(server.url)) == own
    own.write_bytes(CONTENT[::-1])
    with pytest.raises(
        ValueError, match=r"own.set.file\.bin is not the published file .* replace it, or unset SDE_DATA"
    ):
        locate(source(server.url))
    assert server.asked == []
    own.unlink()  # what is not there is downloaded
    server.files["/file.bin"] = CONTENT
    assert locate(source(server.url)) == cache / "set" / "file.bin"
    monkeypatch.setenv("SDE_DATA", str(tmp_path / "typo"))
    with pytest.raises(FileNotFoundError, match=r"SDE_DATA names '.*typo', which is no folder"):
        locate(source(server.url))


def test_processes_that_want_one_file_wait_for_the_first(server, cache):
    server.files["/file.bin"] = CONTENT
    target = cache / "set" / "file.bin"
    threads = [threading.Thread(target=fetch, args=(source(server.url), target)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert target.read_bytes() == CONTENT
    assert len(server.asked) == 1


def test_a_killed_download_leaves_its_part_and_the_next_process_goes_on(server, cache):
    server.files["/file.bin"], server.cut = CONTENT, 70_000
    code = (
        "import os, sys; from pathlib import Path; from sde.data import download; "
        "download.time.sleep = lambda _: os._exit(9); "  # dies between two attempts
        f"download.fetch(download.Source('set/file.bin', {len(CONTENT)}, '{SHA256}', ('{server.url}',)), "
        f"Path({str(cache / 'set' / 'file.bin')!r}))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, timeout=60).returncode == 9
    assert (cache / "set" / "file.bin.part").read_bytes() == CONTENT[:70_000]
    server.cut = None
    assert locate(source(server.url)).read_bytes() == CONTENT
    assert server.asked[-1] == ("/file.bin", "bytes=70000-")


def test_without_pooch_the_message_names_the_extra(monkeypatch):
    monkeypatch.delenv("SDE_DATA", raising=False)
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(ImportError, match=r'pip install "sde\[images\]"'):
        locate(source("http://127.0.0.1:9/"))
