"""`streamliner search`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streamliner.cli import options
from streamliner.cli.console import Terminal, console, indices, print_json
from streamliner.verbs.search import search_model

if TYPE_CHECKING:
    from streamliner.search.frontier import Frontier
    from streamliner.verbs.search import SearchResult


def search(
    model: options.Model,
    output: Annotated[
        str, typer.Option("--output", "-o", help="Run folder for journal, frontier and plan.", metavar="RUN")
    ],
    method: options.Method = "sleb",
    remove: options.Remove = None,
    max_perplexity_increase: options.MaxPerplexityIncrease = None,
    search_effort: options.SearchEffort = None,
    set_: options.Set = None,
    protect_first: options.ProtectFirst = None,
    protect_last: options.ProtectLast = None,
    calibration: options.Calibration = None,
    num_samples: options.NumSamples = 128,
    sequence_length: options.SequenceLength = None,
    batch_size: options.BatchSize = 1,
    memory_budget: options.MemoryBudget = "2GB",
    seed: options.Seed = 0,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    dtype: options.Dtype = "auto",
    device: options.Device = None,
    offload: options.Offload = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Search for the blocks to remove. Writes a plan; a killed search continues with the same command."""

    from streamliner.model.load import silenced_transformers
    from streamliner.model.session import open_session

    settings = options.model_settings(model, revision, trust_remote_code, dtype, device, offload)
    wanted = options.search_settings(
        remove=remove,
        max_perplexity_increase=max_perplexity_increase,
        method=method,
        search_effort=search_effort,
        set_=set_,
        protect_first=protect_first,
        protect_last=protect_last,
        calibration=calibration,
        num_samples=num_samples,
        sequence_length=sequence_length,
        batch_size=batch_size,
        memory_budget=memory_budget,
        seed=seed,
    )
    with silenced_transformers():
        session = open_session(settings)
        result = search_model(session, wanted, output, overwrite=overwrite, reporter=Terminal(quiet))
    if session.ranks.rank:  # one process of several prints
        return
    if json:
        print_json(search_json(result))
    else:
        print_search(result)
        console.print(f"Cut it with: streamliner cut {model} --plan {output}/plan.json -o OUT", soft_wrap=True)


def search_json(result: SearchResult) -> dict[str, Any]:
    """The result of a search as a JSON value."""
    import dataclasses

    return {
        "plan": result.plan.to_json(),
        "frontier": dataclasses.asdict(result.frontier),
        "cost": dataclasses.asdict(result.counters),
    }


def print_search(result: SearchResult) -> None:
    """The frontier as a table."""
    from rich.table import Table

    from streamliner.search.registry import method_class

    frontier = result.frontier
    table = Table(
        "removed",
        "blocks (0-based, in order)",
        "perplexity",
        "change",
        title=f"{frontier.method} on {result.calibration}",
        caption=f"score: {method_class(frontier.method).score}",  # type: ignore[attr-defined]
    )
    table.add_column("score")
    table.add_row("0", "", _perplexity(frontier.dense_loss), "", "")
    for point in frontier.points:
        loss = math.nan if point.loss is None else point.loss
        change = math.exp(min(loss - frontier.dense_loss, 700)) - 1
        table.add_row(
            str(len(point.removed)), indices(point.removed), _perplexity(loss), f"{change:+.1%}", f"{point.score:.4f}"
        )
    console.print(table)
    cost = result.counters
    _print_savings(frontier, len(result.calibration.windows))
    console.print(
        f"{cost.forwards} forwards, {cost.block_forwards} block forwards, {cost.tokens:,} tokens, {cost.seconds:.1f} s"
    )


def _print_savings(frontier: Frontier, windows: int) -> None:
    """What an adaptive search measured of an exact one's losses, and how near a decision was."""
    steps = [point for point in frontier.points if point.window_losses is not None]
    if not steps:
        return
    first = len(steps[0].candidates or ())  # all are measured in the first round, and one fewer can go in each
    exact = sum(first - number for number in range(len(steps))) * windows
    measured = sum(point.window_losses or 0 for point in steps)
    margins = [point.margin for point in steps if point.margin is not None]
    near = f"; the nearest was left out with {min(margins):.4f} nats to spare" if margins else ""
    console.print(f"adaptive: {measured} of {exact} losses of a window measured ({measured / exact:.0%}){near}")


def _perplexity(loss: float) -> str:
    return f"{math.exp(min(loss, 700)):.4g}"
