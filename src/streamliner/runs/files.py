"""Write files whole or not at all: text, JSON, and lines of JSON that grow while a run goes on."""

import json
import math
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

SCHEMA_VERSIONS = {
    **dict.fromkeys(("plan", "run", "frontier", "similarity", "healing", "targets"), 1),
    **{"journal": 2, "evaluation": 3, "benchmark": 3},
}
"""The `schema_version` of each kind of JSON file that this release writes and reads."""

STALE_SECONDS = 3600
PLAN_ATTRIBUTE = "streamliner_plan"
"""Attribute of a model cut in memory that holds its plan."""


@contextmanager
def write_whole(path: Path) -> Iterator[Path]:
    """A temporary file next to `path` that replaces it when the context ends, and is removed if it raises.

    So `path` always holds its whole old or its whole new content. A killed process leaves its temporary file; a later
    write to the same `path` removes it when it is an hour old.
    """
    for stale in path.parent.glob(f".{path.name}.tmp-*"):
        with suppress(OSError):
            if time.time() - stale.stat().st_mtime > STALE_SECONDS:
                stale.unlink()
    temporary = path.with_name(f".{path.name}.tmp-{secrets.token_hex(6)}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_through(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk; an OSError names a file that is not."""
    if os.name == "nt" and path.is_dir():  # Windows cannot do that for folders
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)  # a file may be read-only
    try:
        os.fsync(descriptor)
    except OSError as error:  # a disk may notice only here that it is full
        if not path.is_dir():  # nor can some network disks
            raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(descriptor)


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
