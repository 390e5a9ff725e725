"""Bringing in the peers: what is absent is skipped with a reason, never a crash."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import TextIO, TypeVar
from unittest.mock import MagicMock

PACKAGES = (
    "torchdiffeq",
    "flow-matching",
    "torchcfm",
    "azula",
    "diffusers",
    "k-diffusion",
    "smalldiffusion",
    "torchsde",
)
T = TypeVar("T")


def bring(name: str, attempts: int = 30) -> ModuleType:
    """A peer's module, with an empty stand-in for whatever *it* imports that is not installed.

    k-diffusion and smalldiffusion import image tools (torchvision, clip, ...) at their top, for parts that are not
    measured here.

    Raises:
        ImportError: If the peer itself is not installed.
    """
    own, stand_ins = name.split(".")[0], []
    try:
        for _ in range(attempts):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    return importlib.import_module(name)
            except ModuleNotFoundError as error:
                missing = error.name or ""
                if not missing or missing.split(".")[0] == own:
                    raise
                for loaded in [m for m in sys.modules if m.split(".")[0] == own]:
                    del sys.modules[loaded]
                sys.modules[missing] = MagicMock(name=missing)
                stand_ins.append(missing)
    finally:
        for missing in stand_ins:  # nobody else may take them for the real thing
            sys.modules.pop(missing, None)
    raise ImportError(f"{name} asks for more than {attempts} modules that are not installed")


def collect(makers: dict[str, Callable[[], list[T]]], skipped: list[str]) -> list[T]:
    """What the makers make; a maker that cannot import its peer, or fails in it, adds a line to `skipped`."""
    made: list[T] = []
    for name, make in makers.items():
        try:
            made += make()
        except ImportError as error:
            skipped.append(f"{name}: not installed ({error})")
        except Exception as error:  # a peer's own change of interface must not end the run
            skipped.append(f"{name}: failed with {type(error).__name__}: {error}")
    return made


@contextmanager
def quiet() -> Iterator[None]:
    """Progress bars are drawn, and nobody sees them: their cost counts, their lines do not."""
    before, sys.stderr = sys.stderr, _nowhere()
    try:
        yield
    finally:
        sys.stderr = before


@cache
def _nowhere() -> TextIO:
    """Open to the end: a bar that was made in the quiet goes on writing there."""
    return open(os.devnull, "w")
