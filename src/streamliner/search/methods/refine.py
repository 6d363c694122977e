"""Local search from a plan, or from the intervals."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from streamliner.errors import MethodError
from streamliner.measure.probe import Probe
from streamliner.search.frontier import Point
from streamliner.search.method import measured, removable
from streamliner.search.methods.best import similar_intervals
from streamliner.search.methods.sleb import Sleb, exact_losses
from streamliner.search.neighbours import LocalSearch
from streamliner.search.plan import read_plan


@dataclass(frozen=True)
class Refine:
    """Exchange blocks of a set for others as long as the calibration loss falls.

    It starts from the plan `start` (a file or run folder), whose number of blocks must be the one asked for. Without it
    there are two kinds of starts: all intervals, which are raced; and, where the budget is enough, an interval of at
    least half the blocks, that whose loss rises least per block, to which SLEB's adaptive search adds the others.
    A step races all swaps of one block against the set; where none helps, pairs of the best swaps and shifts of whole
    runs (`neighbours.py`). At most `budget` times the losses of SLEB's exact search are spent. The result is never
    worse than its start. For fewer blocks than asked for it gives the most similar interval; with `every` each number
    is refined, with an equal share of the budget.

    References:
        Intervals by cosine, arXiv 2403.19135; like-for-like swaps, EvoPress, arXiv 2410.14649.
    """

    start: str = ""
    budget: float = 0.25
    every: bool = False
    z: float = 4.0
    protect_first: int = 1
    protect_last: int = 1
    score: ClassVar[str] = "calibration loss, nats per token"

    def losses_left(self, probe: Probe, removed: tuple[int, ...], limit: int) -> int:
        """At most `budget` times those of SLEB's exact search."""
        own = round(self.budget * exact_losses(probe, self, (), limit))
        return 0 if len(removed) == limit else own + limit - 1 - len(removed)

    def search(self, probe: Probe, limit: int) -> Iterator[Point]:
        """Points of 1 to `limit` blocks: below the last the most similar interval, or with `every` refined sets.

        A MethodError if the plan has another number of blocks than the last.
        """
        candidates = removable(probe, self)
        starts = similar_intervals(probe, candidates, limit, most=None)
        if self.start:
            starts = [read_plan(self.start).removed]
            if len(starts[0]) != limit:
                raise MethodError(
                    f"The plan {self.start} removes {len(starts[0])} blocks, but you asked for {limit}.",
                    f"Use --remove {len(starts[0])}.",
                )
        budget = self.budget * exact_losses(probe, self, (), limit) * probe.num_windows
        if self.every:
            budget /= limit
        smaller: list[Point] = []
        for count in range(1, limit):
            intervals = similar_intervals(probe, candidates, count, most=None)
            if self.every:
                smaller.append(measured(probe, self._refined(probe, candidates, count, intervals, smaller, budget)))
                yield smaller[-1]
            elif intervals:
                smaller.append(measured(probe, intervals[0]))
                yield smaller[-1]
        yield measured(probe, self._refined(probe, candidates, limit, starts, [] if self.start else smaller, budget))

    def _refined(
        self,
        probe: Probe,
        candidates: list[int],
        count: int,
        starts: list[tuple[int, ...]],
        smaller: list[Point],
        budget: float,
    ) -> tuple[int, ...]:
        """The best set of `count` blocks that exchanges lead to from starts, and from a smaller set that grows."""
        grown, spent = self._grown(probe, smaller, count, budget)
        if not (starts := grown + starts):  # blocks that stay divide the stack into runs shorter than this
            starts, more = self._extended(probe, smaller[-1].removed if smaller else (), count, math.inf)
            budget = max(budget, spent + more + probe.num_windows)  # one set is measured, whatever it took to find it
            spent += more
        if not starts:
            raise MethodError(f"No set of {count} blocks was found that can be removed.", "Use --method sleb.")
        search = LocalSearch(probe, lambda removed: not probe.refusal(removed), candidates, self.z, budget - spent)
        search.measure(starts[:1])
        if not search.losses:
            raise MethodError("The budget is too small to measure one set.", "Give more: --set budget=0.5")
        search.race(starts[0], starts[1:])
        for start in sorted(search.losses, key=lambda each: (search.losses[each].mean, each)):
            search.climb(start)
        return search.best

    def _grown(
        self, probe: Probe, smaller: list[Point], limit: int, budget: float
    ) -> tuple[list[tuple[int, ...]], int]:
        """The best start among smaller sets of at least half the blocks, extended to `limit`; see `_extended`."""
        smaller = [point for point in smaller if limit <= 2 * len(point.removed)]
        if not smaller:
            return [], 0
        dense = probe.loss().mean
        removed = min(smaller, key=lambda point: (point.score - dense) / len(point.removed)).removed
        return self._extended(probe, removed, limit, budget)

    def _extended(
        self, probe: Probe, removed: tuple[int, ...], limit: int, budget: float
    ) -> tuple[list[tuple[int, ...]], int]:
        """A set with other blocks as SLEB adds them, or none if that may exceed the budget; and the losses spent.

        Losses are of one set on one window.
        """
        spent = 0
        greedy = Sleb(effort="adaptive", z=self.z, protect_first=self.protect_first, protect_last=self.protect_last)
        rounds = greedy.extend(probe, removed, limit)
        while len(removed) < limit:
            # All candidates of the round on all windows, and one set for what comes after it.
            most = (len(removable(probe, self, removed)) + 1) * probe.num_windows
            point = next(rounds, None) if most <= budget - spent else None
            if point is None:
                return [], spent
            removed, spent = point.removed, spent + (point.window_losses or 0)
        return [tuple(sorted(removed))], spent
