"""What the measurements of a search cost, and how far they are."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class Counters:
    """The work of one process. Losses known from the journal cost nothing."""

    forwards: int = 0  # of the whole model; one that forks into many rows counts once
    block_forwards: int = 0  # of one block on one window or row
    window_losses: int = 0  # of one removal on one window, without those of the check of the forked path
    tokens: int = 0  # of these losses
    bytes_read: int = 0  # of offloaded weights
    seconds: float = 0.0  # of all measurements of losses


@dataclass
class Progress:
    """Losses of one window each: how many are done, and how many will still be asked for, as far as known."""

    on_change: Callable[[int, int], None] | None = None  # called with (done, total) after each change of `done`
    done: int = 0
    remaining: int = 0

    def advance(self, losses: int) -> None:
        """Count `losses` as done."""
        self.done += losses
        self.remaining = max(0, self.remaining - losses)
        if losses and self.on_change:
            self.on_change(self.done, self.done + self.remaining)
