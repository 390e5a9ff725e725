"""A bar for what takes long, and none for what does not."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def bar(total: int | None, what: str, unit: str, progress: bool | None) -> Iterator[Callable[[int], None]]:
    """A function that counts; it shows a bar if asked to, or by default once two seconds have passed.

    Example:
        >>> with bar(10, "images", "image", progress=False) as done:
        ...     done(10)
    """
    shown: Any = None
    began, done = time.monotonic(), 0

    def count(more: int) -> None:
        nonlocal shown, done
        done += more
        if shown is None and progress is not False and (progress or time.monotonic() - began > 2):
            from tqdm.auto import tqdm

            shown = tqdm(total=total, initial=done, desc=what, unit=unit, leave=False)
        elif shown is not None:
            shown.update(more)

    try:
        yield count
    finally:
        if shown is not None:
            shown.close()
