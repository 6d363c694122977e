"""Sections -> one HTML file that asks nothing of anybody, and Markdown beside it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

from streamliner._version import __version__
from streamliner.report.files import read_runs
from streamliner.report.section import Section, Table
from streamliner.report.sections import make_sections

STYLE = """
:root{color-scheme:light dark;--text:#1b1b1f;--back:#fff;--soft:#667;--rule:#ccd;--c0:#1f5fbf;--c1:#c2410c;--c2:#15803d;
--c3:#7e22ce;--c4:#a16207;--c5:#0e7490}
@media(prefers-color-scheme:dark){:root{--text:#e8e8ee;--back:#15161a;--soft:#9aa;--rule:#3a3c46;--c0:#7fb0ff;--c1:#ff9a6b;
--c2:#6fd08c;--c3:#cf9bff;--c4:#e5c04f;--c5:#5fd0e6}}
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
.grid{stroke:var(--rule);stroke-width:.7}.tick,.label{fill:var(--soft);font-size:14px}
@media(max-width:40rem){.tick,.label{font-size:18px}}
.line{fill:none;stroke-width:1.8}.dashed{stroke-dasharray:6 4}.error{stroke-width:1.2}
.cell{fill:var(--c0)}.mark{fill:var(--c1)}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:.25rem 1rem;margin:.25rem 0;padding:0;font-size:.875rem}
.key{display:inline-block;width:.8em;height:.8em;margin-right:.35em;border-radius:2px}
@page{size:A4 landscape;margin:12mm}
@media print{:root{--text:#000;--back:#fff;--soft:#444;--rule:#bbb;--c0:#1f5fbf;--c1:#c2410c;--c2:#15803d;--c3:#7e22ce;
--c4:#a16207;--c5:#0e7490}body{max-width:none;padding:0}.wide{overflow:visible}table{font-size:.65rem}
th,td{padding:.2rem .4rem}td:not(.long){white-space:normal}td:first-child:not(.long){white-space:nowrap}
figure,tr{break-inside:avoid}
h2{break-after:avoid}}
""" + "".join(
    f".s{i}{{stroke:var(--c{i})}}.dot.s{i}{{fill:var(--c{i});stroke:none}}.key.s{i}{{background:var(--c{i})}}"
    for i in range(6)
)
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""What a browser lets the page do: show itself, and no request."""
LONG = 40
"""Characters from which a cell may break into lines."""


def write_report(sources: Sequence[str], out: Path) -> list[Path]:
    """Write `out`, an HTML file, and the same as Markdown beside it.

    Args:
        sources: run folders, evaluation and benchmark files.
        out: such as report.html.

    Returns:
        The files written.

    Raises:
        OutputError: a source holds nothing to report.
    """
    sections = make_sections(*read_runs(sources))
    markdown = out.with_suffix(".md")
    out.parent.mkdir(parents=True, exist_ok=True)
    for path, text in ((out, as_html(sections)), (markdown, as_markdown(sections))):
        temporary = path.with_name(f".{path.name}")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    return [out, markdown]


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


def as_markdown(sections: Sequence[Section]) -> str:
    """Text and tables; of pictures what they show, in words."""
    parts = ["# streamliner report\n"]
    for section in sections:
        parts.append(f"## {_markdown(section.title)}\n")
        parts += [f"{_markdown(text)}\n" for text in section.text]
        parts += [_markdown_table(table) for table in section.tables]
        parts += [f"{_markdown(figure.alt)}\n" for figure in section.figures]
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
