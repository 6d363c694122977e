"""Plots of quality, size and speed by the number of removed blocks, all methods together."""

import math
from collections.abc import Iterator, Sequence

from streamliner.format import exp, number, short_names
from streamliner.report import measurements
from streamliner.report.figures import Figure, Point, Series, plot_lines
from streamliner.report.read import JsonObject, Results, Run
from streamliner.report.section import Section
from streamliner.settings import BENCHMARK_KINDS


def frontier_sections(results: Results) -> list[Section]:
    """Perplexity on calibration and other texts, accuracy, stability, speed-up and parameters."""
    finished = [run for run in results.searches if "frontier" in run.files]
    evaluations = [value for value in results.evaluations if value["compared"]]
    benchmarks = [value for value in results.benchmarks if value["compared"]]
    figures = [_plot_calibration(finished)] if finished else []
    for evaluation in evaluations:
        figures += [*_plot_perplexities(evaluation), *_plot_accuracy(evaluation)]
    figures += [_plot_speed_up(benchmark, kind) for benchmark in benchmarks for kind in BENCHMARK_KINDS]
    figures += _plot_parameters([*evaluations, *benchmarks])
    return [Section("Frontier", figures=figures)] if figures else []


def _plot_calibration(searches: Sequence[Run]) -> Figure:
    series: dict[str, Series] = {}
    for run in searches:
        frontier = run.files["frontier"]
        points = [Point(0, exp(frontier["dense_loss"]))]
        for point in frontier["points"]:
            if point["loss"] is not None:
                perplexity = exp(point["loss"])
                points.append(Point(len(point["removed"]), perplexity, perplexity * (point["standard_error"] or 0)))
        # Searches of one method that differ only in the number of blocks find the same sets: keep the longest. But
        # not where a method works harder at the last number.
        key = f"{frontier['method']} {run.files['run'].get('identity', run.name)}"
        if frontier["settings"].get("every") is False:
            key += f" {len(points)}"
        if key not in series or len(series[key].points) < len(points):
            series[key] = Series(run.search_name, points)
    caption = "Perplexity on the calibration set. It was used to choose the blocks, so judge models on other text."
    return _plot(list(series.values()), "perplexity", caption, log=True)


def _plot_perplexities(evaluation: JsonObject) -> Iterator[Figure]:
    models = evaluation["models"]
    for found in zip(*(model["perplexity"] for model in models), strict=True):
        values = [each["perplexity"] or math.nan for each in found]
        errors = [value * (each["standard_error"] or 0) for value, each in zip(values, found, strict=True)]
        text = f"{found[0]['source']}: {measurements.perplexity_details(found[0], models[0]['dtype'])}"
        yield _plot(_by_method(models, values, errors), "perplexity", f"Perplexity on {text}.", log=True)


def _plot_accuracy(evaluation: JsonObject) -> Iterator[Figure]:
    """Accuracy and stability, if any task has them."""
    models, tasks = evaluation["models"], measurements.scored_tasks(evaluation)
    if tasks:
        over = f"mean of {', '.join(tasks)}; {measurements.accuracy_details(models[0], tasks)}."
        rates, errors = zip(*(measurements.mean_accuracy(model, tasks) for model in models), strict=True)
        yield _plot(_by_method(models, rates, errors), "accuracy", f"Accuracy: {over}")
        stabilities = [1.0, *(compared["mean_stability"] for compared in evaluation["compared"])]
        yield _plot(_by_method(models, stabilities), "stability", f"Stability: {over} It is 1 for the dense model.")


def _plot_speed_up(benchmark: JsonObject, kind: str) -> Figure:
    models, compared = benchmark["models"], [value[kind] for value in benchmark["compared"]]
    series = _by_method(models, [1.0, *(value["speed_up"] for value in compared)])
    work = "prompt processing" if kind == "prompt" else kind
    caption = f"Speed-up of {work} in {benchmark['engine']}: {measurements.speed_details(benchmark, kind)}."
    if compared[0]["allowed_by_time"] is not None:
        expected = map(Point, _removed(models), [1.0, *(value["allowed_by_time"] for value in compared)])
        series.append(Series("expected", sorted(set(expected)), dashed=True))
        caption += " Expected: from the time that the dense model spends in its blocks."
    return _plot(series, "speed-up", caption)


def _plot_parameters(results: Sequence[JsonObject]) -> Iterator[Figure]:
    """A plot for each dense model, with all its cuts, each once."""
    found: dict[str, dict[str, JsonObject]] = {}
    for result in results:
        for model in result["models"]:
            found.setdefault(result["models"][0]["model"], {}).setdefault(model["model"], model)
    for dense, models in found.items():
        series = _by_method([*models.values()], [model["parameters"] / 1e6 for model in models.values()])
        caption = f"Parameters of {dense} and its cuts. The embeddings and the head stay whole."
        yield _plot(series, "million parameters", caption)


def _removed(models: Sequence[JsonObject]) -> list[int]:
    return [models[0]["blocks"] - model["blocks"] for model in models]


def _by_method(
    models: Sequence[JsonObject], values: Sequence[float], errors: Sequence[float] | None = None
) -> list[Series]:
    """A line for each method that starts at the dense model, `models[0]`; with standard errors, where given.

    Models whose blocks no method chose, or that streamliner did not cut, each have a line of their own.
    """
    dense, *points = map(Point, _removed(models), values, errors or [0.0] * len(models))
    names = short_names([model["model"] for model in models])
    lines: dict[str, list[Point]] = {}
    for name, model, point in zip(names[1:], models[1:], points, strict=True):
        alone = not model["method"] or model["method"].startswith("manual")
        lines.setdefault(name if alone else model["method"], [dense]).append(point)
    return [Series(name, sorted(line)) for name, line in lines.items()]


def _plot(series: Sequence[Series], y_label: str, caption: str, *, log: bool = False) -> Figure:
    texts = [f"{each.name}: " + ", ".join(f"{number(y)} ({x:g})" for x, y, _ in each.points) for each in series]
    values = f"Blocks removed in brackets: {'; '.join(texts)}."
    if any(point.error for each in series for point in each.points):
        caption += " Bars: one standard error."
    return plot_lines(series, "blocks removed", y_label, caption, values, log=log)
