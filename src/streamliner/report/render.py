"""Sections -> one HTML file that asks nothing of anybody; beside it the same as Markdown, and its pictures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from streamliner._version import __version__
from streamliner.report.contents import make_sections
from streamliner.report.figures import DARK, LIGHT, PARTS, SERIES, Figure
from streamliner.report.read import read_runs
from streamliner.report.section import Section, Table

STYLE = (
    f"\n:root{{color-scheme:light dark;{LIGHT}}}\n@media(prefers-color-scheme:dark){{:root{{{DARK}}}}}\n{PARTS}"
    + """
body{margin:0 auto;max-width:72rem;padding:1rem;font:1rem/1.5 system-ui,sans-serif;color:var(--text);
background:var(--back)}
h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2.5rem;border-bottom:1px solid var(--rule)}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.875rem;margin:.75rem 0;
font-variant-numeric:tabular-nums}
th,td{padding:.25rem .6rem;text-align:left;border-bottom:1px solid var(--rule);vertical-align:top}
td{white-space:nowrap}td.long,th{white-space:pre-wrap}td.long{overflow-wrap:anywhere}th{vertical-align:bottom}
tr>:first-child:not(.long){position:sticky;left:0;background:var(--back)}
figure{margin:1rem 0}
.figures{display:grid;gap:0 1.5rem;grid-template-columns:repeat(auto-fill,minmax(min(24rem,100%),1fr))}
svg{width:100%;height:auto;display:block}
figcaption{color:var(--soft);font-size:.875rem}
@media(max-width:40rem){.tick,.label{font-size:18px}}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:.25rem 1rem;margin:.25rem 0;padding:0;font-size:.875rem}
.key{display:inline-block;width:.8em;height:.8em;margin-right:.35em;border-radius:2px}
@page{size:A4 landscape;margin:12mm}
@media print{body{max-width:none;padding:0}.wide{overflow:visible}table{font-size:.65rem}
th,td{padding:.2rem .4rem}td:not(.long){white-space:normal}td:first-child:not(.long){white-space:nowrap}
figure,tr{break-inside:avoid}
h2{break-after:avoid}}
"""
    + f"@media print{{:root{{{LIGHT};--text:#000;--soft:#444;--rule:#bbb}}}}\n"
    + "".join(f".key.s{i}{{background:var(--c{i})}}" for i in range(SERIES))
)


POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""What a browser lets the page do: show itself, and no request."""


LONG = 40
"""Characters from which a cell may break into lines."""


def write_report(sources: Sequence[str], out: Path) -> list[Path]:
    """Write `out`, an HTML file; beside it the same as Markdown, and the pictures that this shows.

    Args:
        sources: run folders, evaluation and benchmark files.
        out: such as report.html.

    Returns:
        The page, the Markdown and the folder of pictures.

    Raises:
        OutputError: a source holds nothing to report.
    """
    sections = make_sections(*read_runs(sources))
    markdown, folder = out.with_suffix(".md"), pictures_folder(out)
    folder.mkdir(parents=True, exist_ok=True)
    named = {folder / name: figure.file for figure, name in _pictures(sections).items()}
    for old in set(folder.glob("[0-9][0-9]-*.svg")) - set(named):  # of a report with more pictures
        old.unlink()
    for path, text in (named | {markdown: as_markdown(sections, folder.name), out: as_html(sections)}).items():
        temporary = path.with_name(f".{path.name}")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    return [out, markdown, folder]


def pictures_folder(out: Path) -> Path:
    """Where the pictures of the report `out` go."""
    return out.with_suffix(".pictures")


def _pictures(sections: Sequence[Section]) -> dict[Figure, str]:
    """Names of files for the figures that have a picture."""
    drawn = ((section, figure) for section in sections for figure in section.figures if figure.parts)
    return {
        figure: f"{number:02}-{re.sub(r'[^a-z0-9]+', '-', section.title.lower()).strip('-')[:40]}.svg"
        for number, (section, figure) in enumerate(drawn, 1)
    }


def as_html(sections: Sequence[Section]) -> str:
    """One page: no script, and nothing that is fetched."""
    body = "".join(_section(section) for section in sections)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<link rel="icon" href="data:,"><title>streamliner report</title>'
        f"<style>{STYLE}</style></head>\n<body><h1>streamliner report</h1>\n{body}"
        f"<p>Made with streamliner {__version__}.</p></body></html>\n"
    )


def as_markdown(sections: Sequence[Section], folder: str) -> str:
    """Text and tables; pictures are files in `folder`, and what they show is also told in words."""
    parts, pictures = ["# streamliner report\n"], _pictures(sections)
    for section in sections:
        parts.append(f"## {_markdown(section.title)}\n")
        parts += [f"{_markdown(text)}\n" for text in section.text]
        parts += [_markdown_table(table) for table in section.tables]
        for figure in section.figures:
            if figure in pictures:
                parts.append(f"![{_markdown(figure.caption)}]({quote(f'{folder}/{pictures[figure]}')})\n")
            parts.append(f"{_markdown(figure.alt)}\n")
    return "\n".join(parts)


def _section(section: Section) -> str:
    text = "".join(f"<p>{escape(each)}</p>" for each in section.text)
    tables = "".join(f'<div class="wide">{_table(table)}</div>' for table in section.tables)
    figures = "".join(
        f"<figure>{figure.svg}<figcaption>{escape(figure.caption)}</figcaption></figure>"
        for figure in section.figures
        if figure.svg
    )
    figures = figures and f'<div class="figures">{figures}</div>'
    return f"<section><h2>{escape(section.title)}</h2>{text}{tables}{figures}</section>\n"


def _table(table: Table) -> str:
    head, *rows = table.rows
    cells = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"


def _cell(cell: str) -> str:
    return f'<td class="long">{escape(cell)}</td>' if len(cell) > LONG or "\n" in cell else f"<td>{escape(cell)}</td>"


def _markdown(text: str) -> str:
    """On one line, with nothing that Markdown would take for a picture, a link or HTML."""
    return re.sub(r"([\\`*_<|\[\]!])", r"\\\1", " ".join(text.split()))


def _markdown_table(table: Table) -> str:
    head, *rows = (["<br>".join(map(_markdown, cell.splitlines())) for cell in row] for row in table.rows)
    lines = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines) + "\n"
