"""Where messages and progress go."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol


class Reporter(Protocol):
    """Where messages and progress go."""

    def say(self, message: str) -> None:
        """Tell the user something."""

    def progress(self, label: str) -> AbstractContextManager[Callable[[int, int], None]]:
        """A context that gives a function to call with (done, total)."""

    def training(self, steps: int) -> AbstractContextManager[Callable[[dict[str, Any]], None]]:
        """A context that gives a function to call with what happened in each step (`heal.train`)."""


class Silent:
    """A reporter for use as a library: says nothing."""

    def say(self, message: str) -> None:
        """Nothing."""

    def progress(self, label: str) -> AbstractContextManager[Callable[[int, int], None]]:
        """Nothing."""
        return nullcontext(lambda done, total: None)

    def training(self, steps: int) -> AbstractContextManager[Callable[[dict[str, Any]], None]]:
        """Nothing."""
        return nullcontext(lambda row: None)
