"""`streamliner verify`: compare a cut model with bypass on its dense model."""

from collections.abc import Iterable
from pathlib import Path

from streamliner.cut.gguf import compare_gguf, prepare_gguf
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
from streamliner.errors import PlanError
from streamliner.model.gguf_header import read_header
from streamliner.model.mark import GGUF_MARK, is_gguf, read_mark
from streamliner.model.session import Session, open_model
from streamliner.runs.reporter import Reporter
from streamliner.search.plan import check_plan
from streamliner.settings import ModelSettings, VerifySettings
from streamliner.types import ModelLike, PreTrainedModel


def verify(
    cut: PreTrainedModel | str | Path, *, dense: ModelLike, removed: Iterable[int] | None = None
) -> Verification:
    """Compare a cut model with its dense model, whose removed blocks are bypassed: logits, and cached generation.

    Args:
        cut: a model in memory, or a folder or GGUF file, which is loaded as any user of transformers would.
        dense: the model that it was cut from.
        removed: the blocks that were removed; None for those of its plan.

    Raises:
        VerificationError: they differ; the message says in what.
        PlanError: `removed` is None and the cut model does not say.
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


def verify_folder(cut: str, settings: VerifySettings, model_settings: ModelSettings) -> Verification:
    """`verify` for the command line, of a folder or a GGUF file: the dense model may be the one that its plan names.

    Raises:
        PlanError: its plan does not say what was removed, or was healed.
    """
    reporter, place = Reporter(settings.quiet), Path(cut).expanduser()
    plan = plan_of(place)
    if "healing" in (read_mark(place) or {}):
        raise PlanError(
            f"{cut} is healed, so its logits are not those of bypass.",
            f"Measure it instead: streamliner evaluate {cut} --dense MODEL --perplexity SOURCE",
        )
    session: Session = dense_model_of(cut, settings.dense, model_settings)
    check_plan(plan, session.identity, session.num_blocks, "Name the model that it was cut from with --dense.")
    if is_gguf(place):
        return _verify_gguf(place, plan.removed, session, reporter)
    reference = reference_outputs(session.load(reporter), plan.removed, sample_tokens(session.config))
    device_map = session.device_map(session.shell) if session.settings.device == "auto" else None
    session.release()
    reporter.say("Verifying: reload, logits against bypass, generation with and without cache ...")
    trusted = model_settings.trust_remote_code
    return verify_checkpoint(place, reference, trust_remote_code=trusted, device_map=device_map)


def _verify_gguf(file: Path, removed: tuple[int, ...], session: Session, reporter: Reporter) -> Verification:
    """Tensors byte for byte and then logits; the dense model must be the GGUF file that was cut."""
    if session.source.kind != "gguf":
        found = f"{file} is a GGUF file, and {session.source.name} is not"
        raise PlanError(f"{found}: their weights differ by quantisation.", "Name the GGUF file with --dense.")
    structure = Structure(session.shell)
    mark = read_header(file).keys[GGUF_MARK]
    compare_gguf(file, prepare_gguf(session.source.gguf_files, structure, removed, mark))
    reference = reference_outputs(session.load(reporter), removed, sample_tokens(session.config))
    session.release()
    reporter.say("Verifying: reload, logits against bypass, generation with and without cache ...")
    return verify_gguf(file, reference, structure, removed, spread=session.settings.device == "auto")
