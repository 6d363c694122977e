"""Blocks spread evenly over the stack: a control that, unlike random blocks, never removes two neighbours early."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from streamliner.measure.probe import Probe
from streamliner.search.frontier import Point
from streamliner.search.method import measured, removable


@dataclass(frozen=True)
class Evenly:
    """Remove the middle block of each of n equal parts of the stack. The score is the loss."""

    protect_first: int = 1
    protect_last: int = 1
    score: ClassVar[str] = "calibration loss, nats per token"

    def search(self, probe: Probe, limit: int) -> Iterator[Point]:
        """A set for each number of blocks, 1 to `limit`; those that the architecture does not allow are left out."""
        blocks = removable(probe, self)
        for count in range(1, limit + 1):
            part = len(blocks) / count
            removed = tuple(blocks[int((number + 0.5) * part)] for number in range(count))
            if not probe.refusal(removed):
                yield measured(probe, removed)
