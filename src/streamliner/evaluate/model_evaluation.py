"""Evaluate one model on all texts and tasks; what was measured before comes from the cache."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

from streamliner.evaluate.inputs import EvaluationInputs
from streamliner.evaluate.perplexity import Perplexity, perplexity
from streamliner.evaluate.tasks import TaskResult
from streamliner.measure.loss import Loss
from streamliner.model.fingerprint import config_values, fingerprint, tokenizer_hash
from streamliner.model.session import Session
from streamliner.runs.cache import CacheEntry
from streamliner.runs.reporter import Reporter


@dataclass(frozen=True)
class ModelEvaluation:
    """What was measured of one model: a perplexity for each text, and tasks by name.

    Attributes:
        model: its description, from `Session.describe`.
        weights: SHA-256 of the weights.
        dtype: the precision of the computation.
    """

    model: dict[str, Any]
    weights: str
    dtype: str
    perplexity: tuple[Perplexity, ...]
    tasks: dict[str, TaskResult]

    @property
    def name(self) -> str:
        """The model's name."""
        return str(self.model["model"])

    def to_json(self) -> dict[str, Any]:
        """As a JSON value."""
        return self.model | {
            "weights": self.weights,
            "dtype": self.dtype,
            "perplexity": [each.to_json() for each in self.perplexity],
            "tasks": {name: asdict(result) for name, result in self.tasks.items()},
        }


def evaluate_model(
    session: Session, description: dict[str, Any], inputs: EvaluationInputs, reporter: Reporter
) -> ModelEvaluation:
    """Measure perplexities and tasks of one model; each result is stored in the cache at once."""
    settings, blocks, name = inputs.settings, session.load(reporter), session.source.name
    identity, dtype = fingerprint(blocks), str(blocks.dtype).removeprefix("torch.")
    key: list[Any] = [identity]
    texts, tasks = [], {}
    for text in inputs.texts:
        entry = CacheEntry(settings.cache, "perplexity", key, text.provenance["sha256"], text.first)
        label = f"{name}: perplexity on {text.provenance['source']}"
        losses = _measured(entry, label, partial(perplexity, blocks, text), reporter)["per_window"]
        texts.append(Perplexity(Loss(tuple(losses)), text.provenance))
    if inputs.harness is not None:
        tokenizer = inputs.tokenizer_of(session)
        # Perplexities depend on token ids alone; answers also on the tokenizer and on how the model generates.
        generation = config_values(getattr(blocks.model, "generation_config", None))
        chat = settings.apply_chat_template and tokenizer.chat_template
        key = [*key, settings.options_at_once, tokenizer_hash(tokenizer), chat, generation, version("lm_eval")]
        for task in inputs.tasks:
            entry = CacheEntry(settings.cache, "task", key, task.sha256, task.num_fewshot)
            answer = partial(inputs.harness.run, batch_size=settings.options_at_once, chat=bool(chat))
            run = partial(answer, task, blocks.model, tokenizer)
            tasks[task.name] = TaskResult.from_json(_measured(entry, f"{name}: {task.name}", run, reporter))
    return ModelEvaluation(description, identity["weights"], dtype, tuple(texts), tasks)


def _measured(
    entry: CacheEntry, label: str, measure: Callable[[Callable[[int, int], None]], Any], reporter: Reporter
) -> dict[str, Any]:
    """What is in the cache, or what `measure` returns, as a JSON value."""
    if entry.value is None:
        with reporter.progress(label) as progress:
            entry.store(asdict(measure(progress)))
        if entry.warning:
            reporter.say(entry.warning)
    else:
        reporter.say(f"{label}: from the cache.")
    return entry.value  # type: ignore[no-any-return]
