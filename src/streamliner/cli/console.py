"""Results go to stdout, errors to stderr."""

import json
import os
from collections.abc import Iterable
from typing import NoReturn

from rich.console import Console
from rich.markup import escape

from streamliner.errors import Interrupted, StreamlinerError
from streamliner.format import Table

console = Console(highlight=False)
error_console = Console(stderr=True, highlight=False)
KEPT = {
    **dict.fromkeys(("search", "prune", "heal"), "Finished work is in the run folder: the same command continues."),
    "evaluate": "Finished texts and tasks are kept: the same command continues.",
}
"""What is kept after Ctrl-C, by verb."""


class Reported(SystemExit):
    """The end after an error that was printed."""


def fail(error: StreamlinerError | Interrupted, verb: str, *, as_json: bool) -> NoReturn:
    """Print an error and leave with its exit status."""
    message = str(error.args[0])
    hint = error.hint or (KEPT.get(verb, "") if isinstance(error, Interrupted) else "")
    if as_json and os.environ.get("RANK", "0") == "0":  # one process of several prints
        print(json.dumps({"error": message, "hint": hint}))
    error_console.print(f"[bold red]Error:[/] {escape(message)}", soft_wrap=True)
    if hint:
        error_console.print(escape(hint), soft_wrap=True)
    raise Reported(error.exit_code)


def print_line(text: str) -> None:
    """A line that wraps at the terminal's edge and is taken as it is."""
    console.print(text, markup=False, soft_wrap=True)


def print_tables(tables: Iterable[Table]) -> None:
    """The tables of a result, with their titles and captions."""
    from rich.table import Table as RichTable

    for table in tables:
        head, *body = ([escape(cell) for cell in row] for row in table.rows)
        shown = RichTable(*head)
        for row in body:
            shown.add_row(*row)
        if table.title:
            print_line(table.title)
        console.print(shown)
        if table.caption:
            print_line(table.caption)
