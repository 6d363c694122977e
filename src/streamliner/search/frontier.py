"""The frontier: for every number of removed blocks the best set found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from streamliner.errors import PlanError


@dataclass(frozen=True)
class Point:
    """One set of blocks to remove.

    Attributes:
        removed: block indices: in the order of removal where the method removes one by one, else ascending.
        score: estimated damage, in the method's own unit (`Method.score`); lower is better.
        loss: calibration loss without these blocks, nats per token, where it was measured.
        standard_error: of that loss.
        candidates: score of every alternative of this step, by block (first block of an interval). An adaptive search
            estimates that of those it dropped, and has none of those it did not measure anew.
        window_losses: losses of one alternative on one window that an adaptive search measured in this step.
        margin: by how many nats of the mean loss the nearest alternative that was not measured to the end missed being
            measured further; None if all were.
    """

    removed: tuple[int, ...]
    score: float
    loss: float | None = None
    standard_error: float | None = None
    candidates: dict[int, float] | None = None
    window_losses: int | None = None
    margin: float | None = None


@dataclass(frozen=True)
class Frontier:
    """Points by number of removed blocks, 1 upwards."""

    method: str
    settings: dict[str, Any]
    dense_loss: float
    points: tuple[Point, ...]

    def at(self, count: int) -> Point:
        """The point with `count` blocks removed."""
        for point in self.points:
            if len(point.removed) == count:
                return point
        raise PlanError(f"The search has no point with {count} blocks removed; it has {len(self.points)} points.")
