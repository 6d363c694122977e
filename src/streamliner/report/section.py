"""The parts of a report."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from streamliner.report.figures import Figure

Table = list[list[str]]  # rows of cells; the first row names the columns


@dataclass(frozen=True)
class Card:
    """A model in a few lines."""

    title: str
    lost: list[str]
    won: list[str]
    verdict: str


@dataclass
class Section:
    """A heading with cards, then paragraphs, then tables, then figures."""

    title: str
    text: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    cards: list[Card] = field(default_factory=list)


def by_column(columns: Iterable[Iterable[str]]) -> Table:
    """A table from its columns, each with its name first."""
    return [list(row) for row in zip(*columns, strict=True)]
