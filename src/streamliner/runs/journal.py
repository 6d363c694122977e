"""The journal of measured losses."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from streamliner.errors import OutputError
from streamliner.runs.files import SCHEMA_VERSIONS
from streamliner.runs.folder import check_same_run


class Journal:
    """Losses by removed blocks and window, appended to a file as they are measured. The same run continues from it.

    The first line identifies the run. A last line that a kill cut short is dropped. Each process of a run appends to a
    file of its own, `journal.jsonl` and `journal.1.jsonl` and so on, and reads them all.

    Attributes:
        losses: by the sorted tuple of removed blocks and window.
        fork: why forked losses are not right for this model, "" if they are, and with how many windows in a forward;
            None if that was not tried.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], *, overwrite: bool = False, rank: int = 0) -> None:
        self._path = folder / ("journal.jsonl" if rank == 0 else f"journal.{rank}.jsonl")
        self.losses: dict[tuple[int, ...], dict[int, float]] = {}
        self.fork: tuple[str, int] | None = None
        first = folder / "journal.jsonl"
        header = {"schema_version": SCHEMA_VERSIONS["journal"], "identity": json.loads(json.dumps(identity))}
        if folder.is_dir() and any(folder.iterdir()) and not first.exists():
            raise OutputError(f"The folder {folder} exists and is no run folder.", "Choose another with -o.")
        folder.mkdir(parents=True, exist_ok=True)
        if overwrite and rank == 0 and first.exists():
            # What was measured is right for the same run; another one's gives way.
            known = first.read_bytes().partition(b"\n")[0]
            if not known or json.loads(known) != header:
                for old in folder.glob("journal*.jsonl"):
                    old.unlink()
        for path in sorted(folder.glob("journal*.jsonl")):
            self._read(path, header)
        if not self._path.exists():
            self._path.write_text(json.dumps(header) + "\n", encoding="utf-8")

    @property
    def measurements(self) -> int:
        """How many losses of one window each are known."""
        return sum(map(len, self.losses.values()))

    def remember(self, windows: Sequence[int], losses: Mapping[tuple[int, ...], Sequence[float]]) -> None:
        """Append losses of some removals on some windows; they survive a kill from here on."""
        line = {"windows": list(windows), "removed": list(losses), "losses": [list(each) for each in losses.values()]}
        self._append(line)

    def remember_fork(self, why_not: str, windows_at_once: int) -> None:
        """Append whether forked losses are right."""
        self.fork = why_not, windows_at_once
        self._append({"fork": list(self.fork)})

    def _append(self, line: Any) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _read(self, path: Path, header: dict[str, Any]) -> None:
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        lines = [json.loads(line) for line in whole.splitlines()]
        if lines:
            check_same_run(path.parent, lines[0], header)
        for line in lines[1:]:
            if "fork" in line:
                self.fork = tuple(line["fork"])
                continue
            for removed, losses in zip(line["removed"], line["losses"], strict=True):
                self.losses.setdefault(tuple(removed), {}).update(zip(line["windows"], losses, strict=True))
        if path == self._path and whole != content:
            with path.open("r+b") as file:
                file.truncate(len(whole))
        if path == self._path and not lines:
            path.write_text(json.dumps(header) + "\n", encoding="utf-8")
