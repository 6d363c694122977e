"""`streamliner evaluate`."""

from __future__ import annotations

from typing import Any

from rich.markup import escape

from streamliner.cli.command import MODELS, Given, command
from streamliner.cli.console import console, print_line, print_models, show
from streamliner.format import number, share_with_error, short_names, with_error
from streamliner.settings import EvaluateSettings, ModelSettings


@command(MODELS, without=("offload",), Evaluate=EvaluateSettings, Model=ModelSettings)
def evaluate(given: Given) -> None:
    """Measure perplexity and tasks, all models on the same windows and questions, and compare them with the dense one.

    Every result is cached at once: a stopped evaluation continues, and a dense model is measured once.
    """
    from streamliner.verbs.evaluate import evaluate as run_evaluate

    settings = given.settings(EvaluateSettings)
    result = run_evaluate(given.argument(MODELS), settings, given.settings(ModelSettings)).to_json()
    show(result, settings.output, lambda: print_evaluation(result), as_json=given.json, quiet=given.quiet)


def print_evaluation(result: dict[str, Any]) -> None:
    """Models in one table; then, for each but the dense one, how it compares."""
    measured = result["models"]
    rows: list[tuple[str, list[str]]] = []
    for place, text in enumerate(measured[0]["perplexity"] if measured else ()):
        cells = [model["perplexity"][place] for model in measured]
        rows.append((f"perplexity, {text['source']}", [number(each["perplexity"]) for each in cells]))
        rows.append(("  loss", [with_error(each["loss"], each["standard_error"]) for each in cells]))
    for task in result["tasks"]:
        for metric in measured[0]["tasks"][task["name"]]["metrics"]:
            values = (model["tasks"][task["name"]]["metrics"].get(metric) for model in measured)
            rows.append((f"{task['name']} {metric}", ["" if value is None else number(value) for value in values]))
    if rows:
        print_models([model["model"] for model in measured], rows)
    _print_drafts(result["drafts"])
    names = short_names([model["model"] for model in measured])
    for name, compared in zip(names[1:], result["compared"], strict=False):
        _print_comparison(name, compared)
    for place, sample in enumerate(result["samples"], 1):
        console.print(f"Sample {place}, prompt: [dim]{escape(sample['prompt'])}[/]", soft_wrap=True)
        for name, text in zip(names, sample["continuations"], strict=True):
            console.print(f"[bold]{escape(name)}:[/] {escape(text)}", soft_wrap=True)


def _print_drafts(drafts: list[dict[str, Any]]) -> None:
    from rich.table import Table

    if not drafts:
        return
    counts = list(drafts[0]["greedy"]["tokens_per_verification"])
    table = Table("draft", "", "kept", *(f"tokens per check, {count} proposed" for count in counts))
    names = short_names([draft["model"] for draft in drafts])
    for name, draft in zip(names, drafts, strict=True):
        for kind in ("greedy", "sampled"):
            found = draft[kind]
            rates = (number(found["tokens_per_verification"][count]) for count in counts)
            table.add_row(
                escape(name), kind, share_with_error(found["acceptance_rate"], found["standard_error"]), *rates
            )
    console.print(table)


def _print_comparison(name: str, compared: dict[str, Any]) -> None:
    from rich.table import Table

    for source, increase in compared["loss_behind"].items():
        value = with_error(increase["mean"], increase["standard_error"])
        print_line(f"{name}: loss increase over the dense model on {source}: {value} nats.")
    if not compared["tasks"]:
        return
    # Two tables, as one is wider than a terminal.
    changes = Table("task", "accuracy, change", "95 % interval", "McNemar p", "stability", title=escape(name))
    flips = Table("task", "stays right", "gets wrong", "gets right", "stays wrong")
    for task_name, task in compared["tasks"].items():
        change = task["accuracy_difference"]
        changes.add_row(
            task_name,
            f"{change['mean']:+.3f}",
            f"{change['low']:+.3f} to {change['high']:+.3f}",
            f"{change['p_value']:.2g}",
            f"{task['stability']:.3f}",
        )
        counts = (task["flips"][key] for key in ("right_right", "right_wrong", "wrong_right", "wrong_wrong"))
        flips.add_row(task_name, *map(str, counts))
    changes.add_row("mean", "", "", "", f"{compared['mean_stability']:.3f}")
    console.print(changes)
    console.print(flips)
