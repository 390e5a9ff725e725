"""Mistakes that the reader of a message can mend: what is wrong, what was probably meant, what there is."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class Mistake(Exception):
    """A mistake on the command line or in a recipe: printed without a traceback, exit status 2."""


def unknown(kind: str, got: str, known: Iterable[str], more: str = "") -> Mistake:
    """The mistake of a name that is not there.

    Args:
        kind: What the name should be the name of.
        got: The name.
        known: All that there are.
        more: A further sentence.

    Example:
        >>> print(unknown("SDE", "edmm", ["VP", "EDM"]))
        unknown SDE 'edmm', did you mean EDM? There are: VP, EDM
        >>> print(unknown("data set", "sun", ["moons", "circles"]))
        unknown data set 'sun'. There are: moons, circles
    """
    by_lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(got.lower(), by_lower, n=1)
    meant = f", did you mean {by_lower[close[0]]}?" if close else "."
    return Mistake(f"unknown {kind} {got!r}{meant} {listed(by_lower.values(), more)}")


def listed(names: Iterable[str], more: str = "") -> str:
    """What there is, as a sentence.

    Example:
        >>> listed(["a", "b"], "Take one")
        'There are: a, b. Take one'
    """
    there = ", ".join(names)
    return (f"There are: {there}" if there else "There is none") + (f". {more}" if more else "")
