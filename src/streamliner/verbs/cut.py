"""`streamliner cut`: remove the blocks of a plan, from a model in memory, a checkpoint or a GGUF file."""

import json
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from streamliner.cut.card import write_model_card
from streamliner.cut.checkpoint import CheckpointCut, prepare_checkpoint, write_checkpoint
from streamliner.cut.config import with_legacy_rope
from streamliner.cut.config_file import write_config
from streamliner.cut.gguf import compare_gguf, prepare_gguf, write_gguf
from streamliner.cut.gguf_keys import PATTERN
from streamliner.cut.memory import cut_model
from streamliner.cut.same_bytes import compare_checkpoint
from streamliner.cut.structure import Structure
from streamliner.cut.verification import Reference, reference_outputs, sample_tokens, verify_checkpoint, verify_gguf
from streamliner.errors import OutputError, PlanError, RemovalError, UnsupportedModelError, is_out_of_memory, last_line
from streamliner.model.devices import enough_memory
from streamliner.model.fingerprint import checkpoint_hash
from streamliner.model.mark import read_mark
from streamliner.model.parts import count_parameters
from streamliner.model.precision import quantised_by
from streamliner.model.session import Session, checkpoint_bytes, open_model
from streamliner.model.source import check_safetensors, checkpoint_folder, weight_file_bytes
from streamliner.model.stack import check_indices
from streamliner.runs.files import PLAN_ATTRIBUTE, finite, write_json
from streamliner.runs.outputs import MARK, check_output, check_output_file, is_gguf_name, output_file, output_folder
from streamliner.runs.reporter import Reporter
from streamliner.search.plan import Plan, check_plan, read_plan
from streamliner.settings import CutSettings
from streamliner.types import ModelLike, PreTrainedModel


def cut(model: ModelLike, plan: Plan | Iterable[int]) -> PreTrainedModel:
    """A model without the blocks of a plan, with a stock config. It shares the kept weights with the given model.

    Args:
        model: a model in memory, which is not changed, or the name of a model, which is loaded.
        plan: from `Found.plan` or `read_plan`, or the indices of the blocks to remove.

    Raises:
        PlanError: the plan is for another model.
        RemovalError: there are no such blocks, or none would be left.
        UnsupportedModelError: the cut model would not be the dense model with the blocks bypassed.
    """
    session = open_model(model)
    reporter = Reporter(quiet=True)
    plan = _as_plan(session, plan, reporter)
    result = cut_model(session.load(reporter).model, plan.removed)
    setattr(result, PLAN_ATTRIBUTE, plan)
    return result


def cut_to_disk(session: Session, plan: Plan | Iterable[int], out: str | Path, settings: CutSettings) -> dict[str, Any]:
    """`cut_to_folder`, or `cut_to_gguf` where `out` is the name of a GGUF file."""
    check_files_made(session, out, settings)
    to_disk = cut_to_gguf if is_gguf_name(out) else cut_to_folder
    return to_disk(session, plan, out, settings)


def cut_to_gguf(session: Session, plan: Plan | Iterable[int], out: str | Path, settings: CutSettings) -> dict[str, Any]:
    """Write the GGUF file `out` without the blocks, in the types of the dense file, and verify it.

    Kept tensors are compared byte for byte and, where transformers can load the file, logits with bypass. Otherwise as
    for `cut_to_folder`; the plan is in the key `streamliner.plan` of the file.
    """
    reporter = Reporter(settings.quiet)
    plan = _as_plan(session, plan, reporter)
    check_cut_output(session, out, overwrite=settings.overwrite)
    reporter.say(f"Removing blocks {', '.join(map(str, plan.removed))}.")
    structure, files = Structure(session.shell), session.source.gguf_files
    model = plan.model | session.parent | {"checkpoint": checkpoint_hash(session.source)}
    mark = json.dumps(finite(plan.to_json() | {"model": model}))
    gguf_cut = prepare_gguf(files, structure, plan.removed, mark)
    check_cut_output(session, out, overwrite=settings.overwrite, needed=gguf_cut.nbytes)
    result = _sizes(session, structure, plan) | {"left_out": list(gguf_cut.left_out)}
    if any(name.endswith(PATTERN) and isinstance(value, list) for name, value in gguf_cut.changed.items()):
        reporter.say(
            "The file will list which blocks attend to a window. llama.cpp of October 2026 reads such a list; older "
            "releases may ignore it, and say nothing."
        )
    reference = None
    if settings.verify:
        reference, result["logits_not_compared"] = _gguf_reference(session, plan.removed, reporter)
    with output_file(out, overwrite=settings.overwrite) as partial:
        reporter.say(f"Writing {out} ...")
        write_gguf(gguf_cut, partial)
        if settings.verify:
            reporter.say(
                "Verifying: bytes of tensors, reload, logits against bypass, generation with and without cache ..."
            )
            result["tensors_equal"] = compare_gguf(partial, gguf_cut)
        if reference is not None:
            spread = session.settings.device == "auto"
            with enough_memory("verifying the cut model", "--dtype bfloat16 or --no-verify"):
                found = verify_gguf(partial, reference, structure, plan.removed, spread=spread)
            result["verification"] = found.to_json()
        result["bytes_after"] = partial.stat().st_size
    return result | {"output": str(out)}


