"""`streamliner search`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from streamliner.cli.command import MODEL, Argument, Given, command
from streamliner.cli.console import console, indices, print_line, show
from streamliner.settings import ModelSettings, SearchSettings

if TYPE_CHECKING:
    from streamliner.search.found import Found
    from streamliner.search.frontier import Frontier

RUN = Argument("run", "Run folder for journal, frontier and plan", "RUN", ("--output", "-o"))


@command(MODEL, RUN, Search=SearchSettings, Model=ModelSettings)
def search(given: Given) -> None:
    """Search for the blocks to remove. Writes a plan; a killed search continues with the same command."""
    from streamliner.model.session import open_model
    from streamliner.verbs.search import search as run_search

    model, run = given.argument(MODEL), given.argument(RUN)
    session = open_model(model, given.settings(ModelSettings))
    found = run_search(session, given.settings(SearchSettings))
    if session.ranks.rank:  # one process of several prints
        return

    def table() -> None:
        print_search(found)
        print_line(f"Cut it with: streamliner cut {model} --plan {run} -o OUT")

    show(found.to_json(), run, table, as_json=given.json, quiet=given.quiet)


def print_search(found: Found) -> None:
    """The frontier as a table, and what the search cost."""
    from rich.table import Table

    frontier, cost = found.frontier, found.counters
    table = Table(
        "removed",
        "blocks (0-based, in order)",
        "perplexity",
        "change",
        "score",
        title=f"{frontier.method} on {found.calibration}",
        caption=f"score: {frontier.score}",
    )
    table.add_row("0", "", _perplexity(frontier.dense_loss), "", "")
    for point in frontier.points:
        loss = math.nan if point.loss is None else point.loss
        change = math.exp(min(loss - frontier.dense_loss, 700)) - 1
        table.add_row(
            str(len(point.removed)), indices(point.removed), _perplexity(loss), f"{change:+.1%}", f"{point.score:.4f}"
        )
    console.print(table)
    _print_savings(frontier, len(found.calibration.windows))
    print_line(
        f"{cost.forwards} forwards, {cost.block_forwards} block forwards, {cost.tokens:,} tokens, {cost.seconds:.1f} s"
    )


def _print_savings(frontier: Frontier, windows: int) -> None:
    """How much of an exact search an adaptive one measured, and its closest decision."""
    steps = [point for point in frontier.points if point.window_losses is not None]
    if not steps:
        return
    first = len(steps[0].candidates or ())  # all are measured in the first round, and each round has one fewer
    exact = sum(first - number for number in range(len(steps))) * windows
    measured = sum(point.window_losses or 0 for point in steps)
    margins = [point.margin for point in steps if point.margin is not None]
    closest = f"; smallest margin {min(margins):.4f} nats" if margins else ""
    print_line(f"adaptive: {measured} of {exact} window losses measured ({measured / exact:.0%}){closest}")


def _perplexity(loss: float) -> str:
    return f"{math.exp(min(loss, 700)):.4g}"
