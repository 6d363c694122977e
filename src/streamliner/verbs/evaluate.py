"""Evaluate models on the same texts and tasks, each measured once, and compare them with the dense one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from streamliner.errors import EvaluationError
from streamliner.evaluate.compare import accuracy_difference, flips
from streamliner.evaluate.draft import acceptance, write_texts
from streamliner.evaluate.perplexity import perplexity
from streamliner.evaluate.samples import continuations
from streamliner.evaluate.stability import stability
from streamliner.evaluate.tasks import Harness, Task, TaskResult
from streamliner.measure.loss import Loss
from streamliner.model.fingerprint import config_hash, tokenizer_hash, weights_hash
from streamliner.model.load import load_tokenizer
from streamliner.model.session import Session
from streamliner.model.stack import has_encoder
from streamliner.runs.cache import Kept
from streamliner.runs.files import SCHEMA_VERSIONS, write_json
from streamliner.runs.folder import environment
from streamliner.runs.reporter import Reporter
from streamliner.text.windows import TextWindows, text_windows, window_length

SHORT = 32
"""Tokens of the prompts that drafts and samples begin with."""


@dataclass(frozen=True)
class EvaluationSettings:
    """What to evaluate on.

    Attributes:
        perplexity: text sources.
        window, stride: of texts, see `perplexity.text_windows`; None for 2048, or the models' limit if that is less,
            and no overlap.
        max_windows: at most so many windows of a text.
        tasks: of lm-eval.
        tasks_path: a folder with tasks of one's own.
        limit: at most so many questions of a task.
        num_fewshot: None for the task's own.
        batch_size: questions in a forward.
        draft_prompts, draft_tokens: prompts that a draft is measured on, and tokens behind each.
        samples: how many beginnings of the first text models go on with, for the eye.
        cache: whether what was measured of the same weights before is taken from the cache.
    """

    perplexity: tuple[str, ...] = ()
    window: int | None = None
    stride: int | None = None
    max_windows: int | None = None
    tasks: tuple[str, ...] = ()
    tasks_path: str | None = None
    limit: int | None = None
    num_fewshot: int | None = None
    batch_size: int = 1
    cache: bool = True
    draft_prompts: int = 16
    draft_tokens: int = 64
    samples: int = 0


def evaluate_models(
    sessions: Sequence[Session],
    settings: EvaluationSettings,
    out: str | Path | None,
    reporter: Reporter,
    *,
    compare: bool = True,
    parent: Session | None = None,
) -> dict[str, Any]:
    """Measure each model, and compare the others with the first, which is the dense one, if asked to.

    With `parent` each other one is measured as a draft for it, on the first text, or python-docs.

    Results are kept as they come, by weights and text or task: stopped and called again, it goes on.

    Returns:
        JSON value: for each model its perplexities and tasks; for each but the first how it compares.

    Raises:
        UserError: what was asked for cannot be done; the message says why.
    """
    if not (settings.perplexity or settings.tasks or settings.samples or parent):
        raise EvaluationError(
            "There is nothing to evaluate on.", "Add --perplexity wikitext2:test, or --tasks arc_easy."
        )
    _check_used(settings, drafts=parent is not None)
    everyone = [*sessions, *([parent] if parent else [])]
    if settings.perplexity or settings.samples or parent:
        _check_decoders(everyone)
    harness = Harness(settings.tasks_path) if settings.tasks else None
    tasks = harness.find(settings.tasks, settings.limit, settings.num_fewshot) if harness else []
    tokenizer = load_tokenizer(sessions[0].source)
    window = min(window_length(session, settings.window, "--window") for session in sessions)
    texts = [
        text_windows(source, tokenizer, window, settings.stride, settings.max_windows) for source in settings.perplexity
    ]
    for text in texts:
        reporter.say(_describe(text))
    if parent is not None:
        for session in everyone:
            window_length(session, SHORT + settings.draft_tokens, "--draft-tokens: a text of")
    if texts or settings.samples or parent:
        _check_same_words(tokenizer, everyone[1:])
    described = [session.describe() for session in sessions]
    measured, drafts, written = [], [], []
    source = next(iter(settings.perplexity), "python-docs:test")
    prompts = [
        _prompts(source, tokenizer, count, reporter) if count else torch.empty(0, SHORT)
        for count in (settings.samples, settings.draft_prompts if parent else 0)
    ]
    by_parent = _written_by(parent, prompts[1], settings.draft_tokens, reporter) if parent else {}
    for session in sessions:
        if parent is not None and session.source == parent.source:
            session.blocks = parent.blocks  # one model, once in memory
        measured.append(_measure(session, texts, tasks, harness, settings, reporter))
        if parent is not None and (session.source != parent.source or len(sessions) == 1):
            found = _as_draft(parent, session, by_parent, settings.draft_tokens, reporter)
            drafts.append({"model": session.source.name, "source": source} | found)
        if settings.samples:
            reporter.say(f"{session.source.name}: samples ...")
            written.append(continuations(session.load(reporter), tokenizer, prompts[0]))
        session.blocks = None  # make room for the next one
    result: dict[str, Any] = {
        "schema_version": SCHEMA_VERSIONS["evaluation"],
        "settings": asdict(settings),
        "tasks": [asdict(task) for task in tasks],
        "models": [model | _to_json(each) for model, each in zip(described, measured, strict=True)],
        "compared": [
            {"model": session.source.name} | _compare(measured[0], each)
            for session, each in zip(sessions[1:], measured[1:], strict=True)
            if compare
        ],
        "drafts": drafts,
        "samples": [
            {
                "prompt": tokenizer.decode(prompt, skip_special_tokens=True),
                "continuations": [each[i] for each in written],
            }
            for i, prompt in enumerate(prompts[0])
        ],
    }
    if out is not None:
        write_json(Path(out), result | environment())
    return result


def _check_used(settings: EvaluationSettings, *, drafts: bool) -> None:
    """Raise EvaluationError for a setting that changes nothing: the user meant something to be measured."""
    default = EvaluationSettings()
    for flag, used, names in (
        ("--perplexity", bool(settings.perplexity), ("window", "stride", "max_windows")),
        ("--tasks", bool(settings.tasks), ("tasks_path", "limit", "num_fewshot", "batch_size")),
        ("--as-draft-for", drafts, ("draft_prompts", "draft_tokens")),
    ):
        idle = [name for name in names if not used and getattr(settings, name) != getattr(default, name)]
        if idle:
            raise EvaluationError(
                f"--{idle[0].replace('_', '-')} changes nothing without {flag}.", f"Add {flag}, or leave it out."
            )


def _check_decoders(sessions: Sequence[Session]) -> None:
    """Raise EvaluationError for a model behind an encoder, which would read the very text that it is to predict."""
    for session in sessions:
        if has_encoder(session.shell):
            raise EvaluationError(
                f"{session.source.name} writes behind an encoder; it has no perplexity of a text, and is no draft.",
                "Evaluate it with --tasks.",
            )


def _prompts(source: str, tokenizer: Any, count: int, reporter: Reporter) -> torch.Tensor:
    """Windows of `SHORT` tokens, (count, SHORT), evenly over a whole text, as neighbours are of one matter."""
    windows = text_windows(source, tokenizer, SHORT).windows
    if len(windows) < count:
        reporter.say(f"{source} has {len(windows)} prompts of {SHORT} tokens, not {count}.")
    return windows[torch.linspace(0, len(windows) - 1, min(count, len(windows))).long()]


def _check_same_words(tokenizer: Any, others: Sequence[Session]) -> None:
    """Raise EvaluationError if a model has other words than the first: it would be measured on the wrong tokens."""
    for session in others:
        if load_tokenizer(session.source).get_vocab() != tokenizer.get_vocab():
            raise EvaluationError(
                f"{session.source.name} has another tokenizer than the first model, so they cannot be compared.",
                "Evaluate it alone.",
            )


def _written_by(parent: Session, prompts: torch.Tensor, new_tokens: int, reporter: Reporter) -> dict[str, torch.Tensor]:
    """What the parent writes, greedy and sampled: once for all drafts."""
    blocks, texts = parent.load(reporter), {}
    for kind in ("greedy", "sampled"):
        with reporter.progress(f"{parent.source.name}: writing, {kind}") as progress:
            texts[kind] = write_texts(blocks, prompts, new_tokens, sampled=kind == "sampled", on_progress=progress)
    return texts


def _as_draft(
    parent: Session, draft: Session, texts: dict[str, torch.Tensor], new_tokens: int, reporter: Reporter
) -> dict[str, Any]:
    """Greedy and sampled."""
    found: dict[str, Any] = {"parent": parent.source.name}
    for kind, written in texts.items():
        with reporter.progress(f"{draft.source.name}: as a draft, {kind}") as progress:
            blocks = parent.load(reporter), draft.load(reporter)
            found[kind] = acceptance(
                *blocks, written, new_tokens, sampled=kind == "sampled", on_progress=progress
            ).to_json()
    return found


@dataclass(frozen=True)
class _Measured:
    weights: str
    dtype: str
    losses: dict[str, tuple[Loss, dict[str, Any]]]
    tasks: dict[str, TaskResult]


def _measure(
    session: Session,
    texts: list[TextWindows],
    tasks: list[Task],
    harness: Harness | None,
    settings: EvaluationSettings,
    reporter: Reporter,
) -> _Measured:
    blocks = session.load(reporter)
    name, weights, dtype = session.source.name, weights_hash(blocks.model), str(blocks.dtype).removeprefix("torch.")
    model: list[Any] = [weights, dtype, config_hash(blocks.model.config)]
    losses: dict[str, tuple[Loss, dict[str, Any]]] = {}
    for text in texts:
        source = text.provenance["source"]
        kept = Kept(settings.cache, model, text.provenance["sha256"], text.first)
        if kept.value is None:
            with reporter.progress(f"{name}: perplexity on {source}") as progress:
                kept.keep(list(perplexity(blocks, text, progress).per_window))
        else:
            reporter.say(f"{name}: perplexity on {source} is known.")
        losses[source] = Loss(tuple(kept.value)), text.provenance
    results: dict[str, TaskResult] = {}
    tokenizer = load_tokenizer(session.source) if tasks else None
    if tokenizer:  # perplexities depend on token ids alone
        writing = config_hash(getattr(blocks.model, "generation_config", None))
        model += [settings.batch_size, tokenizer_hash(tokenizer), writing, version("lm_eval")]
    for task in tasks:
        kept = Kept(settings.cache, model, task.sha256, task.num_fewshot)
        if kept.value is None:
            assert harness is not None
            with reporter.progress(f"{name}: {task.name}") as progress:
                kept.keep(harness.run(task, blocks.model, tokenizer, settings.batch_size, progress).to_json())
        else:
            reporter.say(f"{name}: {task.name} is known.")
        results[task.name] = TaskResult.from_json(kept.value)
    return _Measured(weights, dtype, losses, results)


def _describe(text: TextWindows) -> str:
    of = text.provenance
    start = "a BOS and " if of["bos"] else ""
    return (
        f"{of['source']}: {of['text_tokens']:,} tokens, {of['windows']} windows of {start}"
        f"{of['window'] - of['bos']} tokens, one every {of['stride']}; {of['predictions']:,} predictions, "
        f"{of['left_out']:,} tokens left out."
    )


def _to_json(measured: _Measured) -> dict[str, Any]:
    return {
        "weights": measured.weights,
        "dtype": measured.dtype,
        "perplexity": [
            {
                "perplexity": loss.perplexity,
                "loss": loss.mean,
                "standard_error": loss.standard_error,
                "window_losses": list(loss.per_window),
            }
            | provenance
            for loss, provenance in measured.losses.values()
        ],
        "tasks": {task: result.to_json() for task, result in measured.tasks.items()},
    }


def _compare(dense: _Measured, cut: _Measured) -> dict[str, Any]:
    """Differences on the same windows and questions."""
    behind = {
        source: Loss(tuple(a - b for a, b in zip(loss.per_window, dense.losses[source][0].per_window, strict=True)))
        for source, (loss, _) in cut.losses.items()
    }
    tasks: dict[str, Any] = {}
    for name, result in cut.tasks.items():
        before = dense.tasks[name]
        if not result.answers:
            continue
        table = flips(before.answers, result.answers)
        tasks[name] = {
            "flips": asdict(table),
            "accuracy_difference": asdict(accuracy_difference(table)),
            "stability": stability(before.answers, result.answers),
        }
    return {
        "loss_behind": {
            source: {"mean": loss.mean, "standard_error": loss.standard_error} for source, loss in behind.items()
        },
        "tasks": tasks,
        "mean_stability": fmean(each["stability"] for each in tasks.values()) if tasks else None,
    }
