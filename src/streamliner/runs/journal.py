"""The journal: measured losses in an append-only file, from which a search that was killed continues."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from streamliner.errors import OutputError, first_line
from streamliner.runs.files import SCHEMA_VERSIONS, append_json_line, drop_unfinished_line, read_json_lines
from streamliner.runs.folder import check_run_folder, check_same_run, forget_results, is_of_earlier_release
from streamliner.runs.ranks import Ranks

FIRST = "journal.jsonl"
STEPS = "steps"
"""Folder in a run folder for the steps of a search that repairs the model between them."""


class Journal:
    """Losses by removed blocks and window.

    The first line of the file identifies the run. Each process of a run appends to its own file, `journal.jsonl`,
    `journal.1.jsonl` and so on, and reads all of them.

    Args:
        folder: the run folder; created if it does not exist.
        identity: everything that the losses depend on, as a JSON value.
        overwrite: delete the journal of another run, or a broken one. That of the same run is kept: it is right.

    Attributes:
        losses: sorted removed blocks -> window -> loss in nats per token.
        fork: why forked losses are wrong for this model ("" if they are right), and the number of windows per forward
            that this was tested with. None if it was not tested.
        is_of_earlier_release: whether it does not say on which config, device and releases the losses depend.

    Raises:
        OutputError: the folder is not a run folder, or is of another run.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], *, overwrite: bool = False, rank: int = 0) -> None:
        self.losses: dict[tuple[int, ...], dict[int, float]] = {}
        self.fork: tuple[str, int] | None = None
        self.is_of_earlier_release = False
        self._folder, self._identity, self._overwrite = folder, identity, overwrite
        self._path = folder / (FIRST if rank == 0 else f"journal.{rank}.jsonl")
        header = {"schema_version": SCHEMA_VERSIONS["journal"], "identity": json.loads(json.dumps(identity))}
        check_run_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        paths = sorted(folder.glob("journal*.jsonl"))
        try:
            for path in paths:
                self._read(path, header)
        except OutputError:  # of another run, or broken
            if not overwrite or rank:
                raise
            for path in paths:
                path.unlink()
            forget_results(folder)
            self.losses, self.fork, self.is_of_earlier_release = {}, None, False
        drop_unfinished_line(self._path)
        if not self._path.exists() or not self._path.stat().st_size:
            append_json_line(self._path, header)

    def of_step(self, number: int, more: Mapping[str, Any]) -> "Journal":
        """The journal of a step of this run, in a folder in its folder: its losses depend on `more` besides."""
        return Journal(self._folder / STEPS / str(number), {**self._identity, **more}, overwrite=self._overwrite)

    @property
    def measurements(self) -> int:
        """The number of known losses of one window each."""
        return sum(map(len, self.losses.values()))

    def remember(self, windows: Sequence[int], losses: Mapping[tuple[int, ...], Sequence[float]]) -> None:
        """Append the losses of some removals on some windows. They survive a kill from here on."""
        by_removal = [list(each) for each in losses.values()]
        append_json_line(self._path, {"windows": list(windows), "removed": list(losses), "losses": by_removal})

    def remember_fork(self, why_not: str, windows_at_once: int) -> None:
        """Append whether forked losses are right."""
        self.fork = why_not, windows_at_once
        append_json_line(self._path, {"fork": list(self.fork)})

    def _read(self, path: Path, header: dict[str, Any]) -> None:
        try:
            self._add(path, header)
        except (ValueError, ArithmeticError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise OutputError(
                f"The journal {path} is broken: {type(error).__name__}: {first_line(error)}",
                "Restore it, or add --overwrite to start the run again from the beginning.",
            ) from error

    def _add(self, path: Path, header: dict[str, Any]) -> None:
        found, *lines = read_json_lines(path) or [header]
        check_same_run(path.parent, found, header)
        self.is_of_earlier_release |= is_of_earlier_release(found) and not is_of_earlier_release(header)
        for line in lines:
            if "fork" in line:
                why_not, at_once = line["fork"]
                self.fork = str(why_not), int(at_once)
                continue
            for removed, losses in zip(line["removed"], line["losses"], strict=True):
                windows, values = map(int, line["windows"]), map(float, losses)
                self.losses.setdefault(tuple(map(int, removed)), {}).update(zip(windows, values, strict=True))


def open_journal(folder: Path, identity: Mapping[str, Any], ranks: Ranks, *, overwrite: bool = False) -> Journal:
    """The journal of a run of several processes; all of them must call this.

    The first process creates or refuses the folder before the others open it, and all have read what is known before
    any of them appends to it.
    """
    if ranks.rank:
        ranks.wait()
    journal = Journal(folder, identity, overwrite=overwrite, rank=ranks.rank)
    if not ranks.rank:
        ranks.wait()
    if ranks.total(torch.tensor(float(journal.measurements))).item() != journal.measurements * ranks.size:
        found = f"The processes of this run see different journals in {folder}."
        raise OutputError(found, "Put the run folder on a disk that all machines see, under one path.")
    return journal
