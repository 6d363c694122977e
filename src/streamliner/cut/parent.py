"""Where a cut model came from: the plan that it carries, and its dense model."""

from pathlib import Path

from streamliner.errors import ModelError, PlanError
from streamliner.model.fingerprint import SAMPLED, checkpoint_hash
from streamliner.model.mark import is_gguf, read_mark
from streamliner.model.session import Session, open_model
from streamliner.runs.files import PLAN_ATTRIBUTE
from streamliner.runs.outputs import MARK
from streamliner.search.plan import Plan, read_plan
from streamliner.settings import ModelSettings
from streamliner.types import ModelLike


def plan_of(cut: ModelLike) -> Plan:
    """The plan of a model in memory that `cut` returned, or of a folder; a PlanError if the model has none."""
    plan = getattr(cut, PLAN_ATTRIBUTE, None)
    if isinstance(plan, Plan):
        return plan
    place = Path(cut).expanduser() if isinstance(cut, (str, Path)) else Path(cut.config.name_or_path or "?")
    if read_mark(place) is None:
        hint = "Use a folder or file that streamliner cut or prune wrote, or a model that streamliner.cut returned."
        what = "plan in it" if is_gguf(place) else MARK
        raise PlanError(f"{place} has no {what}, so it is not known what was removed.", hint)
    return read_plan(place)


def dense_model_of(cut: str | Path, dense: ModelLike | Session | None, settings: ModelSettings) -> Session:
    """The dense model of a cut checkpoint or GGUF file: the one given, otherwise the one that its plan names.

    A ModelError if the one named is not there, or has other weights than the one that was cut.
    """
    if dense is not None:
        return open_model(dense, settings)
    recorded = (read_mark(Path(cut).expanduser()) or {})["model"]
    name, hint = recorded["name"], "Name the dense model with --dense."
    try:
        session = open_model(name, settings)
    except ModelError as error:
        raise ModelError(f"{cut} was cut from {name}, which cannot be opened: {error.args[0]}", hint) from error
    weights = recorded.get("checkpoint")
    if weights and weights != checkpoint_hash(session.source, whole=not weights.startswith(SAMPLED)):
        raise ModelError(f"{name} has other weights now than when {cut} was cut from it.", hint)
    return session
