"""Ctrl-C and SIGTERM become an `Interrupted`, at a moment when it is neither lost nor does harm."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from streamliner.errors import Interrupted

WAIT = 0.05
"""Seconds until the next attempt."""


@contextmanager
def interruptible() -> Iterator[None]:
    """While open, SIGINT and SIGTERM raise an `Interrupted` in the main thread.

    Not at once while a module is imported (what caught the exception there would go on with half a module) or an
    object is deleted (Python prints such exceptions and goes on), unless it is asked for again.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [signal.SIGINT]
    if os.environ.get("WORLD_SIZE", "1") == "1":  # a launcher stops its processes at once
        numbers.append(signal.SIGTERM)
    numbers += [signal.SIGALRM] if hasattr(signal, "setitimer") else []  # not on Windows
    waiting = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal waiting
        again = waiting and number != signal.SIGALRM
        waiting = hasattr(signal, "setitimer") and not again and _would_be_lost(frame)
        if waiting or again:
            signal.setitimer(signal.ITIMER_REAL, WAIT if waiting else 0)
        if not waiting:
            raise Interrupted("Stopped.")

    before = [signal.signal(number, interrupt) for number in numbers]
    try:
        yield
    finally:
        if waiting:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _would_be_lost(frame: FrameType | None) -> bool:
    """Whether a module is being imported or an object deleted."""
    while frame is not None:
        if frame.f_code.co_name == "__del__" or frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
