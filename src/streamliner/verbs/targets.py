"""What a search aims at, from its settings: parameters and bytes from the structure, speed and accuracy measured."""

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from streamliner.benchmark.choose_engine import load_engines
from streamliner.benchmark.timing import time_models
from streamliner.benchmark.workload import random_texts
from streamliner.cut.checkpoint import block_bytes
from streamliner.cut.structure import Structure
from streamliner.errors import EvaluationError, RemovalError
from streamliner.evaluate.tasks import Harness, Task
from streamliner.fields import number
from streamliner.format import human_bytes
from streamliner.model.blocks import Blocks
from streamliner.model.parts import count_parameters
from streamliner.model.session import Session
from streamliner.model.source import checkpoint_folder
from streamliner.runs.files import SCHEMA_VERSIONS, write_json
from streamliner.runs.reporter import Reporter
from streamliner.search.limits import parse_percentage
from streamliner.search.method import Method
from streamliner.search.target import Removed, Target, size_target, speed_target
from streamliner.settings import BenchmarkSettings, SearchSettings

MEASURED = "targets.json"
"""What was measured for targets, in the run folder, so that a run that continues aims at the same."""
ROUNDS = 5
"""Rounds of a measurement of speed."""


def find_size_target(session: Session, structure: Structure, method: Method, settings: SearchSettings) -> Target | None:
    """The target in parameters or bytes, None without one. Reads no weights, though a hub model is downloaded."""
    if settings.target_parameters is not None:
        most = number(settings.target_parameters, "--target-parameters", "parameters")
        sizes = [count_parameters(module) for module in session.stack.modules]

        def parameters(removed: Removed) -> int:
            return count_parameters(structure.cut_shell(removed) if removed else session.shell)

        rest = session.parameters - sum(sizes)
        return size_target(f"at most {most:,} parameters", most, sizes, rest, method, parameters)
    if settings.target_bytes is not None:
        most = number(settings.target_bytes, "--target-bytes", "bytes")
        sizes, rest = stored_bytes(session, structure)
        wish = f"at most {human_bytes(most)} of weights"

        def stored(removed: Removed) -> int:
            return rest + sum(size for block, size in enumerate(sizes) if block not in removed)

        return size_target(wish, most, sizes, rest, method, stored)
    return None


def stored_bytes(session: Session, structure: Structure) -> tuple[list[int], int]:
    """Bytes of each block and of all else in the checkpoint that a cut writes."""
    if session.source.kind in ("folder", "hub"):
        return block_bytes(checkpoint_folder(session.source), structure)
    dtype = session.model.dtype if session.model is not None else session.settings.dtype
    size = getattr(torch, "float32" if dtype == "auto" else str(dtype).removeprefix("torch.")).itemsize
    sizes = [size * count_parameters(module) for module in session.stack.modules]
    return sizes, size * session.parameters - sum(sizes)


def find_speed_target(
    session: Session, method: Method, settings: SearchSettings, folder: Path | None, reporter: Reporter
) -> Target | None:
    """The target in speed, None without one: the dense model is timed, whole and with its first block alone."""
    if settings.target_speedup is None:
        return None
    _check_one_process(session, "--target-speedup")
    kind, speed_up = settings.speedup_of, settings.target_speedup
    key = f"seconds of {kind}, dense and per block"
    known = _known(folder).get(key)
    if known is None:
        reporter.say(f"Measuring how much of the time of {kind} the blocks take ...")
        timing = BenchmarkSettings(repeats=ROUNDS, quiet=True)
        engines, workload = load_engines([session], timing, reporter)
        texts = random_texts([session], workload)
        times, first_block = time_models(engines, texts, workload, compare=True, reporter=reporter)
        if first_block is None or session.num_blocks < 2:
            raise RemovalError("The speed of single blocks cannot be measured.", "Use --remove N.")
        dense = times[0][kind].median
        known = dense, max(0.0, dense - first_block[kind].median) / (session.num_blocks - 1)
        _remember(folder, key, known)
    wish = f"{kind} {speed_up:g}x as fast"
    seconds, per_block = known
    target = speed_target(wish, speed_up, seconds, per_block, method, session.num_blocks)
    in_blocks = session.num_blocks * per_block / seconds
    reporter.say(f"Blocks take {in_blocks:.0%} of the time: {target.blocks} must go for {wish}.")
    return target


class AccuracyBound:
    """Whether tasks lose no more than so much accuracy without some blocks, by bypassing them."""

    def __init__(self, session: Session, blocks: Blocks, settings: SearchSettings, reporter: Reporter) -> None:
        _check_one_process(session, "--target-accuracy-drop")
        self._harness = Harness(settings.tasks_path)
        self._tasks = self._harness.find(settings.task_names, settings.limit, None)
        self._blocks, self._tokenizer = blocks, settings.tokenizer or session.tokenizer()
        self._batch_size, self._reporter = settings.batch_size, reporter
        self._drop = parse_percentage("--target-accuracy-drop", str(settings.target_accuracy_drop))
        self._dense = self._accuracy(())
        reporter.say(f"Accuracy of the dense model on {', '.join(settings.task_names)}: {self._dense:.1%}.")

    def __call__(self, removed: Removed) -> bool:
        """Measure the model without these blocks."""
        found = self._accuracy(removed)
        good = found >= self._dense - self._drop - 1e-9
        verdict = "" if good else f": more than {self._drop:.1%} worse"
        self._reporter.say(f"Accuracy without {len(removed)} blocks: {found:.1%}{verdict}.")
        return good

    def _accuracy(self, removed: Removed) -> float:
        """Mean over tasks of the share of right answers."""
        with self._blocks.bypass(removed):
            return fmean(self._share_right(task) for task in self._tasks)

    def _share_right(self, task: Task) -> float:
        found = self._harness.run(
            task, self._blocks.model, self._tokenizer, lambda done, of: None, batch_size=self._batch_size
        )
        if not found.answers:
            raise EvaluationError(f"{task.name} does not say which questions were answered right.", "Choose another.")
        return fmean(answer.correct for answer in found.answers)


def _check_one_process(session: Session, flag: str) -> None:
    """Raise RemovalError in several processes: each would measure something else, and wait for the others."""
    if session.ranks.size > 1:
        raise RemovalError(f"{flag} works only in one process.", "Leave out the launcher, or use --remove N.")


def _known(folder: Path | None) -> dict[str, Any]:
    path = None if folder is None else folder / MEASURED
    return json.loads(path.read_text(encoding="utf-8")) if path and path.exists() else {}


def _remember(folder: Path | None, key: str, value: Any) -> None:
    if folder is not None:
        write_json(folder / MEASURED, {"schema_version": SCHEMA_VERSIONS["targets"]} | _known(folder) | {key: value})
