"""The frontier: for every number of removed blocks the best set found."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from streamliner.errors import PlanError


@dataclass(frozen=True)
class Point:
    """One set of blocks to remove.

    Attributes:
        removed: block indices, in the order of removal where the method removes one by one, otherwise ascending.
        score: estimated damage in the method's own unit (`Method.score`); lower is better.
        loss: calibration loss without these blocks, nats per token, with any objective; None if not measured.
        standard_error: of that loss.
        candidates: the score of every alternative in this step, by block (the first block of an interval). An adaptive
            search estimates the scores of dropped candidates, and has none for those that it did not measure again.
        window_losses: how many losses, of one candidate on one window, an adaptive search measured in this step.
        margin: how close the closest candidate that was not fully measured came to being measured further, in nats of
            mean loss; None if all were measured.
        divergence: of the model without these blocks from the dense one, nats per token; None with another objective.
    """

    removed: tuple[int, ...]
    score: float
    loss: float | None = None
    standard_error: float | None = None
    candidates: dict[int, float] | None = field(default=None, repr=False)
    window_losses: int | None = None
    margin: float | None = None
    divergence: float | None = None

    def in_plain_numbers(self) -> "Point":
        """The point with Python's numbers in place of NumPy's and torch's, which a method of the user's may yield."""

        def plain(value: float | None) -> float | None:
            return None if value is None else float(value)

        return replace(
            self,
            removed=tuple(map(int, self.removed)),
            score=float(self.score),
            loss=plain(self.loss),
            standard_error=plain(self.standard_error),
            candidates=self.candidates and {int(block): float(score) for block, score in self.candidates.items()},
            divergence=plain(self.divergence),
        )


@dataclass(frozen=True)
class Frontier:
    """What a search found.

    Attributes:
        method: name of the method.
        settings: its hyper-parameters.
        dense_loss: calibration loss of the dense model, nats per token.
        points: one for each number of removed blocks, 1 upwards.
        score: what `Point.score` is, with its unit.
        objective: what the method measured as the loss: "loss", or "kl", the divergence from the dense model.
        ended: which limit ended or shortened the search, in a sentence; "" if none did.
    """

    method: str
    settings: dict[str, Any]
    dense_loss: float
    points: tuple[Point, ...]
    score: str = ""
    objective: str = "loss"
    ended: str = ""

    def at(self, count: int) -> Point:
        """The point with `count` blocks removed; a PlanError if there is none."""
        points = {len(point.removed): point for point in self.points}
        if count not in points:
            hint = f"It has points with {', '.join(map(str, points))} blocks removed."
            raise PlanError(f"The search has no point with {count} blocks removed.", hint)
        return points[count]


def note_of(settings: Mapping[str, Any]) -> str:
    """A sentence about the losses of a search in steps, from a frontier's or a plan's settings; "" for others."""
    if "fold_every" not in settings:
        return ""
    count = settings["fold_every"]
    blocks = "every removed block" if count == 1 else f"every {count} removed blocks"
    return f"Repaired ({settings['fold']}) after {blocks}; the losses of later blocks are those of the repaired model."
