"""All models on a few lines: what people look at first."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from streamliner.benchmark.run import KINDS
from streamliner.format import number, short_names
from streamliner.report.frontier import accuracy_of, counted_tasks
from streamliner.report.section import Section, Table


def summary_section(evaluations: Sequence[dict[str, Any]], benchmarks: Sequence[dict[str, Any]]) -> Section:
    """A row for each model, a column for each thing that was measured of any.

    Numbers share a column only if they were measured in the same way: the same windows, questions, settings, precision.
    """
    models: dict[str, dict[str, Any]] = {}
    columns: dict[str, dict[str, str]] = {}
    labels: dict[str, str] = {}

    def enter(label: str, way: Any, model: str, value: str) -> None:
        key = f"{label} {json.dumps(way)}"
        labels[key] = label
        columns.setdefault(key, {})[model] = value

    for result in (*evaluations, *benchmarks):
        models |= {model["model"]: model for model in result["models"]}
    for result in evaluations:
        counted = counted_tasks(result)
        stabilities = {compared["model"]: compared["mean_stability"] for compared in result["compared"]}
        for model in result["models"]:
            name, dtype = model["model"], model["dtype"]
            for text in model["perplexity"]:
                way = (text["sha256"], text["predictions"], dtype)
                enter(f"perplexity, {Path(text['source']).name}", way, name, number(text["perplexity"]))
            if counted:
                questions = (result["tasks"], dtype)
                enter("accuracy", questions, name, f"{accuracy_of(model, counted)[0]:.1%}")
                if stabilities.get(name) is not None:
                    enter("stability", questions, name, f"{stabilities[name]:.3f}")
    for result in benchmarks:
        how = (result["engine"], result["settings"], result["device"], result["dtype"])
        engine = f", {result['engine']}" if result["engine"] != "transformers" else ""
        for compared in result["compared"]:
            for kind in KINDS:
                enter(f"{kind} speed-up{engine}", how, compared["model"], f"{compared[kind]['speed_up']:.2f}")
    for result in evaluations:
        for draft in result["drafts"]:
            prompts = (draft["source"], result["settings"]["draft_prompts"], result["settings"]["draft_tokens"])
            enter("kept as a draft", prompts, draft["model"], f"{draft['greedy']['acceptance_rate']:.0%}")
    rows = [["", "method", "blocks", "parameters, M", *(labels[key] for key in columns)]]
    for short, (name, model) in zip(short_names(list(models)), models.items(), strict=True):
        cells = (found.get(name, "") for found in columns.values())
        rows.append([short, model["method"], str(model["blocks"]), f"{model['parameters'] / 1e6:.4g}", *cells])
    return Section("Summary", tables=[Table(rows)] if models else [])
