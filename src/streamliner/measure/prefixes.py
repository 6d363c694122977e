"""Streams at depths up to which the removals of one round agree with those of the next: what did not change is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

KEPT_PER_WINDOW = 2
"""A round may ask for neighbours of the last block first and for blocks below them later."""


class Prefixes:
    """For groups of windows, the stream at the depths where removals parted when they were last measured.

    Args:
        budget: bytes of all streams; what does not fit is not kept.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._kept: dict[tuple[int, ...], list[tuple[tuple[int, ...], int, Tensor]]] = {}

    def find(self, windows: Sequence[int], removals: Sequence[tuple[int, ...]]) -> tuple[int, Tensor] | None:
        """The deepest depth up to which all of `removals` leave out what was left out there, and the stream."""
        fit = [
            (depth, stream)
            for left_out, depth, stream in self._kept.get(tuple(windows), [])
            if all(_below(depth, removed) == left_out for removed in removals)
        ]
        return max(fit, key=lambda found: found[0], default=None)

    def keeper(self, windows: Sequence[int], removals: Sequence[tuple[int, ...]]) -> Callable[[int, Tensor], None]:
        """For `fork`: keeps what it is called with."""

        def keep(depth: int, stream: Tensor) -> None:
            left_out = _below(depth, removals[0])
            others = [kept for kept in self._kept.get(tuple(windows), []) if kept[:2] != (left_out, depth)]
            self._kept[tuple(windows)] = others = others[: KEPT_PER_WINDOW - 1]
            size = sum(kept[2].nbytes for kept_here in self._kept.values() for kept in kept_here)
            if size + stream.nbytes <= self._budget:
                others.insert(0, (left_out, depth, stream.clone()))

        return keep


def _below(depth: int, removed: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(block for block in removed if block < depth)
