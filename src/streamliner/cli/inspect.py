"""`streamliner inspect`."""

from __future__ import annotations

from typing import Any

from streamliner.cli import options
from streamliner.cli.console import console, human_bytes, print_json


def inspect(
    model: options.Model,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    json: options.Json = False,
) -> None:
    """Show what a model is, which blocks can be removed and what that saves. Reads no weights."""
    from streamliner.model.load import silenced_transformers
    from streamliner.model.session import open_session
    from streamliner.verbs.inspect import inspect_model

    settings = options.model_settings(model, revision, trust_remote_code, "auto", None)
    with silenced_transformers():
        result = inspect_model(open_session(settings))
    if json:
        print_json(result)
    else:
        _print(result)


def _print(result: dict[str, Any]) -> None:
    from rich.table import Table

    from streamliner.cut.structure import by_reason

    share = result["parameters_in_blocks"] / result["parameters"]
    console.print(f"[bold]{result['model']}[/]: {result['architecture']} ({result['model_type']})")
    console.print(
        f"{result['num_blocks']} blocks in {result['stack']}, "
        + (f"hidden size {result['hidden_size']}, " if result["hidden_size"] else "")
        + f"{result['vocab_size']:,} words"
    )
    console.print(
        f"{result['parameters']:,} parameters, {share:.0%} of them in blocks; "
        f"weight files: {human_bytes(result['bytes'])}"
    )
    table = Table("block", "kind", "parameters", "of the model", "removable")
    for block in result["blocks"]:
        table.add_row(
            str(block["index"]),
            block["kind"],
            f"{block['parameters']:,}",
            f"{block['parameters'] / result['parameters']:.2%}",
            "no" if str(block["index"]) in result["not_removable"] else "yes",
        )
    console.print(table)
    for reason, blocks in by_reason(result["not_removable"]).items():
        console.print(f"{blocks} cannot go alone: {reason}", soft_wrap=True, markup=False)
