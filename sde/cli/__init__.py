"""The command line: `sde COMMAND ...`, which is `python -m sde COMMAND ...`.

Commands are imported when they are called. What a user can mend is printed without a traceback and exits with status 2;
SDE_TRACEBACK=1 in the environment shows where it came from.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

HELP = """\
sde: generative models by stochastic differential equations

  sde demo                                    train, sample and draw two moons, then digits, in two minutes
  sde demo images                             digits and clothes by networks that come with the package
  sde train  RECIPE [key=value ...]           sde train moons steps=500 sde=EDM model.width=64
  sde sample CHECKPOINT [key=value ...]       sde sample out/train/moons/model.safetensors n=1000 solver=DDIM steps=50
  sde restore TASK IMAGE [key=value ...]      inpaint, denoise, super-resolve, colorize or deblur an image
  sde plot   FILE [key=value ...]             sde plot out/train/moons/model.safetensors what=score
  sde list   [KIND]                           SDEs, solvers, data sets, networks, recipes and what they can be told

  sde COMMAND --help    every key with its default
  sde --version

Small networks gain nothing from threads, so one is used; OMP_NUM_THREADS=8 in the environment gives a large one eight.
"""

COMMANDS = {
    "demo": ("demo", "demo"),
    "train": ("train", "train"),
    "sample": ("sample", "sample"),
    "restore": ("restore", "restore"),
    "plot": ("plot", "plot"),
    "list": ("listing", "listing"),
}
"""Command to its module and function."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status: 0, 2 for a mistake, 130 after Ctrl-C.

    Args:
        argv: The words after `sde`; those of the process by default.

    Example:
        >>> main(["--version"])
        sde 0.1.0
        0
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if argv[0] in ("-V", "--version", "version"):
        from sde import __version__

        print(f"sde {__version__}")
        return 0
    from sde.cli.mistakes import Mistake, unknown

    # Files are written, no window is opened: without this, matplotlib looks for a screen.
    if "matplotlib" not in sys.modules:
        os.environ.setdefault("MPLBACKEND", "Agg")
    try:
        if argv[0] not in COMMANDS:
            raise unknown("command", argv[0], COMMANDS, "`sde --help` says more")
        module, function = COMMANDS[argv[0]]
        with _threads():
            return getattr(importlib.import_module(f"sde.cli.{module}"), function)(argv[1:])
    except SystemExit as end:  # of --help, or of a flag that tyro refuses
        return end.code if isinstance(end.code, int) else 2
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (Mistake, ValueError, TypeError, OSError) as error:
        if os.environ.get("SDE_TRACEBACK"):
            raise
        hint = "" if isinstance(error, Mistake) else "\n(SDE_TRACEBACK=1 shows where)"
        print(f"sde: {error}{hint}", file=sys.stderr)
        return 2


@contextmanager
def _threads() -> Iterator[None]:
    """One thread, unless the environment says: threads that wait for each other on a busy machine are far slower."""
    import torch

    before = torch.get_num_threads()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
