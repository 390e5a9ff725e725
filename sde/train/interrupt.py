"""Ctrl-C between two steps and never inside one, where weights, optimizer and generator belong to different steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def deferred() -> Iterator[Callable[[], None]]:
    """Hold back Ctrl-C until the loop calls what this gives; a second one comes through at once.

    Nothing is changed outside the main thread, nor where Ctrl-C has a handler of somebody else's.

    Example:
        >>> import signal
        >>> try:
        ...     with deferred() as check:
        ...         signal.raise_signal(signal.SIGINT)
        ...         print("the step is finished")
        ...         check()
        ... except KeyboardInterrupt:
        ...     print("and now the loop stops")
        the step is finished
        and now the loop stops
    """
    asked = False

    def remember(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    def check() -> None:
        if asked:
            raise KeyboardInterrupt

    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield check
        return
    signal.signal(signal.SIGINT, remember)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
