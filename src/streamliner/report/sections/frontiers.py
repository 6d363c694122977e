"""The frontier: what models cost and bring by the number of blocks they lost, all methods in one plot."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from streamliner.benchmark.timing import KINDS
from streamliner.format import exp, number, short_names
from streamliner.report.figures import Figure, Series, plot
from streamliner.report.read import Run
from streamliner.report.section import Section
from streamliner.report.sections.searches import search_name

REMOVED = "blocks removed"


Value = tuple[float, float]
"""A number and its standard error."""


def frontier_section(
    searches: Sequence[Run], evaluations: Sequence[dict[str, Any]], benchmarks: Sequence[dict[str, Any]]
) -> Section:
    """Perplexity on calibration text and on others, accuracy, stability, parameters and speed."""
    section = Section("Frontier")
    if searches:
        section.figures.append(_calibration(searches))
    for value in evaluations:
        section.figures += _evaluated(value)
    section.figures += [_speed(value, kind) for value in benchmarks if value["compared"] for kind in KINDS]
    for models in _by_dense([value for value in (*evaluations, *benchmarks) if value["compared"]]):
        parameters = _by_method(models, lambda _, model: (model["parameters"] / 1e6, 0))
        caption = f"Parameters of {models[0]['model']}; what blocks do not hold stays: embeddings and head."
        section.figures.append(_figure(parameters, "million parameters", caption))
    return section


def _by_dense(values: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The models of all results, each once: for each dense one a list, where it comes first."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for value in values:
        models = found.setdefault(value["models"][0]["model"], {})
        for model in value["models"]:
            models.setdefault(model["model"], model)
    return [list(models.values()) for models in found.values()]


def _calibration(searches: Sequence[Run]) -> Figure:
    series: dict[str, Series] = {}
    for run in searches:
        frontier = run.files["frontier"]
        points = [(0.0, exp(frontier["dense_loss"]))]
        errors = [0.0]
        for point in frontier["points"]:
            if point["loss"] is not None:
                points.append((float(len(point["removed"])), exp(point["loss"])))
                errors.append(points[-1][1] * (point["standard_error"] or 0))
        # Searches of one method for other numbers of blocks find the same sets on the way: the longest stands for all.
        key = f"{frontier['method']} {run.files.get('run', {}).get('identity', run.name)}"
        if key not in series or len(series[key].points) < len(points):
            series[key] = Series(search_name(frontier["method"], run), points, errors)
    caption = "Perplexity on the calibration set. It chose the blocks, so judge models on other text."
    return _figure(list(series.values()), "perplexity", caption, log=True)


def _evaluated(value: dict[str, Any]) -> list[Figure]:
    if not value["compared"]:
        return []
    models, figures = value["models"], []
    for place, text in enumerate(models[0]["perplexity"]):

        def perplexity(_: int, model: dict[str, Any], place: int = place) -> Value:
            found = model["perplexity"][place]
            mean = found["perplexity"] or math.nan
            return mean, mean * (found["standard_error"] or 0)

        series = _by_method(models, perplexity)
        caption = f"Perplexity on {text['source']}: {text_detail(text)}, {models[0]['dtype']}."
        figures.append(_figure(series, "perplexity", caption, log=True))
    counted = counted_tasks(value)
    if counted:

        def accuracy(_: int, model: dict[str, Any]) -> Value:
            return accuracy_of(model, counted)

        def stability(place: int, _: dict[str, Any]) -> Value:
            return (value["compared"][place - 1]["mean_stability"], 0) if place else (1.0, 0)

        over = f"mean of {', '.join(counted)}: {tasks_detail(models[0], counted)}, {models[0]['dtype']}"
        figures.append(_figure(_by_method(models, accuracy), "accuracy", f"Accuracy, {over}."))
        figures.append(
            _figure(_by_method(models, stability), "stability", f"Stability, {over}; the dense model's is 1.")
        )
    return figures


def text_detail(text: dict[str, Any]) -> str:
    """How a perplexity was measured, in words."""
    overlap = f", one every {text['stride']}" if text["stride"] < text["window"] - text["bos"] else ""
    return f"{text['windows']} windows of {text['window']}{overlap}"


def tasks_detail(model: dict[str, Any], tasks: Sequence[str]) -> str:
    """How many questions an accuracy is of, in words."""
    counts = sorted({len(model["tasks"][name]["answers"]) for name in tasks})
    return f"{' to '.join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))} questions each"


def speed_detail(value: dict[str, Any], kind: str) -> str:
    """What was timed, in words."""
    of = value["settings"]
    generated = f"{of['batch_size']} x {of['context_tokens']} and {of['new_tokens']} tokens"
    return f"{of['prompt_tokens']} tokens, {value['dtype']}" if kind == "prompt" else f"{generated}, {value['dtype']}"


def counted_tasks(value: dict[str, Any]) -> list[str]:
    """The tasks of an evaluation whose questions lm-eval counts one by one."""
    return [task["name"] for task in value["tasks"] if value["models"][0]["tasks"][task["name"]]["answers"]]


def accuracy_of(model: dict[str, Any], tasks: Sequence[str]) -> Value:
    """Mean accuracy over tasks, each counting once."""
    rates = [
        (fmean(answer["correct"] for answer in answers), len(answers))
        for answers in (model["tasks"][name]["answers"] for name in tasks)
    ]
    error = math.sqrt(sum(rate * (1 - rate) / count for rate, count in rates)) / len(rates)
    return fmean(rate for rate, _ in rates), error


def _speed(value: dict[str, Any], kind: str) -> Figure:
    def measured(place: int, _: dict[str, Any]) -> Value:
        return (value["compared"][place - 1][kind]["speed_up"], 0) if place else (1.0, 0)

    def allowed(place: int, _: dict[str, Any]) -> Value:
        return (value["compared"][place - 1][kind]["allowed_by_time"], 0) if place else (1.0, 0)

    series = _by_method(value["models"], measured)
    work = "prompts" if kind == "prompt" else kind
    caption = f"Speed-up of {work} in {value['engine']}: {speed_detail(value, kind)}."
    if value["compared"][0][kind]["allowed_by_time"] is not None:
        points = sorted({point for each in _by_method(value["models"], allowed) for point in each.points})
        series.append(Series("what the removal allows", points, dashed=True))
    return _figure(series, "speed-up", caption)


def _by_method(models: Sequence[dict[str, Any]], value: Callable[[int, dict[str, Any]], Value]) -> list[Series]:
    """A line for each method, from the dense model on, which is the first; `value` of a model and its place.

    Models that no method chose the blocks of, or that streamliner did not cut, each have a line of their own.
    """
    lines: dict[str, list[tuple[float, float, float]]] = {}
    dense, names = models[0], short_names([model["model"] for model in models])
    first = (0.0, *value(0, dense))
    for place, model in enumerate(models[1:], 1):
        alone = not model["method"] or model["method"].startswith("manual")
        line = lines.setdefault(names[place] if alone else model["method"], [first])
        line.append((float(dense["blocks"] - model["blocks"]), *value(place, model)))
    return [
        Series(name, [(x, y) for x, y, _ in sorted(line)], [error for _, _, error in sorted(line)])
        for name, line in lines.items()
    ]


def _figure(series: list[Series], label: str, caption: str, *, log: bool = False) -> Figure:
    told = "; ".join(
        f"{each.name}: " + ", ".join(f"{x:g} removed {number(y)}" for x, y in each.points) for each in series
    )
    bars = " Bars: one standard error." if any(any(each.errors) for each in series) else ""
    return plot(series, REMOVED, label, f"{caption} {told}.", caption + bars, log=log)
