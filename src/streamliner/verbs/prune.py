"""`streamliner prune`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from streamliner.heal.settings import HealSettings
from streamliner.model.session import Session
from streamliner.runs.files import MARK, check_output, finite
from streamliner.runs.folder import check_run_folder
from streamliner.runs.reporter import Reporter, Silent
from streamliner.search.plan import Plan, read_plan
from streamliner.verbs.cut import cut_to_folder
from streamliner.verbs.heal import RUN, heal_model, prepare_healing
from streamliner.verbs.search import SearchResult, SearchSettings, search_model


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
