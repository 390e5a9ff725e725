"""A long draw in parts: finished batches in a folder, so that it goes on where it was stopped, on one GPU or several.

Every batch is a file of its own, written whole or not at all. Beside them lies what they were drawn with: batches of
another model or of other settings are never mixed with these.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sde.cli.common import process
from sde.cli.mistakes import Mistake
from sde.train.checkpoint import write_whole

SETTINGS = "settings.json"


class Parts:
    """Batches of a draw of n samples in a folder.

    Args:
        folder: Where they lie.
        settings: What they are drawn with, as plain values.
        n: Samples in all.
        batch: Samples in a part.
        anew: Whether to begin anew though the folder is there.

    Raises:
        Mistake: If the folder holds parts of another draw.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], n: int, batch: int, anew: bool = False) -> None:
        self.folder, self.starts, self.n, self.batch = folder, range(0, n, batch), n, batch
        if anew and process()[1] > 1:  # one would remove what another has just drawn
            raise Mistake(
                f"resume=false is for one process: remove {folder} if there is one, and leave resume=false out"
            )
        if anew:
            shutil.rmtree(folder, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        text, path = json.dumps(settings, indent=1, sort_keys=True), folder / SETTINGS
        if not path.exists():
            write_whole(path, text.encode())
        self._same(json.loads(text), path)

    def _same(self, settings: Mapping[str, Any], path: Path) -> None:
        try:
            old = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            old = {}
        changed = [k for k in sorted({*old, *settings}) if old.get(k) != settings.get(k)]
        if changed:
            was = ", ".join(f"{k} was {old.get(k, 'none')!r}, now {settings.get(k, 'none')!r}" for k in changed)
            raise Mistake(
                f"{self.folder} holds a part of another draw ({was}): pass another out=, or resume=false to begin anew"
            )

    def path(self, start: int) -> Path:
        """Of the batch that begins with a sample."""
        return self.folder / f"{start:09d}.safetensors"

    def done(self) -> int:
        """Samples that are there."""
        return sum(min(self.batch, self.n - start) for start in self.starts if self.path(start).exists())

    def missing(self) -> Iterator[range]:
        """Batches that this process has to draw: every so-manyth of those that are not there."""
        rank, processes = process()
        for start in self.starts[rank::processes]:
            if not self.path(start).exists():
                yield range(start, min(start + self.batch, self.n))

    def put(self, batch: range, x: Tensor) -> None:
        """A finished batch."""
        from safetensors.torch import save

        write_whole(self.path(batch.start), save({"x": x.contiguous()}))

    def wait(self, advance: Callable[[int], object], patience: float = 3600.0) -> None:
        """Until the batches of the other processes are there, too.

        Raises:
            Mistake: If nothing new has come for so many seconds.
        """
        there, since = self.done(), time.monotonic()
        while there < self.n:
            time.sleep(0.2)
            now = self.done()
            if now > there:
                advance(now - there)
                there, since = now, time.monotonic()
            if time.monotonic() - since > patience:
                raise Mistake(f"{self.folder} lacks {self.n - there} samples of processes that seem to have stopped")

    def __iter__(self) -> Iterator[Tensor]:
        """All batches in order."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        for start in self.starts:
            try:
                yield load_file(self.path(start))["x"]
            except (SafetensorError, KeyError, OSError) as error:
                raise Mistake(f"{self.path(start)} is damaged ({error}): remove it, and call again") from error

    def remove(self) -> None:
        """The folder, once its samples are elsewhere."""
        shutil.rmtree(self.folder, ignore_errors=True)
