"""The verbs as functions: search a model, cut it, inspect it. The command line only parses, calls these and prints."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from streamliner import models
from streamliner.blocks import check_indices
from streamliner.calibration import NUM_SAMPLES, CalibrationSet, make_calibration_set
from streamliner.cut import cut_checkpoint, cut_model, expect, output_folder, verify
from streamliner.cut.checkpoint import read_sizes
from streamliner.cut.config import with_legacy_rope
from streamliner.cut.output import MARK, check_output
from streamliner.errors import MissingExtraError, RemovalError, TextError, UnsupportedModelError
from streamliner.heal.run import RUN, heal_checkpoint, prepare_healing
from streamliner.heal.settings import HealSettings
from streamliner.inspection import by_reason, checkpoint_bytes, count_parameters, fixed_blocks
from streamliner.measure import MEMORY_BUDGET, Counters, Probe
from streamliner.run import Journal, check_run_folder, environment, finite, write_json
from streamliner.search import (
    Frontier,
    Plan,
    check_plan,
    make_method,
    make_plan,
    parse_increase,
    parse_remove,
    read_plan,
    search,
)
from streamliner.search.registry import check_limit
from streamliner.session import Reporter, Session, Silent, weights_hash
from streamliner.sources import Text, read_text
from streamliner.stack import has_encoder

SAMPLE_TOKENS = 256


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
            refusal=session.structure.refusal,
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


def cut_to_folder(
    session: Session,
    plan: Plan,
    out: str | Path,
    *,
    overwrite: bool = False,
    verified: bool = True,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Write the cut checkpoint, verify it, and only then let `out` appear. The session's model is given up.

    Returns:
        JSON value: removed, blocks, parameters and bytes before and after, verification.
    """
    reporter = reporter or Silent()
    check_plan(plan, session.identity, session.num_blocks)
    removed = check_indices(plan.removed, session.num_blocks)
    if not removed:
        raise RemovalError("The plan removes no block.")
    check_output(out, overwrite=overwrite, model_folder=session.source.path or None)
    sizes = _check_structure(session, removed)
    expected = None
    if verified:
        expected = expect(session.load(reporter), removed, sample_tokens(session.config))
    verification = None
    with output_folder(out, overwrite=overwrite) as partial:
        reporter.say(f"Writing {out} ...")
        _write_checkpoint(session, removed, partial, reporter)
        sizes |= {"bytes_after": read_sizes(partial)}
        session.blocks = None  # make room: from here on only the cut model is needed
        if expected is not None:
            reporter.say("Verifying: reload, logits against bypass, generation with and without cache ...")
            trusted = session.settings.trust_remote_code
            place = session.device_map(session.structure.cut_shell(removed))
            verification = verify(partial, expected, trust_remote_code=trusted, device_map=place).to_json()
        result = {"removed": list(removed), "verification": verification} | sizes
        write_json(partial / MARK, plan.to_json() | {"cut": result})
        _write_model_card(partial, session, plan, result)
    return result | {"output": str(out)}


def prune_model(
    session: Session,
    settings: SearchSettings,
    out: str | Path,
    run_folder: str | Path,
    *,
    overwrite: bool = False,
    verified: bool = True,
    reporter: Reporter | None = None,
) -> tuple[SearchResult, dict[str, Any]]:
    """`search_model`, then `cut_to_folder` with the plan that it found."""
    check_output(out, overwrite=overwrite, model_folder=session.source.path or None)
    found = search_model(session, settings, run_folder, overwrite=overwrite, reporter=reporter)
    if session.ranks.rank:  # one process writes
        return found, {}
    return found, cut_to_folder(session, found.plan, out, overwrite=overwrite, verified=verified, reporter=reporter)


