"""An evaluation: perplexity, tasks, flips and stability, drafts and samples."""

import re
from pathlib import Path

from streamliner.format import number, share_with_error, short_names, task_label, with_error
from streamliner.report.read import JsonObject
from streamliner.report.section import Section, Table, by_column


def evaluation_section(evaluation: JsonObject) -> Section:
    """A table for each kind of measurement, and one for each sample."""
    section, models = Section("Evaluation"), evaluation["models"]
    names = short_names([model["model"] for model in models])
    section.text.append(f"Measured in {', '.join(sorted({model['dtype'] for model in models}))}.")
    if models[0]["perplexity"]:
        _add_perplexity(section, evaluation, names)
    if evaluation["tasks"]:
        _add_tasks(section, evaluation, names)
    if evaluation["drafts"]:
        section.tables.append(_draft_table(evaluation["drafts"]))
    for sample in evaluation["samples"]:
        # A model that lost too many blocks may write pages of empty lines: keep one of each run.
        texts = (re.sub(r"\n\s*\n", "\n\n", text) for text in sample["continuations"])
        section.tables.append(by_column([["prompt", *names], [sample["prompt"], *texts]]))
    return section


def _add_perplexity(section: Section, evaluation: JsonObject, names: list[str]) -> None:
    columns, compared = [["model", *names]], evaluation["compared"]
    for found in zip(*(model["perplexity"] for model in evaluation["models"]), strict=True):
        text = found[0]
        section.text.append(
            f"{text['source']}: {text['predictions']:,} tokens predicted, in {text['windows']} windows of "
            f"{text['window']} tokens{' that start with BOS' if text['bos'] else ''}, stride {text['stride']}."
        )
        columns.append([f"{Path(text['source']).name}: perplexity", *(number(each["perplexity"]) for each in found)])
        columns.append(["loss ± standard error", *(with_error(each["loss"], each["standard_error"]) for each in found)])
        if compared:
            increases = (each["loss_behind"][text["source"]] for each in compared)
            cells = (with_error(each["mean"], each["standard_error"]) for each in increases)
            columns.append(["loss increase (nats)", "", *cells])
    section.tables.append(by_column(columns))
    if compared:
        section.text.append(
            "Loss increase: mean and standard error of the differences to the dense model, window by window. "
            "Differences vary less than losses, so this shows changes that are smaller than the errors of the losses."
        )


def _add_tasks(section: Section, evaluation: JsonObject, names: list[str]) -> None:
    columns, details = [["model", *names]], []
    for task in evaluation["tasks"]:
        name, found = task["name"], [model["tasks"][task["name"]] for model in evaluation["models"]]
        count = f"{len(found[0]['answers'])} questions, " if found[0]["answers"] else ""
        details.append(f"{name} ({count}{task['num_fewshot']}-shot)")
        for metric in found[0]["metrics"]:
            values = (each["metrics"].get(metric) for each in found)
            columns.append([f"{name} {metric}", *("" if value is None else number(value) for value in values)])
    section.text.append(f"Tasks: {', '.join(details)}.")
    section.tables.append(by_column(columns))
    # How the answers differ from those of the dense model: a row for each task, then the mean.
    changes = []
    for name, compared in zip(names[1:], evaluation["compared"], strict=False):
        for task, found in compared["tasks"].items():
            change, flips = found["accuracy_difference"], found["flips"]
            interval = f"{change['low']:+.3f} to {change['high']:+.3f}"
            numbers = (f"{change['mean']:+.3f}", interval, f"{change['p_value']:.2g}", f"{found['stability']:.3f}")
            counts = (str(flips[key]) for key in ("right_right", "right_wrong", "wrong_right", "wrong_wrong"))
            changes.append([name, task_label(task, found.get("metric", "acc")), *numbers, *counts])
        if compared["tasks"]:
            changes.append([name, "mean", "", "", "", f"{compared['mean_stability']:.3f}", "", "", "", ""])
    if changes:
        head = ["model", "task", "change of accuracy", "95% interval", "McNemar p", "stability"]
        section.tables.append([[*head, "both right", "only dense right", "only cut right", "both wrong"], *changes])


def _draft_table(drafts: list[JsonObject]) -> Table:
    """How good a draft each model is for its parent, in speculative generation."""
    columns = [[f"As a draft for {Path(drafts[0]['parent']).name}", *short_names([each["model"] for each in drafts])]]
    for kind in ("greedy", "sampled"):
        found = [draft[kind] for draft in drafts]
        rates = (share_with_error(each["acceptance_rate"], each["standard_error"]) for each in found)
        columns.append([f"{kind}: accepted", *rates])
        for count in found[0]["tokens_per_verification"]:
            checks = (number(each["tokens_per_verification"][count]) for each in found)
            columns.append([f"tokens per check, {count} proposed", *checks])
    return by_column(columns)
