"""What a search method is, and the steps that methods share."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Protocol

from streamliner.measure.probe import Probe
from streamliner.search.frontier import Point


class Method(Protocol):
    """A frozen dataclass whose fields are the hyper-parameters. It chooses what to remove.

    A method may also have `losses_left(probe, removed, limit)`: how many losses `search` will ask for after it removed
    `removed`, for the progress bar. Without it one loss per point is assumed.
    """

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]
    score: ClassVar[str]
    """What the score of a point is, with its unit; lower is better."""

    @property
    def protect_first(self) -> int:
        """Blocks at the start of the stack that stay."""

    @property
    def protect_last(self) -> int:
        """Blocks at the end of the stack that stay."""

    def search(self, probe: Probe, limit: int) -> Iterator[Point]:
        """Yield the points with 1, 2, ... `limit` removed blocks. The caller may stop early."""


def removable(probe: Probe, method: Method, removed: tuple[int, ...] = ()) -> list[int]:
    """The blocks that `method` may remove besides `removed`: not protected, and the architecture allows it."""
    unprotected = range(method.protect_first, probe.num_blocks - method.protect_last)
    others = [block for block in unprotected if block not in removed]
    return [block for block in others if not probe.refusal((*removed, block))]


def remove_in_order(probe: Probe, order: list[int], damage: Mapping[int, float] | None, limit: int) -> Iterator[Point]:
    """Points of 1 to `limit` blocks, each with the next block in `order` that may join those before.

    The score of a point is the greatest `damage` among its blocks, or its loss if there is none.
    """
    removed: tuple[int, ...] = ()
    while len(removed) < limit:
        others = (block for block in order if block not in removed)
        following = next((block for block in others if not probe.refusal((*removed, block))), None)
        if following is None:
            return
        removed = (*removed, following)
        score = None if damage is None else max(damage[block] for block in removed)
        yield measured(probe, removed, score, damage)


def least_first(damage: Mapping[int, float]) -> list[int]:
    """Blocks by ascending damage; of equals the first."""
    return sorted(damage, key=lambda block: (damage[block], block))


def remove_intervals(
    probe: Probe, method: Method, damage_of: Callable[[int, int], float], limit: int, kept: int = 0
) -> Iterator[Point]:
    """For each number of blocks, 1 to `limit`, the interval that `method` may remove with the least damage.

    `damage_of(start, stop)` is that of the interval [start, stop). Its first `kept` blocks count for it, but stay.
    """
    for count in range(1, limit + 1):
        length = kept + count
        starts = range(method.protect_first, probe.num_blocks - method.protect_last - length + 1)
        damage = {
            start: damage_of(start, start + length)
            for start in starts
            if not probe.refusal(range(start + kept, start + length))
        }
        if damage:
            start = least_first(damage)[0]
            yield measured(probe, tuple(range(start + kept, start + length)), damage[start], damage)


def measured(
    probe: Probe, removed: tuple[int, ...], score: float | None = None, candidates: Mapping[int, float] | None = None
) -> Point:
    """A point with its loss measured; without a score the loss is the score."""
    loss = probe.loss(removed)
    damage = None if candidates is None else dict(candidates)
    return Point(removed, loss.mean if score is None else score, loss.mean, loss.standard_error, damage)
