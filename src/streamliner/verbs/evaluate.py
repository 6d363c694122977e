"""`streamliner evaluate`: measure models on the same texts and tasks, and compare them with the dense one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from streamliner.evaluate.compare import compare_models
from streamliner.evaluate.draft import measure_draft, write_both
from streamliner.evaluate.evaluation import Evaluation, recorded_settings
from streamliner.evaluate.inputs import EvaluationInputs, read_inputs
from streamliner.evaluate.model_evaluation import evaluate_model
from streamliner.evaluate.samples import Sample, continuations
from streamliner.model.session import Session, open_model, open_models
from streamliner.runs.files import check_result_file, write_json
from streamliner.runs.folder import environment
from streamliner.runs.reporter import Reporter
from streamliner.runs.terminal import Terminal
from streamliner.settings import EvaluateSettings, ModelSettings

if TYPE_CHECKING:
    from streamliner.settings import ModelLike


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
    reporter = Terminal(settings.quiet)
    return evaluate_models(
        sessions, settings, settings.output, reporter, compare=settings.dense is not None, parent=parent
    )


def evaluate_models(
    sessions: Sequence[Session],
    settings: EvaluateSettings,
    out: str | Path | None,
    reporter: Reporter,
    *,
    compare: bool = True,
    parent: Session | None = None,
) -> Evaluation:
    """Evaluate models one after another.

    Every result is stored in the cache at once, so an evaluation that was stopped continues where it was.

    Args:
        sessions: of the models, the dense one first. Models that were loaded from files are released after their turn.
        settings: what to evaluate on.
        out: JSON file to write, or None.
        reporter: where messages and progress go.
        compare: whether the first model is the dense one, with which the others are compared.
        parent: measure the models as drafts for this one, too.

    Raises:
        UserError: what was asked for is not possible; the message says why.
    """
    inputs = read_inputs(sessions, settings, parent, reporter)
    descriptions = [session.describe() for session in sessions]
    parent_texts = write_both(parent, inputs.draft_prompts, settings.draft_tokens, reporter) if parent else {}
    models, drafts, written = [], [], []
    for session, description in zip(sessions, descriptions, strict=True):
        is_parent = parent is not None and _same_model(session, parent)
        if parent is not None and is_parent:
            session.blocks = parent.blocks  # one model, once in memory
        models.append(evaluate_model(session, description, inputs, settings, reporter))
        if parent is not None and (not is_parent or len(sessions) == 1):
            source, count = inputs.prompt_source, settings.draft_tokens
            drafts.append(measure_draft(parent, session, parent_texts, source, count, reporter))
        if settings.samples:
            reporter.say(f"{session.source.name}: samples ...")
            written.append(continuations(session.load(reporter), inputs.tokenizer, inputs.sample_prompts))
        session.release()
    result = Evaluation(
        settings=recorded_settings(settings),
        tasks=inputs.tasks,
        models=tuple(models),
        compared=tuple(compare_models(models[0], other) for other in models[1:] if compare),
        drafts=tuple(drafts),
        samples=_samples(inputs, written),
    )
    if out is not None:
        write_json(Path(out), result.to_json() | environment())
    return result


def _same_model(one: Session, other: Session) -> bool:
    return one.source == other.source if one.model is None else one.model is other.model


def _samples(inputs: EvaluationInputs, written: Sequence[list[str]]) -> tuple[Sample, ...]:
    prompts = [inputs.tokenizer.decode(prompt, skip_special_tokens=True) for prompt in inputs.sample_prompts]
    return tuple(Sample(str(prompt), tuple(texts[place] for texts in written)) for place, prompt in enumerate(prompts))
