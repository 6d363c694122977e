"""What the measurements of a search cost."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Counters:
    """The work of one process. Losses known from the journal cost nothing.

    Attributes:
        forwards: forwards of the whole model; one that forks into many rows counts once.
        block_forwards: forwards of one block on one window or row.
        window_losses: losses of one removal on one window, without those of the check of the forked path.
        tokens: the tokens of these losses.
        bytes_read: bytes of offloaded weights that were loaded.
        seconds: time of all measurements of losses.
    """

    forwards: int = 0
    block_forwards: int = 0
    window_losses: int = 0
    tokens: int = 0
    bytes_read: int = 0
    seconds: float = 0.0