def _gguf_reference(session: Session, removed: tuple[int, ...], reporter: Reporter) -> tuple[Reference | None, str]:
    """What a cut file is compared with; None and the reason where transformers cannot load the dense one."""
    if (parts := len(session.source.gguf_files)) > 1:
        return None, f"transformers does not load a file that is split into {parts} parts."
    try:
        with enough_memory("computing the logits to verify with", "--dtype bfloat16 or --no-verify"):
            blocks = session.load(reporter)
            return reference_outputs(blocks, removed, sample_tokens(session.config)), ""
    except UnsupportedModelError as error:  # a type that it cannot dequantise
        return None, str(error.args[0])
    finally:
        session.release()  # from here on only the cut model is needed


def check_files_made(session: Session, out: str | Path, settings: CutSettings) -> None:
    """Raise OutputError, before any work, if a setting says how to write files that there will not be."""
    given = "--link" if settings.link else "--max-shard-size"
    if is_gguf_name(out) and (settings.link or settings.max_shard_size is not None):
        raise OutputError(f"{given} is for folders of safetensors files, and {out} is a GGUF file.", "Leave it out.")
    if settings.link and session.source.kind not in ("folder", "hub"):
        found = f"--link is for folders of safetensors files, and {session.source.name} is not one."
        raise OutputError(found, "Leave it out.")


def check_cut_output(
    session: Session, out: str | Path, *, overwrite: bool = False, needed: int = 0, cut: Path | None = None
) -> None:
    """Raise OutputError if a cut model cannot be written to `out`, a folder or a GGUF file, before any work.

    `cut` is the GGUF file of a cut model that is healed, which must not be replaced either.
    """
    if not is_gguf_name(out):
        check_output(out, overwrite=overwrite, model_folder=session.source.path or None, needed=needed)
        return
    if session.source.kind != "gguf":
        found = f"{session.source.name} is no GGUF file, so it cannot become {out}: nothing is converted here."
        hint = "Write a folder (-o NAME) and convert that with llama.cpp, or cut a GGUF file of the model by the plan."
        raise OutputError(found, hint)
    files = [*session.source.gguf_files, *([cut] if cut else [])]
    check_output_file(out, overwrite=overwrite, sources=files, needed=needed, is_ours=_has_mark)


def _has_mark(file: Path) -> bool:
    with suppress(PlanError):
        return read_mark(file) is not None
    return False


def cut_to_folder(
    session: Session, plan: Plan | Iterable[int], out: str | Path, settings: CutSettings
) -> dict[str, Any]:
    """Write the cut checkpoint and verify it; only then `out` appears. The session's loaded weights are released.

    Returns a JSON value: removed, blocks, parameters and bytes before and after, verification. A UserError says why the
    request cannot be fulfilled; a VerificationError, that the result is not the dense model with the blocks bypassed.
    """
    reporter = Reporter(settings.quiet)
    plan = _as_plan(session, plan, reporter)
    check_cut_output(session, out, overwrite=settings.overwrite)
    reporter.say(f"Removing blocks {', '.join(map(str, plan.removed))}.")
    structure, removed = Structure(session.shell), plan.removed
    structure.changes(removed)  # refuses what cannot be cut before any weight is read
    checkpoint_cut = _prepared(session, structure, removed, settings)
    if checkpoint_cut is None:
        needed = _rebuilt_bytes(session, structure, removed)
    else:
        needed = checkpoint_cut.needed(link=settings.link)
    check_cut_output(session, out, overwrite=settings.overwrite, needed=needed)
    result = _sizes(session, structure, plan)
    reference, reason = _folder_reference(session, removed, reporter) if settings.verify else (None, "")
    with output_folder(out, overwrite=settings.overwrite) as partial:
        reporter.say(f"Writing {out} ...")
        if checkpoint_cut is None:
            _write_rebuilt(session, removed, partial, reporter, settings)
        else:
            result |= write_checkpoint(checkpoint_cut, partial, link=settings.link)
        session.release()  # from here on only the cut model is needed
        if reference is not None:
            reporter.say("Verifying: reload, logits against bypass, generation with and without cache ...")
            place, trusted = session.device_map(structure.cut_shell(removed)), session.settings.trust_remote_code
            with enough_memory("verifying the cut model", "--offload disk, --dtype bfloat16 or --no-verify"):
                found = verify_checkpoint(partial, reference, trust_remote_code=trusted, device_map=place)
            result["verification"] = found.to_json()
        elif reason:
            reporter.say("Verifying: names and bytes of tensors ...")
            dense = checkpoint_folder(session.source)
            result |= {"logits_not_compared": reason}
            result["tensors_equal"] = compare_checkpoint(dense, partial, structure, removed)
        result["bytes_after"] = weight_file_bytes(partial)
        model = plan.model | session.parent | {"checkpoint": checkpoint_hash(session.source)}
        write_json(partial / MARK, plan.to_json() | {"model": model, "cut": result})
        write_model_card(partial, session.source.name, plan, result)
    return result | {"output": str(out)}


