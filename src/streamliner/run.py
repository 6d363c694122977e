"""The run folder: settings and environment of a run, its journal of measured losses, its results. Atomic writes."""

from __future__ import annotations

import json
import math
import os
import platform
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from streamliner._version import __version__
from streamliner.errors import OutputError
from streamliner.measure import Loss

SCHEMA_VERSION = 1
LIBRARIES = ("torch", "transformers", "accelerate", "safetensors", "datasets", "gguf")


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
    """Losses by removed blocks, appended to `journal.jsonl` as they are measured. The same run continues from it.

    The first line identifies the run. A last line that a kill cut short is dropped.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], *, overwrite: bool = False) -> None:
        self._path = folder / "journal.jsonl"
        self._losses: dict[tuple[int, ...], Loss] = {}
        self._windows: dict[tuple[tuple[int, ...], ...], dict[int, list[float]]] = {}
        header = {"schema_version": SCHEMA_VERSION, "identity": json.loads(json.dumps(identity))}
        if self._path.exists() and not overwrite:
            self._read(header)
        elif folder.is_dir() and any(folder.iterdir()) and not self._path.exists():
            raise OutputError(f"The folder {folder} exists and is no run folder.", "Choose another with -o.")
        else:
            folder.mkdir(parents=True, exist_ok=True)
            self._path.write_text(json.dumps(header) + "\n", encoding="utf-8")

    @property
    def measurements(self) -> int:
        """How many losses, or windows of a round, are known."""
        return len(self._losses) + sum(map(len, self._windows.values()))

    def losses(self) -> Mapping[tuple[int, ...], Loss]:
        """What was measured before."""
        return self._losses

    def remember(self, removed: tuple[int, ...], loss: Loss) -> None:
        """Append one loss; it survives a kill from here on."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"removed": list(removed), "per_window": list(loss.per_window)}) + "\n")

    def windows(self, keys: list[tuple[int, ...]]) -> Mapping[int, list[float]]:
        """Windows of which the losses of exactly these removals were measured together."""
        found = self._windows.get(tuple(keys), {})
        return {window: list(losses) for window, losses in found.items()}

    def remember_window(self, window: int, losses: Mapping[tuple[int, ...], float]) -> None:
        """Append one window's losses of several removals."""
        line = {"window": window, "each": [list(key) for key in losses], "losses": list(losses.values())}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _read(self, header: dict[str, Any]) -> None:
        content = self._path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        lines = [json.loads(line) for line in whole.splitlines()]
        if not lines:
            self._path.write_text(json.dumps(header) + "\n", encoding="utf-8")
            return
        difference = _first_difference(lines[0], header)
        if difference:
            raise OutputError(
                f"The run folder {self._path.parent} is of another run: {difference}.",
                "Choose another folder with -o, or add --overwrite to start it anew.",
            )
        for line in lines[1:]:
            if "window" in line:
                keys = tuple(tuple(key) for key in line["each"])
                self._windows.setdefault(keys, {})[line["window"]] = line["losses"]
            else:
                self._losses[tuple(line["removed"])] = Loss(tuple(line["per_window"]))
        if whole != content:
            with self._path.open("r+b") as file:
                file.truncate(len(whole))


def check_run_folder(folder: str | Path) -> Path:
    """Raise OutputError if `folder` exists and is not a run folder; writes nothing."""
    path = Path(folder).expanduser().absolute()
    if path.exists() and (not path.is_dir() or (any(path.iterdir()) and not (path / "journal.jsonl").exists())):
        raise OutputError(f"{folder} exists and is no run folder.", "Choose another name.")
    return path


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
        "command": sys.argv,
        "versions": versions,
        "hardware": {
            "machine": platform.machine(),
            "cpus": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpus": gpus,
        },
    }


def _first_difference(old: Any, new: Any, where: str = "") -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(set(old) | set(new)):
            found = _first_difference(old.get(key), new.get(key), f"{where}.{key}" if where else key)
            if found:
                return found
        return ""
    return "" if old == new else f"{where.removeprefix('identity.')} was {old!r} there and is {new!r} now"
