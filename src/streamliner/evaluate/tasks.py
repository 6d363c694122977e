"""Tasks of lm-eval: accuracy, and the model's answer to each question."""

import contextlib
import functools
import hashlib
import json
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from streamliner.errors import EvaluationError, MissingExtraError, did_you_mean, first_line
from streamliner.evaluate.stability import Answer, answers, right_or_wrong
from streamliner.model.compat import continuation_tokens, lm_eval_progress

ON_CPU = 8
"""Options in one forward on a CPU, if the user leaves it to us."""


@dataclass(frozen=True)
class Task:
    """A task of lm-eval, found but not yet run.

    Attributes:
        name, version: lm-eval's.
        num_fewshot: examples before each question.
        limit: number of questions, the first ones; None for all.
        sha256: of the task's settings, the questions, and those that the examples are taken from.
    """

    name: str
    version: str
    num_fewshot: int
    limit: int | None
    sha256: str


@dataclass(frozen=True)
class TaskResult:
    """How a model did on a task.

    Attributes:
        metrics: lm-eval's, such as acc and acc_norm, by name.
        answers: one per question; empty where no metric says which answers are right.
        metric: the one that does: acc, or acc_norm or exact_match of a task without it; "" if none does.
    """

    metrics: dict[str, float]
    answers: tuple[Answer, ...]
    metric: str

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Read `dataclasses.asdict` of one."""
        answered = (Answer(each["item"], tuple(each["scores"]), each["correct"]) for each in value["answers"])
        return cls(value["metrics"], tuple(answered), value["metric"])


class Harness:
    """lm-eval, with the tasks that it brings and those in a folder of YAML files.

    Raises:
        MissingExtraError: without the `tasks` extra.
    """

    def __init__(self, tasks_path: str | None = None) -> None:
        try:
            import datasets
            from lm_eval.tasks import TaskManager
        except ImportError as error:
            raise MissingExtraError("Running tasks", "tasks") from error
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        datasets.disable_progress_bars()
        if tasks_path is not None and not Path(tasks_path).is_dir():
            raise EvaluationError(f"There is no folder {tasks_path}.", "Give a folder with lm-eval's YAML files.")
        self._index = functools.cache(functools.partial(TaskManager, include_path=tasks_path))
        self._own = TaskManager(include_path=tasks_path, include_defaults=False) if tasks_path else None
        self._found: dict[str, Any] = {}

    def find(self, names: Sequence[str], limit: int | None, num_fewshot: int | None) -> list[Task]:
        """Load tasks and their questions, a group as its tasks.

        Raises:
            EvaluationError: there is no such task, or its questions are not available.
        """
        tasks: list[Task] = []
        for name in names:
            manager = self._manager(name)
            if not manager.match_tasks([name]):
                hint = did_you_mean(name, manager.all_tasks)
                hint = hint or "See: lm_eval ls tasks. Tasks of your own: --tasks-path."
                raise EvaluationError(f"lm-eval has no task {name}.", hint)
            try:
                found = manager.load([name])["tasks"]
            except Exception as error:  # datasets raises many types of its own for "no network" and "no such set"
                raise EvaluationError(
                    f"The questions of {name} are not available: {first_line(error)}",
                    "Without a network, describe your own files in YAML: --tasks-path. Paths in data_files are "
                    "relative to the folder that you are in.",
                ) from error
            new = {task_name: task for task_name, task in found.items() if task_name not in self._found}
            tasks += [_describe(task_name, task, limit, num_fewshot) for task_name, task in new.items()]
            self._found |= new
        return tasks

    def _manager(self, name: str) -> Any:
        """The index that has a task: of the user's folder alone for a task there, as that of lm-eval's takes seconds.

        Groups and patterns may also mean tasks of lm-eval.
        """
        return self._own if self._own is not None and name in self._own.all_subtasks else self._index()

    def run(
        self,
        task: Task,
        model: Any,
        tokenizer: Any,
        on_progress: Callable[[int, int], None],
        *,
        batch_size: int | str = 1,
        chat: bool = False,
    ) -> TaskResult:
        """Let the model answer; `on_progress` is called with the numbers of lm-eval's requests done and of all.

        Args:
            task: one that `find` returned.
            model, tokenizer: of transformers.
            on_progress: see above.
            batch_size: options in one forward. "auto": as many as a GPU has memory for, which lm-eval finds by trying;
                `ON_CPU` on a CPU, where more are not faster and too many are not an error but the end of the process.
            chat: whether each question and its examples are a conversation in the tokenizer's chat template.
        """
        import lm_eval
        from lm_eval.models.huggingface import HFLM

        if batch_size == "auto" and model.device.type == "cpu":
            batch_size = ON_CPU
        lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
        # What it prints about "auto" goes to the standard error, as results go to the standard output.
        with lm_eval_progress(functools.partial(_Bar, on_progress=on_progress)), contextlib.redirect_stdout(sys.stderr):
            found: Any = lm_eval.simple_evaluate(
                model=lm,
                tasks=[self._found[task.name]],  # not by name: a group may have changed it
                num_fewshot=task.num_fewshot,
                limit=task.limit,
                task_manager=self._manager(task.name),
                apply_chat_template=chat,
                bootstrap_iters=0,
                log_samples=True,
            )
        metrics = {
            key.removesuffix(",none"): float(value)
            for key, value in found["results"][task.name].items()
            if isinstance(value, (int, float)) and "stderr" not in key and key not in ("alias", "name", "sample_len")
        }
        logged = found["samples"][task.name]
        # A task that reads answers in several ways logs each question once per way.
        samples = [sample for sample in logged if sample.get("filter") == logged[0].get("filter")]
        metric = right_or_wrong(samples)
        answered = answers(samples, metric, lambda *pair: len(continuation_tokens(lm, *pair)))
        return TaskResult(metrics, tuple(answered), metric)


class _Bar:
    """Takes the place of tqdm in lm-eval, around an iterable or with calls of `update`."""

    def __init__(
        self, iterable: Iterable[Any] = (), *, on_progress: Callable[[int, int], None], total: int = 0, **_: Any
    ) -> None:
        self._iterable, self._on_progress, self._done, self._total = iterable, on_progress, 0, total

    def __iter__(self) -> Iterator[Any]:
        yield from self._iterable

    def update(self, count: int = 1) -> None:
        """Count more as done."""
        self._done += count
        if self._total:
            self._on_progress(self._done, self._total)

    def close(self) -> None:
        """Do nothing."""


def _describe(name: str, task: Any, limit: int | None, num_fewshot: int | None) -> Task:
    config = task.dump_config()
    own = config.get("num_fewshot")
    shots = own if num_fewshot is None or own == 0 else num_fewshot  # lm-eval leaves a task's own 0 as it is
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for number, question in enumerate(task.eval_docs):
        if limit is not None and number >= limit:
            break
        digest.update(json.dumps(question, sort_keys=True, default=str).encode())
        _check_gold(name, task, number, question)
    for example in (task.fewshot_docs() or ()) if shots else ():
        digest.update(json.dumps(example, sort_keys=True, default=str).encode())
    return Task(name, str(task.VERSION), shots or 0, limit, digest.hexdigest())


def _check_gold(name: str, task: Any, number: int, question: Any) -> None:
    """Raise EvaluationError if no option is the right one: lm-eval counts every model wrong on such a question."""
    if task.OUTPUT_TYPE != "multiple_choice" or getattr(task, "multiple_input", 0):
        return
    options, gold = task.doc_to_choice(question), task.doc_to_target(question)
    for each in gold if isinstance(gold, list) else [gold]:
        if each not in (range(len(options)) if isinstance(each, int) else options):
            raise EvaluationError(
                f"Question {number} of {name} has {each!r} as its answer, which is none of its {len(options)} options.",
                "Check doc_to_target and doc_to_choice in the task's YAML.",
            )
