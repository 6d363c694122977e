"""All models in one table: what readers look at first."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from streamliner.format import number, share_with_error, short_names
from streamliner.report import measurements
from streamliner.report.read import JsonObject, Results
from streamliner.report.section import Section
from streamliner.settings import BENCHMARK_KINDS


class Cell(NamedTuple):
    """A number of a model. Numbers share a column only if label and conditions, a JSON value, are equal."""

    label: str
    details: str
    conditions: Any
    model: str
    text: str


def summary_sections(results: Results) -> list[Section]:
    """A row for each model, a column for each thing that was measured of any model in the same way."""
    measured = (*results.evaluations, *results.benchmarks)
    models = {model["model"]: model for result in measured for model in result["models"]}
    if not models:
        return []
    cells = [
        *(cell for each in results.evaluations for cell in (*_perplexity_cells(each), *_accuracy_cells(each))),
        *(cell for each in results.benchmarks for cell in _speed_cells(each)),
        *(cell for each in results.evaluations for cell in _draft_cells(each)),
    ]
    columns: dict[str, dict[str, Cell]] = {}
    for cell in cells:
        columns.setdefault(f"{cell.label} {json.dumps(cell.conditions)}", {})[cell.model] = cell
    firsts = [next(iter(column.values())) for column in columns.values()]
    labels = [cell.label for cell in firsts]
    # Columns of one label show the details; those whose details are the same too are numbered.
    names = [cell.label if labels.count(cell.label) == 1 else f"{cell.label} ({cell.details})" for cell in firsts]
    heads = [each if names.count(each) == 1 else f"{each} #{names[:i].count(each)}" for i, each in enumerate(names, 1)]
    rows = [["model", "method", "blocks", "parameters (M)", *heads]]
    for short, (name, model) in zip(short_names(list(models)), models.items(), strict=True):
        texts = (column[name].text if name in column else "" for column in columns.values())
        rows.append([short, model["method"], str(model["blocks"]), f"{model['parameters'] / 1e6:.4g}", *texts])
    return [Section("Summary", tables=[rows])]


def _perplexity_cells(evaluation: JsonObject) -> Iterator[Cell]:
    for model in evaluation["models"]:
        for text in model["perplexity"]:
            label = f"perplexity, {Path(text['source']).name}"
            details = measurements.perplexity_details(text, model["dtype"])
            conditions = (text["sha256"], text["predictions"], model["dtype"])
            yield Cell(label, details, conditions, model["model"], number(text["perplexity"]))


def _accuracy_cells(evaluation: JsonObject) -> Iterator[Cell]:
    tasks, dense = measurements.scored_tasks(evaluation), evaluation["models"][0]
    stabilities = {compared["model"]: compared["mean_stability"] for compared in evaluation["compared"]}
    for model in evaluation["models"] if tasks else ():
        name, details = model["model"], measurements.accuracy_details(model, tasks)
        conditions = (evaluation["tasks"], model["dtype"])
        yield Cell("accuracy", details, conditions, name, f"{measurements.mean_accuracy(model, tasks)[0]:.1%}")
        if stabilities.get(name) is not None:
            yield Cell("stability", details, (conditions, dense["weights"]), name, f"{stabilities[name]:.3f}")


def _speed_cells(benchmark: JsonObject) -> Iterator[Cell]:
    conditions = [benchmark[key] for key in ("engine", "settings", "device", "dtype")]
    conditions += [benchmark.get("hardware"), benchmark["models"][0]["model"]]
    engine = f", {benchmark['engine']}" if benchmark["engine"] != "transformers" else ""
    for compared in benchmark["compared"]:
        for kind in BENCHMARK_KINDS:
            label, details = f"{kind} speed-up{engine}", measurements.speed_details(benchmark, kind)
            yield Cell(label, details, conditions, compared["model"], f"{compared[kind]['speed_up']:.2f}")


def _draft_cells(evaluation: JsonObject) -> Iterator[Cell]:
    prompts, tokens = (evaluation["settings"][key] for key in ("draft_prompts", "draft_tokens"))
    for draft in evaluation["drafts"]:
        details = f"for {Path(draft['parent']).name}, {prompts} prompts, {tokens} tokens"
        conditions = (draft["source"], prompts, tokens, draft["parent"])
        rate = share_with_error(draft["greedy"]["acceptance_rate"], None)
        yield Cell("accepted as a draft", details, conditions, draft["model"], rate)
