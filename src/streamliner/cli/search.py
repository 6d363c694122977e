"""`streamliner search`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streamliner.cli import options
from streamliner.cli.console import Terminal, console, indices, print_json

if TYPE_CHECKING:
    from streamliner.pipeline import SearchResult


def search(
    model: options.Model,
    output: Annotated[
        str, typer.Option("--output", "-o", help="Run folder for journal, frontier and plan.", metavar="RUN")
    ],
    method: options.Method = "sleb",
    remove: options.Remove = None,
    max_perplexity_increase: options.MaxPerplexityIncrease = None,
    set_: options.Set = None,
    protect_first: options.ProtectFirst = None,
    protect_last: options.ProtectLast = None,
    calibration: options.Calibration = None,
    num_samples: options.NumSamples = 128,
    sequence_length: options.SequenceLength = None,
    batch_size: options.BatchSize = 1,
    seed: options.Seed = 0,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    dtype: options.Dtype = "auto",
    device: options.Device = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Search for the blocks to remove. Writes a plan; a killed search continues with the same command."""
    from streamliner import pipeline
    from streamliner.session import open_session, silenced_transformers

    settings = options.model_settings(model, revision, trust_remote_code, dtype, device)
    wanted = options.search_settings(
        remove=remove,
        max_perplexity_increase=max_perplexity_increase,
        method=method,
        set_=set_,
        protect_first=protect_first,
        protect_last=protect_last,
        calibration=calibration,
        num_samples=num_samples,
        sequence_length=sequence_length,
        batch_size=batch_size,
        seed=seed,
    )
    with silenced_transformers():
        result = pipeline.search_model(
            open_session(settings), wanted, output, overwrite=overwrite, reporter=Terminal(quiet)
        )
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

    from streamliner.search import method_class

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
    console.print(
        f"{cost.forwards} forwards, {cost.block_forwards} block forwards, {cost.tokens:,} tokens, {cost.seconds:.1f} s"
    )


def _perplexity(loss: float) -> str:
    return f"{math.exp(min(loss, 700)):.4g}"
