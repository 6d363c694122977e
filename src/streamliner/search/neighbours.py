"""Local search over sets of blocks: from a set to the best of its neighbours, within a budget of losses."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from streamliner.measure.loss import Loss
from streamliner.measure.probe import Probe
from streamliner.search.race import Race

Set = tuple[int, ...]
PAIRS = 12
"""The best swaps that are tried in pairs, once no single one helps."""


@dataclass
class LocalSearch:
    """Known sets of one size, all measured on all windows, and what may still be spent.

    A step races all neighbours of a set, so a bad one costs a few windows. Where no swap of one block lowers the loss,
    pairs of the swaps that came closest are raced, and shifts of whole runs.

    Attributes:
        probe: measurements of the model.
        allowed: whether a set may be removed.
        candidates: the blocks that may be in a set.
        z: of the races; with 0 each neighbour is measured on all windows.
        budget: losses of one set on one window that may still be measured.
        losses: of the sets known.
    """

    probe: Probe
    allowed: Callable[[Set], bool]
    candidates: list[int]
    z: float
    budget: float
    losses: dict[Set, Loss] = field(default_factory=dict)

    @property
    def best(self) -> Set:
        """The known set with the smallest loss, the first of equals."""
        return min(self.losses, key=lambda each: (self.losses[each].mean, each))

    def measure(self, sets: list[Set]) -> None:
        """Measure sets on all windows, as far as the budget goes."""
        new = [each for each in dict.fromkeys(sets) if each not in self.losses and self.allowed(each)]
        affordable = new[: max(0, int(self.budget // self.probe.num_windows))]
        self.budget -= len(affordable) * self.probe.num_windows
        self.losses |= self.probe.losses(affordable) if affordable else {}

    def race(self, start: Set, sets: list[Set]) -> dict[Set, float]:
        """Losses, or estimates, of those sets that the budget allows to race against `start`."""
        race: Race[Set] = Race(self.probe, self.z, losses={start: self.losses[start]})
        unknown = [each for each in sets if each not in self.losses and self.allowed(each)]
        # As many at a time as could all be measured on all windows; most are dropped, and leave room for more.
        while (
            unknown and (count := int(self.budget // self.probe.num_windows)) > 0 and not self.probe.deadline.is_over()
        ):
            some, unknown, before = unknown[:count], unknown[count:], race.window_losses
            race.run({each: each for each in some})
            self.budget -= race.window_losses - before
        self.losses |= race.losses
        known = {each: self.losses[each].mean for each in sets if each in self.losses}
        return known | race.estimates

    def climb(self, start: Set) -> Set:
        """Go from a known set to better neighbours until there is none, or the budget is spent; returns the last."""
        while True:
            better = self._step(start)
            if better == start:
                return start
            start = better

    def _step(self, start: Set) -> Set:
        """The best of a set and its neighbours."""
        swaps = self.race(start, list(self._swaps(start)))
        best = self._lowest(start, swaps)
        if best == start:
            close = sorted((each for each in swaps if each != start), key=lambda each: (swaps[each], each))[:PAIRS]
            both = (self._together(start, *pair) for pair in itertools.combinations(close, 2))
            larger = dict.fromkeys((*both, *self._shifts(start)))
            best = self._lowest(start, self.race(start, [each for each in larger if each]))
        return best

    def _shifts(self, removed: Set) -> Iterator[Set]:
        """The sets with one run of adjacent blocks moved to another place as a whole."""
        starts = [block for block in removed if block - 1 not in removed]
        for first in starts:
            length = next(n for n in itertools.count(1) if first + n not in removed)
            others = {*removed} - {*range(first, first + length)}
            for place in self.candidates if length > 1 else ():
                run = {*range(place, place + length)}
                if place != first and run <= {*self.candidates} and not run & others:
                    yield tuple(sorted(others | run))

    def _swaps(self, removed: Set) -> Iterator[Set]:
        """The sets with one block exchanged for another."""
        for gone, new in itertools.product(removed, self.candidates):
            if new not in removed:
                yield tuple(sorted({*removed, new} - {gone}))

    def _together(self, start: Set, one: Set, other: Set) -> Set:
        """Both swaps made in `start`; an empty set where they exclude each other."""
        gone = {*start} - {*one} | {*start} - {*other}
        new = ({*one} | {*other}) - {*start}
        return tuple(sorted({*start} - gone | new)) if len(gone) == len(new) == 2 else ()

    def _lowest(self, start: Set, found: dict[Set, float]) -> Set:
        measured = [each for each in found if each in self.losses]
        return min([start, *measured], key=lambda each: (self.losses[each].mean, each != start, each))
