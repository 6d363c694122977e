"""A benchmark: tokens per second, and what of the speed that removal allows was had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from streamliner.format import number
from streamliner.report.section import Section, Table

KINDS = ("prompt", "generation")


def speed_section(value: dict[str, Any]) -> Section:
    """Models by row, then their speed-ups."""
    section = Section(f"Speed: {value['engine']}")
    settings = value["settings"]
    section.text.append(
        f"{value['dtype']} on {value['device']}: a prompt of {settings['prompt_tokens']} tokens; "
        f"{settings['batch_size']} x {settings['context_tokens']} tokens, {settings['new_tokens']} generated for each. "
        f"Medians of {settings['repeats']} rounds{', then stopped' if value['stopped'] else ''}; "
        "slowest and fastest in brackets."
    )
    memory = [
        (label, key)
        for label, key in (
            ("weights, MB", "weight_bytes"),
            ("cache per token, kB", "cache_bytes_per_token"),
            ("peak of a prompt, MB", "peak_bytes"),
        )
        if all(model[key] is not None for model in value["models"])
    ]
    labels = (label for label, _ in memory)
    rows = [["", "blocks", "parameters", *(f"{kind}, tokens per second" for kind in KINDS), *labels]]
    for model in value["models"]:
        rows.append(
            [
                *(Path(model["model"]).name, str(model["blocks"]), f"{model['parameters']:,}"),
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
            *("share of blocks", "share of parameters"),
        ]
    ]
    for compared in value["compared"]:
        for kind in KINDS:
            each = compared[kind]
            blocks, allowed = each["time_in_blocks"], each["allowed_by_time"]
            rows.append(
                [
                    *(Path(compared["model"]).name, kind, f"{each['speed_up']:.3f}"),
                    f"{each['lowest']:.3f} to {each['highest']:.3f}",
                    "" if blocks is None else f"{blocks:.0%}",
                    "" if allowed is None else f"{allowed:.3f}",
                    *(f"{compared['blocks_ratio']:.3f}", f"{compared['parameters_ratio']:.3f}"),
                ]
            )
    if len(rows) > 1:
        section.tables.append(Table(rows))
        section.text.append(
            "Speed-ups are medians of the ratios within a round. What removal allows: the dense model without all "
            "blocks but the first tells the time that blocks take; the rest, mostly the head, no removal makes faster. "
            "The last columns are the speed-ups if all time were in blocks, or were spread as parameters are."
        )
    return section
