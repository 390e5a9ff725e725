"""`sde demo`: noise becomes two moons, then handwritten digits, by the same lines.

The lines are in `core`; `moons` and `digits` hold what they make against the truth, and draw it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from sde.cli.config import Demo
from sde.cli.demo.digits import digits
from sde.cli.demo.moons import moons
from sde.cli.demo.page import write
from sde.cli.demo.report import SMOKE, Report, Sizes
from sde.cli.mistakes import Mistake
from sde.cli.parse import parse


def demo(argv: Sequence[str]) -> int:
    """Run the command; 0 if all went well."""
    subject, config = parse(Demo, "demo", argv)
    if subject is not None:
        raise Mistake(f"sde demo takes key=value and no {subject!r}: see `sde demo --help`")
    size = SMOKE if config.smoke or os.environ.get("SDE_SMOKE", "0") not in ("", "0") else Sizes()
    config.out.mkdir(parents=True, exist_ok=True)
    report = Report(config.out)
    moons(report, size, config.seed)
    if config.digits:
        digits(report, size, config.seed)
    index = write(config.out / "index.html", report.parts, first="sde-ode.gif")
    report.say(f"done: open {index} in a browser; more samples by `sde sample {config.out / 'moons.safetensors'}`")
    return 0
