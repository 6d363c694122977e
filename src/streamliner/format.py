"""Numbers and tables as people read them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import zip_longest
from textwrap import wrap

NOTHING = "not finite"
"""Shown for NaN, infinity and the null that JSON has for them."""
WIDEST_CELL = 60
"""Characters in a line of a cell, in plain text."""
SIDE_BY_SIDE = 3
"""The largest number of models that a table shows in columns."""


def number(value: float | None) -> str:
    """Four digits, or all before the point: 0.5, 24.48, 10,830; from a million on as 2.1e+24."""
    if value is None or not math.isfinite(value):
        return NOTHING
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.4g}"


def counted(count: int, noun: str) -> str:
    """A count with its noun: 1 round, 2 rounds."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def loss(value: float | None) -> str:
    """A loss in nats, "" for none."""
    return "" if value is None else f"{value:.4f}"


def perplexity_of(value: float | None) -> str:
    """The perplexity of a loss, "" for none."""
    return "" if value is None else number(exp(value))


def exp(loss: float | None) -> float:
    """The perplexity of a loss, NaN for None. It never overflows: losses above 700 count as 700."""
    return math.nan if loss is None else math.exp(min(loss, 700))


def with_error(value: float | None, error: float | None, digits: str = ".4f") -> str:
    """A number with its standard error, where there is one."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if error is None or not math.isfinite(error):
        return f"{value:{digits}}"
    return f"{value:{digits}} ± {error:{digits.lstrip('+')}}"


def task_label(task: str, metric: str) -> str:
    """The name of a task, and the metric that says which answers are right where that is not acc."""
    return task if metric == "acc" else f"{task} {metric}"


def share_with_error(value: float | None, error: float | None) -> str:
    """A share in percent with its standard error, where there is one."""
    return with_error(value, error, ".1%")


def human_bytes(count: int | None) -> str:
    """Such as "1.07 GB"."""
    if count is None:
        return "not known before download"
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def duration(seconds: float) -> str:
    """Such as "45 s", "14 min" or "3.2 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.3g} h"


def short_names(names: Sequence[str]) -> list[str]:
    """The last parts of paths or hub ids, as many as are needed to distinguish different ones."""
    parts = [name.rstrip("/").split("/") for name in names]
    found = ["/".join(each[-1:]) or name for each, name in zip(parts, names, strict=True)]
    for count in range(2, max(map(len, parts), default=1) + 1):
        twice = {short for short in found if len({n for n, s in zip(names, found, strict=True) if s == short}) > 1}
        if not twice:
            break
        found = ["/".join(each[-count:]) if s in twice else s for each, s in zip(parts, found, strict=True)]
    return found


@dataclass(frozen=True)
class Table:
    """A table of a result: its `repr`, in a notebook, and on the command line.

    Attributes:
        rows: of cells; the first row is the heading.
        title: a line above it.
        caption: a line below it.
    """

    rows: Sequence[Sequence[str]]
    title: str = ""
    caption: str = ""

    def text(self) -> str:
        """Plain text in columns; long cells take several lines."""
        wrapped = [[wrap(cell, WIDEST_CELL) or [""] for cell in row] for row in self.rows]
        widths = [max(len(line) for cell in column for line in cell) for column in zip(*wrapped, strict=True)]
        lines = [line for row in wrapped for line in zip_longest(*row, fillvalue="")]
        texts = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
        return "\n".join(filter(None, [self.title, *texts, self.caption]))

    def html(self) -> str:
        """HTML for a notebook."""
        above, below = (
            f"<p>{escape(line).replace(chr(10), '<br>')}</p>" if line else "" for line in (self.title, self.caption)
        )
        head, *body = (list(map(escape, row)) for row in self.rows)
        rows = "".join(f"<tr><td>{'</td><td>'.join(row)}</td></tr>" for row in body)
        return f"{above}<table><tr><th>{'</th><th>'.join(head)}</th></tr>{rows}</table>{below}"


class Tables:
    """A result that is shown as tables, as text and in a notebook."""

    def tables(self) -> list[Table]:
        """The tables, the most important first."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return "\n\n".join(table.text() for table in self.tables())

    def _repr_html_(self) -> str:
        return "".join(table.html() for table in self.tables())


def model_table(models: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> Table:
    """A table of models: a few of them in columns, more of them in rows.

    Args:
        models: their names.
        rows: a label, then a cell for each model.
        title: a line above the table.
    """
    columns = [["", *short_names(models)], *rows]
    return Table(columns if len(models) <= SIDE_BY_SIDE else list(zip(*columns, strict=True)), title)