def _folder_reference(session: Session, removed: tuple[int, ...], reporter: Reporter) -> tuple[Reference | None, str]:
    """What a cut checkpoint is compared with; None and the reason where a quantised one cannot run here."""
    with enough_memory("computing the logits to verify with", "--offload disk, --dtype bfloat16 or --no-verify"):
        try:
            return reference_outputs(session.load(reporter), removed, sample_tokens(session.config)), ""
        except (UnsupportedModelError, ImportError, RuntimeError, ValueError) as error:  # of a library or its kernels
            method = quantised_by(session.config)
            refused = isinstance(error, UnsupportedModelError) and error.__cause__ is None  # by us, for what it is
            if not method or refused or session.source.kind == "memory" or is_out_of_memory(error):
                raise
            session.release()
            return None, f"{method} does not run on this machine: {last_line(error)}"


def _sizes(session: Session, structure: Structure, plan: Plan) -> dict[str, Any]:
    """The part of the result that is known before the cut."""
    return {
        "removed": list(plan.removed),
        "verification": None,
        "blocks_before": session.num_blocks,
        "blocks_after": session.num_blocks - len(plan.removed),
        "parameters_before": session.parameters,
        "parameters_after": count_parameters(structure.cut_shell(plan.removed)),
        "bytes_before": checkpoint_bytes(session),
        "left_out": [],
    }


def chosen_plan(settings: CutSettings) -> Plan | tuple[int, ...]:
    """The plan named by `plan`, or the blocks named by `blocks`; a RemovalError unless one is given and valid."""
    if (settings.plan is None) == (settings.blocks is None):
        raise RemovalError("Say which blocks to remove.", "Give --plan FILE or --blocks 3,7,9 (one of them).")
    if settings.plan is not None:
        return read_plan(settings.plan)
    blocks = settings.blocks
    parts = re.split(r"[\s,]+", blocks.strip(" ,")) if isinstance(blocks, str) else blocks
    found: list[int] = []
    for part in parts if isinstance(parts, Iterable) else [parts]:
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", str(part))
        if not match or int(match[2] or match[1]) < int(match[1]):
            raise RemovalError(
                f"--blocks {blocks} is not a list of block numbers.", "Write for instance 3,7,9 or 3-5,9."
            )
        found += range(int(match[1]), int(match[2] or match[1]) + 1)
    return tuple(found)


def _as_plan(session: Session, plan: Plan | Iterable[int], reporter: Reporter) -> Plan:
    """The plan, checked against the model; block indices become a plan of method "manual".

    A plan is for all precisions of a model; a line says where it was found on another one.
    """
    if not isinstance(plan, Plan):
        plan = Plan(check_indices(plan, session.num_blocks), session.num_blocks, session.parent)
    check_plan(plan, session.identity, session.num_blocks)
    there, here = plan.model.get("precision"), session.parent["precision"]
    if there and here and there != here:
        reporter.say(
            f"The plan was found on weights in another precision: {there} there, {here} here. It is valid for both, "
            "but its losses are those of the other weights. For these: streamliner evaluate OUT --dense MODEL."
        )
    check_indices(plan.removed, session.num_blocks)
    if not plan.removed:
        raise RemovalError("The plan removes no block.")
    return plan


def _prepared(
    session: Session, structure: Structure, removed: tuple[int, ...], settings: CutSettings
) -> CheckpointCut | None:
    """The cut of the safetensors files; None for a model that has none and is rebuilt in memory."""
    if session.source.kind in ("folder", "hub"):
        check_safetensors(session.source)
        return prepare_checkpoint(checkpoint_folder(session.source), structure, removed, settings.max_shard_bytes)
    return None


def _rebuilt_bytes(session: Session, structure: Structure, removed: tuple[int, ...]) -> int:
    """Bytes of the weights of a model that is rebuilt; of a GGUF file as it is loaded."""
    given = session.model.dtype.itemsize if session.model is not None else 4
    itemsize = 2 if session.settings.dtype in ("bfloat16", "float16") else given
    return count_parameters(structure.cut_shell(removed)) * itemsize


def _write_rebuilt(
    session: Session, removed: tuple[int, ...], partial: Path, reporter: Reporter, settings: CutSettings
) -> None:
    """Rebuild the model in memory without the blocks and save it, where there are no safetensors files to rewrite."""
    size = {} if settings.max_shard_bytes is None else {"max_shard_size": settings.max_shard_bytes}
    cut_model(session.load(reporter).model, removed).save_pretrained(partial, **size)
    config_file = partial / "config.json"
    write_config(config_file, with_legacy_rope(json.loads(config_file.read_text(encoding="utf-8"))))
    session.tokenizer().save_pretrained(partial)
