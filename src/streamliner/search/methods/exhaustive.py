"""Every set of blocks: the optimum on the calibration set, to compare methods with. Small stacks only."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from streamliner.errors import MethodError
from streamliner.measure.loss import Loss
from streamliner.measure.probe import Probe
from streamliner.search.frontier import Point

TOGETHER = 64
"""Sets that are measured in one forward per window. A killed search loses at most these."""


@dataclass(frozen=True)
class Exhaustive:
    """For each n, the set of n blocks without which the loss is smallest, by trying all sets.

    Refused where there are more than `most_sets` of them.
    """

    most_sets: int = 20_000
    protect_first: int = 1
    protect_last: int = 1
    score: ClassVar[str] = "calibration loss, nats per token"

    def losses_left(self, probe: Probe, removed: tuple[int, ...], limit: int) -> int:
        """The number of sets that are larger than `removed`."""
        candidates = probe.num_blocks - self.protect_first - self.protect_last
        return sum(math.comb(candidates, count) for count in range(len(removed) + 1, limit + 1))

    def search(self, probe: Probe, limit: int) -> Iterator[Point]:
        """The best set of each size 1 to `limit`."""
        candidates = range(self.protect_first, probe.num_blocks - self.protect_last)
        sets = self.losses_left(probe, (), limit)
        if sets > self.most_sets:
            tried = f"An exhaustive search of up to {limit} of {len(candidates)} blocks tries {sets} sets"
            hint = f"Remove fewer blocks, or allow it: --set most_sets={sets}"
            raise MethodError(f"{tried}, more than most_sets {self.most_sets}.", hint)
        for count in range(1, limit + 1):
            allowed = [each for each in itertools.combinations(candidates, count) if not probe.refusal(each)]
            losses: dict[tuple[int, ...], Loss] = {}
            for start in range(0, len(allowed), TOGETHER):
                losses |= probe.losses(allowed[start : start + TOGETHER])
            if not losses:
                continue
            best = min(losses, key=lambda chosen: (losses[chosen].mean, chosen))
            yield Point(best, losses[best].mean, losses[best].mean, losses[best].standard_error)
