"""How far a search is."""

from __future__ import annotations

from collections.abc import Callable


class Progress:
    """Losses of one window each: how many are done, and how many are still needed.

    Args:
        on_change: called with (done, total) after each change of `done`.

    Attributes:
        done: losses measured or known.
        remaining: losses that will still be asked for, as far as known.
    """

    def __init__(self, on_change: Callable[[int, int], None] | None = None) -> None:
        self.done = self.remaining = 0
        self._on_change = on_change

    def advance(self, losses: int) -> None:
        """Count `losses` as done."""
        if not losses:
            return
        self.done += losses
        self.remaining = max(0, self.remaining - losses)
        if self._on_change:
            self._on_change(self.done, self.done + self.remaining)
