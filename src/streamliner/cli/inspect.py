"""`streamliner inspect`."""

from typing import Any

from streamliner.cli.command import MODEL, Given, command
from streamliner.cli.console import print_line, print_tables
from streamliner.format import Table, human_bytes
from streamliner.settings import InspectSettings, ModelSettings


@command(
    MODEL,
    examples=("inspect Qwen/Qwen3-0.6B", "inspect model.gguf"),
    without=("dtype", "device", "offload"),
    Model=ModelSettings,
    Inspect=InspectSettings,
)
def inspect(given: Given) -> None:
    """Show the blocks of a model, which can be removed, and how much that saves. Reads no weights."""
    from streamliner.model.session import open_model
    from streamliner.verbs.inspect import inspect as run_inspect

    session = open_model(given.argument(MODEL), given.settings(ModelSettings))
    result = run_inspect(session)
    path = session.source.path or session.source.name
    given.show(result, path, lambda: print_inspection(result))


def print_inspection(result: dict[str, Any]) -> None:
    """The model in two lines, and its blocks as a table."""
    from streamliner.cut.structure import by_reason

    share = result["parameters_in_blocks"] / result["parameters"]
    print_line(f"{result['model']}: {result['architecture']} ({result['model_type']})")
    print_line(
        f"{result['num_blocks']} blocks in {result['stack']}, "
        + (f"hidden size {result['hidden_size']}, " if result["hidden_size"] else "")
        + f"vocabulary of {result['vocab_size']:,} tokens"
    )
    print_line(
        f"{result['parameters']:,} parameters, {share:.0%} of them in blocks; "
        f"weight files: {human_bytes(result['bytes'])}"
    )
    rows = [["block", "kind", "parameters", "share", "removable"]]
    for block in result["blocks"]:
        index, count = str(block["index"]), block["parameters"]
        removable = "no" if index in result["not_removable"] else "yes"
        rows.append([index, block["kind"], f"{count:,}", f"{count / result['parameters']:.2%}", removable])
    print_tables([Table(rows)])
    for note in result["notes"]:
        print_line(note)
    for reason, blocks in by_reason(result["not_removable"]).items():
        print_line(f"{blocks} cannot be removed alone: {reason}")
