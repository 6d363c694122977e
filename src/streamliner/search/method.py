"""What a search method is, and what methods share."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Any, ClassVar, Protocol

if typing.TYPE_CHECKING:
    from streamliner.measure.probe import Probe
    from streamliner.search.frontier import Point


class Method(Protocol):
    """A frozen dataclass that chooses what to remove."""

    score: ClassVar[str]
    """What its score is, with the unit; lower is better."""

    def search(self, probe: Probe, limit: int) -> Iterator[Point]:
        """Yield the frontier's points of 1, 2, ... `limit` removed blocks. The caller may stop early."""


def removable(probe: Probe, method: Any, removed: tuple[int, ...] = ()) -> list[int]:
    """The blocks that `method` may remove beside `removed`: not protected, and the architecture lets them go."""
    unprotected = range(method.protect_first, probe.num_blocks - method.protect_last)
    others = [block for block in unprotected if block not in removed]
    return [block for block in others if not probe.refusal((*removed, block))]


def intervals(probe: Probe, method: Any, count: int, stay: int = 0) -> list[range]:
    """All runs of `count` consecutive blocks that `method` may remove, all or but the first `stay` of them."""
    starts = range(method.protect_first, probe.num_blocks - method.protect_last - count + 1)
    return [run for run in (range(start, start + count) for start in starts) if not probe.refusal(run[stay:])]


def growing(probe: Probe, order: list[int], limit: int) -> Iterator[tuple[int, ...]]:
    """Sets of 1 to `limit` blocks, each with the next block in `order` that may join the set before."""
    removed: tuple[int, ...] = ()
    while len(removed) < limit:
        others = (block for block in order if block not in removed)
        following = next((block for block in others if not probe.refusal((*removed, block))), None)
        if following is None:
            return
        removed = (*removed, following)
        yield removed


def measured(
    probe: Probe, removed: tuple[int, ...], score: float | None = None, candidates: dict[int, float] | None = None
) -> Point:
    """A point with its loss measured; without a score the loss is the score."""
    from streamliner.search.frontier import Point

    loss = probe.loss(removed)
    return Point(removed, loss.mean if score is None else score, loss.mean, loss.standard_error, candidates)
