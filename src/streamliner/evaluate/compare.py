"""Compare a cut model with the dense one on the same windows and the same questions."""

import math
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass
from fractions import Fraction
from statistics import fmean
from typing import Any

from streamliner.evaluate.model_evaluation import ModelEvaluation
from streamliner.evaluate.stability import Answer, stability
from streamliner.measure.loss import Loss


@dataclass(frozen=True)
class Flips:
    """Numbers of questions by who was right: dense_cut."""

    right_right: int
    right_wrong: int
    wrong_right: int
    wrong_wrong: int


@dataclass(frozen=True)
class Difference:
    """Accuracy of the cut model minus that of the dense one, on the same questions.

    Attributes:
        mean: the difference.
        low, high: 95 % confidence interval of the paired difference, Wald's as adjusted by Bonett and Price (2012): one
            flip more in each direction and two questions more, so that no flips do not count as certainty.
        p_value: of McNemar's exact test: the probability of flips at least as uneven if both directions are equally
            likely.
    """

    mean: float
    low: float
    high: float
    p_value: float


@dataclass(frozen=True)
class TaskComparison:
    """A cut model compared with the dense one on one task; `metric` of lm-eval says which answers are right."""

    flips: Flips
    accuracy_difference: Difference
    stability: float
    metric: str


@dataclass(frozen=True)
class Comparison:
    """A model compared with the dense one.

    Attributes:
        loss_increase: loss minus that of the dense model on each window, by text source.
        tasks: by name; without those whose questions lm-eval does not count as right or wrong.
    """

    model: str
    loss_increase: dict[str, Loss]
    tasks: dict[str, TaskComparison]

    @property
    def mean_stability(self) -> float | None:
        """Mean stability over tasks, each counted once; None without tasks."""
        return fmean(each.stability for each in self.tasks.values()) if self.tasks else None

    def to_json(self) -> dict[str, Any]:
        """As a JSON value."""
        losses = self.loss_increase.items()
        increase = {source: {"mean": loss.mean, "standard_error": loss.standard_error} for source, loss in losses}
        tasks = {name: asdict(task) for name, task in self.tasks.items()}
        return {"model": self.model, "loss_behind": increase, "tasks": tasks, "mean_stability": self.mean_stability}


def compare_models(dense: ModelEvaluation, cut: ModelEvaluation) -> Comparison:
    """Compare two models that were evaluated on the same inputs."""
    pairs = zip(dense.perplexity, cut.perplexity, strict=True)
    increase = {after.text["source"]: _difference(before.loss, after.loss) for before, after in pairs}
    tasks: dict[str, TaskComparison] = {}
    for name, result in cut.tasks.items():
        if result.answers:
            pair = dense.tasks[name].answers, result.answers
            table = flips(*pair)
            tasks[name] = TaskComparison(table, accuracy_difference(table), stability(*pair), result.metric)
    return Comparison(cut.name, increase, tasks)


def _difference(dense: Loss, cut: Loss) -> Loss:
    """Window by window, so that its standard error is that of the differences."""
    return Loss(tuple(b - a for a, b in zip(dense.per_window, cut.per_window, strict=True)))


def flips(dense: Sequence[Answer], cut: Sequence[Answer]) -> Flips:
    """Count the questions by who was right."""
    pairs = [(a.correct, b.correct) for a, b in zip(dense, cut, strict=True)]
    return Flips(*(pairs.count(pair) for pair in ((True, True), (True, False), (False, True), (False, False))))


def accuracy_difference(table: Flips) -> Difference:
    """The paired difference, its interval, and McNemar's exact test."""
    lost, won, total = table.right_wrong, table.wrong_right, sum(astuple(table))
    to_wrong, to_right = (lost + 1) / (total + 2), (won + 1) / (total + 2)
    middle = to_right - to_wrong
    error = math.sqrt((to_right + to_wrong - middle**2) / (total + 2))
    few, both = min(lost, won), lost + won
    p_value = min(1.0, float(Fraction(2 * sum(math.comb(both, k) for k in range(few + 1)), 2**both)))
    low, high = max(-1.0, middle - 1.96 * error), min(1.0, middle + 1.96 * error)
    return Difference((won - lost) / total, low, high, p_value)
