"""The control: blocks at random. A method that does not beat it knows nothing."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from streamliner.measure.probe import Probe
from streamliner.search.frontier import Point
from streamliner.search.method import growing, measured, removable


@dataclass(frozen=True)
class Random:
    """Remove blocks in a random order that `seed` decides. The score is the loss, which the choice does not look at."""

    seed: int = 0
    protect_first: int = 1
    protect_last: int = 1
    score = "calibration loss, nats per token"

    def search(self, probe: Probe, limit: int) -> Iterator[Point]:
        """Points of 1 to `limit` blocks; each contains the one before."""
        order = removable(probe, self)
        random.Random(self.seed).shuffle(order)
        probe.expect(limit)
        for removed in growing(probe, order, limit):
            yield measured(probe, removed)
