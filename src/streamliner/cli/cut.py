"""`streamliner cut`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from streamliner.cli import options
from streamliner.cli.console import Terminal, console, human_bytes, indices, print_json
from streamliner.errors import RemovalError
from streamliner.verbs.cut import cut_to_folder, manual_plan


def cut(
    model: options.Model,
    output: Annotated[str, typer.Option("--output", "-o", help="Folder for the cut checkpoint.", metavar="OUT")],
    plan: Annotated[str | None, typer.Option(help="Plan file or run folder.", metavar="FILE")] = None,
    blocks: Annotated[
        str | None, typer.Option(help="Blocks to remove instead of a plan, such as 3,7,9.", metavar="LIST")
    ] = None,
    no_verify: options.NoVerify = False,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    dtype: options.Dtype = "auto",
    device: options.Device = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write the checkpoint without the blocks of a plan, and verify it against bypass on the dense model."""

    from streamliner.model.load import silenced_transformers
    from streamliner.model.session import open_session
    from streamliner.search.plan import read_plan

    if (plan is None) == (blocks is None):
        raise RemovalError("Which blocks shall go?", "Give --plan FILE or --blocks 3,7,9 (one of them).")
    settings = options.model_settings(model, revision, trust_remote_code, dtype, device)
    named = None if blocks is None else parse_blocks(blocks)
    with silenced_transformers():
        chosen = None if plan is None else read_plan(plan)
        session = open_session(settings)
        if named is not None:
            chosen = manual_plan(session, named)
        assert chosen is not None
        result = cut_to_folder(
            session, chosen, output, overwrite=overwrite, verified=not no_verify, reporter=Terminal(quiet)
        )
    if json:
        print_json(result)
    else:
        print_cut(result)


def parse_blocks(text: str) -> tuple[int, ...]:
    """Such as "3,7,9"."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise RemovalError(f"--blocks {text} is not a list of block numbers.", "Write for instance 3,7,9.") from error


def print_cut(result: dict[str, Any]) -> None:
    """What was written, in the three measures of sparsity."""
    from rich.table import Table

    table = Table("", "dense", "cut", "saved", title=f"Removed blocks: {indices(result['removed'])}")
    for name in ("blocks", "parameters", "bytes"):
        before, after = result[f"{name}_before"], result[f"{name}_after"]
        show = human_bytes if name == "bytes" else "{:,}".format
        table.add_row(name, show(before), show(after), f"{1 - after / before:.1%}" if before else "")
    console.print(table)
    check = result["verification"]
    if check is None:
        console.print("Not verified (--no-verify).")
    else:
        exact = "equal to the bit" if check["exact"] else f"equal within {check['max_logit_difference']:.2g}"
        console.print(
            f"Verified in {check['dtype']} on {check['tokens']} tokens: reloads with clean keys; logits {exact} to "
            f"bypass; {_generation(check)}.",
            soft_wrap=True,
        )
    console.print(f"Written to {result['output']}", soft_wrap=True)


def _generation(check: dict[str, Any]) -> str:
    if check["cached_generation"] and check["padded_generation"]:
        return "generation with cache equals without, also left-padded"
    if check["cached_generation"]:
        return "generation with cache equals without (left-padded, the dense model's own does not)"
    return "generation not compared: the dense model's own differs with and without cache"
