"""A benchmark: tokens per second, memory, and speed-ups next to those to expect."""

from typing import Any

from streamliner.format import counted, number, short_names
from streamliner.report.read import JsonObject
from streamliner.report.section import Section, Table, by_column
from streamliner.settings import BENCHMARK_KINDS

MEMORY = (  # key of the JSON file, name of the column, bytes of its unit
    ("weight_bytes", "weights (MB)", 1e6),
    ("cache_bytes_per_token", "cache per prompt token (kB)", 1e3),
    ("cache_bytes_per_further_token", "cache per token beyond sliding windows (kB)", 1e3),
    ("peak_bytes", "peak memory of a prompt (MB)", 1e6),
)


def speed_section(benchmark: JsonObject) -> Section:
    """A table of what was measured, and one of speed-ups."""
    section, settings = Section(f"Speed: {benchmark['engine']}"), benchmark["settings"]
    names = short_names([model["model"] for model in benchmark["models"]])
    stopped = " (stopped early)" if benchmark["stopped"] else ""
    section.text.append(
        f"{benchmark['dtype']} on {benchmark['device']}. Prompt: {settings['prompt_tokens']} tokens. Generation: "
        f"{settings['new_tokens']} tokens after {settings['context_tokens']}, batch size {settings['batch_size']}. "
        f"Medians of {counted(settings['repeats'], 'round')}{stopped}, slowest and fastest in brackets."
    )
    section.tables.append(_measured_table(benchmark["models"], names))
    if benchmark["compared"]:
        section.tables.append(_speed_up_table(benchmark["compared"], names[1:]))
        section.text.append("Speed-ups are medians of the ratios within a round.")
        if benchmark["compared"][0]["prompt"]["allowed_by_time"] is not None:
            section.text.append(
                "Expected: the speed-up if exactly the time of the removed blocks is saved. To measure that time, the "
                "dense model also runs with only its first block."
            )
        section.text.append(
            "Ratio of blocks, ratio of parameters: the speed-up if all time were spent in blocks, or in proportion to "
            "the parameters."
        )
    return section


def _measured_table(models: list[JsonObject], names: list[str]) -> Table:
    columns = [["model", *names], ["blocks", *(str(model["blocks"]) for model in models)]]
    columns.append(["parameters", *(f"{model['parameters']:,}" for model in models)])
    for kind in BENCHMARK_KINDS:
        rates = ([number(model[kind][key]) for key in ("tokens_per_second", "slowest", "fastest")] for model in models)
        columns.append([f"{kind} (tokens/s)", *(f"{median} ({slow} to {fast})" for median, slow, fast in rates)])
    used: list[Any] = []
    for key, name, unit in MEMORY:
        used, before = [model[key] for model in models], used
        if None not in used and used != before:  # without sliding windows a further token takes as much
            columns.append([name, *(f"{model[key] / unit:,.4g}" for model in models)])
    return by_column(columns)


def _speed_up_table(compared: list[JsonObject], names: list[str]) -> Table:
    timed = compared[0]["prompt"]["time_in_blocks"] is not None  # in transformers alone
    head = ["model", "work", "speed-up", "lowest and highest", *(["time in blocks", "expected"] if timed else [])]
    rows = [[*head, "ratio of blocks", "ratio of parameters"]]
    for name, model in zip(names, compared, strict=True):
        for kind in BENCHMARK_KINDS:
            each = model[kind]
            cells = [name, kind, f"{each['speed_up']:.3f}", f"{each['lowest']:.3f} to {each['highest']:.3f}"]
            if timed:
                cells += [f"{each['time_in_blocks']:.0%}", f"{each['allowed_by_time']:.3f}"]
            rows.append([*cells, f"{model['blocks_ratio']:.3f}", f"{model['parameters_ratio']:.3f}"])
    return rows
