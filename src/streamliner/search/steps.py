"""Search in steps: the next blocks are chosen on the model that was repaired without those found before."""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from streamliner.measure.probe import Probe
from streamliner.search.frontier import Point
from streamliner.search.method import Method


@dataclass(frozen=True)
class Steps:
    """A search of `every` blocks at a time.

    The losses of a step are those of the repaired model without more blocks, which are not repaired yet.

    Attributes:
        every: blocks of a step; the last may have fewer.
        fold: name of the repair.
        repaired: measurements of the model without some blocks, ascending, and repaired. It has only the kept blocks,
            and its block 0 is the first of these.
    """

    every: int
    fold: str
    repaired: Callable[[tuple[int, ...]], Probe]

    @property
    def settings(self) -> dict[str, Any]:
        """What a frontier and a plan record of it, next to the settings of the method."""
        return {"fold": self.fold, "fold_every": self.every}

    def search(self, method: Method, probe: Probe, limit: int) -> Iterator[Point]:
        """The points of 1 to `limit` blocks, by their indices in the dense model, which `probe` measures."""
        removed: tuple[int, ...] = ()
        while len(removed) < limit:
            before, count = removed, min(self.every, limit - len(removed))
            kept = [block for block in range(probe.num_blocks) if block not in before]
            for point in method.search(self.repaired(tuple(sorted(before))) if before else probe, count):
                found = _in_dense(point, before, kept)
                removed = found.removed
                yield found
            if len(removed) < len(before) + count:
                return


def _in_dense(point: Point, before: tuple[int, ...], kept: list[int]) -> Point:
    """A point of the model that has only the blocks `kept`, as a point of the dense model."""
    removed = (*before, *(kept[block] for block in point.removed))
    scores = point.candidates
    candidates = None if scores is None else {kept[block]: score for block, score in scores.items()}
    return dataclasses.replace(point, removed=removed, candidates=candidates)
