"""Write files and folders whole or not at all."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from streamliner.errors import OutputError

SCHEMA_VERSIONS = {"plan": 1, "run": 1, "journal": 2, "evaluation": 3, "benchmark": 3}
"""Of the JSON files, by what they hold: the version that this release writes and reads."""

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


MARK = "streamliner.json"
"""The plan, in every folder that streamliner wrote: only such a folder is ever replaced."""


def check_output(out: str | Path, *, overwrite: bool = False, model_folder: str | Path | None = None) -> Path:
    """Decide before any work whether `out` may be written; writes nothing.

    Raises:
        OutputError: it exists and `overwrite` was not asked for, or it is not a folder that streamliner wrote.
    """
    path = Path(out).expanduser().absolute()
    if model_folder and path.exists() and path.samefile(model_folder):
        raise OutputError(f"The output {out} is the model itself.", "Choose another folder.")
    if not path.exists() and not path.is_symlink():
        ancestor = next(parent for parent in path.parents if parent.exists())
        if not ancestor.is_dir():
            raise OutputError(f"{out} cannot be made: {ancestor} is not a folder.")
        if not os.access(ancestor, os.W_OK):
            raise OutputError(f"{out} cannot be made: {ancestor} is not writable.")
        return path
    if path.is_dir() and not any(path.iterdir()):
        return path
    if not path.is_dir() or not (path / MARK).is_file():
        raise OutputError(f"{out} exists, and streamliner did not write it.", "Choose another name.")
    if not overwrite:
        raise OutputError(f"The output {out} exists.", "Choose another name, or add --overwrite to replace it.")
    return path


@contextmanager
def output_folder(out: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder beside `out` that becomes `out` when the context ends well, and goes away otherwise.

    A killed process leaves its temporary folder, `.NAME.partial-PID`; the next run with the same output removes it.
    """
    path = check_output(out, overwrite=overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    for stale in path.parent.glob(f".{path.name}.partial-*"):
        if not _alive(stale.name.rpartition("-")[2]):
            shutil.rmtree(stale, ignore_errors=True)
    partial = path.parent / f".{path.name}.partial-{os.getpid()}"
    partial.mkdir()
    try:
        yield partial
        _replace(path, partial)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _replace(path: Path, partial: Path) -> None:
    if path.is_dir() and any(path.iterdir()):
        old = path.parent / f".{path.name}.partial-{os.getpid()}-old"
        path.rename(old)
        partial.rename(path)
        shutil.rmtree(old)
    else:
        partial.rename(path)  # an empty folder is replaced by this in one step


def _alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except PermissionError:
        return True
    except (ValueError, OSError):
        return False
    return True
