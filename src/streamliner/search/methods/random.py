"""The control: random blocks. A method that is not better knows nothing about the model."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from streamliner.measure.probe import Probe
from streamliner.search.frontier import Point
from streamliner.search.method import removable, remove_in_order


@dataclass(frozen=True)
class Random:
    """Remove blocks in a random order, which depends on `seed` alone. The score is the loss."""

    seed: int = 0
    protect_first: int = 1
    protect_last: int = 1
    score: ClassVar[str] = "calibration loss, nats per token"

    def search(self, probe: Probe, limit: int) -> Iterator[Point]:
        """Points of 1 to `limit` blocks; each contains the one before."""
        order = removable(probe, self)
        random.Random(self.seed).shuffle(order)
        return remove_in_order(probe, order, None, limit)
