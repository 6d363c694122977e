"""Numbers of an evaluation or a benchmark, and in words how they were measured."""

import math
from collections.abc import Sequence
from statistics import fmean

from streamliner.report.read import JsonObject


def perplexity_details(text: JsonObject, dtype: str) -> str:
    """How a perplexity was measured; the stride where windows overlap."""
    before = len(text.get("prefix", ())) or text["bos"]
    stride = f", stride {text['stride']}" if text["stride"] < text["window"] - before else ""
    return f"{text['windows']} windows of {text['window']} tokens{stride}, {dtype}"


def scored_tasks(evaluation: JsonObject) -> list[str]:
    """The tasks whose questions lm-eval counts one by one."""
    return [task["name"] for task in evaluation["tasks"] if evaluation["models"][0]["tasks"][task["name"]]["answers"]]


def mean_accuracy(model: JsonObject, tasks: Sequence[str]) -> tuple[float, float]:
    """Mean of the accuracies of tasks, and its standard error; each task counts once."""
    answers = [[answer["correct"] for answer in model["tasks"][name]["answers"]] for name in tasks]
    variances = (fmean(correct) * (1 - fmean(correct)) / len(correct) for correct in answers)
    return fmean(map(fmean, answers)), math.sqrt(sum(variances)) / len(tasks)


def accuracy_details(model: JsonObject, tasks: Sequence[str]) -> str:
    """How an accuracy was measured."""
    least, *more = sorted({len(model["tasks"][name]["answers"]) for name in tasks})
    return f"{least}{f' to {more[-1]}' if more else ''} questions each, {model['dtype']}"


def speed_details(benchmark: JsonObject, kind: str) -> str:
    """How a speed was measured; `kind` is one of `BENCHMARK_KINDS`."""
    settings, dtype = benchmark["settings"], benchmark["dtype"]
    if kind == "prompt":
        return f"{settings['prompt_tokens']} tokens, {dtype}"
    generation = f"{settings['new_tokens']} tokens after {settings['context_tokens']}"
    return f"{generation}, batch size {settings['batch_size']}, {dtype}"
