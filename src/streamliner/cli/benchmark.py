"""`streamliner benchmark`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from streamliner.cli import options
from streamliner.cli.console import Terminal, console, human_bytes, print_json, print_models
from streamliner.format import counted, number, short_names

BENCHMARK = "Benchmark"


def benchmark(
    models: Annotated[list[str], typer.Argument(help="Hub ids, folders or GGUF files.", metavar="MODEL...")],
    dense: Annotated[
        str | None, typer.Option(help="The model that the others are to be faster than.", metavar="MODEL")
    ] = None,
    prompt_tokens: Annotated[
        int | None,
        typer.Option(help="Tokens of the prompt (default: 2048, on a CPU 256).", rich_help_panel=BENCHMARK, min=2),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(help="Texts generated at once (default: 64, on a CPU 1).", rich_help_panel=BENCHMARK, min=1),
    ] = None,
    context_tokens: Annotated[
        int | None,
        typer.Option(
            help="Tokens that a text begins with (default: 64, on a CPU 32).", rich_help_panel=BENCHMARK, min=1
        ),
    ] = None,
    new_tokens: Annotated[
        int | None,
        typer.Option(help="Tokens generated (default: 128, on a CPU 32).", rich_help_panel=BENCHMARK, min=1),
    ] = None,
    repeats: Annotated[
        int | None, typer.Option(help="Measurements of each (default: 7).", rich_help_panel=BENCHMARK, min=1)
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            help="What runs the models: transformers, vllm (folders) or llama.cpp (GGUF files), where installed.",
            rich_help_panel=BENCHMARK,
            metavar="ENGINE",
        ),
    ] = "transformers",
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", help="JSON file to write.", metavar="FILE", rich_help_panel=options.OUTPUT),
    ] = None,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    dtype: options.Dtype = "auto",
    device: options.Device = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Time prompts and generation, the models in turn, beside what the removed share of time allows.

    Ctrl-C behind the first round keeps what was measured.
    """
    from streamliner.errors import InterruptedByUser
    from streamliner.model.load import silenced_transformers
    from streamliner.model.session import open_session
    from streamliner.runs.files import check_result_file
    from streamliner.verbs.benchmark import benchmark_models

    check_result_file(output, overwrite=overwrite)

    names = options.model_names(models, dense)
    given = {
        "prompt_tokens": prompt_tokens,
        "batch_size": batch_size,
        "context_tokens": context_tokens,
        "new_tokens": new_tokens,
        "repeats": repeats,
    }
    with silenced_transformers():
        sessions = [
            open_session(options.model_settings(name, revision, trust_remote_code, dtype, device)) for name in names
        ]
        result = benchmark_models(sessions, given, output, Terminal(quiet), engine, compare=dense is not None)
    if json:
        print_json(result)
    else:
        print_benchmark(result)
    if result["stopped"] and json:  # which tells so, and is to be alone on stdout
        raise typer.Exit(InterruptedByUser.exit_code)
    if result["stopped"]:
        raise InterruptedByUser(
            f"Stopped behind {counted(result['settings']['repeats'], 'round')}.",
            f"What was measured until then is above{f' and in {output}' if output else ''}.",
        )


def print_benchmark(result: dict[str, Any]) -> None:
    """Models side by side, then how much faster each is than the first."""
    from rich.markup import escape
    from rich.table import Table

    settings, measured = result["settings"], result["models"]
    console.print(
        f"{result['engine']}, {result['dtype']} on {result['device']}; prompt of {settings['prompt_tokens']} tokens; "
        f"{settings['batch_size']} x {settings['context_tokens']} tokens, {settings['new_tokens']} generated for each; "
        f"medians of {settings['repeats']}, slowest and fastest in brackets.",
        soft_wrap=True,
    )
    rows: list[tuple[str, list[str]]] = []
    for name in ("prompt", "generation"):
        cells = (model[name] for model in measured)
        rows.append(
            (
                f"{name}, tokens/s",
                [
                    f"{number(each['tokens_per_second'])} ({number(each['slowest'])} to {number(each['fastest'])})"
                    for each in cells
                ],
            )
        )
    rows.append(("blocks", [str(model["blocks"]) for model in measured]))
    rows.append(("parameters", [f"{model['parameters']:,}" for model in measured]))
    for label, key in (
        ("weights", "weight_bytes"),
        ("cache per token of the prompt", "cache_bytes_per_token"),
        ("  behind full sliding windows", "cache_bytes_per_further_token"),
        ("peak memory, prompt", "peak_bytes"),
    ):
        if all(model[key] is not None for model in measured):
            rows.append((label, [human_bytes(round(model[key])) for model in measured]))
    print_models([model["model"] for model in measured], rows)
    names = short_names([model["model"] for model in measured])
    for shown, compared in zip(names[1:], result["compared"], strict=False):
        table = Table(
            "",
            "speed-up",
            "in a round",
            "time in blocks",
            "their removal allows",
            title=f"{escape(shown)}: {compared['blocks_ratio']:.2f} times fewer blocks, "
            f"{compared['parameters_ratio']:.2f} times fewer parameters",
        )
        for name in ("prompt", "generation"):
            each = compared[name]
            table.add_row(
                name,
                f"{each['speed_up']:.3f}",
                f"{each['lowest']:.3f} to {each['highest']:.3f}",
                "-" if each["time_in_blocks"] is None else f"{each['time_in_blocks']:.0%}",
                "-" if each["allowed_by_time"] is None else f"{each['allowed_by_time']:.3f}",
            )
        console.print(table)
