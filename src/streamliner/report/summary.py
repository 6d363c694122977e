"""All models on a few lines: what people look at first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from streamliner.format import number
from streamliner.report.frontier import accuracy_of, counted_tasks
from streamliner.report.section import Section, Table
from streamliner.report.speed import KINDS


def summary_section(evaluations: Sequence[dict[str, Any]], benchmarks: Sequence[dict[str, Any]]) -> Section:
    """A row for each model, a column for each thing that was measured of any."""
    models: dict[str, dict[str, Any]] = {}
    columns: dict[str, dict[str, str]] = {}

    def enter(column: str, model: str, value: str) -> None:
        columns.setdefault(column, {})[model] = value

    for result in (*evaluations, *benchmarks):
        models |= {model["model"]: model for model in result["models"]}
    for result in evaluations:
        counted = counted_tasks(result)
        for model in result["models"]:
            for text in model["perplexity"]:
                enter(f"perplexity, {Path(text['source']).name}", model["model"], number(text["perplexity"]))
            if counted:
                enter("accuracy", model["model"], f"{accuracy_of(model, counted)[0]:.1%}")
        for compared in result["compared"]:
            if compared["mean_stability"] is not None:
                enter("stability", compared["model"], f"{compared['mean_stability']:.3f}")
    for result in benchmarks:
        for compared in result["compared"]:
            for kind in KINDS:
                column = f"{kind} speed-up" + (f", {result['engine']}" if len(benchmarks) > 1 else "")
                enter(column, compared["model"], f"{compared[kind]['speed_up']:.2f}")
    for result in evaluations:
        for draft in result["drafts"]:
            enter("kept as a draft", draft["model"], f"{draft['greedy']['acceptance_rate']:.0%}")
    rows = [["", "method", "blocks", "million parameters", *columns]]
    for name, model in models.items():
        cells = (found.get(name, "") for found in columns.values())
        size = (str(model["blocks"]), f"{model['parameters'] / 1e6:.4g}")
        rows.append([Path(name).name, model["method"], *size, *cells])
    return Section("Summary", tables=[Table(rows)] if models else [])
