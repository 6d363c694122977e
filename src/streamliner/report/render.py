"""Write a report: one HTML file that loads nothing else, the same as Markdown, and the pictures of the Markdown."""

import re
from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256
from html import escape
from pathlib import Path
from urllib.parse import quote

from streamliner._version import __version__
from streamliner.report.figures import Figure
from streamliner.report.read import Results, read_results
from streamliner.report.section import Card, Section, Table
from streamliner.report.sections.evaluation_tables import evaluation_section
from streamliner.report.sections.frontier_plots import frontier_sections
from streamliner.report.sections.headline import headline_sections
from streamliner.report.sections.healing_run import healing_section
from streamliner.report.sections.plugin_sections import plugin_sections
from streamliner.report.sections.reproduce import reproduce_section
from streamliner.report.sections.search_run import search_section
from streamliner.report.sections.speed_tables import speed_section
from streamliner.report.sections.summary import summary_sections
from streamliner.report.stylesheet import PAGE_STYLE
from streamliner.runs.files import write_text

SORT = """
document.querySelectorAll("th").forEach(head => head.addEventListener("click", () => {
  const body = head.closest("table").tBodies[0], column = head.cellIndex;
  const up = head.dataset.up = head.dataset.up ? "" : "1";
  const value = row => row.cells[column].textContent, size = text => parseFloat(text.replace(/[,+]/g, ""));
  const order = (a, b) => (size(a) - size(b)) || a.localeCompare(b);
  [...body.rows].sort((a, b) => (up ? 1 : -1) * order(value(a), value(b))).forEach(row => body.append(row));
}));
"""
"""Sorts a table by the column whose head is clicked, by numbers where there are any."""
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
    f"script-src 'sha256-{b64encode(sha256(SORT.encode()).digest()).decode()}'"
)
"""A browser makes no request, and runs no script but that one."""
WIDEST_TABLE = 7
"""Columns of a table that has as many rows or more; a table of a few models with many numbers lies on its side."""


def write_report(sources: Sequence[str], out: Path) -> list[Path]:
    """Write the HTML file `out`, and next to it a Markdown file and a folder of its pictures; returns all three."""
    sections = make_sections(read_results(sources))
    markdown, folder = out.with_suffix(".md"), pictures_folder(out)
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {folder / name: figure.as_svg() for figure, name in _picture_names(sections).items()}
    for old in set(folder.glob("[0-9][0-9]-*.svg")) - set(pictures):  # of an earlier report with more pictures
        old.unlink()
    for path, text in (pictures | {markdown: as_markdown(sections, folder.name), out: as_html(sections)}).items():
        write_text(path, text)
    return [out, markdown, folder]


def make_sections(results: Results) -> list[Section]:
    """All sections of a report, in order: results first, then how they were obtained."""
    return [
        *headline_sections(results),
        *summary_sections(results),
        *frontier_sections(results),
        *map(search_section, results.searches),
        *(healing_section(run) for run in results.runs if run.history or "healing" in run.files),
        *map(evaluation_section, results.evaluations),
        *map(speed_section, results.benchmarks),
        *plugin_sections(results),
        reproduce_section(results),
    ]


def pictures_folder(out: Path) -> Path:
    """The folder for the pictures of the report `out`."""
    return out.with_suffix(".pictures")


def _picture_names(sections: Sequence[Section]) -> dict[Figure, str]:
    """File names of the figures that are not empty."""
    drawn = ((section, figure) for section in sections for figure in section.figures if figure.parts)
    return {
        figure: f"{number:02}-{re.sub(r'[^a-z0-9]+', '-', section.title.lower()).strip('-')[:40]}.svg"
        for number, (section, figure) in enumerate(drawn, 1)
    }


def as_html(sections: Sequence[Section]) -> str:
    """A page that loads nothing, with a script that sorts tables."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<link rel="icon" href="data:,"><title>streamliner report</title>'
        f"<style>{PAGE_STYLE}</style></head>\n<body><h1>streamliner report</h1>\n"
        f"{''.join(map(_html_section, sections))}"
        f"<p>Made with streamliner {__version__}.</p><script>{SORT}</script></body></html>\n"
    )


def _html_section(section: Section) -> str:
    cards = "".join(map(_html_card, section.cards))
    cards = cards and f'<div class="cards">{cards}</div>'
    text = "".join(f"<p>{escape(each)}</p>" for each in section.text)
    tables = "".join(map(_html_table, section.tables))
    figures = "".join(figure.as_html() for figure in section.figures if figure.parts)
    figures = figures and f'<div class="figures">{figures}</div>'
    return f"<section><h2>{escape(section.title)}</h2>{cards}{text}{tables}{figures}</section>\n"


def _html_card(card: Card) -> str:
    def items(texts: Sequence[str]) -> str:
        return f"<ul>{''.join(f'<li>{escape(text)}</li>' for text in texts)}</ul>"

    lost = f"<h4>Lost</h4>{items(card.lost)}" if card.lost else ""
    parts = f"{lost}<h4>Won</h4>{items(card.won)}<p>{escape(card.verdict)}</p>"
    return f'<div class="card"><h3>{escape(card.title)}</h3>{parts}</div>'


def lain(table: Table) -> Table:
    """The table, or rows and columns exchanged where it would be wider than a page and has few rows."""
    wide = len(table[0]) > WIDEST_TABLE and len(table) <= WIDEST_TABLE
    return [list(column) for column in zip(*table, strict=True)] if wide else table


def _html_table(table: Table) -> str:
    table = lain(table)

    def cell(text: str) -> str:
        opening = '<td class="long">' if len(text) > 40 or "\n" in text else "<td>"  # a long one may be broken
        return f"{opening}{escape(text)}</td>"

    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in table[0])
    body = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in table[1:])
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def as_markdown(sections: Sequence[Section], folder: str) -> str:
    """Text, tables, and links to the pictures in `folder`, each followed by the same in words."""
    parts, pictures = ["# streamliner report\n"], _picture_names(sections)
    for section in sections:
        parts.append(f"## {_markdown(section.title)}\n")
        parts += map(_markdown_card, section.cards)
        parts += [f"{_markdown(text)}\n" for text in section.text]
        parts += map(_markdown_table, section.tables)
        for figure in section.figures:
            if figure in pictures:
                parts.append(f"![{_markdown(figure.caption)}]({quote(f'{folder}/{pictures[figure]}')})\n")
            parts.append(f"{_markdown(figure.description)}\n")
    return "\n".join(parts)


def _markdown_card(card: Card) -> str:
    lines = [f"- lost: {_markdown(text)}" for text in card.lost] + [f"- won: {_markdown(text)}" for text in card.won]
    return "\n".join([f"**{_markdown(card.title)}**: {_markdown(card.verdict)}\n", *lines, ""])


def _markdown(text: str) -> str:
    """On one line, escaped so that Markdown finds no picture, link or HTML in it."""
    return re.sub(r"([\\`*_<|\[\]!])", r"\\\1", " ".join(text.split()))


def _markdown_table(table: Table) -> str:
    head, *rows = (["<br>".join(map(_markdown, cell.splitlines())) for cell in row] for row in lain(table))
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ["---"] * len(head), *rows))
