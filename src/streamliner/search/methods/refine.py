"""Local search from a plan, or from the intervals."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from streamliner.errors import MethodError
from streamliner.measure.probe import Probe
from streamliner.search.frontier import Point
from streamliner.search.method import measured, removable
from streamliner.search.methods.best import similar_intervals
from streamliner.search.methods.sleb import exact_losses
from streamliner.search.neighbours import LocalSearch
from streamliner.search.plan import read_plan


@dataclass(frozen=True)
class Refine:
    """Exchange blocks of a set for others as long as the calibration loss falls.

    It starts from the plan `start` (a file or run folder), whose number of blocks must be the one asked for; without it
    from all intervals, which are raced. A step races all swaps of one block against the set; where none helps, pairs of
    the best swaps and shifts of whole runs (`neighbours.py`). At most `budget` times the losses of SLEB's exact search
    are spent. The result is never worse than its start. For fewer blocks than asked for it gives the most similar
    interval; with `every` each number is refined, with an equal share of the budget.

    References:
        Intervals by cosine, arXiv 2403.19135; like-for-like swaps, EvoPress, arXiv 2410.14649.
    """

    start: str = ""
    budget: float = 0.25
    every: bool = False
    z: float = 3.0
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
        for count in range(1, limit):
            intervals = similar_intervals(probe, candidates, count, most=None)
            if self.every:
                yield measured(probe, self._refined(probe, candidates, intervals, limit, 1 / limit))
            elif intervals:
                yield measured(probe, intervals[0])
        yield measured(probe, self._refined(probe, candidates, starts, limit, 1 / limit if self.every else 1))

    def _refined(
        self, probe: Probe, candidates: list[int], starts: list[tuple[int, ...]], limit: int, share: float
    ) -> tuple[int, ...]:
        """The best set that exchanges lead to from some starts, for a share of the budget."""
        budget = share * self.budget * exact_losses(probe, self, (), limit) * probe.num_windows
        search = LocalSearch(probe, lambda removed: not probe.refusal(removed), candidates, self.z, budget)
        search.measure(starts[:1])
        if not search.losses:
            raise MethodError("The budget is too small to measure one set.", "Give more: --set budget=0.5")
        search.race(starts[0], starts[1:])
        for start in sorted(search.losses, key=lambda each: (search.losses[each].mean, each)):
            search.climb(start)
        return search.best
