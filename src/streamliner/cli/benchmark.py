"""`streamliner benchmark`."""

from __future__ import annotations

from typing import Any

from rich.markup import escape

from streamliner.cli.command import MODELS, Given, command
from streamliner.cli.console import console, human_bytes, print_line, print_models, show
from streamliner.errors import Interrupted
from streamliner.format import counted, number, short_names
from streamliner.runs.files import BENCHMARK_KINDS
from streamliner.settings import BenchmarkSettings, ModelSettings


@command(MODELS, without=("offload",), Benchmark=BenchmarkSettings, Model=ModelSettings)
def benchmark(given: Given) -> None:
    """Time prompts and generation, the models in turn, next to what the removed share of time allows.

    Ctrl-C after the first round keeps what was measured.
    """
    from streamliner.verbs.benchmark import benchmark as run_benchmark

    settings = given.settings(BenchmarkSettings)
    result = run_benchmark(given.argument(MODELS), settings, given.settings(ModelSettings)).to_json()
    show(result, settings.output, lambda: print_benchmark(result), as_json=given.json, quiet=given.quiet)
    if result["stopped"]:
        if given.json:  # which says so, and must be alone on stdout
            raise SystemExit(Interrupted.exit_code)
        raise Interrupted(
            f"Stopped after {counted(result['settings']['repeats'], 'round')}.",
            f"The results so far are above{f' and in {settings.output}' if settings.output else ''}.",
        )


def print_benchmark(result: dict[str, Any]) -> None:
    """Models in one table, then how much faster each is than the first."""
    settings, measured = result["settings"], result["models"]
    print_line(
        f"{result['engine']}, {result['dtype']} on {result['device']}; prompt of {settings['prompt_tokens']} tokens; "
        f"{settings['batch_size']} x {settings['context_tokens']} tokens, {settings['new_tokens']} generated for each; "
        f"medians of {settings['repeats']}, slowest and fastest in brackets."
    )
    rows: list[tuple[str, list[str]]] = []
    for kind in BENCHMARK_KINDS:
        cells = [model[kind] for model in measured]
        rates = [[number(each[name]) for name in ("tokens_per_second", "slowest", "fastest")] for each in cells]
        rows.append((f"{kind}, tokens/s", [f"{median} ({slow} to {fast})" for median, slow, fast in rates]))
    rows.append(("blocks", [str(model["blocks"]) for model in measured]))
    rows.append(("parameters", [f"{model['parameters']:,}" for model in measured]))
    for label, key in (
        ("weights", "weight_bytes"),
        ("cache per prompt token", "cache_bytes_per_token"),
        ("  after full sliding windows", "cache_bytes_per_further_token"),
        ("peak memory, prompt", "peak_bytes"),
    ):
        if all(model[key] is not None for model in measured):
            rows.append((label, [human_bytes(round(model[key])) for model in measured]))
    print_models([model["model"] for model in measured], rows)
    names = short_names([model["model"] for model in measured])
    for name, compared in zip(names[1:], result["compared"], strict=False):
        _print_speed_up(name, compared)


def _print_speed_up(name: str, compared: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table(
        "",
        "speed-up",
        "over rounds",
        "time in blocks",
        "allowed by removal",
        title=f"{escape(name)}: {compared['blocks_ratio']:.2f}x fewer blocks, "
        f"{compared['parameters_ratio']:.2f}x fewer parameters",
    )
    for kind in BENCHMARK_KINDS:
        each = compared[kind]
        table.add_row(
            kind,
            f"{each['speed_up']:.3f}",
            f"{each['lowest']:.3f} to {each['highest']:.3f}",
            "-" if each["time_in_blocks"] is None else f"{each['time_in_blocks']:.0%}",
            "-" if each["allowed_by_time"] is None else f"{each['allowed_by_time']:.3f}",
        )
    console.print(table)
