r"""Interleaved timing, and the tables made of it.

On a machine that others use, a time taken now and a time taken in a minute do not compare. So candidates take turns,

    A B C  A B C  A B C ...

each turn lasting a few milliseconds of CPU time, and what is kept of a candidate is the least of its turns: noise only
ever adds. Ratios are made within one run of the process; between runs and machines only ratios are worth comparing.
"""

from __future__ import annotations

import gc
import math
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

Run = Callable[[], object]


@dataclass
class Turns:
    """CPU seconds of one call, for each turn of a candidate."""

    seconds: list[float] = field(default_factory=list)

    @property
    def least(self) -> float:
        return min(self.seconds)

    @property
    def spread(self) -> float:
        """Median above the least, as a fraction: how disturbed the machine was."""
        return statistics.median(self.seconds) / self.least - 1


def interleave(
    runs: Mapping[str, Run],
    rounds: int,
    at_least: float = 4e-3,
    clock: Callable[[], float] = time.process_time,
    longest: float = math.inf,
) -> dict[str, Turns]:
    """Let candidates take turns.

    Args:
        runs: Name to a call that does its whole work.
        rounds: Turns of each.
        at_least: CPU seconds of a turn: a shorter call is repeated within its turn, and its mean taken.
        clock: CPU time of the process, so that other processes are not counted.
        longest: A call longer than this many seconds gets three turns only.
    """
    for run in runs.values():  # the first call pays for imports and caches
        run()
    once = {name: _timed(run, 1, clock) for name, run in runs.items()}
    repeats = {name: max(1, math.ceil(at_least / max(t, 1e-7))) for name, t in once.items()}
    turns = {name: Turns() for name in runs}
    gc.collect()
    gc.disable()
    try:
        for i in range(rounds):
            for name, run in runs.items():
                if once[name] <= longest or i < 3:
                    turns[name].seconds.append(_timed(run, repeats[name], clock))
            gc.collect()
    finally:
        gc.enable()
    return turns


def _timed(run: Run, repeats: int, clock: Callable[[], float]) -> float:
    start = clock()
    for _ in range(repeats):
        run()
    return (clock() - start) / repeats


def table(header: Sequence[str], rows: Iterable[Sequence[object]], left: int = 1) -> str:
    """A Markdown table; the first `left` columns are words and the rest numbers.

    Example:
        >>> print(table(["what", "us"], [["bare", 6.5]]))
        | what | us |
        |---|---:|
        | bare | 6.5 |
    """
    lines = [list(map(str, header)), ["---"] * left + ["---:"] * (len(header) - left)]
    lines += [[str(cell) for cell in row] for row in rows]
    if any(len(line) != len(header) for line in lines):
        raise ValueError(f"rows must have {len(header)} cells each, as the header has: {list(header)}")
    rule = "|" + "|".join(lines[1]) + "|"
    return "\n".join(rule if i == 1 else "| " + " | ".join(line) + " |" for i, line in enumerate(lines))


def number(value: float | None, digits: int = 3) -> str:
    """A number in so many significant digits without exponent; a dash for none."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"


def machine() -> str:
    """Date, processor and versions, in one line; nothing that names the machine."""
    cores = os.cpu_count()
    return (
        f"{date.today().isoformat()}, {_processor()}, {cores} cores, {torch.get_num_threads()} thread used, "
        f"Python {platform.python_version()}, torch {torch.__version__}"
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def versions(packages: Iterable[str]) -> str:
    """`name version` of those that are installed."""
    found = []
    for name in packages:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def spread(run: Callable[..., Any], asked: Sequence[tuple], jobs: int) -> Iterable[Any]:
    """`run` of each, in order, over so many processes of one thread; put what takes longest first."""
    if jobs <= 1:
        yield from (run(*each) for each in asked)
        return
    fresh = multiprocessing.get_context("spawn")  # a fork would inherit torch's threads
    with ProcessPoolExecutor(jobs, fresh, torch.set_num_threads, (1,)) as pool:
        begun = [pool.submit(run, *each) for each in asked]
        yield from (each.result() for each in begun)
