"""What was lost, what was won, and whether to use it: one card for each cut model."""

from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

from streamliner.format import number, short_names, with_error
from streamliner.report import measurements
from streamliner.report.read import JsonObject, Results
from streamliner.report.section import Card, Section
from streamliner.settings import BENCHMARK_KINDS

VERDICTS = (
    (0.05, "Hardly worse than the dense model: try it where it will work."),
    (0.2, "A little worse: try it on your own task before you use it."),
    (0.5, "Clearly worse: heal it, or remove fewer blocks."),
)
"""By the mean loss increase over the texts, in nats, up to a limit. A rule of thumb (docs/reading-the-numbers.md)."""
WORST = "Much worse: not for use without healing."
LEAST_SPEED_UP = 1.03
"""Below this a speed-up is within what measurements of one model differ by."""


def headline_sections(results: Results) -> list[Section]:
    """One section with a card for each model that was compared with its dense model."""
    losses = {each["model"]: each for result in results.evaluations for each in result["compared"]}
    speeds: dict[str, list[tuple[str, JsonObject]]] = {}
    for result in results.benchmarks:
        for each in result["compared"]:
            speeds.setdefault(each["model"], []).append((f"{result['engine']}, {result['dtype']}", each))
    measured = (*results.evaluations, *results.benchmarks)
    dense = {model["model"]: result["models"][0] for result in measured for model in result["models"][1:]}
    models = {model["model"]: model for result in measured for model in result["models"][1:]}
    cards = []
    for short, (name, model) in zip(short_names(list(models)), models.items(), strict=True):
        lost = [*_lost(results, name)]
        won = [*_won(model, dense[name], speeds.get(name, []))]
        cards.append(Card(short, lost, won, _verdict(losses.get(name), speeds.get(name, []))))
    return [Section("In short", cards=cards)] if cards else []


def _lost(results: Results, name: str) -> Iterator[str]:
    for evaluation in results.evaluations:
        tasks, dense = measurements.scored_tasks(evaluation), evaluation["models"][0]
        for model, compared in zip(evaluation["models"][1:], evaluation["compared"], strict=True):
            if model["model"] != name:
                continue
            for before, after in zip(dense["perplexity"], model["perplexity"], strict=True):
                behind = compared["loss_behind"][after["source"]]
                increase = with_error(behind["mean"], behind["standard_error"], "+.3f")
                yield (
                    f"{increase} nats on {Path(after['source']).name}: "
                    f"perplexity {number(before['perplexity'])} to {number(after['perplexity'])}"
                )
            if tasks:
                rates = [measurements.mean_accuracy(each, tasks)[0] for each in (dense, model)]
                stability = compared["mean_stability"]
                same = "" if stability is None else f", stability {stability:.3f}"
                yield f"{100 * (rates[1] - rates[0]):+.1f} points of accuracy: {rates[0]:.1%} to {rates[1]:.1%}{same}"


def _won(model: JsonObject, dense: JsonObject, speeds: list[tuple[str, JsonObject]]) -> Iterator[str]:
    yield f"{dense['blocks'] - model['blocks']} of {dense['blocks']} blocks fewer"
    yield f"{1 - model['parameters'] / dense['parameters']:.0%} fewer parameters"
    for where, speed in speeds:
        for kind in BENCHMARK_KINDS:
            each = speed[kind]
            unclear = ", so not clearly faster" if each["lowest"] <= 1 else ""
            measured = f"{each['speed_up']:.2f} times as fast ({each['lowest']:.2f} to {each['highest']:.2f}){unclear}"
            yield f"{kind} {measured}" if len(speeds) == 1 else f"{kind} in {where}: {measured}"


def _verdict(compared: JsonObject | None, speeds: list[tuple[str, JsonObject]]) -> str:
    increases = [each["mean"] for each in compared["loss_behind"].values()] if compared else []
    if not increases:
        verdict = "No text was measured, so nothing is known of what it lost."
    elif None in increases:
        verdict = WORST
    else:
        verdict = next((text for limit, text in VERDICTS if fmean(increases) <= limit), WORST)
    if speeds and all(speed[kind]["speed_up"] < LEAST_SPEED_UP for _, speed in speeds for kind in BENCHMARK_KINDS):
        verdict += " It is no faster here."
    return verdict
