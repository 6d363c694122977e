"""EvoPress: Sieberling et al., "EvoPress: Towards Optimal Dynamic Model Compression via Evolutionary Search"."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from streamliner.errors import MethodError
from streamliner.measure.probe import Probe
from streamliner.search.frontier import Point
from streamliner.search.method import measured, removable
from streamliner.search.methods.best import similar_intervals
from streamliner.search.methods.sleb import Sleb

Set = tuple[int, ...]
STAGES = ((1 / 8, 1 / 4), (1 / 2, 1 / 16), (1.0, 0.0))
"""Selection: a share of the windows, and the share of the offspring that goes on to the next stage (at least one)."""


@dataclass(frozen=True)
class Evolution:
    """Evolve a set of blocks: offspring exchange 1 to `most_swaps` blocks for others, like for like, at random.

    The first parent is the best of `starts` random sets and of the most similar intervals. Of the `offspring` of a
    generation those that do best on an eighth of the windows go on to half of them, and the best of these are measured
    on all, next to the parent: so it is never worse than its starts. It ends when `budget` times the losses of SLEB's
    exact search are spent. The result depends on `seed`.

    References:
        arXiv 2410.14649, algorithm 1 and section 3 (there the objective is KL, and there is one start).
    """

    offspring: int = 32
    most_swaps: int = 3
    starts: int = 8
    budget: float = 1.0
    seed: int = 0
    every: bool = False
    protect_first: int = 1
    protect_last: int = 1
    score: ClassVar[str] = "calibration loss, nats per token"

    def __post_init__(self) -> None:
        if min(self.offspring, self.most_swaps, self.starts) < 1:
            raise MethodError("offspring, most_swaps and starts must be at least 1.")

    def losses_left(self, probe: Probe, removed: Set, limit: int) -> int:
        """At most `budget` times those of SLEB's exact search."""
        exact = Sleb(protect_first=self.protect_first, protect_last=self.protect_last)
        return round(self.budget * exact.losses_left(probe, removed, limit))

    def search(self, probe: Probe, limit: int) -> Iterator[Point]:
        """One point of `limit` blocks; with `every` points of 1 to `limit`, each with an equal share of the budget."""
        draw, candidates = random.Random(self.seed), removable(probe, self)
        total = self.losses_left(probe, (), limit) * probe.num_windows
        counts = range(1 if self.every else limit, limit + 1)
        for count in counts:
            yield measured(probe, self._evolve(probe, draw, candidates, count, total / len(counts)))

    def _evolve(self, probe: Probe, draw: random.Random, candidates: list[int], count: int, budget: float) -> Set:
        sets = similar_intervals(probe, candidates, count)
        sets += [tuple(sorted(draw.sample(candidates, count))) for _ in range(self.starts)]
        sets = [each for each in dict.fromkeys(sets) if not probe.refusal(each)]
        if not sets:
            raise MethodError(f"No start without {count} blocks is possible in this model.", "Use --method sleb.")
        before = probe.counters.window_losses
        parent = self._select(probe, sets)
        idle = 0  # generations that measured nothing new
        while probe.counters.window_losses - before < budget and idle < 8:
            known = probe.counters.window_losses
            parent = self._select(
                probe, [self._mutated(draw, parent, candidates) for _ in range(self.offspring)], parent
            )
            idle = idle + 1 if probe.counters.window_losses == known else 0
        return parent

    def _mutated(self, draw: random.Random, parent: Set, candidates: list[int]) -> Set:
        kept = [block for block in candidates if block not in parent]
        swaps = min(draw.randint(1, self.most_swaps), draw.randint(1, self.most_swaps), len(kept), len(parent))
        return tuple(sorted({*parent} - {*draw.sample(parent, swaps)} | {*draw.sample(kept, swaps)}))

    def _select(self, probe: Probe, sets: list[Set], parent: Set | None = None) -> Set:
        """The best of some sets, measured on more and more windows, and of the parent on all."""
        left = [each for each in dict.fromkeys(sets) if not probe.refusal(each)]
        for share, stay in STAGES:
            windows = range(max(1, round(share * probe.num_windows)))
            losses = probe.losses([*left, *((parent,) if parent and share == 1 else ())], windows)
            ranked = sorted(losses, key=lambda each: (losses[each].mean, each))
            left = ranked[: max(1, round(stay * self.offspring))]
        return left[0]
