"""The command line: one short file per verb, which parses, calls `verbs/` and prints."""

import json
import sys

import typer
from rich.markup import escape

from streamliner._version import __version__
from streamliner.cli import (
    answer,
    benchmark,
    cut,
    doctor,
    evaluate,
    heal,
    inspect,
    methods,
    prune,
    report,
    search,
    verify,
)
from streamliner.cli.console import Reported
from streamliner.cli.interrupt import interruptible
from streamliner.cli.renamed import renamed
from streamliner.errors import UserError

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Make a language model shallower: find the blocks that it needs least, remove them, measure what was lost.\n\n"
    "Start with: streamliner inspect MODEL, then streamliner prune MODEL --remove 20% -o OUT. "
    "A MODEL is a hub id, a folder or a GGUF file.",
)
VERBS = (inspect, search, cut, prune, answer, heal, evaluate, benchmark, report, verify, methods, doctor)
for verb in VERBS:  # in the order of --help
    function = getattr(verb, verb.__name__.rpartition(".")[2])
    lines = (escape(f"streamliner {example}") for example in function.examples)
    app.command(epilog="\n\n".join(["[bold]Examples[/]", *lines]))(function)


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
    """Run the command line tool. Exit status 0 fine, 1 failure, 2 the user's mistake, 130 Ctrl-C."""
    arguments = renamed(sys.argv[1:] if arguments is None else arguments)
    try:
        with interruptible():
            app(arguments)
    except SystemExit as stop:
        if stop.code == UserError.exit_code and "--json" in arguments and not isinstance(stop, Reported):
            print(json.dumps({"error": "The command line is not understood.", "hint": "See the message on stderr."}))
        raise
