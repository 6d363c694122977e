"""Write files and folders whole or not at all, and decide which existing ones may be replaced."""

import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from streamliner.errors import OutputError

SCHEMA_VERSIONS = {
    **dict.fromkeys(("plan", "run", "frontier", "similarity", "healing"), 1),
    **{"journal": 2, "evaluation": 3, "benchmark": 3},
}
"""The `schema_version` of each kind of JSON file that this release writes and reads."""

BENCHMARK_KINDS = ("prompt", "generation")
"""The kinds of work that a benchmark times: keys of its JSON file."""
MARK = "streamliner.json"
"""The plan, in every checkpoint folder that streamliner wrote. No other folder is ever replaced."""
PLAN_ATTRIBUTE = "streamliner_plan"
"""Attribute of a model cut in memory that holds its plan."""
REPORT_MARKS = {
    **dict.fromkeys((".html", ".htm"), "<title>streamliner report</title>"),
    ".md": "# streamliner report\n",
}
"""What a report by streamliner contains, by file suffix."""


@contextmanager
def write_whole(path: Path) -> Iterator[Path]:
    """A temporary file next to `path` that replaces it when the context ends, and is removed if it raises.

    So `path` always holds its whole old or its whole new content. A killed process leaves its temporary file; the next
    write to the same `path` removes it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    for stale in path.parent.glob(f".{path.name}.*"):
        if stale.suffix[1:].isdigit() and not _is_running(stale.suffix[1:]):
            stale.unlink(missing_ok=True)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text with `write_whole`."""
    with write_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write an indented JSON value with `write_whole`; numbers that are not finite become null."""
    write_text(path, json.dumps(finite(value), indent=2, ensure_ascii=False) + "\n")


def finite(value: Any) -> Any:
    """`value` with None in place of NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def append_json_line(path: Path, value: Any) -> None:
    """Append `value` as one line of JSON to a `.jsonl` file that grows while a run goes on."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(value) + "\n")


def read_json_lines(path: Path) -> list[Any]:
    """The values of a `.jsonl` file, without a last line that a kill cut short. Empty if there is no file."""
    content = path.read_bytes() if path.exists() else b""
    return [json.loads(line) for line in content[: content.rfind(b"\n") + 1].splitlines()]


def drop_unfinished_line(path: Path) -> None:
    """Remove a last line that a kill cut short, so that appending continues on a new line."""
    if path.exists():
        with path.open("r+b") as file:
            file.truncate(file.read().rfind(b"\n") + 1)


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
        if not _is_running(stale.name.rpartition("-")[2]):
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


def _is_running(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except PermissionError:
        return True
    except (ValueError, OSError):
        return False
    return True
