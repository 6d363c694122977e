"""The run folder: settings and environment of a run, its journal of measured losses, its results. Atomic writes."""

from __future__ import annotations

import json
import math
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from streamliner._version import __version__
from streamliner.errors import OutputError

SCHEMA_VERSION = 2
LIBRARIES = (
    *("torch", "transformers", "tokenizers", "accelerate", "safetensors", "peft", "datasets", "gguf"),
    *("lm_eval", "vllm", "xllamacpp"),
)

REPORT_MARKS = {
    ".html": "<title>streamliner report</title>",
    ".htm": "<title>streamliner report</title>",
    ".md": "# streamliner report\n",
}
"""What a report holds that streamliner wrote, by suffix."""


def write_json(path: Path, value: Any) -> None:
    """Write `value` so that `path` is always whole: the old content or the new."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(finite(value), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(path)


def finite(value: Any) -> Any:
    """`value` with null for what JSON has no word for: the standard error of one window."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


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
        header = {"schema_version": SCHEMA_VERSION, "identity": json.loads(json.dumps(identity))}
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


def check_run_folder(folder: str | Path, mark: str = "journal.jsonl") -> Path:
    """Raise OutputError if `folder` exists and is not a run folder, which `mark` tells; writes nothing."""
    path = Path(folder).expanduser().absolute()
    if path.exists() and (not path.is_dir() or (any(path.iterdir()) and not (path / mark).exists())):
        raise OutputError(f"{folder} exists and is no run folder.", "Choose another name.")
    return path


def check_result_file(file: str | Path | None, *, overwrite: bool = False) -> None:
    """Raise OutputError before any work if a result cannot be written to `file`; None is fine."""
    if file is None:
        return
    path = Path(file).expanduser().absolute()
    if path.is_dir():
        raise OutputError(f"{file} is a folder, and -o takes the name of a file.")
    if not path.parent.is_dir():
        raise OutputError(f"The folder {path.parent} does not exist.", "Make it, or choose another file with -o.")
    if path.exists() and not _is_ours(path):
        raise OutputError(f"{file} exists, and streamliner did not write it.", "Choose another name.")
    if path.exists() and not overwrite:
        raise OutputError(f"The output {file} exists.", "Choose another name, or add --overwrite to replace it.")


def _is_ours(path: Path) -> bool:
    """Whether a file is a result or a report of ours."""
    text = path.read_text(encoding="utf-8", errors="replace")
    if path.suffix in REPORT_MARKS:
        return REPORT_MARKS[path.suffix] in text
    try:
        return "schema_version" in json.loads(text)
    except (json.JSONDecodeError, TypeError):
        return False


def check_same_run(folder: Path, found: Any, wanted: Any) -> None:
    """Raise OutputError, with the first difference, unless the run in `folder` is the one that is wanted."""
    difference = _first_difference(found, json.loads(json.dumps(wanted)))
    if difference:
        raise OutputError(
            f"The run folder {folder} is of another run: {difference}.",
            "Choose another folder, or add --overwrite to start it anew.",
        )


def environment() -> dict[str, Any]:
    """Versions and hardware, for `run.json`."""
    import torch

    versions = {"streamliner": __version__, "python": platform.python_version()}
    for library in LIBRARIES:
        try:
            versions[library] = version(library)
        except PackageNotFoundError:
            continue
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "command": [_program(sys.argv[0]), *sys.argv[1:]],
        "versions": versions,
        "hardware": {
            "machine": platform.machine(),
            "processor": _processor(),
            "cpus": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpus": gpus,
        },
    }


def _program(path: str) -> str:
    """What to type for `sys.argv[0]`, without the folders of this machine."""
    name = Path(path).name
    return "streamliner" if name == "__main__.py" else name


def _processor() -> str:
    """Its name; `platform` does not know it on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _first_difference(old: Any, new: Any, where: str = "") -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(set(old) | set(new)):
            found = _first_difference(old.get(key), new.get(key), f"{where}.{key}" if where else key)
            if found:
                return found
        return ""
    return "" if old == new else f"{where.removeprefix('identity.')} was {old!r} there and is {new!r} now"
