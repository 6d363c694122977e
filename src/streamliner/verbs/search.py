"""The verbs as functions: search a model, cut it, inspect it. The command line only parses, calls these and prints."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streamliner.cut.structure import Structure, by_reason, fixed_blocks
from streamliner.errors import MissingExtraError, RemovalError, TextError, UnsupportedModelError
from streamliner.measure.probe import MEMORY_BUDGET, Counters, Probe
from streamliner.model.fingerprint import weights_hash
from streamliner.model.load import load_tokenizer
from streamliner.model.session import Session
from streamliner.model.stack import has_encoder
from streamliner.runs.files import write_json
from streamliner.runs.folder import check_run_folder, environment
from streamliner.runs.journal import Journal
from streamliner.runs.reporter import Reporter, Silent
from streamliner.search.find import make_plan, search
from streamliner.search.frontier import Frontier
from streamliner.search.limits import check_limit, parse_increase, parse_remove
from streamliner.search.plan import Plan
from streamliner.search.registry import make_method
from streamliner.text.sources import Text, read_text
from streamliner.text.windows import NUM_SAMPLES, CalibrationSet, make_calibration_set, window_length


@dataclass(frozen=True)
class SearchSettings:
    """What to search and on which text.

    Attributes:
        remove: "7" or "20%"; None for as many as `max_perplexity_increase` allows.
        max_perplexity_increase: such as "10%", on the calibration set.
        method: name, or path/to/file.py:Class.
        method_settings: its hyper-parameters by name.
        calibration: a SOURCE; None for SLEB's WikiText-2 where the hub may be asked, else python-docs.
        memory_budget: bytes beside the model for streams, a block at work and logits.
        sequence_length: None for 2048, or the model's limit if that is less.
    """

    remove: str | None = None
    max_perplexity_increase: str | None = None
    method: str = "sleb"
    method_settings: dict[str, Any] = field(default_factory=dict)
    calibration: str | None = None
    num_samples: int = NUM_SAMPLES
    sequence_length: int | None = None
    batch_size: int = 1
    seed: int = 0
    memory_budget: int = MEMORY_BUDGET


@dataclass(frozen=True)
class SearchResult:
    """What a search found and what it cost."""

    plan: Plan
    frontier: Frontier
    counters: Counters
    calibration: CalibrationSet


def search_model(
    session: Session,
    settings: SearchSettings,
    run_folder: str | Path,
    *,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> SearchResult:
    """Search for the blocks to remove; writes run.json, journal.jsonl, frontier.json and plan.json into `run_folder`.

    Everything that can be wrong with the request is found before weights are loaded or files written. A run that was
    killed continues from its journal.

    Raises:
        UserError: what was asked for cannot be done; the message says why.
    """
    ranks = session.ranks
    reporter = (reporter if ranks.rank == 0 else None) or Silent()
    method = make_method(settings.method, settings.method_settings)
    folder = check_run_folder(run_folder)
    limit, increase = _limits(settings, method, session, reporter)
    calibration = _calibrate(session, settings, reporter)
    blocks = session.load(reporter)
    identity = {
        "model": session.identity | {"weights": weights_hash(blocks.model)},
        "calibration": calibration.provenance["sha256"],
        "dtype": str(blocks.dtype),
        "method": settings.method,
        "method_settings": dataclasses.asdict(method),  # type: ignore[call-overload]
    }
    if ranks.rank:
        ranks.wait()  # the first process makes the folder, or refuses it
    journal = Journal(folder, identity, overwrite=overwrite and not ranks.rank, rank=ranks.rank)
    if not ranks.rank:
        ranks.wait()
    ranks.wait()  # all have read what is known before anybody adds to it
    if journal.measurements:
        reporter.say(f"Continuing the run in {folder}: {journal.measurements} measurements are known already.")
    if not ranks.rank:
        write_json(
            folder / "run.json",
            {
                "schema_version": 1,
                "identity": identity,
                "model": dataclasses.asdict(session.settings),
                "search": dataclasses.asdict(settings),
                "calibration": calibration.provenance,
            }
            | environment(),
        )
    with reporter.progress(f"Searching ({settings.method})") as progress:
        probe = Probe(
            blocks,
            calibration,
            batch_size=settings.batch_size,
            memory=journal,
            on_progress=progress,
            refusal=Structure(session.shell).refusal,
            memory_budget=settings.memory_budget,
            ranks=ranks,
            say=reporter.say,
        )
        frontier = search(probe, method, settings.method, limit, increase)
    plan = make_plan(frontier, session.identity, session.num_blocks, calibration.provenance)
    if not ranks.rank:
        write_json(folder / "frontier.json", {"schema_version": 1} | dataclasses.asdict(frontier))
        write_json(folder / "plan.json", plan.to_json())
        if probe.measured_similarity is not None:
            cosine = probe.measured_similarity.cosine.tolist()
            write_json(folder / "similarity.json", {"schema_version": 1, "cosine": cosine})
    return SearchResult(plan, frontier, probe.counters, calibration)


def _limits(
    settings: SearchSettings, method: Any, session: Session, reporter: Reporter
) -> tuple[int | None, float | None]:
    """How far to search. What the architecture does not let go is found here, before any text or weight is read."""
    if settings.remove is None and settings.max_perplexity_increase is None:
        raise RemovalError("How many blocks shall go?", "Add --remove 20%, or --max-perplexity-increase 10%.")
    limit = None if settings.remove is None else parse_remove(settings.remove, session.num_blocks)
    increase = None if settings.max_perplexity_increase is None else parse_increase(settings.max_perplexity_increase)
    check_limit(method, session.num_blocks, 1 if limit is None else limit)
    if has_encoder(session.shell):
        raise UnsupportedModelError(
            f"{session.source.name} writes behind an encoder, so text alone does not measure its blocks.",
            f"Name the blocks that shall go: streamliner cut {session.source.name} --blocks 3,7 -o OUT",
        )
    fixed = fixed_blocks(Structure(session.shell))
    if limit == 1 and len(fixed) == session.num_blocks:
        raise UnsupportedModelError(fixed[0])
    for reason, blocks in by_reason(fixed).items():
        reporter.say(f"{blocks} cannot go alone: {reason}")
    return limit, increase


def _calibrate(session: Session, settings: SearchSettings, reporter: Reporter) -> CalibrationSet:
    length = window_length(session, settings.sequence_length)
    text = _calibration_text(session, settings.calibration, reporter)
    reporter.say(f"Reading the tokenizer of {session.source.name} ...")
    calibration = make_calibration_set(
        text,
        load_tokenizer(session.source),
        num_samples=settings.num_samples,
        sequence_length=length,
        seed=settings.seed,
    )
    reporter.say(f"Calibration set: {calibration}.")
    if len(calibration.windows) < settings.num_samples:
        reporter.say(f"The text fills {len(calibration.windows)} windows of the {settings.num_samples} asked for.")
    return calibration


def _calibration_text(session: Session, source: str | None, reporter: Reporter) -> Text:
    if source is not None:
        return read_text(source)
    if session.source.kind != "hub":
        reporter.say(
            "Calibrating on python-docs, which needs no network. "
            "SLEB's own text comes from the hub: --calibration wikitext2."
        )
        return read_text("python-docs")
    try:
        return read_text("wikitext2")
    except (TextError, MissingExtraError) as error:
        reporter.say(f"{error} Calibrating on python-docs instead.")
        return read_text("python-docs")
