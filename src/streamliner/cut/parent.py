"""Where a cut model came from: the plan that it carries, and its dense model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamliner.errors import ModelError, PlanError
from streamliner.model.fingerprint import checkpoint_hash
from streamliner.model.session import Session, open_model
from streamliner.runs.files import MARK, PLAN_ATTRIBUTE
from streamliner.search.plan import Plan, read_plan
from streamliner.settings import ModelSettings

if TYPE_CHECKING:
    from streamliner.settings import ModelLike


def plan_of(cut: ModelLike) -> Plan:
    """The plan of a cut model: of one in memory that `cut` returned, or of a folder.

    Raises:
        PlanError: the model does not say what was removed from it.
    """
    if isinstance(cut, (str, Path)):
        folder = Path(cut).expanduser()
    else:
        plan = getattr(cut, PLAN_ATTRIBUTE, None)
        if isinstance(plan, Plan):
            return plan
        folder = Path(cut.config.name_or_path or "?")
    if not (folder / MARK).is_file():
        raise PlanError(
            f"{folder} has no {MARK}, so it is not known what was removed.",
            "Use a folder that streamliner cut or prune wrote, or a model that streamliner.cut returned.",
        )
    return read_plan(folder)


def dense_model_of(cut: str | Path, dense: ModelLike | Session | None, settings: ModelSettings) -> Session:
    """The dense model of a cut checkpoint: the one given, otherwise the one that its `streamliner.json` names.

    Raises:
        ModelError: the one named is not there, or has other weights than the one that was cut.
    """
    if dense is not None:
        return open_model(dense, settings)
    recorded: dict[str, Any] = json.loads((Path(cut).expanduser() / MARK).read_text(encoding="utf-8"))["model"]
    try:
        session = open_model(recorded["name"], settings)
    except ModelError as error:
        raise ModelError(
            f"{cut} was cut from {recorded['name']}, which cannot be opened: {error.args[0]}",
            "Name the dense model with --dense.",
        ) from error
    if recorded.get("checkpoint") not in (None, checkpoint_hash(session.source)):
        raise ModelError(
            f"{recorded['name']} has other weights now than when {cut} was cut from it.",
            "Name the dense model with --dense.",
        )
    return session
