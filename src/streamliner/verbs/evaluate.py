"""`streamliner evaluate`: measure models on the same texts and tasks, and compare them with the dense one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from streamliner.errors import Interrupted
from streamliner.evaluate.compare import compare_models
from streamliner.evaluate.draft import Draft, measure_draft, write_texts
from streamliner.evaluate.evaluation import Evaluation, recorded_settings
from streamliner.evaluate.inputs import EvaluationInputs, read_inputs
from streamliner.evaluate.model_evaluation import ModelEvaluation, evaluate_model
from streamliner.evaluate.samples import Sample, continuations
from streamliner.model.devices import enough_memory
from streamliner.model.session import Session, open_model, open_models
from streamliner.runs.files import write_json
from streamliner.runs.folder import environment
from streamliner.runs.outputs import check_result_file
from streamliner.runs.reporter import Reporter
from streamliner.settings import EvaluateSettings, ModelSettings
from streamliner.types import ModelLike

LESS_MEMORY = "--batch-size 1, --sequence-length 512, --dtype bfloat16"


def evaluate(
    models: ModelLike | Sequence[ModelLike] | Mapping[str, ModelLike],
    settings: EvaluateSettings,
    model_settings: ModelSettings | None = None,
) -> Evaluation:
    """Measure perplexity and tasks of models on the same windows and questions, and compare them with the dense one.

    Args:
        models: names of models or models in memory; a mapping names them in the results.
        settings: what to evaluate on; `dense` is the model to compare the others with.
        model_settings: how to load models that are named.

    Returns:
        Perplexities with their standard errors, tasks, stability, drafts and samples; a table in a notebook.

    Raises:
        UserError: the request cannot be fulfilled; the message says why.
    """
    check_result_file(settings.output, overwrite=settings.overwrite)
    sessions = open_models(models, settings.dense, settings.tokenizer, model_settings)
    parent = None if settings.as_draft_for is None else open_model(settings.as_draft_for, model_settings)
    return evaluate_models(sessions, settings, Reporter(settings.quiet), parent)


def evaluate_models(
    sessions: Sequence[Session], settings: EvaluateSettings, reporter: Reporter, parent: Session | None = None
) -> Evaluation:
    """Evaluate open models one after another; each one that was loaded from files is released after its turn.

    With `settings.dense`, that is the first of them. Every result is cached at once, so an evaluation that was stopped
    continues; drafts and samples, which are not cached, are in a result with `stopped` if Ctrl-C comes after the
    perplexities and tasks of the first model. `parent` is the open `settings.as_draft_for`.
    """
    inputs = read_inputs(sessions, settings, parent, reporter)
    descriptions = [session.describe() for session in sessions]
    measured, stopped = _Measured(), False
    try:
        for session, description in zip(sessions, descriptions, strict=True):
            _measure(session, description, inputs, parent, measured, reporter, alone=len(sessions) == 1)
    except Interrupted:
        stopped = True
        if not measured.models:
            raise
    models = tuple(measured.models)
    prompts = [str(inputs.tokenizer.decode(each, skip_special_tokens=True)) for each in inputs.sample_prompts]
    result = Evaluation(
        settings=recorded_settings(settings),
        tasks=inputs.tasks,
        models=models,
        compared=tuple(compare_models(models[0], other) for other in models[1:] if settings.dense is not None),
        drafts=tuple(measured.drafts),
        samples=tuple(map(Sample, prompts, zip(*measured.continuations, strict=True))),
        stopped=stopped,
    )
    if settings.output is not None:
        write_json(Path(settings.output).expanduser(), result.to_json() | environment())
    return result


@dataclass
class _Measured:
    """What was measured so far."""

    models: list[ModelEvaluation] = field(default_factory=list)
    parent_texts: dict[str, Tensor] = field(default_factory=dict)
    drafts: list[Draft] = field(default_factory=list)
    continuations: list[list[str]] = field(default_factory=list)  # of the sample prompts, by each model


def _measure(
    session: Session,
    description: dict[str, Any],
    inputs: EvaluationInputs,
    parent: Session | None,
    measured: _Measured,
    reporter: Reporter,
    *,
    alone: bool,
) -> None:
    """Measure one model and release it; `alone`: a parent is measured as its own draft if there is no other model."""
    settings, is_parent = inputs.settings, parent is not None and _same_model(session, parent)
    if parent is not None and is_parent:
        session.blocks = parent.load(reporter)  # one model, once in memory
    with enough_memory(f"evaluating {session.source.name}", LESS_MEMORY):
        measured.models.append(evaluate_model(session, description, inputs, reporter))
    if parent is not None and (alone or not is_parent):
        source, new_tokens = inputs.prompt_source, settings.draft_tokens
        if not measured.parent_texts:
            measured.parent_texts = write_texts(parent, inputs.draft_prompts, new_tokens, reporter)
        measured.drafts.append(measure_draft(parent, session, measured.parent_texts, source, new_tokens, reporter))
    if settings.samples:
        reporter.say(f"{session.source.name}: samples ...")
        measured.continuations.append(continuations(session.load(reporter), inputs.tokenizer, inputs.sample_prompts))
    session.release()


def _same_model(one: Session, other: Session) -> bool:
    return one.source == other.source if one.model is None else one.model is other.model
