"""What a report is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from streamliner.report.figures import Figure


@dataclass(frozen=True)
class Table:
    """Cells as text; the first row names the columns."""

    rows: Sequence[Sequence[str]]


@dataclass
class Section:
    """A part of the report."""

    title: str
    text: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
