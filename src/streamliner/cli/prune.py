"""`streamliner prune`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from streamliner.cli import options
from streamliner.cli.console import Terminal, print_json
from streamliner.cli.cut import print_cut
from streamliner.cli.heal import print_healed
from streamliner.cli.search import print_search, search_json
from streamliner.errors import UserError
from streamliner.verbs.prune import prune_and_heal, prune_model


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
    heal: options.Heal = False,
    network: options.Network = "block",
    loss: options.LossWeights = None,
    lora: options.Lora = 0,
    data: options.Data = None,
    tokens: options.Tokens = None,
    heal_set: options.HealSet = None,
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
    """Search, cut and verify in one, and heal if asked to. OUT appears whole at the end; a killed run continues with
    the same command.

    `--remove n` means n blocks fewer in the result, with or without `--heal`.
    """

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
    given = (lora, loss, data, tokens, heal_set)
    if not heal and (any(given) or network != "block"):
        raise UserError("What to heal with is given, but not --heal.", "Add --heal.")
    healing = options.heal_settings(
        network=network,
        loss=loss,
        lora=lora,
        data=data,
        tokens=tokens,
        seed=seed,
        sequence_length=sequence_length,
        **options.heal_set(heal_set),
    )
    common: dict[str, Any] = {"overwrite": overwrite, "verified": not no_verify, "reporter": Terminal(quiet)}
    run_folder = run or f"{output.rstrip('/')}.run"
    healed: dict[str, Any] = {}
    with silenced_transformers():
        session = open_session(settings)
        if heal:
            found, result, healed = prune_and_heal(session, wanted, healing, output, run_folder, **common)
        else:
            found, result = prune_model(session, wanted, output, run_folder, **common)
    if session.ranks.rank:  # one process of several prints
        return
    if json:
        print_json(search_json(found) | {"cut": result} | ({"healing": healed} if heal else {}))
        return
    print_search(found)
    print_cut(result)
    if heal:
        print_healed(healed)
