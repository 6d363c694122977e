"""Outputs: which existing files and folders may be replaced, and folders that appear whole or not at all."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from streamliner.errors import OutputError
from streamliner.runs.files import is_running

MARK = "streamliner.json"
"""The plan, in every checkpoint folder that streamliner wrote. No other folder is ever replaced."""
REPORT_MARKS = {
    **dict.fromkeys((".html", ".htm"), "<title>streamliner report</title>"),
    ".md": "# streamliner report\n",
}
"""What a report by streamliner contains, by file suffix."""


def check_result_file(file: str | Path | None, *, overwrite: bool = False) -> None:
    """Check, before any work, that a result can be written to `file` (None is fine); an OutputError if not."""
    if file is None:
        return
    path = Path(file).expanduser().absolute()
    if path.is_dir():
        raise OutputError(f"{file} is a folder, but -o takes the name of a file.")
    if not path.parent.is_dir():
        raise OutputError(f"The folder {path.parent} does not exist.", "Create it, or choose another file with -o.")
    if path.exists() and not _is_result(path):
        raise OutputError(f"{file} exists, and streamliner did not write it.", "Choose another name.")
    if path.exists() and not overwrite:
        raise OutputError(f"The output {file} exists.", "Choose another name, or add --overwrite to replace it.")


def _is_result(path: Path) -> bool:
    """Whether a file is a result or a report that streamliner wrote."""
    text = path.read_text(encoding="utf-8", errors="replace")
    if path.suffix in REPORT_MARKS:
        return REPORT_MARKS[path.suffix] in text
    try:
        return "schema_version" in json.loads(text)
    except (json.JSONDecodeError, TypeError):
        return False


def check_output(out: str | Path, *, overwrite: bool = False, model_folder: str | Path | None = None) -> Path:
    """Check, before any work, that the folder `out` can be written. Writes nothing.

    Raises:
        OutputError: it cannot be created, it exists and `overwrite` is false, or streamliner did not write it.
    """
    path = Path(out).expanduser().absolute()
    if model_folder and path.exists() and path.samefile(model_folder):
        raise OutputError(f"The output {out} is the model itself.", "Choose another folder.")
    if not path.exists() and not path.is_symlink():
        ancestor = next(parent for parent in path.parents if parent.exists())
        if not ancestor.is_dir():
            raise OutputError(f"{out} cannot be created: {ancestor} is not a folder.")
        if not os.access(ancestor, os.W_OK):
            raise OutputError(f"{out} cannot be created: {ancestor} is not writable.")
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
    """A temporary folder next to `out` that becomes `out` when the context ends, and is removed if it raises.

    A killed process leaves its temporary folder, `.NAME.partial-PID`; the next run with the same output removes it.
    """
    path = check_output(out, overwrite=overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    for stale in path.parent.glob(f".{path.name}.partial-*"):
        if not is_running(stale.name.rpartition("-")[2]):
            shutil.rmtree(stale, ignore_errors=True)
    partial = path.parent / f".{path.name}.partial-{os.getpid()}"
    partial.mkdir()
    try:
        yield partial
        if path.is_dir() and any(path.iterdir()):
            old = path.parent / f"{partial.name}-old"
            path.rename(old)
            partial.rename(path)
            shutil.rmtree(old)
        else:
            partial.rename(path)  # replaces an empty folder in one step
    finally:
        shutil.rmtree(partial, ignore_errors=True)
