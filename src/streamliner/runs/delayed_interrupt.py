"""Ctrl-C at a moment when what is done can be kept."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def delayed_interrupt(*, enabled: bool) -> Iterator[threading.Event]:
    """While open, Ctrl-C sets the event, and takes effect at the end; a second one does at once.

    So the step ends and its state can be saved. Threads other than the main one cannot catch Ctrl-C.
    """
    asked = threading.Event()
    if not enabled or threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = signal.getsignal(signal.SIGINT)

    def note(*_: object) -> None:
        asked.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)
    if asked.is_set():
        signal.raise_signal(signal.SIGINT)
