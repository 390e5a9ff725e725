"""`sde demo`: noise becomes two moons, then handwritten digits, by the same lines.

The lines are in `core`; `moons` and `digits` hold what they make against the truth, and draw it. `sde demo images`
draws with networks that come with the package (`images`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from sde.cli.config import Demo
from sde.cli.demo.digits import digits
from sde.cli.demo.images import NETWORKS, images
from sde.cli.demo.moons import moons
from sde.cli.demo.page import write
from sde.cli.demo.report import SMOKE, Report, Sizes
from sde.cli.mistakes import Mistake
from sde.cli.parse import parse


def demo(argv: Sequence[str]) -> int:
    """Run the command; 0 if all went well."""
    subject, config = parse(Demo, "demo", argv)
    if subject not in (None, "images"):
        raise Mistake(f"sde demo takes `images` or nothing, and key=value, not {subject!r}: see `sde demo --help`")
    size = SMOKE if config.smoke or os.environ.get("SDE_SMOKE", "0") not in ("", "0") else Sizes()
    out = config.out / "images" if subject else config.out
    out.mkdir(parents=True, exist_ok=True)
    report = Report(out)
    if subject:
        with threads():
            images(report, size, config.seed)
        first, more = f"3-{list(NETWORKS)[1]}.png", f"sde sample {list(NETWORKS)[1]} n=100 out=images"
    else:
        moons(report, size, config.seed)
        if config.digits:
            digits(report, size, config.seed)
        first, more = "sde-ode.gif", f"sde sample {out / 'moons.safetensors'}"
    index = write(out / "index.html", report.parts, first=first)
    report.say(f"done: open {index} in a browser; more samples by `{more}`")
    return 0


@contextmanager
def threads() -> Iterator[None]:
    """All the processor's cores, which convolutions make use of."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(before, min(8, os.cpu_count() or 1)))
    try:
        yield
    finally:
        torch.set_num_threads(before)
