"""An evaluation: models by row, so that many fit on a page; then what changed against the dense one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from streamliner.format import number, share_with_error, short_names, with_error
from streamliner.report.section import Section, Table


def evaluation_section(value: dict[str, Any]) -> Section:
    """Perplexities, tasks, flips and stability, drafts and samples."""
    section = Section("Evaluation")
    names = short_names([model["model"] for model in value["models"]])
    dtypes = ", ".join(sorted({model["dtype"] for model in value["models"]}))
    section.text.append(f"Measured in {dtypes}.")
    if value["models"][0]["perplexity"]:
        _perplexity(section, value, names)
    if value["tasks"]:
        _tasks(section, value, names)
    if value["drafts"]:
        section.tables.append(_drafts(value["drafts"]))
    for sample in value["samples"]:
        rows = [["begun with", sample["prompt"]]]
        # Models that are cut too far fill pages with empty lines: one stands for all.
        texts = (re.sub(r"\n\s*\n", "\n\n", text) for text in sample["continuations"])
        rows += [[name, text] for name, text in zip(names, texts, strict=True)]
        section.tables.append(Table(rows))
    return section


def _perplexity(section: Section, value: dict[str, Any], names: list[str]) -> None:
    texts = value["models"][0]["perplexity"]
    for text in texts:
        section.text.append(
            f"{text['source']}: {text['predictions']:,} tokens predicted, in {text['windows']} windows of "
            f"{text['window']}, one every {text['stride']}{', each behind a BOS' if text['bos'] else ''}."
        )
    behind = bool(value["compared"])
    head = [""]
    for text in texts:
        head += [f"{Path(text['source']).name}: perplexity", "loss ± standard error"] + ["nats behind dense"] * behind
    rows = [head]
    compared = {each["model"]: each["loss_behind"] for each in value["compared"]}
    for name, model in zip(names, value["models"], strict=True):
        row = [name]
        for text in model["perplexity"]:
            row += [number(text["perplexity"]), with_error(text["loss"], text["standard_error"])]
            if behind:
                difference = compared.get(model["model"], {}).get(text["source"])
                row.append("" if difference is None else with_error(difference["mean"], difference["standard_error"]))
        rows.append(row)
    section.tables.append(Table(rows))
    if behind:
        section.text.append(
            "Nats behind dense: mean and standard error of the differences, window by window, so a small difference "
            "shows that the loss of each model alone could not tell."
        )


def _tasks(section: Section, value: dict[str, Any], names: list[str]) -> None:
    columns = [
        (task["name"], metric)
        for task in value["tasks"]
        for metric in value["models"][0]["tasks"][task["name"]]["metrics"]
    ]
    rows = [["", *(f"{task} {metric}" for task, metric in columns)]]
    for name, model in zip(names, value["models"], strict=True):
        found = (model["tasks"][task]["metrics"].get(metric) for task, metric in columns)
        rows.append([name, *("" if each is None else number(each) for each in found)])
    section.tables.append(Table(rows))
    for task in value["tasks"]:
        answers = len(value["models"][0]["tasks"][task["name"]]["answers"])
        count = f"{answers} questions" if answers else "questions that lm-eval does not count one by one"
        section.text.append(f"{task['name']}: {count}, {task['num_fewshot']} examples before each.")
    rows = [
        [
            *("", "task", "accuracy, change", "95 % interval", "McNemar p", "stability"),
            *("stays right", "gets wrong", "gets right", "stays wrong"),
        ]
    ]
    for name, compared in zip(names[1:], value["compared"], strict=False):
        for task, found in compared["tasks"].items():
            change, flips = found["accuracy_difference"], found["flips"]
            rows.append(
                [
                    *(name, task, f"{change['mean']:+.3f}", f"{change['low']:+.3f} to {change['high']:+.3f}"),
                    *(f"{change['p_value']:.2g}", f"{found['stability']:.3f}"),
                    *(str(flips[key]) for key in ("right_right", "right_wrong", "wrong_right", "wrong_wrong")),
                ]
            )
        if compared["tasks"]:
            rows.append([name, "mean", "", "", "", f"{compared['mean_stability']:.3f}", "", "", "", ""])
    if len(rows) > 1:
        section.tables.append(Table(rows))


def _drafts(drafts: list[dict[str, Any]]) -> Table:
    counts = list(drafts[0]["greedy"]["tokens_per_verification"])
    head = [f"As a draft for {Path(drafts[0]['parent']).name}"]
    for kind in ("greedy", "sampled"):
        head += [f"{kind}: kept", *(f"tokens per check, {count} proposed" for count in counts)]
    rows = [head]
    for name, draft in zip(short_names([draft["model"] for draft in drafts]), drafts, strict=True):
        row = [name]
        for kind in ("greedy", "sampled"):
            row.append(share_with_error(draft[kind]["acceptance_rate"], draft[kind]["standard_error"]))
            row += [number(draft[kind]["tokens_per_verification"][count]) for count in counts]
        rows.append(row)
    return Table(rows)
