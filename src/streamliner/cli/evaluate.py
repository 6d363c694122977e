"""`streamliner evaluate`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from streamliner.cli import options
from streamliner.cli.console import Terminal, console, print_json, print_models
from streamliner.format import number as figure
from streamliner.format import share_with_error, short_names, with_error

EVALUATE = "Evaluate"


def evaluate(
    models: Annotated[list[str], typer.Argument(help="Hub ids, folders or GGUF files.", metavar="MODEL...")],
    dense: Annotated[
        str | None,
        typer.Option(help="The model to compare the others with; measured first.", metavar="MODEL"),
    ] = None,
    perplexity: Annotated[
        list[str] | None,
        typer.Option(
            help="Text: a SOURCE as for --calibration, such as wikitext2:test; repeatable.",
            rich_help_panel=EVALUATE,
            metavar="SOURCE",
        ),
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(help="Tokens of a window (default: 2048, or the model's limit).", rich_help_panel=EVALUATE),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(
            help="Windows overlap: each predicts only its last so many tokens. Default: no overlap.",
            rich_help_panel=EVALUATE,
        ),
    ] = None,
    max_windows: Annotated[
        int | None, typer.Option(help="At most so many windows of a text.", rich_help_panel=EVALUATE, min=1)
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(help="Tasks of lm-eval, such as arc_easy,piqa.", rich_help_panel=EVALUATE, metavar="NAMES"),
    ] = None,
    tasks_path: Annotated[
        str | None,
        typer.Option(help="Folder with tasks of your own, as lm-eval's YAML.", rich_help_panel=EVALUATE, metavar="DIR"),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="At most so many questions of a task.", rich_help_panel=EVALUATE, min=1)
    ] = None,
    num_fewshot: Annotated[
        int | None,
        typer.Option(help="Examples before each question (default: the task's).", rich_help_panel=EVALUATE, min=0),
    ] = None,
    as_draft_for: Annotated[
        str | None,
        typer.Option(
            help="Measure the models as drafts for this one in assisted generation, on the first text, or python-docs.",
            rich_help_panel=EVALUATE,
            metavar="MODEL",
        ),
    ] = None,
    draft_prompts: Annotated[
        int, typer.Option(help="Prompts that a draft is measured on.", rich_help_panel=EVALUATE, min=1)
    ] = 16,
    draft_tokens: Annotated[
        int, typer.Option(help="Tokens behind each of these prompts.", rich_help_panel=EVALUATE, min=4)
    ] = 64,
    samples: Annotated[
        int,
        typer.Option(
            help="Beginnings of the first text (python-docs if there is none) that models go on with, to look at.",
            rich_help_panel=EVALUATE,
            min=0,
        ),
    ] = 0,
    batch_size: Annotated[int, typer.Option(help="Questions in one forward.", rich_help_panel=EVALUATE, min=1)] = 1,
    cache: Annotated[
        bool,
        typer.Option(help="Take what was measured of the same weights before.", rich_help_panel=EVALUATE),
    ] = True,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", help="JSON file to write.", metavar="FILE", rich_help_panel=options.OUTPUT),
    ] = None,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    dtype: options.Dtype = "auto",
    device: options.Device = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure perplexity and tasks, all models on the same windows and questions, and compare them with the dense one.

    What is measured is kept at once: stopped and called again, it goes on, and a dense model is measured once.
    """
    from streamliner.model.load import silenced_transformers
    from streamliner.model.session import open_session
    from streamliner.runs.files import check_result_file
    from streamliner.verbs.evaluate import EvaluationSettings, evaluate_models

    check_result_file(output, overwrite=overwrite)
    settings = EvaluationSettings(
        perplexity=tuple(perplexity or ()),
        window=window,
        stride=stride,
        max_windows=max_windows,
        tasks=tuple(name.strip() for name in (tasks or "").split(",") if name.strip()),
        tasks_path=tasks_path,
        limit=limit,
        num_fewshot=num_fewshot,
        batch_size=batch_size,
        cache=cache,
        draft_prompts=draft_prompts,
        draft_tokens=draft_tokens,
        samples=samples,
    )
    names = options.model_names(models, dense)
    with silenced_transformers():
        sessions, parents = (
            [open_session(options.model_settings(name, revision, trust_remote_code, dtype, device)) for name in some]
            for some in (names, [as_draft_for] if as_draft_for else [])
        )
        result = evaluate_models(
            sessions, settings, output, Terminal(quiet), compare=dense is not None, parent=next(iter(parents), None)
        )
    if json:
        print_json(result)
    else:
        print_evaluation(result)


def print_evaluation(result: dict[str, Any]) -> None:
    """Models side by side; then, for each but the dense one, how it compares."""
    from rich.markup import escape

    measured = result["models"]
    rows: list[tuple[str, list[str]]] = []
    for number, text in enumerate(measured[0]["perplexity"] if measured else ()):
        cells = [model["perplexity"][number] for model in measured]
        rows.append((f"perplexity, {text['source']}", [figure(each["perplexity"]) for each in cells]))
        rows.append(("  loss", [with_error(each["loss"], each["standard_error"]) for each in cells]))
    for task in result["tasks"]:
        for metric in measured[0]["tasks"][task["name"]]["metrics"]:
            values = (model["tasks"][task["name"]]["metrics"].get(metric) for model in measured)
            rows.append((f"{task['name']} {metric}", ["" if value is None else figure(value) for value in values]))
    if rows:
        print_models([model["model"] for model in measured], rows)
    _print_drafts(result["drafts"])
    names = [escape(name) for name in short_names([model["model"] for model in measured])]
    for name, compared in zip(names[1:], result["compared"], strict=False):
        _print_comparison(name, compared)
    for place, sample in enumerate(result["samples"], 1):
        console.print(f"Sample {place}, begun with: [dim]{escape(sample['prompt'])}[/]", soft_wrap=True)
        for name, text in zip(names, sample["continuations"], strict=True):
            console.print(f"[bold]{name}:[/] {escape(text)}", soft_wrap=True)


def _print_drafts(drafts: list[dict[str, Any]]) -> None:
    from rich.markup import escape
    from rich.table import Table

    if not drafts:
        return
    numbers = list(drafts[0]["greedy"]["tokens_per_verification"])
    table = Table("draft", "", "kept", *(f"tokens per check, {number} proposed" for number in numbers))
    names = short_names([draft["model"] for draft in drafts])
    for name, draft in zip(names, drafts, strict=True):
        for kind in ("greedy", "sampled"):
            found = draft[kind]
            rates = (figure(found["tokens_per_verification"][number]) for number in numbers)
            table.add_row(
                escape(name), kind, share_with_error(found["acceptance_rate"], found["standard_error"]), *rates
            )
    console.print(table)


def _print_comparison(name: str, compared: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Table

    for source, behind in compared["loss_behind"].items():
        console.print(
            f"{name} is {with_error(behind['mean'], behind['standard_error'])} nats behind "
            f"the dense model on {escape(source)}.",
            soft_wrap=True,
        )
    if not compared["tasks"]:
        return
    # Two tables, as one is wider than a terminal.
    changes = Table("task", "accuracy, change", "95 % interval", "McNemar p", "stability", title=name)
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
