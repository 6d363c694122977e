"""What a search found and what it cost: the result for the command line and for Python."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from streamliner.errors import MissingExtraError
from streamliner.format import Table, Tables, exp, loss, perplexity_of
from streamliner.measure.counters import Counters
from streamliner.search.frontier import Frontier, note_of
from streamliner.search.plan import Plan
from streamliner.text.calibration import CalibrationSet

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, repr=False)
class Found(Tables):
    """The result of a search.

    Attributes:
        frontier: for each number of removed blocks the best set found.
        counters: what the measurements cost.
        calibration: the calibration set.
        model: name and shape of the model: name, model_type, hidden_size, vocab_size; precision of its weights.
        num_blocks: number of blocks of the dense model.
    """

    frontier: Frontier
    counters: Counters
    calibration: CalibrationSet
    model: dict[str, Any]
    num_blocks: int

    def plan(self, count: int | None = None) -> Plan:
        """The plan that removes `count` blocks, or as many as the search did; a PlanError if it has no such point."""
        point = self.frontier.points[-1] if count is None else self.frontier.at(count)
        return Plan(
            removed=tuple(sorted(point.removed)),
            num_blocks=self.num_blocks,
            model=self.model,
            method=self.frontier.method,
            settings=self.frontier.settings,
            objective=self.frontier.objective,
            order=point.removed,
            score=point.score,
            dense_loss=self.frontier.dense_loss,
            loss=point.loss,
            calibration=self.calibration.provenance,
        )

    def to_json(self) -> dict[str, object]:
        """The plan, the frontier and the cost as a JSON value."""
        return {"plan": self.plan().to_json(), "frontier": asdict(self.frontier), "cost": asdict(self.counters)}

    def tables(self) -> list[Table]:
        """The frontier with the dense model, and below it what the search cost."""
        dense = self.frontier.dense_loss
        kl = self.frontier.objective == "kl"
        rows = [["removed", "blocks (0-based, in order)", "perplexity", "change", *["divergence"] * kl, "score"]]
        rows.append(["0", "", perplexity_of(dense), "", *["0.0000"] * kl, ""])
        for point in self.frontier.points:
            blocks = ", ".join(map(str, point.removed))
            change = "" if point.loss is None else f"{exp(point.loss - dense) - 1:+.1%}"
            numbers = [perplexity_of(point.loss), change, *[loss(point.divergence)] * kl, f"{point.score:.4f}"]
            rows.append([str(len(point.removed)), blocks, *numbers])
        cost = self.counters
        work = f"{cost.forwards} forwards, {cost.block_forwards} block forwards, {cost.tokens:,} tokens"
        score = f"score: {self.frontier.score}" if self.frontier.score else ""
        notes = [
            score,
            note_of(self.frontier.settings),
            self.frontier.ended,
            self._saved(),
            f"{work}, {cost.seconds:.1f} s",
        ]
        caption = "\n".join(filter(None, notes))
        return [Table(rows, f"{self.frontier.method} on {self.calibration}", caption)]

    def _saved(self) -> str:
        """How much of an exact search an adaptive one measured, and its closest decision; "" for others."""
        steps = [point for point in self.frontier.points if point.window_losses is not None]
        if not steps or self.frontier.method != "sleb":  # others measure more than these points say
            return ""
        first = len(steps[0].candidates or ())  # all are measured in the first round, and each round has one fewer
        exact = sum(first - number for number in range(len(steps))) * len(self.calibration.windows)
        measured = sum(point.window_losses or 0 for point in steps)
        margins = [point.margin for point in steps if point.margin is not None]
        closest = f"; smallest margin {min(margins):.4f} nats" if margins else ""
        return f"adaptive: {measured} of {exact} window losses measured ({measured / exact:.0%}){closest}"

    def plot(self, axes: Axes | None = None) -> Axes:
        """Draw the calibration perplexity by number of removed blocks, on `axes` or on new ones (needs matplotlib)."""
        if axes is None:
            try:
                from matplotlib import pyplot
            except ImportError as error:
                raise MissingExtraError("The plot", "plot") from error
            axes = pyplot.figure().add_subplot()
        points = [(0, self.frontier.dense_loss)]
        points += [(len(point.removed), point.loss) for point in self.frontier.points if point.loss is not None]
        axes.plot([count for count, _ in points], [exp(loss) for _, loss in points], "o-", label=self.frontier.method)
        axes.set(xlabel="blocks removed", ylabel="calibration perplexity", title=str(self.model.get("name", "")))
        axes.locator_params(axis="x", integer=True)
        axes.legend()
        return axes
