"""A beam: SLEB that keeps several sets from round to round instead of one."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from streamliner.measure.probe import Probe
from streamliner.search.frontier import Point
from streamliner.search.method import measured, removable


@dataclass(frozen=True)
class Beam:
    """Remove one block at a time, and keep the `width` best sets of each round: the next round extends all of them.

    With width 1 it is SLEB, and it costs at most `width` times as many losses. The best set of a round need not contain
    the best one of the round before.
    """

    width: int = 3
    protect_first: int = 1
    protect_last: int = 1
    score: ClassVar[str] = "calibration loss, nats per token"

    def losses_left(self, probe: Probe, removed: tuple[int, ...], limit: int) -> int:
        """One loss per kept set and candidate; sets that two kept sets lead to are measured once."""
        candidates = len(removable(probe, self, removed))
        return sum(self.width * (candidates - done) for done in range(limit - len(removed)))

    def search(self, probe: Probe, limit: int) -> Iterator[Point]:
        """Points of 1 to `limit` blocks."""
        kept: list[tuple[int, ...]] = [()]
        for _ in range(limit):
            longer = {tuple(sorted((*each, block))) for each in kept for block in removable(probe, self, each)}
            if not longer:
                return
            losses = probe.losses(sorted(longer))
            kept = sorted(losses, key=lambda each: (losses[each].mean, each))[: self.width]
            yield measured(probe, kept[0])