def heal_model(
    session: Session,
    cut_folder: str | Path,
    settings: HealSettings,
    out: str | Path,
    run_folder: str | Path,
    *,
    overwrite: bool = False,
    verified: bool = True,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Heal a cut checkpoint; `session` is of the dense model. See `heal.run.heal_checkpoint`."""
    return heal_checkpoint(
        session,
        cut_folder,
        settings,
        out,
        run_folder,
        overwrite=overwrite,
        verified=verified,
        sample=sample_tokens(session.config),
        reporter=reporter,
    )


def prune_and_heal(
    session: Session,
    settings: SearchSettings,
    healing: HealSettings,
    out: str | Path,
    run_folder: str | Path,
    *,
    overwrite: bool = False,
    verified: bool = True,
    reporter: Reporter | None = None,
) -> tuple[SearchResult, dict[str, Any], dict[str, Any]]:
    """`prune_model` into the run folder, then `heal_model` into `out`.

    The interval of `streamline` has room for the network.

    Returns:
        What was found, and the JSON values of the cut and of the healing.
    """
    check_output(out, overwrite=overwrite, model_folder=session.source.path or None)
    if settings.method == "streamline" and healing.network != "none":
        # LLM-Streamline: of n + 1 similar blocks one stays, and is trained; so n are gone.
        chosen = {"network": healing.network_depth} | settings.method_settings
        settings = dataclasses.replace(settings, method_settings=chosen)
    folder = check_run_folder(run_folder)
    check_run_folder(folder / "healing", RUN)
    healing, _, _ = prepare_healing(session, healing, reporter or Silent())  # before hours of search
    found = search_model(session, settings, folder, overwrite=overwrite, reporter=reporter)
    cut_folder = folder / "cut"
    result: dict[str, Any] = {}
    if not session.ranks.rank:
        if not _is_cut(cut_folder, found.plan, verified):
            cut_to_folder(session, found.plan, cut_folder, overwrite=True, verified=verified, reporter=reporter)
        result = json.loads((cut_folder / MARK).read_text(encoding="utf-8"))["cut"] | {"output": str(cut_folder)}
    session.ranks.wait()
    healed = heal_model(
        session,
        cut_folder,
        healing,
        out,
        folder / "healing",
        overwrite=overwrite,
        verified=verified,
        reporter=reporter,
    )
    return found, result, healed


def _is_cut(folder: Path, plan: Plan, verified: bool) -> bool:
    """Whether an earlier run cut this plan of this model there, and verified it if that is asked for."""
    if not (folder / MARK).exists():
        return False
    mark = json.loads((folder / MARK).read_text(encoding="utf-8"))
    there, here = (json.dumps(finite(each.to_json())) for each in (read_plan(folder), plan))
    return there == here and (not verified or mark["cut"]["verification"] is not None)


def save_as_folder(session: Session, out: str | Path, *, reporter: Reporter | None = None) -> None:
    """Write a GGUF model, dequantised, as an ordinary folder with safetensors and tokenizer files, uncut."""
    with output_folder(out) as partial:
        _write_rebuilt(session, (), partial, reporter or Silent())


def manual_plan(session: Session, blocks: tuple[int, ...]) -> Plan:
    """A plan of blocks that the user named."""
    return Plan(check_indices(blocks, session.num_blocks), session.num_blocks, session.identity)


def sample_tokens(config: Any) -> torch.Tensor:
    """Token ids to verify on, (1, tokens): seeded, of ordinary words. `config` is the whole model's."""
    text = config.get_text_config(decoder=True)
    length = min(SAMPLE_TOKENS, (getattr(text, "max_position_embeddings", None) or SAMPLE_TOKENS) // 2)
    # A token that stands for an image, or ends a text, would ask for what is not there.
    parts = [vars(part) for part in (config, text)]
    special = {value for part in parts for key, value in part.items() if key.endswith(("token_id", "token_index"))}
    low = min(8, text.vocab_size // 2)
    ordinary = torch.tensor([token for token in range(low, text.vocab_size) if token not in special])
    generator = torch.Generator().manual_seed(0)
    return ordinary[torch.randint(len(ordinary), (1, length), generator=generator)]


def _limits(
    settings: SearchSettings, method: Any, session: Session, reporter: Reporter
) -> tuple[int | None, float | None]:
    """How far to search. What the architecture does not let go is found here, before any text or weight is read."""
    if settings.remove is None and settings.max_perplexity_increase is None:
        raise RemovalError("How many blocks shall go?", "Add --remove 20%, or --max-perplexity-increase 10%.")
    limit = None if settings.remove is None else parse_remove(settings.remove, session.num_blocks)
    increase = None if settings.max_perplexity_increase is None else parse_increase(settings.max_perplexity_increase)
    check_limit(method, session.num_blocks, 1 if limit is None else limit)
    if has_encoder(session.structure.shell):
        raise UnsupportedModelError(
            f"{session.source.name} writes behind an encoder, so text alone does not measure its blocks.",
            f"Name the blocks that shall go: streamliner cut {session.source.name} --blocks 3,7 -o OUT",
        )
    fixed = fixed_blocks(session.structure)
    if limit == 1 and len(fixed) == session.num_blocks:
        raise UnsupportedModelError(fixed[0])
    for reason, blocks in by_reason(fixed).items():
        reporter.say(f"{blocks} cannot go alone: {reason}")
    return limit, increase


def _calibrate(session: Session, settings: SearchSettings, reporter: Reporter) -> CalibrationSet:
    length = session.window_length(settings.sequence_length)
    text = _calibration_text(session, settings.calibration, reporter)
    reporter.say(f"Reading the tokenizer of {session.source.name} ...")
    calibration = make_calibration_set(
        text,
        models.load_tokenizer(session.source),
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


def _check_structure(session: Session, removed: tuple[int, ...]) -> dict[str, Any]:
    """Compare all kept blocks on shells without weights; returns sizes."""
    session.structure.changes(removed)
    cut = session.structure.cut_shell(removed)
    return {
        "blocks_before": session.num_blocks,
        "blocks_after": session.num_blocks - len(removed),
        "parameters_before": count_parameters(session.structure.shell),
        "parameters_after": count_parameters(cut),
        "bytes_before": checkpoint_bytes(session),
    }


def _write_checkpoint(session: Session, removed: tuple[int, ...], partial: Path, reporter: Reporter) -> None:
    if session.source.kind != "gguf":
        folder = models.checkpoint_folder(session.source)
        cut_checkpoint(folder, partial, session.structure, removed)
    else:
        _write_rebuilt(session, removed, partial, reporter)


def _write_rebuilt(session: Session, removed: tuple[int, ...], partial: Path, reporter: Reporter) -> None:
    cut = cut_model(session.load(reporter).model, removed)
    cut.save_pretrained(partial)  # type: ignore[operator]
    config_file = partial / "config.json"
    write_json(config_file, with_legacy_rope(json.loads(config_file.read_text(encoding="utf-8"))))
    models.load_tokenizer(session.source).save_pretrained(partial)


def _write_model_card(folder: Path, session: Session, plan: Plan, result: dict[str, Any]) -> None:
    card = folder / "README.md"
    if card.exists():
        card.rename(folder / "README.dense.md")
    losses = ""
    if plan.loss is not None and plan.dense_loss is not None and plan.calibration:
        source = plan.calibration["source"]
        losses = f"\nCalibration loss ({source}): {plan.dense_loss:.4f} before, {plan.loss:.4f} after.\n"
    card.write_text(
        f"---\nlibrary_name: transformers\nbase_model: {session.source.name}\n---\n\n"
        f"# {Path(session.source.name).name} without {len(plan.removed)} of {plan.num_blocks} blocks\n\n"
        f"Removed blocks (0-based): {', '.join(map(str, plan.removed))}. Method: {plan.method}.\n{losses}\n"
        f"Parameters: {result['parameters_before']:,} before, {result['parameters_after']:,} after.\n"
        "Made with streamliner; `streamliner.json` holds the plan. The licence is that of the base model.\n",
        encoding="utf-8",
    )
