"""What the demo made so far: lines on the screen, figures and tables for the page."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from sde.cli import common
from sde.cli.demo.page import Figure, Table
from sde.metrics import sliced_wasserstein


@dataclass(frozen=True)
class Sizes:
    """How much of everything: the demo proper, or a look whether it runs."""

    components: int = 64
    data: int = 20_000
    moons_steps: int = 4000
    digits_steps: int = 3000
    width: int = 256
    samples: int = 4000
    transport: int = 1000
    repeats: int = 10
    frames: int = 120
    rows: int = 5
    image_steps: int = 20
    image_frames: int = 60


SMOKE = Sizes(
    components=8, data=200, moons_steps=20, digits_steps=20, width=16, samples=100, transport=50, repeats=2, frames=8,
    rows=1, image_steps=2, image_frames=4,
)  # fmt: skip


@dataclass
class Report:
    """Where figures go, and what there is to put on the page."""

    out: Path
    began: float = field(default_factory=time.monotonic)
    parts: list[Figure | Table | str] = field(default_factory=list)

    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.began

    def say(self, text: str) -> None:
        """A line with the seconds since the start."""
        print(f"[{self.seconds():5.1f} s] {text}", flush=True)

    def heading(self, text: str) -> None:
        """A heading, here and on the page."""
        self.parts.append(text)
        self.say(text)

    def figure(self, name: str, caption: str, made: Any) -> None:
        """Keep a picture: a matplotlib object, or a function that writes it to a path."""
        path = self.out / name
        if callable(made):
            made(path)
        else:
            common.save(made, path)
        self.parts.append(Figure(name, caption))
        self.say(f"wrote {path}")

    def table(self, table: Table) -> None:
        """Print a table, and keep it."""
        self.parts.append(table)
        print(f"\n{table}\n", flush=True)


def distance(metric: Callable[..., Tensor], a: Tensor, b: Tensor, n: int) -> float:
    """A metric of the first n of each, by the same directions for all rows of a table."""
    extra = {"generator": common.generator(0)} if metric is sliced_wasserstein else {}
    return float(metric(a[:n], b[:n], **extra))
