"""What streamliner recorded in a checkpoint folder or a GGUF file that it wrote."""

import json
from pathlib import Path
from typing import Any

from streamliner.errors import ModelError, PlanError, first_line
from streamliner.model.gguf_header import read_header
from streamliner.runs.outputs import MARK

GGUF_MARK = "streamliner.plan"
"""The key of a GGUF file whose value is the plan, as JSON."""


def read_mark(path: Path) -> dict[str, Any] | None:
    """The plan of a folder or GGUF file, with the dense model and what became of it; None if it has none.

    A PlanError if it cannot be read.
    """
    try:
        if is_gguf(path):
            text = read_header(path).keys.get(GGUF_MARK)
        else:
            text = (path / MARK).read_text(encoding="utf-8") if (path / MARK).is_file() else None
        value = None if text is None else json.loads(text)
    except (ValueError, TypeError, ModelError) as error:
        raise PlanError(f"The plan in {path} cannot be read: {first_line(error)}") from error
    if not isinstance(value, dict | None):
        raise PlanError(f"The plan in {path} is not a JSON object.")
    return value


def is_gguf(path: Path) -> bool:
    """Whether a path is that of a GGUF file, and not of a folder."""
    return path.suffix.lower() == ".gguf" and path.is_file()
