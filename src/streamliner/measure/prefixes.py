"""Streams kept from one round of a search to the next: blocks before the first changed one need not run again."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from streamliner.model.fork import Removed

KEPT_PER_WINDOW = 2
"""A round may first ask for the neighbours of the block removed last, and then for blocks below them."""


class Prefix(NamedTuple):
    """The stream at `depth` without the blocks `removed`, which are all below that depth."""

    removed: Removed
    depth: int
    stream: Tensor


class Prefixes:
    """For groups of windows, the stream at the depths where removals first differed when they were last measured.

    A stream with which all would take more than `budget` bytes is not kept.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._kept: dict[tuple[int, ...], list[Prefix]] = {}

    def forget(self) -> None:
        """Free all streams."""
        self._kept.clear()

    def find(self, windows: Sequence[int], removals: Sequence[Removed]) -> tuple[int, Tensor] | None:
        """The deepest depth below which all `removals` agree with a kept prefix, and the stream there."""
        fit = [
            prefix
            for prefix in self._kept.get(tuple(windows), [])
            if all(_below(prefix.depth, removed) == prefix.removed for removed in removals)
        ]
        return max(((prefix.depth, prefix.stream) for prefix in fit), key=lambda found: found[0], default=None)

    def keep(self, windows: Sequence[int], removals: Sequence[Removed], depth: int, stream: Tensor) -> None:
        """Keep the stream at the depth where `removals` first differ."""
        removed = _below(depth, removals[0])
        others = [each for each in self._kept.get(tuple(windows), []) if each[:2] != (removed, depth)]
        self._kept[tuple(windows)] = others = others[: KEPT_PER_WINDOW - 1]
        size = sum(prefix.stream.nbytes for prefixes in self._kept.values() for prefix in prefixes)
        if size + stream.nbytes <= self._budget:
            others.insert(0, Prefix(removed, depth, stream.clone()))


def _below(depth: int, removed: Removed) -> Removed:
    return tuple(block for block in removed if block < depth)
