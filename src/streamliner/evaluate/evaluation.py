"""The result of an evaluation: each model, how each compares with the dense one, and the tables that show it."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, astuple, dataclass
from typing import Any

from streamliner.evaluate.compare import Comparison
from streamliner.evaluate.draft import TEXT_KINDS, Draft
from streamliner.evaluate.model_evaluation import ModelEvaluation
from streamliner.evaluate.samples import Sample
from streamliner.evaluate.tasks import Task
from streamliner.format import Table, Tables, model_table, number, share_with_error, short_names, task_label, with_error
from streamliner.measure.loss import Loss
from streamliner.runs.files import SCHEMA_VERSIONS
from streamliner.settings import EvaluateSettings

RECORDED = (
    *("perplexity", "window", "stride", "max_windows", "tasks", "tasks_path", "limit", "num_fewshot", "batch_size"),
    *("apply_chat_template", "cache", "draft_prompts", "draft_tokens", "samples"),
)
RENAMED = {"perplexity": "texts", "window": "sequence_length", "max_windows": "num_samples", "tasks": "task_names"}
"""Settings in a result file, and what those are called here that have other names in schema version 3."""


@dataclass(frozen=True, repr=False)
class Evaluation(Tables):
    """The result of an evaluation.

    Attributes:
        settings: what the models were evaluated on, as a JSON value.
        tasks: the tasks of lm-eval, with their versions.
        models: what was measured for each, the dense one first.
        compared: the others compared with the dense one; empty if nobody said which one is dense.
        drafts: the models measured as drafts, if a parent was given.
        samples: continuations of the same prompts by all models.
        stopped: whether Ctrl-C ended it early: the last models may have no draft and no samples, or not be there.
    """

    settings: dict[str, Any]
    tasks: tuple[Task, ...]
    models: tuple[ModelEvaluation, ...]
    compared: tuple[Comparison, ...] = ()
    drafts: tuple[Draft, ...] = ()
    samples: tuple[Sample, ...] = ()
    stopped: bool = False

    def to_json(self) -> dict[str, object]:
        """As a JSON value: what `streamliner evaluate` writes."""
        return {
            "schema_version": SCHEMA_VERSIONS["evaluation"],
            "settings": self.settings,
            "tasks": [asdict(task) for task in self.tasks],
            "models": [model.to_json() for model in self.models],
            "compared": [comparison.to_json() for comparison in self.compared],
            "drafts": [asdict(draft) for draft in self.drafts],
            "samples": [asdict(sample) for sample in self.samples],
            "stopped": self.stopped,
        }

    def tables(self) -> list[Table]:
        """All models; each compared with the dense one, task by task; drafts; samples."""
        names = [model.name for model in self.models]
        short = short_names(names)
        blocks = ["blocks", *(str(model.model["blocks"]) for model in self.models)]
        tables = [model_table(names, [blocks, *self._text_rows(), *self._task_rows()])]
        for name, compared in zip(short[1:], self.compared, strict=False):
            tables += _comparison_tables(name, compared)
        if self.drafts:
            tables.append(_draft_table(self.drafts))
        for place, sample in enumerate(self.samples, 1):
            texts = zip(short, sample.continuations, strict=not self.stopped)
            tables.append(Table([("", f"sample {place}"), ("prompt", sample.prompt), *texts]))
        return tables

    def _text_rows(self) -> Iterable[list[str]]:
        for place, name in enumerate(short_names([text.text["source"] for text in self.models[0].perplexity])):
            texts = [model.perplexity[place] for model in self.models]
            yield [f"perplexity, {name}", *(number(text.loss.perplexity) for text in texts)]
            yield ["  loss", *(_with_error(text.loss) for text in texts)]
            if self.compared:
                increases = [each.loss_increase[texts[0].text["source"]] for each in self.compared]
                yield ["  loss increase (nats)", "", *map(_with_error, increases)]

    def _task_rows(self) -> Iterable[list[str]]:
        for task in self.tasks:
            for metric in self.models[0].tasks[task.name].metrics:
                values = [model.tasks[task.name].metrics.get(metric) for model in self.models]
                yield [f"{task.name} {metric}", *("" if value is None else number(value) for value in values)]


def _with_error(loss: Loss) -> str:
    return with_error(loss.mean, loss.standard_error)


def _comparison_tables(name: str, compared: Comparison) -> list[Table]:
    """Two tables of how a model's answers changed, as one is wider than a terminal; none without tasks."""
    if not compared.tasks:
        return []
    changes = [["task", "change of accuracy", "95% interval", "McNemar p", "stability"]]
    flips = [["task", "both right", "only dense right", "only cut right", "both wrong"]]
    for task, found in compared.tasks.items():
        change = found.accuracy_difference
        interval = f"{change.low:+.3f} to {change.high:+.3f}"
        row = task_label(task, found.metric)
        changes.append([row, f"{change.mean:+.3f}", interval, f"{change.p_value:.2g}", f"{found.stability:.3f}"])
        flips.append([row, *map(str, astuple(found.flips))])
    changes.append(["mean", "", "", "", f"{compared.mean_stability:.3f}"])
    return [Table(changes, title=f"{name}, compared with the dense model"), Table(flips)]


def _draft_table(drafts: Sequence[Draft]) -> Table:
    counts = drafts[0].greedy.tokens_per_verification
    rows = [["draft", "text", "accepted", *(f"tokens per check, {count} proposed" for count in counts)]]
    for name, draft in zip(short_names([draft.model for draft in drafts]), drafts, strict=True):
        for kind in TEXT_KINDS:
            found = getattr(draft, kind)
            accepted = share_with_error(found.acceptance_rate, found.standard_error)
            rows.append([name, kind, accepted, *(number(found.tokens_per_verification[count]) for count in counts)])
    return Table(rows, title=f"As a draft for {short_names([drafts[0].parent])[0]}")


def recorded_settings(settings: EvaluateSettings) -> dict[str, Any]:
    """What a result says about its settings, under the names that its schema has."""
    return {key: getattr(settings, RENAMED.get(key, key)) for key in RECORDED} | {
        "batch_size": settings.options_at_once
    }
