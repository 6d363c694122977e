"""`streamliner search`: find the blocks to remove."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from streamliner.cut.structure import Structure, by_reason
from streamliner.errors import RemovalError, TextError, UnsupportedModelError
from streamliner.fields import recorded
from streamliner.measure.deadline import Deadline
from streamliner.measure.pass_time import time_pass
from streamliner.measure.probe import Probe
from streamliner.measure.similarity import Similarity
from streamliner.model.blocks import Blocks
from streamliner.model.devices import enough_memory, share_of_free_memory
from streamliner.model.fingerprint import fingerprint
from streamliner.model.session import Session, open_model
from streamliner.model.stack import has_encoder
from streamliner.runs.files import SCHEMA_VERSIONS, write_json
from streamliner.runs.folder import asked_windows, check_run_folder, environment, run_precision, run_windows
from streamliner.runs.journal import Journal, open_journal
from streamliner.runs.lock import one_writer
from streamliner.runs.reporter import Reporter
from streamliner.runs.yaml_config import write_config
from streamliner.search.estimate import Estimate
from streamliner.search.found import Found
from streamliner.search.limits import check_limit, most_removable, parse_percentage, parse_remove
from streamliner.search.method import Method
from streamliner.search.methods.sleb import Sleb
from streamliner.search.registry import full_name, make_method
from streamliner.search.run_method import run_method
from streamliner.settings import AMOUNTS, DAMAGES, SearchSettings
from streamliner.text.calibration import COUNTED, NUM_SAMPLES, SEQUENCE_LENGTH, CalibrationSet, usual_windows
from streamliner.text.sources import default_text
from streamliner.text.windows import calibration_set, mixed_set
from streamliner.types import ModelLike
from streamliner.verbs.fold_loop import FoldLoop
from streamliner.verbs.targets import AccuracyBound, find_size_target, find_speed_target

PLANS = "plans"
"""Folder in the run folder with a plan for each number of blocks, after `--frontier`."""
SMALLER = "--memory-budget 500MB, --batch-size 1, --sequence-length 512, --offload disk or --dtype bfloat16"
"""What makes a search take less memory."""


def search(model: ModelLike | Session, settings: SearchSettings) -> Found:
    """Find the blocks whose removal raises the loss on a calibration set least.

    Mistakes in the request are reported before weights are loaded or files are written. With `run`, every measured loss
    goes into the journal of that folder, and the same call continues a search that was killed.

    Args:
        model: a hub id, a folder, a GGUF file or a model in memory, which is not changed.
        settings: what to search for, and on which text.

    Returns:
        The best set found for every number of removed blocks, and what the search cost.

    Raises:
        UserError: the request cannot be fulfilled; the message says why.

    References:
        arXiv 2402.09025 (SLEB), arXiv 2403.19135 (LLM-Streamline); see `streamliner methods` for the others.
    """
    session = open_model(model)
    choose_precision(session, settings)
    return search_session(session, with_windows(session, settings))


def choose_precision(session: Session, settings: SearchSettings) -> None:
    """Decide in which precision the losses are measured: as in the run that continues, otherwise one that is fast."""
    _method(settings)  # a wrong name or setting is said before anything is timed
    known = None if settings.run is None or settings.overwrite else run_precision(Path(settings.run))
    session.choose_precision(Reporter(settings.quiet or session.ranks.rank > 0), known=known)


def with_windows(session: Session, settings: SearchSettings) -> SearchSettings:
    """The settings with a number and a length of windows: given, of the run that continues, or usual on this device."""
    given = settings.num_samples, settings.sequence_length
    before = None if settings.run is None or settings.overwrite else asked_windows(Path(settings.run))
    usual = usual_windows(slow=session.is_slow, context=session.context)
    if settings.time_limit is not None:  # which bounds their number
        usual = NUM_SAMPLES, usual[1]
    elif (
        given == (None, None)
        and not before
        and session.is_slow
        and not isinstance(settings.calibration, CalibrationSet)
    ):
        Reporter(settings.quiet or session.ranks.rank > 0).say(
            f"Without a GPU the default is {usual[0]} windows of {usual[1]} tokens; the paper's is {NUM_SAMPLES} of "
            f"{SEQUENCE_LENGTH} (--recipe paper)."
        )
    count, length = (o if g is None else g for g, o in zip(given, before or usual, strict=True))
    return dataclasses.replace(settings, num_samples=count, sequence_length=length)


def search_session(
    session: Session, settings: SearchSettings, loop: FoldLoop | None = None, record: Callable[[], None] | None = None
) -> Found:
    """`search`, with `loop` on a model that is repaired after every few blocks.

    `record` writes the config of the command that the search is a part of into the run folder, in place of its own.
    """
    reporter = Reporter(settings.quiet or session.ranks.rank > 0)
    method = _method(settings)
    folder = None if settings.run is None else check_run_folder(settings.run)
    structure = Structure(session.shell)
    limit, increase = _limits(settings, method, session, structure, reporter)
    target = find_size_target(session, structure, method, settings)
    calibration = _calibration(session, settings, reporter)
    blocks = session.load(reporter)
    if not loop and not blocks.offloaded:
        most = limit or (target.blocks if target else None) or most_removable(method, session.num_blocks)
        with enough_memory("measuring losses", SMALLER):
            calibration = _in_time(session, blocks, calibration, structure, method, most, settings, reporter)
    if isinstance(method, Sleb):  # what is recorded is what was done
        method = method.resolved(len(calibration.windows), together=blocks.offloaded)
    alone = one_writer(folder, "search") if folder and not session.ranks.rank else nullcontext()
    with alone, reporter.progress(f"Searching ({full_name(settings.method)})") as progress:
        journal = _journal(folder, session, settings, method, calibration, reporter, loop) if folder else None
        if folder and not session.ranks.rank:
            model = {"model": session.source.name}
            record() if record else write_config(folder, "search", model, settings, session.settings)
        probe = Probe(
            blocks,
            calibration,
            batch_size=settings.batch_size,
            journal=journal,
            on_progress=progress,
            refusal=structure.refusal,
            memory_budget=settings.memory_bytes or share_of_free_memory(blocks.model),
            ranks=session.ranks,
            say=reporter.say,
            objective=settings.objective,
            deadline=Deadline(settings.time_limit_seconds, session.ranks, reporter.say),
        )
        if journal and journal.is_of_earlier_release:
            probe.check_a_known_loss()
        with enough_memory("measuring losses", SMALLER):
            target = target or find_speed_target(session, method, settings, folder, reporter)
            is_good = AccuracyBound(session, blocks, settings, reporter) if settings.task_names else lambda _: True
            name = full_name(settings.method)
            steps = loop.steps(blocks, structure, probe, journal) if loop else None
            frontier = run_method(probe, method, name, limit, increase, target=target, is_good=is_good, steps=steps)
    found = Found(frontier, probe.counters, calibration, session.parent, session.num_blocks)
    if folder and not session.ranks.rank:
        _write(folder, found, probe.measured_similarity, every=settings.frontier)
    return found


def _write(folder: Path, found: Found, similarity: Similarity | None, *, every: bool) -> None:
    """Write the result into the run folder, with a plan for every number of blocks if asked for."""
    frontier = found.frontier
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    write_json(folder / "run.json", run | {"cost": dataclasses.asdict(found.counters)})
    write_json(folder / "frontier.json", {"schema_version": SCHEMA_VERSIONS["frontier"]} | dataclasses.asdict(frontier))
    write_json(folder / "plan.json", found.plan().to_json())
    for point in frontier.points if every else ():
        (folder / PLANS).mkdir(exist_ok=True)
        count = len(point.removed)
        write_json(folder / PLANS / f"{count}.json", found.plan(count).to_json())
    if similarity is not None:
        value = {"schema_version": SCHEMA_VERSIONS["similarity"], "cosine": similarity.cosine.tolist()}
        write_json(folder / "similarity.json", value)


def _method(settings: SearchSettings) -> Method:
    """The search method. One that works harder at the last number of blocks does so at every number if that matters."""
    last_is_known = any(getattr(settings, name) is not None for name in AMOUNTS)
    wanted = settings.method_settings
    method = make_method(settings.method, wanted)
    every = settings.frontier or not last_is_known or bool(settings.task_names)
    if every and "every" in method.__dataclass_fields__ and "every" not in wanted:
        method = make_method(settings.method, wanted | {"every": True})
    return method


def _journal(
    folder: Path,
    session: Session,
    settings: SearchSettings,
    method: Method,
    calibration: CalibrationSet,
    reporter: Reporter,
    loop: FoldLoop | None,
) -> Journal:
    """The journal of the run folder, which is made or continued; the first process also records settings there."""
    blocks = session.load(reporter)
    found = fingerprint(blocks)
    identity: Mapping[str, Any] = found | {
        "model": session.identity | {"weights": found.pop("weights")},
        "calibration": calibration.provenance["sha256"],
        "window_shape": list(calibration.windows.shape),
        "objective": settings.objective,
        "method": full_name(settings.method),
        "method_settings": dataclasses.asdict(method),  # type: ignore[call-overload]
        **(loop.identity if loop else {}),
    }
    journal = open_journal(folder, identity, session.ranks, overwrite=settings.overwrite)
    if journal.measurements:
        reporter.say(f"Continuing the run in {folder}: {journal.measurements} measurements are known already.")
    if not session.ranks.rank:
        model = {"model": session.source.name} | recorded(session.settings)
        value = {
            "schema_version": SCHEMA_VERSIONS["run"],
            "identity": identity,
            "model": model,
            "search": recorded(settings) | {"method_settings": settings.method_settings},
            "calibration": calibration.provenance,
        }
        write_json(folder / "run.json", value | environment())
    return journal


def _limits(
    settings: SearchSettings, method: Method, session: Session, structure: Structure, reporter: Reporter
) -> tuple[int | None, float | None]:
    """How far to search; what the architecture does not allow is found before any text or weight is read."""
    if all(getattr(settings, name) is None for name in (*AMOUNTS, *DAMAGES)):
        raise RemovalError(
            "Say how much to remove.",
            "Add --remove 20%, --target-speedup 1.25, --target-bytes 200MB or --max-perplexity-increase 10%.",
        )
    allowed = settings.max_perplexity_increase
    limit = None if settings.remove is None else parse_remove(str(settings.remove), session.num_blocks)
    increase = None if allowed is None else parse_percentage("--max-perplexity-increase", allowed)
    check_limit(method, session.num_blocks, 1 if limit is None else limit)
    if has_encoder(session.shell):
        raise UnsupportedModelError(
            f"{session.source.name} has an encoder, so text alone does not measure its blocks.",
            f"Name the blocks to remove: streamliner cut {session.source.name} --blocks 3,7 -o OUT",
        )
    fixed = structure.fixed_blocks()
    if limit == 1 and len(fixed) == session.num_blocks:
        raise UnsupportedModelError(fixed[0])
    for reason, blocks in by_reason(fixed).items():
        reporter.say(f"{blocks} cannot be removed alone: {reason}")
    return limit, increase


def _calibration(session: Session, settings: SearchSettings, reporter: Reporter) -> CalibrationSet:
    """The calibration set given, or one made of the text given or of the default text."""
    given = settings.calibration
    if isinstance(given, CalibrationSet):
        if settings.answers_only and COUNTED not in given.provenance:
            hint = "Make the set with it: calibration_set(..., answers_only=True)."
            raise TextError("answers_only has no effect on a calibration set that is made already.", hint)
        return given
    text: Any = default_text(session.source.kind == "hub", reporter.say) if given is None else given
    assert settings.num_samples is not None  # `with_windows` chose it
    tokenizer, length = settings.tokenizer or session.tokenizer(), session.window_length(settings.sequence_length)
    make: Callable[..., CalibrationSet] = mixed_set if isinstance(text, Mapping) else calibration_set
    calibration = make(
        text,
        tokenizer,
        num_samples=settings.num_samples,
        sequence_length=length,
        seed=settings.seed,
        answers_only=settings.answers_only,
    )
    reporter.say(f"Calibration set: {calibration}.")
    if len(calibration.windows) < settings.num_samples:
        reporter.say(f"The text fills only {len(calibration.windows)} of {settings.num_samples} windows.")
    return calibration


def _in_time(
    session: Session,
    blocks: Blocks,
    calibration: CalibrationSet,
    structure: Structure,
    method: Method,
    limit: int,
    settings: SearchSettings,
    reporter: Reporter,
) -> CalibrationSet:
    """Say how long the search will take; with a time limit, a set of as many windows as there is time for.

    A run that continues keeps its windows, and a set that was given keeps its own.
    """
    probe = Probe(blocks, calibration, refusal=structure.refusal, objective=settings.objective, say=reporter.say)
    mine = len(session.ranks.share(probe.num_windows))
    estimate = Estimate(probe, time_pass(blocks, calibration.windows[0]), mine, blocks.forkable)
    before = None if settings.run is None or settings.overwrite else run_windows(Path(settings.run))
    if settings.time_limit_seconds is None:
        at_most = any(getattr(settings, name) is not None for name in DAMAGES)
        estimate.announce(method, limit, continues=before is not None, at_most=at_most)
    if settings.time_limit_seconds is None or isinstance(settings.calibration, CalibrationSet):
        return calibration
    fit = before or estimate.windows_that_fit(method, limit, settings.time_limit_seconds)
    count = int(session.ranks.of_first(fit))  # each process measures its own times
    if count >= probe.num_windows:
        return calibration
    reporter.say(f"There is time for {count} of {probe.num_windows} windows.")
    return _calibration(session, dataclasses.replace(settings, num_samples=count), reporter)
