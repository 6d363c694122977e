"""What was measured before, kept by all that it depends on, so that a dense model is measured once."""

from __future__ import annotations

import hashlib
import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

from streamliner._version import __version__
from streamliner.runs.files import write_json


class Kept:
    """A result in the cache, named by a hash of all that it depends on, streamliner's and other releases included.

    Attributes:
        value: what was kept, None if nothing was.
    """

    def __init__(self, use: bool, *depends_on: Any) -> None:
        releases = [__version__, *(version(name) for name in ("torch", "transformers"))]
        self._path = cache_folder() / f"{_hash([*releases, *depends_on])}.json"
        self.value: Any = None
        if use and self._path.exists():
            try:
                self.value = json.loads(self._path.read_text(encoding="utf-8"))
            except json.JSONDecodeError:
                self._path.unlink()

    def keep(self, value: Any) -> None:
        """Put it there, unless it holds numbers that JSON has no word for."""
        self.value = value
        try:
            json.dumps(value, allow_nan=False)
        except ValueError:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self._path, value)


def cache_folder() -> Path:
    """Where results are kept: `streamliner/evaluations` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "streamliner" / "evaluations"


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
