"""Ctrl-C during training waits for the end of the step, so that the state can be saved."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Interrupt:
    """While open, Ctrl-C sets `asked`, and a second one takes effect at once. Threads cannot catch it.

    Args:
        enabled: False to change nothing.
    """

    def __init__(self, *, enabled: bool) -> None:
        self.asked = False
        self._enabled = enabled and threading.current_thread() is threading.main_thread()
        self._before: Any = None

    def __enter__(self) -> Interrupt:
        if self._enabled:
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *error: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._enabled:
            signal.signal(signal.SIGINT, self._before)

    def take_effect(self) -> None:
        """Do what Ctrl-C does otherwise."""
        signal.signal(signal.SIGINT, self._before)
        signal.raise_signal(signal.SIGINT)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            self.take_effect()
        self.asked = True
