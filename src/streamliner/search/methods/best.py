"""A portfolio: SLEB's set and the intervals, then swaps of blocks, for the cost of SLEB's exact search."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from streamliner.measure.probe import Probe
from streamliner.search.frontier import Point
from streamliner.search.method import measured, removable
from streamliner.search.methods.sleb import Sleb, exact_losses
from streamliner.search.neighbours import LocalSearch

INTERVALS = 4
"""Intervals of each length that are measured, those whose streams change direction least."""


@dataclass(frozen=True)
class Best:
    """The best set that can be found for as many losses as SLEB's exact search takes.

    For each number of blocks, SLEB's greedy set (adaptive, so at a fraction of the cost) and the most similar intervals
    are measured. At the last number local search continues from these, the best first: blocks are exchanged for
    others as long as the calibration loss falls (`neighbours.py`). On that loss it is never worse than its starts.

    The search spends at most `budget` times the losses of SLEB's exact search, but always measures the greedy sets.
    With `every`, local search has an equal share of what is left at every number of blocks. `z` as for SLEB.

    References:
        SLEB, arXiv 2402.09025; intervals by cosine, arXiv 2403.19135; like-for-like swaps, EvoPress, arXiv 2410.14649.
    """

    budget: float = 1.0
    every: bool = False
    z: float = 4.0
    protect_first: int = 1
    protect_last: int = 1
    score: ClassVar[str] = "calibration loss, nats per token"

    def losses_left(self, probe: Probe, removed: tuple[int, ...], limit: int) -> int:
        """At most what SLEB's exact search takes, times `budget`."""
        return round(self.budget * exact_losses(probe, self, removed, limit))

    def search(self, probe: Probe, limit: int) -> Iterator[Point]:
        """Points of 1 to `limit` blocks; local search is spent on the last, or with `every` on all."""
        greedy = Sleb(effort="adaptive", z=self.z, protect_first=self.protect_first, protect_last=self.protect_last)
        candidates = removable(probe, self)
        search = LocalSearch(probe, lambda removed: not probe.refusal(removed), candidates, self.z, 0)
        left: float = self.losses_left(probe, (), limit) * probe.num_windows
        for point in greedy.search(probe, limit):
            count = len(point.removed)
            left -= point.window_losses or 0
            # What the greedy sets may still take is not spent.
            most = left - greedy.losses_left(probe, point.removed, limit) * probe.num_windows
            search.budget = before = most / (limit - count + 1) if self.every else most
            search.losses = {tuple(sorted(point.removed)): probe.loss(point.removed)}
            search.measure(similar_intervals(probe, candidates, count))
            if count == limit or self.every:
                for start in sorted(search.losses, key=lambda each: (search.losses[each].mean, each)):
                    search.climb(start)
            left -= before - search.budget
            best = search.best
            yield point if best == tuple(sorted(point.removed)) else measured(probe, best)


def similar_intervals(
    probe: Probe, candidates: list[int], count: int, most: int | None = INTERVALS
) -> list[tuple[int, ...]]:
    """Intervals that may be removed across which the stream changes direction least, the least first; None for all."""
    cosine = probe.similarity().cosine
    starts = [block for block in candidates if {*range(block, block + count)} <= {*candidates}]
    starts.sort(key=lambda start: (-cosine[start, start + count].item(), start))
    intervals = [tuple(range(start, start + count)) for start in starts]
    return [interval for interval in intervals if not probe.refusal(interval)][:most]
