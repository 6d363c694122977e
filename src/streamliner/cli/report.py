"""`streamliner report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from streamliner.cli import options
from streamliner.cli.console import console, print_json
from streamliner.errors import OutputError


def report(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="Run folders of search, prune and heal; JSON files of evaluate and benchmark.", metavar="RUN..."
        ),
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output", "-o", help="HTML file; the same as Markdown and its pictures go beside it.", metavar="FILE"
        ),
    ] = "report.html",
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Show what came of runs on one page: searches, frontier, healing, evaluation, speed, and how to do it again."""
    from streamliner.report.render import pictures_folder, write_report
    from streamliner.runs.files import check_result_file

    path = Path(output).expanduser()
    if path.suffix not in (".html", ".htm"):
        raise OutputError(f"{output} is not the name of an HTML file.", "Write for instance -o report.html.")
    for file in (path, path.with_suffix(".md")):
        check_result_file(file, overwrite=overwrite)
    if pictures_folder(path).exists() and not overwrite:
        raise OutputError(f"The output {pictures_folder(path)} exists.", "Choose another name, or add --overwrite.")
    files = [str(file) for file in write_report(sources, path)]
    if json:
        print_json({"files": files})
    else:
        console.print(f"Written to {' and '.join(files)}", soft_wrap=True)
