"""All models on a few lines: what people look at first."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from streamliner.benchmark.timing import KINDS
from streamliner.format import number, share_with_error, short_names
from streamliner.report.section import Section, Table
from streamliner.report.sections.frontiers import accuracy_of, counted_tasks, speed_detail, tasks_detail, text_detail


def summary_section(evaluations: Sequence[dict[str, Any]], benchmarks: Sequence[dict[str, Any]]) -> Section:
    """A row for each model, a column for each thing that was measured of any.

    Numbers share a column only if they were measured in the same way: the same windows, questions, settings, precision.
    """
    models: dict[str, dict[str, Any]] = {}
    columns: dict[str, dict[str, str]] = {}
    labels: dict[str, tuple[str, str]] = {}

    def enter(label: str, detail: str, way: Any, model: str, value: str) -> None:
        key = f"{label} {json.dumps(way)}"
        labels[key] = label, detail
        columns.setdefault(key, {})[model] = value

    for result in (*evaluations, *benchmarks):
        models |= {model["model"]: model for model in result["models"]}
    for result in evaluations:
        counted = counted_tasks(result)
        stabilities = {compared["model"]: compared["mean_stability"] for compared in result["compared"]}
        dense = result["models"][0] if result["models"] else {}
        for model in result["models"]:
            name, dtype = model["model"], model["dtype"]
            for text in model["perplexity"]:
                way = (text["sha256"], text["predictions"], dtype)
                detail = f"{text_detail(text)}, {dtype}"
                enter(f"perplexity, {Path(text['source']).name}", detail, way, name, number(text["perplexity"]))
            if counted:
                questions = (result["tasks"], dtype)
                detail = f"{tasks_detail(model, counted)}, {dtype}"
                enter("accuracy", detail, questions, name, f"{accuracy_of(model, counted)[0]:.1%}")
                if stabilities.get(name) is not None:
                    enter("stability", detail, (questions, dense["weights"]), name, f"{stabilities[name]:.3f}")
    for result in benchmarks:
        how = [result[key] for key in ("engine", "settings", "device", "dtype")]
        how += [result.get("hardware"), result["models"][0]["model"]]
        engine = f", {result['engine']}" if result["engine"] != "transformers" else ""
        for compared in result["compared"]:
            for kind in KINDS:
                enter(
                    f"{kind} speed-up{engine}",
                    speed_detail(result, kind),
                    how,
                    compared["model"],
                    f"{compared[kind]['speed_up']:.2f}",
                )
    for result in evaluations:
        for draft in result["drafts"]:
            asked = result["settings"]
            prompts = (draft["source"], asked["draft_prompts"], asked["draft_tokens"], draft["parent"])
            detail = f"for {Path(draft['parent']).name}, {prompts[1]} prompts, {prompts[2]} tokens"
            enter(
                "kept as a draft",
                detail,
                prompts,
                draft["model"],
                share_with_error(draft["greedy"]["acceptance_rate"], None),
            )
    rows = [["", "method", "blocks", "parameters, M", *_headings([labels[key] for key in columns])]]
    for short, (name, model) in zip(short_names(list(models)), models.items(), strict=True):
        cells = (found.get(name, "") for found in columns.values())
        rows.append([short, model["method"], str(model["blocks"]), f"{model['parameters'] / 1e6:.4g}", *cells])
    return Section("Summary", tables=[Table(rows)] if models else [])


def _headings(labels: Sequence[tuple[str, str]]) -> list[str]:
    """Labels, with how it was measured where there are several of a label, and a number where that is the same too."""
    names = [label for label, _ in labels]
    long = [label if names.count(label) == 1 else f"{label} ({detail})" for label, detail in labels]
    return [
        name if long.count(name) == 1 else f"{name} #{long[:place].count(name) + 1}" for place, name in enumerate(long)
    ]
