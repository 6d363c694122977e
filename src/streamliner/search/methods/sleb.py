"""SLEB: Song et al., "Streamlining LLMs through Redundancy Verification and Elimination of Transformer Blocks"."""

import dataclasses
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

from streamliner.errors import MethodError
from streamliner.measure.probe import Probe
from streamliner.search.frontier import Point
from streamliner.search.method import Method, least_first, removable, remove_in_order
from streamliner.search.race import Race

ENOUGH_WINDOWS = 32
"""Windows from which on the effort "auto" is "adaptive"."""


@dataclass(frozen=True)
class Sleb:
    """Remove one block at a time: each round the one without which the already pruned model has the smallest loss.

    With R the blocks removed so far, a round removes

        argmin over j not in R of  loss(R + {j})            metric "iterative", the paper's metric 3 and its choice
        argmin over j not in R of  loss({j})                metric "one-shot", metric 2: measured once, dense model
        argmax over j not in R of  cos(depth j, depth j+1)  metric "similarity", metric 1

    The loss is the mean next-token cross-entropy on the calibration set. The first and the last block stay.

    With `effort="adaptive"`, "iterative" measures less, in two ways; "auto" is "adaptive" from 32 windows on, unless
    weights are offloaded, and "exact" otherwise.
    *Lazy*: a candidate is measured again only if it is next to the block removed last, or if its last known increase of
    loss (of a dropped candidate what it is hardly below), reduced by 1 - `slack` of its size, is below the best one
    measured in this round.
    *Racing*: candidates are measured window by window, and dropped when they are worse than the best by more than `z`
    standard errors of the paired difference (`race.py`); 0 drops none.
    The result is that of "exact" unless an increase shrank by more than the slack between two measurements, or a winner
    was more than z standard errors worse on its first windows. Neither can be excluded; with few windows the second is
    likelier, and less time can be saved.

    References:
        arXiv 2402.09025, section 3.2 and algorithm 1.
    """

    metric: Literal["iterative", "one-shot", "similarity"] = "iterative"
    effort: Literal["auto", "exact", "adaptive"] = "auto"
    slack: float = 0.8
    z: float = 4.0
    protect_first: int = 1
    protect_last: int = 1
    score: ClassVar[str] = "calibration loss, nats per token"

    def __post_init__(self) -> None:
        if self.effort == "adaptive" and self.metric != "iterative":
            raise MethodError(f"effort adaptive is for metric iterative; {self.metric} measures each block once.")

    def resolved(self, num_windows: int, *, together: bool = False) -> "Sleb":
        """The same with another effort than "auto".

        `together` says whether all windows go through the model at once, as its weights are read from elsewhere: then a
        comparison of candidates after some windows costs a reading, and races do not pay.
        """
        if self.effort != "auto":
            return self
        many = self.metric == "iterative" and num_windows >= ENOUGH_WINDOWS and not together
        return dataclasses.replace(self, effort="adaptive" if many else "exact")

    def is_adaptive(self, probe: Probe) -> bool:
        """Whether candidates that can hardly win are left out."""
        return self.resolved(probe.num_windows, together=probe.windows_at_once > 1).effort == "adaptive"

    def losses_left(self, probe: Probe, removed: tuple[int, ...], limit: int) -> int:
        """One loss per candidate and round; of "one-shot" and "similarity" one per point."""
        rounds, candidates = limit - len(removed), len(removable(probe, self, removed))
        if self.metric == "iterative":
            return sum(max(0, candidates - done) for done in range(rounds))
        return rounds + (candidates if self.metric == "one-shot" and not removed else 0)

    def search(self, probe: Probe, limit: int) -> Iterator[Point]:
        """Points of 1 to `limit` blocks; each contains the one before."""
        if self.metric != "iterative":
            return self._ranked(probe, limit)
        return self.extend(probe, (), limit) if self.is_adaptive(probe) else self._exact(probe, limit)

    def _ranked(self, probe: Probe, limit: int) -> Iterator[Point]:
        candidates = removable(probe, self)
        if self.metric == "one-shot":
            damage = {block: loss.mean for block, loss in probe.losses_without_each((), candidates).items()}
        else:
            cosine = probe.similarity().cosine
            damage = {block: 1 - cosine[block, block + 1].item() for block in candidates}
        return remove_in_order(probe, least_first(damage), damage, limit)

    def _exact(self, probe: Probe, limit: int) -> Iterator[Point]:
        removed: tuple[int, ...] = ()
        while len(removed) < limit and (candidates := removable(probe, self, removed)):
            race: Race[int] = Race(probe, z=0)
            race.run(with_each(removed, candidates))
            race.settle()
            yield _point(race, removed)
            removed = (*removed, race.best)

    def extend(self, probe: Probe, removed: tuple[int, ...], limit: int) -> Iterator[Point]:
        """Points of one more block than `removed` to `limit` blocks, by the adaptive search."""
        increases: dict[int, float] = {}  # of the loss by each block, when last measured
        before = probe.loss(removed).mean
        while len(removed) < limit and (candidates := removable(probe, self, removed)):
            race: Race[int] = Race(probe, self.z)
            margin = self._race_lazily(race, removed, candidates, increases, before)
            race.settle()
            point = _point(race, removed)
            assert point.candidates is not None
            increases |= {block: race.lows.get(block, loss) - before for block, loss in point.candidates.items()}
            least = margin if math.isfinite(margin) else None
            yield dataclasses.replace(point, window_losses=race.window_losses, margin=least)
            removed, before = point.removed, point.score

    def _race_lazily(
        self,
        race: Race[int],
        removed: tuple[int, ...],
        candidates: list[int],
        increases: dict[int, float],
        before: float,
    ) -> float:
        """Race only candidates that may win; returns the smallest margin of those that were not fully measured."""
        last = removed[-1:]
        below = [block for block in candidates if last and block < last[0]][-1:]
        above = [block for block in candidates if last and block > last[0]][:1]
        known = {block: self._low(increases[block]) for block in candidates if block in increases}
        least = min((increases[block] for block in known), default=math.inf)
        likely = [block for block in candidates if block not in known or known[block] <= least]
        race.run(with_each(removed, sorted({*below, *above, *likely})))
        while True:
            least = race.losses[race.best].mean - before
            left = {block: low for block, low in known.items() if block not in race.losses | race.estimates}
            may_win = [block for block, low in left.items() if low < least]
            if not may_win:
                return min([race.margin, *(low - least for low in left.values())])
            race.run(with_each(removed, may_win))

    def _low(self, increase: float) -> float:
        """What an increase of loss may have become since it was measured, at least."""
        return increase - (1 - self.slack) * abs(increase)


def exact_losses(probe: Probe, method: Method, removed: tuple[int, ...], limit: int) -> int:
    """How many losses the exact search still takes after `removed`, with what `method` protects: a measure of cost."""
    exact = Sleb(protect_first=method.protect_first, protect_last=method.protect_last)
    return exact.losses_left(probe, removed, limit)


def with_each(removed: tuple[int, ...], candidates: Iterable[int]) -> dict[int, tuple[int, ...]]:
    """For each candidate the set of it and `removed`, sorted."""
    return {block: tuple(sorted((*removed, block))) for block in candidates}


def _point(race: Race[int], removed: tuple[int, ...]) -> Point:
    """The frontier's point with the best candidate of a round removed too."""
    best = race.losses[race.best]
    found = {block: loss.mean for block, loss in race.losses.items()} | race.estimates
    return Point((*removed, race.best), best.mean, best.mean, best.standard_error, dict(sorted(found.items())))
