"""`streamliner verify`: whether the files of a model are sound, and a cut model is bypass on its dense model."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from streamliner.cut.check_folder import check_folder
from streamliner.cut.check_gguf import check_gguf_file
from streamliner.cut.checkpoint import CheckpointCut, write_checkpoint
from streamliner.cut.faults import Checkup
from streamliner.cut.gguf import GgufCut, compare_gguf, prepare_gguf, with_other_head, write_gguf
from streamliner.cut.parent import dense_model_of, plan_of
from streamliner.cut.structure import Structure
from streamliner.cut.verification import (
    Verification,
    reference_outputs,
    sample_tokens,
    verify_checkpoint,
    verify_gguf,
    verify_model,
)
from streamliner.errors import ModelError, OutputError, VerificationError
from streamliner.model.gguf_header import read_header
from streamliner.model.mark import GGUF_MARK, is_gguf, read_mark
from streamliner.model.session import Session, open_model
from streamliner.model.source import locate
from streamliner.runs.files import finite, write_json
from streamliner.runs.outputs import MARK, check_output, check_output_file, is_gguf_name, output_file, output_folder
from streamliner.runs.reporter import Reporter
from streamliner.search.plan import Plan, check_plan
from streamliner.settings import ModelSettings, VerifySettings
from streamliner.types import ModelLike, PreTrainedModel


def verify(
    cut: PreTrainedModel | str | Path, *, dense: ModelLike, removed: Iterable[int] | None = None
) -> Verification:
    """Compare a cut model with its dense model, whose removed blocks are bypassed: logits, and cached generation.

    Args:
        cut: a model in memory, or a folder or GGUF file, which is loaded as users of transformers load it.
        dense: the model that it was cut from.
        removed: the blocks that were removed; None for those of its plan.

    Raises:
        VerificationError: they differ; the message says where.
        PlanError: `removed` is None and the cut model does not say what was removed.
    """
    blocks = tuple(plan_of(cut).removed if removed is None else sorted(removed))
    session = open_model(dense)
    reference = reference_outputs(session.load(Reporter(quiet=True)), blocks, sample_tokens(session.config))
    if isinstance(cut, (str, Path)):
        place = Path(cut).expanduser()
        if is_gguf(place):
            return verify_gguf(place, reference, Structure(session.shell), blocks)
        return verify_checkpoint(place, reference)
    return verify_model(cut, reference)


def find_faults(model: str | Path, *, dense: ModelLike | None = None, trust_remote_code: bool = False) -> Checkup:
    """Find what is wrong with the files of a model, whoever wrote them. Reads headers and the beginnings of tensors.

    Args:
        model: a folder or a GGUF file.
        dense: the model that blocks were removed from, in a folder, a GGUF file or on the hub. With it more is found
            and can be mended, because the values of tensors show which blocks were removed.
        trust_remote_code: run the model's own code, if it needs that.

    Raises:
        ModelError: there is no such folder or file, or the dense model cannot be read.
    """
    session = None if dense is None else open_model(dense, ModelSettings(trust_remote_code=trust_remote_code))
    return _checkup(_place_of(model), session, trust_remote_code)


def mend(
    model: str | Path,
    out: str | Path,
    *,
    dense: ModelLike | None = None,
    trust_remote_code: bool = False,
    overwrite: bool = False,
) -> Checkup:
    """Write a copy of the files of a model without the faults that `find_faults` finds; return these faults.

    The copy is a folder or a GGUF file, like `model`. It appears only after a check found no fault in it. With a dense
    model it has the plan of what was removed. Nothing is written if there is no fault.

    Raises:
        VerificationError: a fault cannot be mended; nothing was written.
        OutputError: `out` cannot be written.
    """
    place = _place_of(model)
    _check_mended_output(place, out, overwrite)
    session = None if dense is None else open_model(dense, ModelSettings(trust_remote_code=trust_remote_code))
    found = _checkup(place, session, trust_remote_code)
    if found.faults:
        _mend(place, out, found, session, trust_remote_code, overwrite)
    return found


def verify_files(cut: str, settings: VerifySettings, model_settings: ModelSettings) -> dict[str, Any]:
    """`find_faults`, and then either `mend` or, on files without a fault, what can be compared of what they compute.

    Returns a JSON value: faults, removed blocks, what was mended, verification or why there is none.

    Raises:
        VerificationError: the logits are not those of bypass, or a fault cannot be mended.
        OutputError: the mended copy cannot be written.
    """
    reporter, place, out = Reporter(settings.quiet), _place_of(cut), settings.output
    if out is not None:
        _check_mended_output(place, out, settings.overwrite)
    dense = None if settings.dense is None else open_model(settings.dense, model_settings)
    reporter.say(f"Looking at the files of {cut} ...")
    found = _checkup(place, dense, model_settings.trust_remote_code)
    result: dict[str, Any] = {
        "model": cut,
        "faults": [fault.to_json() for fault in found.faults],
        "unchecked": found.unchecked,
        "removed": None if found.removed is None or not found.num_blocks else list(found.removed),
        "mended": None,
        "verification": None,
        "not_compared": "",
    }
    if found.faults:
        if out is not None:
            reporter.say(f"Writing {out} ...")
            _mend(place, out, found, dense, model_settings.trust_remote_code, settings.overwrite)
            result["mended"] = str(out)
        return result
    return result | _compare(place, found, dense, model_settings, reporter)


def _place_of(model: str | Path) -> Path:
    """The folder or GGUF file; a ModelError if there is none."""
    place = Path(model).expanduser()
    if not place.exists():
        raise ModelError(f"There is no folder or file {model}.", "verify looks at files on this machine.")
    if place.is_file() or (place / "config.json").is_file() or not list(place.glob("*.gguf")):
        return place.resolve()
    return Path(locate(place).path) / locate(place).gguf_file


def _checkup(place: Path, dense: Session | None, trust_remote_code: bool) -> Checkup:
    dense = _of_same_values(place, dense)
    if place.is_file():
        return check_gguf_file(place, dense)
    if dense is not None and dense.source.kind not in ("folder", "hub"):
        found = f"{place} is a folder of safetensors files, and {dense.source.name} is not"
        raise ModelError(f"{found}: their weights differ by quantisation.", "Name the folder that it was cut from.")
    return check_folder(place, dense, trust_remote_code=trust_remote_code)


def _of_same_values(place: Path, dense: Session | None) -> Session | None:
    """The dense model; None if the tensors of our own files are not its: healed, or dequantised from its GGUF file.

    Of the latter `_compare` compares the logits.
    """
    mark = read_mark(place) or {}
    dequantised = mark and not place.is_file() and dense is not None and dense.source.kind == "gguf"
    return None if "healing" in mark or dequantised else dense


def _check_mended_output(place: Path, out: str | Path, overwrite: bool) -> None:
    """Raise OutputError, before any work, if a mended copy cannot be written."""
    if place.is_file() != is_gguf_name(out):
        what, name = ("a GGUF file", "OUT.gguf") if place.is_file() else ("a folder", "OUT")
        raise OutputError(f"The mended copy of {place} must be {what}, but {out} is not.", f"Write -o {name}.")
    if place.is_file():
        check_output_file(out, overwrite=overwrite, sources=[place])
    else:
        check_output(out, overwrite=overwrite, model_folder=str(place))


def _mend(
    place: Path, out: str | Path, found: Checkup, dense: Session | None, trust_remote_code: bool, overwrite: bool
) -> None:
    for fault in found.beyond_mending:
        raise VerificationError(f"Nothing was written, because this cannot be mended: {fault.where}: {fault.what}")
    plan, dense = _plan_of_removal(place, found, dense), _of_same_values(place, dense)
    if isinstance(found.mended, GgufCut):
        mended = found.mended
        if plan is not None:
            changed = mended.changed | {GGUF_MARK: json.dumps(finite(plan))}
            mended = with_other_head(mended.dense, read_header(mended.dense), mended.tensors, changed)
        with output_file(out, overwrite=overwrite) as partial:
            write_gguf(mended, partial)
            compare_gguf(partial, mended)
            _check_no_fault(check_gguf_file(partial, dense))
    elif isinstance(found.mended, CheckpointCut):
        with output_folder(out, overwrite=overwrite) as partial:
            write_checkpoint(found.mended, partial)
            _check_no_fault(check_folder(partial, dense, trust_remote_code=trust_remote_code))
            if plan is not None:
                write_json(partial / MARK, plan)


def _check_no_fault(found: Checkup) -> None:
    for fault in found.faults:
        raise VerificationError(f"Nothing was written, because a fault would be left: {fault.where}: {fault.what}")


def _plan_of_removal(place: Path, found: Checkup, dense: Session | None) -> dict[str, Any] | None:
    """The plan that a mended folder carries: its own, or the removal from the dense model."""
    if own := read_mark(place):
        return own
    if dense is None or not found.removed:
        return None
    return Plan(found.removed, found.num_blocks, dense.parent).to_json()


def _compare(
    place: Path, found: Checkup, dense: Session | None, model_settings: ModelSettings, reporter: Reporter
) -> dict[str, Any]:
    """The logits of files without a fault with bypass on the dense model, or why they are not compared."""
    mark = read_mark(place)
    measure = f"Measure it: streamliner evaluate {place.name} --dense MODEL --perplexity SOURCE"
    if "healing" in (mark or {}):
        return {"not_compared": f"The model is healed, so its logits are not those of bypass. {measure}"}
    if found.trained:
        count = f"{len(found.trained)} tensors are not those of the dense model, such as {found.trained[0]}"
        return {"not_compared": f"{count}, so its logits are not those of bypass. {measure}"}
    if mark is not None:
        plan = plan_of(place)
        session = dense_model_of(place, dense, model_settings)
        check_plan(plan, session.identity, session.num_blocks, "Name the model that it was cut from with --dense.")
        removed = plan.removed
    elif dense is None or found.removed is None:
        return {"not_compared": "Which model it was cut from is not known: name it with --dense."}
    else:
        session, removed = dense, found.removed
    if place.is_file() and session.source.kind != "gguf":
        name = session.source.name
        reason = f"{name} is no GGUF file, and a GGUF file may be quantised. Name the dense model's GGUF file: --dense."
        return {"not_compared": reason}
    if place.is_file():
        return {"removed": list(removed), "verification": _verify_gguf(place, removed, session, reporter).to_json()}
    reference = reference_outputs(session.load(reporter), removed, sample_tokens(session.config))
    device_map = session.device_map(session.shell) if session.settings.device == "auto" else None
    session.release()
    reporter.say("Verifying: reload, logits against bypass, generation with and without cache ...")
    trusted = model_settings.trust_remote_code
    verification = verify_checkpoint(place, reference, trust_remote_code=trusted, device_map=device_map)
    return {"removed": list(removed), "verification": verification.to_json()}


def _verify_gguf(file: Path, removed: tuple[int, ...], session: Session, reporter: Reporter) -> Verification:
    """Tensors byte for byte and then logits; the dense model must be the GGUF file that was cut."""
    structure = Structure(session.shell)
    mark = read_header(file).keys.get(GGUF_MARK, "")
    if removed:
        prepared = prepare_gguf(session.source.gguf_files, structure, removed, mark)
        compare_gguf(file, prepared, of_another_tool=not mark)
    reference = reference_outputs(session.load(reporter), removed, sample_tokens(session.config))
    session.release()
    reporter.say("Verifying: reload, logits against bypass, generation with and without cache ...")
    return verify_gguf(file, reference, structure, removed, spread=session.settings.device == "auto")
