"""`streamliner prune`."""

from __future__ import annotations

from typing import Annotated

import typer

from streamliner.cli import options
from streamliner.cli.console import Terminal, print_json
from streamliner.cli.cut import print_cut
from streamliner.cli.search import print_search, search_json


def prune(
    model: options.Model,
    output: Annotated[str, typer.Option("--output", "-o", help="Folder for the cut checkpoint.", metavar="OUT")],
    run: Annotated[
        str | None, typer.Option(help="Run folder (default: OUT.run).", metavar="RUN", rich_help_panel=options.OUTPUT)
    ] = None,
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
    no_verify: options.NoVerify = False,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    dtype: options.Dtype = "auto",
    device: options.Device = None,
    offload: options.Offload = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Search, cut and verify in one. OUT appears whole at the end; a killed run continues with the same command."""
    from streamliner import pipeline
    from streamliner.session import open_session, silenced_transformers

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
        found, result = pipeline.prune_model(
            open_session(settings),
            wanted,
            output,
            run or f"{output.rstrip('/')}.run",
            overwrite=overwrite,
            verified=not no_verify,
            reporter=Terminal(quiet),
        )
    if not result:  # one process of several prints
        return
    if json:
        print_json(search_json(found) | {"cut": result})
    else:
        print_search(found)
        print_cut(result)
