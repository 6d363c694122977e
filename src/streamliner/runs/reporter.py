"""Where messages and progress go: the terminal for the command line, nowhere for Python users."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol


class Reporter(Protocol):
    """Shows messages and progress."""

    def say(self, message: str) -> None:
        """Show a message."""

    def progress(self, label: str) -> AbstractContextManager[Callable[[int, int], None]]:
        """A progress bar. The context yields a function to call with (done, total)."""

    def training(self, steps: int) -> AbstractContextManager[Callable[[dict[str, Any]], None]]:
        """The progress of a training. The context yields a function to call with each step's row of the history."""


class Silent:
    """A reporter that shows nothing."""

    def say(self, message: str) -> None:
        """Show nothing."""

    def progress(self, label: str) -> AbstractContextManager[Callable[[int, int], None]]:
        """Show nothing."""
        return nullcontext(lambda done, total: None)

    def training(self, steps: int) -> AbstractContextManager[Callable[[dict[str, Any]], None]]:
        """Show nothing."""
        return nullcontext(lambda row: None)
