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
from streamliner.search.methods.sleb import exact_losses

Set = tuple[int, ...]
STAGES = ((1 / 8, 1 / 4), (1 / 2, 1 / 16), (1.0, 0.0))
"""Selection: a share of the windows, and the share of the offspring that goes on to the next stage (at least one)."""

MOST_IDLE = 8
"""Generations without a set that is new, after which it ends: there are hardly any left."""


@dataclass(frozen=True)
class Evolution:
    """Evolve a set of blocks: offspring exchange 1 to `most_swaps` blocks for others, like for like, at random.

    The first parent is the best of `starts` random sets and of the most similar intervals. All `offspring`
    of a generation are measured on an eighth of the windows, the best of them on half, and the best of those on all,
    next to the parent. So the result is never worse than the starts. It ends when `budget` times the losses of SLEB's
    exact search are spent. The result depends on `seed`.

    References:
        arXiv 2410.14649, algorithm 1 and section 3 (there with `--objective kl`, and one start).
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
        return round(self.budget * exact_losses(probe, self, removed, limit))

    def search(self, probe: Probe, limit: int) -> Iterator[Point]:
        """Points of 1 to `limit` blocks: below the last the most similar interval, or with `every` evolved sets."""
        draw, candidates = random.Random(self.seed), removable(probe, self)
        total = self.losses_left(probe, (), limit) * probe.num_windows
        for count in range(1, limit + 1):
            if count == limit or self.every:
                share = total / limit if self.every else total
                yield measured(probe, self._evolve(probe, draw, candidates, count, share))
            elif intervals := similar_intervals(probe, candidates, count):
                yield measured(probe, intervals[0])

    def _evolve(self, probe: Probe, draw: random.Random, candidates: list[int], count: int, budget: float) -> Set:
        sets = similar_intervals(probe, candidates, count)
        if count <= len(candidates):
            sets += [tuple(sorted(draw.sample(candidates, count))) for _ in range(self.starts)]
        sets = [each for each in dict.fromkeys(sets) if not probe.refusal(each)]
        if not sets:
            raise MethodError(f"No set of {count} blocks can be removed from this model.", "Use --method sleb.")
        # Counted here: the probe may know losses from a run that was killed, and this must end as that one would.
        charged: dict[Set, int] = {}
        parent, idle = self._select(probe, sets, None, charged), 0  # generations that asked for nothing new
        while (spent := sum(charged.values())) < budget and idle < MOST_IDLE and not probe.deadline.is_over():
            offspring = [self._mutated(draw, parent, candidates) for _ in range(self.offspring)]
            parent = self._select(probe, offspring, parent, charged)
            idle = idle + 1 if sum(charged.values()) == spent else 0
        return parent

    def _mutated(self, draw: random.Random, parent: Set, candidates: list[int]) -> Set:
        kept = [block for block in candidates if block not in parent]
        swaps = min(draw.randint(1, self.most_swaps), draw.randint(1, self.most_swaps), len(kept), len(parent))
        return tuple(sorted({*parent} - {*draw.sample(parent, swaps)} | {*draw.sample(kept, swaps)}))

    def _select(self, probe: Probe, sets: list[Set], parent: Set | None, charged: dict[Set, int]) -> Set:
        """The best of some sets, measured on more and more windows, and of the parent on all.

        `charged` has how many windows each set was measured on, and grows.
        """
        left = [each for each in dict.fromkeys(sets) if not probe.refusal(each)]
        for share, stay in STAGES:
            windows = range(max(1, round(share * probe.num_windows)))
            losses = probe.losses([*left, *((parent,) if parent and share == 1 else ())], windows)
            charged |= {each: max(charged.get(each, 0), len(windows)) for each in losses}
            ranked = sorted(losses, key=lambda each: (losses[each].mean, each))
            left = ranked[: max(1, round(stay * self.offspring))]
        return left[0] if left else parent or ()
