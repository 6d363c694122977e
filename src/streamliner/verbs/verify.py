"""`streamliner verify`: compare a cut model with bypass on its dense model."""

import json
from collections.abc import Iterable
from pathlib import Path

from streamliner.cut.parent import dense_model_of, plan_of
from streamliner.cut.verification import Verification, reference_outputs, sample_tokens, verify_checkpoint, verify_model
from streamliner.errors import PlanError
from streamliner.model.session import Session, open_model
from streamliner.runs.outputs import MARK
from streamliner.runs.reporter import Reporter
from streamliner.search.plan import check_plan
from streamliner.settings import ModelSettings, VerifySettings
from streamliner.types import ModelLike, PreTrainedModel


def verify(
    cut: PreTrainedModel | str | Path, *, dense: ModelLike, removed: Iterable[int] | None = None
) -> Verification:
    """Compare a cut model with its dense model, whose removed blocks are bypassed: logits, and cached generation.

    Args:
        cut: a model in memory, or a folder, which is loaded as any user of transformers would.
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
        return verify_checkpoint(Path(cut), reference)
    return verify_model(cut, reference)


def verify_folder(cut: str, settings: VerifySettings, model_settings: ModelSettings) -> Verification:
    """`verify` for the command line: the dense model may be the one that the folder names.

    Raises:
        PlanError: the folder does not say what was removed, or was healed.
    """
    reporter, folder = Reporter(settings.quiet), Path(cut).expanduser()
    plan = plan_of(folder)
    if "healing" in json.loads((folder / MARK).read_text(encoding="utf-8")):
        raise PlanError(
            f"{cut} is healed, so its logits are not those of bypass.",
            f"Measure it instead: streamliner evaluate {cut} --dense MODEL --perplexity SOURCE",
        )
    session: Session = dense_model_of(cut, settings.dense, model_settings)
    check_plan(plan, session.identity, session.num_blocks, "Name the model that it was cut from with --dense.")
    reference = reference_outputs(session.load(reporter), plan.removed, sample_tokens(session.config))
    place = session.device_map(session.shell) if session.settings.device == "auto" else None
    session.release()
    reporter.say("Verifying: reload, logits against bypass, generation with and without cache ...")
    return verify_checkpoint(folder, reference, trust_remote_code=model_settings.trust_remote_code, device_map=place)
