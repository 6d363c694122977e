"""Compare a cut model with the dense one on the same questions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from streamliner.evaluate.stability import Answer, check_same


@dataclass(frozen=True)
class Flips:
    """How many questions a pair of models was right and wrong on: dense -> cut."""

    right_right: int
    right_wrong: int
    wrong_right: int
    wrong_wrong: int

    @property
    def total(self) -> int:
        """Questions."""
        return self.right_right + self.right_wrong + self.wrong_right + self.wrong_wrong


def flips(dense: Sequence[Answer], cut: Sequence[Answer]) -> Flips:
    """The table of questions by who was right."""
    check_same(dense, cut)
    pairs = [(a.correct, b.correct) for a, b in zip(dense, cut, strict=True)]
    return Flips(*(pairs.count(pair) for pair in ((True, True), (True, False), (False, True), (False, False))))


@dataclass(frozen=True)
class Difference:
    """Accuracy of the cut model minus that of the dense one, on the same questions.

    Attributes:
        mean: the difference.
        low, high: 95 % confidence interval of the paired difference, as Bonett and Price (2012) adjust Wald's: one flip
            more each way and two questions more, so that no flips are not taken for certainty.
        p_value: of McNemar's exact test: how likely flips as uneven as these are if both ways are equally likely.
    """

    mean: float
    low: float
    high: float
    p_value: float


def accuracy_difference(table: Flips) -> Difference:
    """The paired difference, its interval, and McNemar's exact test."""
    lost, won, total = table.right_wrong, table.wrong_right, table.total
    to_wrong, to_right = (lost + 1) / (total + 2), (won + 1) / (total + 2)
    middle = to_right - to_wrong
    error = math.sqrt((to_right + to_wrong - middle**2) / (total + 2))
    few, both = min(lost, won), lost + won
    p_value = min(1.0, float(Fraction(2 * sum(math.comb(both, k) for k in range(few + 1)), 2**both)))
    low, high = max(-1.0, middle - 1.96 * error), min(1.0, middle + 1.96 * error)
    return Difference((won - lost) / total, low, high, p_value)
