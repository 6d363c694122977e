"""The command line: one short file per verb. It parses, calls the API and prints."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from types import FrameType

import typer

from streamliner._version import __version__
from streamliner.cli import benchmark, cut, evaluate, heal, inspect, methods, prune, report, search
from streamliner.cli.console import error_console
from streamliner.errors import InterruptedByUser, StreamlinerError, UserError

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Make a language model shallower: find the blocks it can do without, take them out, prove what it cost.\n\n"
    "Start with: streamliner inspect MODEL, then streamliner prune MODEL --remove 20% -o OUT. "
    "A MODEL is a hub id, a folder or a GGUF file.",
)
for verb in (
    inspect.inspect,
    search.search,
    cut.cut,
    prune.prune,
    heal.heal,
    evaluate.evaluate,
    benchmark.benchmark,
    report.report,
    methods.methods,
):
    app.command()(verb)


_IN_RUN = "What was done is kept in the run folder: the same command continues."
KEPT = {
    "search": _IN_RUN,
    "prune": _IN_RUN,
    "heal": _IN_RUN,
    "evaluate": "Texts and tasks that were measured to their end are kept: the same command goes on.",
}
"""What is kept when somebody presses Ctrl-C, by verb."""


def _version(asked: bool) -> None:
    if asked:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    pass


def main(arguments: list[str] | None = None) -> None:
    """Run the command line tool. Exit status 0 fine, 1 failure, 2 the user's mistake."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, _interrupt)
    try:
        app(arguments)
    except SystemExit as stop:
        if stop.code == UserError.exit_code and "--json" in arguments:  # typer's words are on stderr
            print(json.dumps({"error": "The command line is not understood.", "hint": "See the message on stderr."}))
        raise
    except StreamlinerError as error:
        if "--json" in arguments and os.environ.get("RANK", "0") == "0":  # one process of several prints
            print(json.dumps({"error": str(error.args[0]), "hint": error.hint}))
        error_console.print(f"[bold red]Error:[/] {_escaped(str(error.args[0]))}", highlight=False, soft_wrap=True)
        if error.hint:
            error_console.print(_escaped(error.hint), highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)


def _interrupt(signal_number: int, frame: FrameType | None) -> None:
    # An error of ours, as click would turn KeyboardInterrupt into a bare "Aborted".
    verb = next((argument for argument in sys.argv[1:] if argument in KEPT), "")
    raise InterruptedByUser("Stopped.", KEPT.get(verb, ""))


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)
