"""`streamliner prune`: search and cut, and heal if asked to."""

import dataclasses
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from streamliner.benchmark.result import Benchmark
from streamliner.cut.checkpoint import check_files
from streamliner.cut.gguf import check_gguf
from streamliner.cut.structure import Structure
from streamliner.errors import HealingError, MethodError
from streamliner.heal.healing import prepare_healing
from streamliner.heal.save_gguf import check_gguf_healing
from streamliner.heal.state import RUN
from streamliner.heal_settings import HealSettings
from streamliner.model.mark import is_gguf, read_mark
from streamliner.model.session import Session, open_model
from streamliner.runs.files import finite, write_json
from streamliner.runs.folder import check_run_folder
from streamliner.runs.outputs import check_outside, is_gguf_name
from streamliner.runs.reporter import Reporter
from streamliner.runs.yaml_config import write_config
from streamliner.search.found import Found
from streamliner.search.plan import Plan, read_plan
from streamliner.settings import BenchmarkSettings, CutSettings, PruneSettings, SearchSettings
from streamliner.verbs.benchmark import benchmark_models
from streamliner.verbs.cut import check_cut_output, check_files_made, cut_to_disk
from streamliner.verbs.fold_loop import FoldLoop
from streamliner.verbs.heal import heal_to_disk
from streamliner.verbs.search import choose_precision, search_session, with_windows
from streamliner.verbs.targets import ROUNDS


@dataclass(frozen=True)
class Pruned:
    """What pruning did.

    Attributes:
        found: the search.
        cut: sizes and verification of the cut checkpoint; empty in all processes but the first.
        healed: what healing did; None without it.
        speed: of the result beside the dense model, if a speed-up was the target; otherwise None.
    """

    found: Found
    cut: dict[str, Any]
    healed: dict[str, Any] | None = None
    speed: Benchmark | None = None

    def to_json(self) -> dict[str, Any]:
        """As a JSON value."""
        healed = {} if self.healed is None else {"healing": self.healed}
        speed = {} if self.speed is None else {"benchmark": self.speed.to_json()}
        return self.found.to_json() | {"cut": self.cut} | healed | speed


def prune(
    session: Session,
    out: str | Path,
    settings: SearchSettings,
    healing: HealSettings | None,
    prune_settings: PruneSettings,
) -> Pruned:
    """Search, cut and verify; with `healing`, heal too. `out` appears whole at the end.

    Args:
        session: the dense model.
        out: folder for the cut or healed checkpoint, or the name of a GGUF file to cut the GGUF file itself.
        settings: of the search; `run` is by default the output's name + ".run".
        healing: network, losses, text and budget; None for no healing.
        prune_settings: whether to verify, and to fold while searching.

    Raises:
        UserError: the request cannot be fulfilled; the message says why.
    """
    _check_loop(settings, healing, prune_settings)
    check_cut_output(session, out, overwrite=settings.overwrite)
    check_files_made(session, out, prune_settings.cutting(settings))
    folder = check_run_folder(settings.run or f"{str(out).rstrip('/')}.run")
    check_outside("run folder", folder, {"output": Path(out)})  # with which it would be replaced
    structure = Structure(session.shell)
    check_files(session.source, structure)  # before hours of search
    if is_gguf_name(out):
        check_gguf(session.source.gguf_files, structure)
        if healing is not None:
            check_gguf_healing(session.source.gguf_files[0], healing)
    if session.source.kind == "gguf" and not is_gguf_name(out):
        reporter = Reporter(settings.quiet or session.ranks.rank > 0)
        reporter.say(
            f"{out} will be a folder, whose weights may take more space than the GGUF file. -o NAME.gguf cuts the file "
            "itself."
        )
    settings = with_windows(session, dataclasses.replace(settings, run=folder))
    cutting = prune_settings.cutting(settings)
    if healing is None:
        if is_gguf_name(out) or session.source.kind != "gguf":  # of a GGUF file, a folder is in what it is loaded in
            choose_precision(session, settings)
        record = partial(_record, session, out, folder, prune_settings, settings)
        found = search_session(session, settings, record=record)
        if session.ranks.rank:  # one process writes
            return Pruned(found, {})
        pruned = Pruned(found, cut_to_disk(session, found.plan(), out, cutting))
    else:
        pruned = _prune_and_heal(session, out, folder, settings, healing, prune_settings)
    if settings.target_speedup is None or session.ranks.rank:
        return pruned
    own_code = bool(pruned.healed and pruned.healed["custom_code"])
    return dataclasses.replace(pruned, speed=_speed(session, out, settings, own_code=own_code))


