"""A benchmark: tokens per second, and what of the speed that removal allows was had."""

from __future__ import annotations

from typing import Any

from streamliner.benchmark.timing import KINDS
from streamliner.format import counted, number, short_names
from streamliner.report.section import Section, Table


def speed_section(value: dict[str, Any]) -> Section:
    """Models by row, then their speed-ups."""
    section = Section(f"Speed: {value['engine']}")
    settings, names = value["settings"], short_names([model["model"] for model in value["models"]])
    section.text.append(
        f"{value['dtype']} on {value['device']}: a prompt of {settings['prompt_tokens']} tokens; "
        f"{settings['batch_size']} x {settings['context_tokens']} tokens, {settings['new_tokens']} generated for each. "
        f"Medians of {counted(settings['repeats'], 'round')}{', then stopped' if value['stopped'] else ''}; "
        "slowest and fastest in brackets."
    )
    memory = [
        (label, key)
        for label, key in (
            ("weights, MB", "weight_bytes"),
            ("cache per token of the prompt, kB", "cache_bytes_per_token"),
            ("behind full sliding windows, kB", "cache_bytes_per_further_token"),
            ("peak of a prompt, MB", "peak_bytes"),
        )
        if all(model[key] is not None for model in value["models"])
    ]
    labels = (label for label, _ in memory)
    rows = [["", "blocks", "parameters", *(f"{kind}, tokens per second" for kind in KINDS), *labels]]
    for name, model in zip(names, value["models"], strict=True):
        rows.append(
            [
                *(name, str(model["blocks"]), f"{model['parameters']:,}"),
                *(
                    f"{number(each['tokens_per_second'])} ({number(each['slowest'])} to {number(each['fastest'])})"
                    for each in (model[kind] for kind in KINDS)
                ),
                *(f"{model[key] / (1e3 if 'kB' in label else 1e6):,.4g}" for label, key in memory),
            ]
        )
    section.tables.append(Table(rows))
    rows = [
        [
            *("", "", "speed-up", "in a round", "time in blocks", "their removal allows"),
            *("ratio of blocks", "ratio of parameters"),
        ]
    ]
    for name, compared in zip(names[1:], value["compared"], strict=False):
        for kind in KINDS:
            each = compared[kind]
            blocks, allowed = each["time_in_blocks"], each["allowed_by_time"]
            rows.append(
                [
                    *(name, kind, f"{each['speed_up']:.3f}"),
                    f"{each['lowest']:.3f} to {each['highest']:.3f}",
                    "" if blocks is None else f"{blocks:.0%}",
                    "" if allowed is None else f"{allowed:.3f}",
                    *(f"{compared['blocks_ratio']:.3f}", f"{compared['parameters_ratio']:.3f}"),
                ]
            )
    if len(rows) > 1:
        section.tables.append(Table(rows))
        section.text.append("Speed-ups are medians of the ratios within a round.")
        if value["compared"][0]["prompt"]["allowed_by_time"] is not None:
            section.text.append(
                "What removal allows: the dense model is also timed with its first block alone, which tells the time "
                "that blocks take; the rest, mostly the head, no removal makes faster."
            )
        section.text.append(
            "The last columns are what the speed-ups would be if all time were in blocks, or were spread as parameters "
            "are."
        )
    return section
