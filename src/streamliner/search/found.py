"""What a search found and what it cost: the result for the command line and for Python."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from streamliner.errors import MissingExtraError
from streamliner.format import exp, html_table, perplexity_of, text_table
from streamliner.measure.counters import Counters
from streamliner.search.frontier import Frontier
from streamliner.search.plan import Plan
from streamliner.text.windows import CalibrationSet

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEADING = ("removed", "blocks (0-based, in order)", "perplexity", "change", "score")


@dataclass(frozen=True, repr=False)
class Found:
    """The result of a search.

    Attributes:
        frontier: for each number of removed blocks the best set found.
        counters: what the measurements cost.
        calibration: the calibration set.
        model: name and shape of the model: name, model_type, hidden_size, vocab_size.
        num_blocks: number of blocks of the dense model.
    """

    frontier: Frontier
    counters: Counters
    calibration: CalibrationSet
    model: dict[str, Any]
    num_blocks: int

    def plan(self, count: int | None = None) -> Plan:
        """The plan that removes `count` blocks, or as many as the search did.

        Raises:
            PlanError: the search has no point with `count` blocks removed.
        """
        return self.frontier.plan(self.model, self.num_blocks, self.calibration.provenance, count)

    def to_json(self) -> dict[str, Any]:
        """The plan, the frontier and the cost as a JSON value."""
        return {"plan": self.plan().to_json(), "frontier": asdict(self.frontier), "cost": asdict(self.counters)}

    def table(self) -> list[tuple[str, ...]]:
        """The cells of a table: a heading, the dense model, and each point of the frontier."""
        dense = self.frontier.dense_loss
        rows: list[tuple[str, ...]] = [HEADING, ("0", "", perplexity_of(dense), "", "")]
        for point in self.frontier.points:
            blocks = ", ".join(map(str, point.removed))
            change = "" if point.loss is None else f"{exp(point.loss - dense) - 1:+.1%}"
            rows.append((str(len(point.removed)), blocks, perplexity_of(point.loss), change, f"{point.score:.4f}"))
        return rows

    def plot(self, axes: Axes | None = None) -> Axes:
        """Draw the calibration perplexity by number of removed blocks, on `axes` or on new ones.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        if axes is None:
            try:
                from matplotlib import pyplot
            except ImportError as error:
                raise MissingExtraError("The plot", "plot") from error
            axes = pyplot.figure().add_subplot()
        points = [(0, self.frontier.dense_loss)]
        points += [(len(point.removed), point.loss) for point in self.frontier.points if point.loss is not None]
        axes.plot([count for count, _ in points], [exp(loss) for _, loss in points], "o-", label=self.frontier.method)
        axes.set_xlabel("blocks removed")
        axes.set_ylabel("calibration perplexity")
        axes.set_title(str(self.model.get("name", "")))
        axes.legend()
        return axes

    def __repr__(self) -> str:
        return f"{self._title()}\n{text_table(self.table())}"

    def _repr_html_(self) -> str:
        return f"<p>{escape(self._title())}</p>{html_table(self.table())}"

    def _title(self) -> str:
        score = f" (score: {self.frontier.score})" if self.frontier.score else ""
        return f"{self.frontier.method} on {self.calibration}{score}"