def _check_loop(settings: SearchSettings, healing: HealSettings | None, prune_settings: PruneSettings) -> None:
    """Raise UserError for settings that contradict each other: of a fold in the loop, and of files that are not cut."""
    if healing is not None and (prune_settings.link or prune_settings.max_shard_size is not None):
        given = "--link" if prune_settings.link else "--max-shard-size"
        raise HealingError(f"{given} does not work with --heal or --fold: healed files are new.", "Leave it out.")
    if prune_settings.fold_every is None:
        return
    if healing is None or healing.fold is None:
        raise HealingError("--fold-every has no effect without --fold.", "Add --fold refit, or leave out --fold-every.")
    if settings.objective != "loss":
        found = "With --fold-every, --objective kl would compare with the repaired model, not the dense one."
        raise MethodError(found, "Leave out --objective kl or --fold-every.")
    if "start" in settings.method_settings:
        found = "--set start names all blocks at once, but --fold-every chooses a few blocks at a time."
        raise MethodError(found, "Leave out --set start or --fold-every.")


def _prune_and_heal(
    session: Session,
    out: str | Path,
    folder: Path,
    settings: SearchSettings,
    healing: HealSettings,
    prune_settings: PruneSettings,
) -> Pruned:
    """Search and cut into the run folder, then heal into `out`, a folder or a GGUF file as the cut one is."""
    if settings.method == "streamline" and healing.network != "none":
        # LLM-Streamline: of n + 1 similar blocks one stays and is trained, so n are removed.
        wanted = {"network": healing.network_depth} | settings.method_settings
        settings = dataclasses.replace(settings, set=wanted, search_effort=None)
    if settings.calibration is None:
        # --answers-only is then for the training text: the default text of a search has no conversations.
        settings = dataclasses.replace(settings, answers_only=False)
    healing = dataclasses.replace(healing, run=check_run_folder(folder / "healing", RUN))
    prepared = prepare_healing(session, healing, Reporter(quiet=True))  # finds mistakes before hours of search
    loop = None if prune_settings.fold_every is None else FoldLoop(prune_settings.fold_every, prepared)
    record = partial(_record, session, out, folder, prune_settings, settings, healing)
    found = search_session(session, settings, loop, record)
    place = folder / ("cut.gguf" if is_gguf_name(out) else "cut")
    result: dict[str, Any] = {}
    if not session.ranks.rank:
        cutting = CutSettings(verify=prune_settings.verify, overwrite=True, quiet=settings.quiet)
        result = _cut_once(session, found.plan(), place, cutting)
    session.ranks.wait()
    healed = heal_to_disk(place, out, healing, session)
    return Pruned(found, result, healed)


def _speed(session: Session, out: str | Path, settings: SearchSettings, *, own_code: bool) -> Benchmark:
    """The result, which may come with code of its own, timed beside the dense model, as the target was."""
    timing = BenchmarkSettings(dense=session.source.name, repeats=ROUNDS, quiet=settings.quiet)
    trusted = session.settings.trust_remote_code or own_code  # the code is what was written just now
    result = open_model(out, dataclasses.replace(session.settings, trust_remote_code=trusted))
    return benchmark_models([session, result], timing, Reporter(settings.quiet))


def _record(session: Session, out: str | Path, folder: Path, *settings: Any) -> None:
    arguments = {"model": session.source.name, "output": str(out)}
    write_config(folder, "prune", arguments, *settings, session.settings)


def _cut_once(session: Session, plan: Plan, place: Path, cutting: CutSettings) -> dict[str, Any]:
    """Cut, unless an earlier run cut this plan there, and verified it if that is asked for; returns what was done."""
    of_file, mark = place.with_name("cut.json"), read_mark(place) if place.exists() else None
    done: Any = mark and mark.get("cut")
    if mark and is_gguf(place) and of_file.is_file():  # a file's own key was written before it was verified
        done = json.loads(of_file.read_text(encoding="utf-8"))
    if done and _same_plan(place, plan) and (not cutting.verify or done["verification"] is not None):
        return {**done, "output": str(place)}
    result = cut_to_disk(session, plan, place, cutting)
    if is_gguf(place):
        write_json(of_file, result)
    return result


def _same_plan(place: Path, plan: Plan) -> bool:
    there, here = (finite(each.to_json()) for each in (read_plan(place), plan))
    for each in (there, here):
        for name in ("checkpoint", "name"):  # a model may have been moved
            each["model"].pop(name, None)
    return json.dumps(there) == json.dumps(here)
