"""`streamliner cut`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from streamliner.cut.card import write_model_card
from streamliner.cut.checkpoint import cut_checkpoint
from streamliner.cut.config import with_legacy_rope
from streamliner.cut.memory import cut_model
from streamliner.cut.structure import Structure
from streamliner.cut.verify import expect, sample_tokens, verify
from streamliner.errors import RemovalError
from streamliner.model.load import load_tokenizer
from streamliner.model.session import Session, checkpoint_bytes
from streamliner.model.shell import count_parameters
from streamliner.model.source import checkpoint_folder, read_sizes
from streamliner.model.stack import check_indices
from streamliner.runs.files import MARK, check_output, output_folder, write_json
from streamliner.runs.reporter import Reporter, Silent
from streamliner.search.plan import Plan, check_plan


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
    structure = Structure(session.shell)
    sizes = _check_structure(session, structure, removed)
    expected = None
    if verified:
        expected = expect(session.load(reporter), removed, sample_tokens(session.config))
    verification = None
    with output_folder(out, overwrite=overwrite) as partial:
        reporter.say(f"Writing {out} ...")
        _write_checkpoint(session, structure, removed, partial, reporter)
        sizes |= {"bytes_after": read_sizes(partial)}
        session.blocks = None  # make room: from here on only the cut model is needed
        if expected is not None:
            reporter.say("Verifying: reload, logits against bypass, generation with and without cache ...")
            trusted = session.settings.trust_remote_code
            place = session.device_map(structure.cut_shell(removed))
            verification = verify(partial, expected, trust_remote_code=trusted, device_map=place).to_json()
        result = {"removed": list(removed), "verification": verification} | sizes
        write_json(partial / MARK, plan.to_json() | {"cut": result})
        write_model_card(partial, session, plan, result)
    return result | {"output": str(out)}


def save_as_folder(session: Session, out: str | Path, *, reporter: Reporter | None = None) -> None:
    """Write a GGUF model, dequantised, as an ordinary folder with safetensors and tokenizer files, uncut."""
    with output_folder(out) as partial:
        write_rebuilt(session, (), partial, reporter or Silent())


def manual_plan(session: Session, blocks: tuple[int, ...]) -> Plan:
    """A plan of blocks that the user named."""
    return Plan(check_indices(blocks, session.num_blocks), session.num_blocks, session.identity)


def _check_structure(session: Session, structure: Structure, removed: tuple[int, ...]) -> dict[str, Any]:
    """Compare all kept blocks on shells without weights; returns sizes."""
    structure.changes(removed)
    cut = structure.cut_shell(removed)
    return {
        "blocks_before": session.num_blocks,
        "blocks_after": session.num_blocks - len(removed),
        "parameters_before": count_parameters(session.shell),
        "parameters_after": count_parameters(cut),
        "bytes_before": checkpoint_bytes(session),
    }


def _write_checkpoint(
    session: Session, structure: Structure, removed: tuple[int, ...], partial: Path, reporter: Reporter
) -> None:
    if session.source.kind != "gguf":
        folder = checkpoint_folder(session.source)
        cut_checkpoint(folder, partial, structure, removed)
    else:
        write_rebuilt(session, removed, partial, reporter)


def write_rebuilt(session: Session, removed: tuple[int, ...], partial: Path, reporter: Reporter) -> None:
    """Rebuild the model in memory without the blocks and save it: for weights that are not safetensors files."""
    cut = cut_model(session.load(reporter).model, removed)
    cut.save_pretrained(partial)  # type: ignore[operator]
    config_file = partial / "config.json"
    write_json(config_file, with_legacy_rope(json.loads(config_file.read_text(encoding="utf-8"))))
    load_tokenizer(session.source).save_pretrained(partial)
