"""Results kept between runs, so that a dense model is measured once."""

import hashlib
import json
import os
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from streamliner._version import __version__
from streamliner.runs.files import write_json


class CacheEntry:
    """One result in the cache. Its file is named by a hash of everything that the result depends on.

    Args:
        use: False to ignore what is stored; `store` then replaces it.
        depends_on: JSON values. The releases of streamliner, torch and transformers are added.
    """

    def __init__(self, use: bool, *depends_on: Any) -> None:
        releases = [__version__, *(version(name) for name in ("torch", "transformers"))]
        self._path = cache_folder() / f"{json_hash([*releases, *depends_on])}.json"
        self.value: Any = None  # the stored result
        self.warning = ""  # why it could not be stored
        if use:
            with suppress(OSError, ValueError):  # absent, unreadable or broken: measured again, and replaced
                self.value = json.loads(self._path.read_text(encoding="utf-8"))

    def store(self, value: Any) -> None:
        """Set `value`, and write it to the cache unless it holds numbers that JSON does not have."""
        self.value = value
        try:
            json.dumps(value, allow_nan=False)
        except ValueError:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._path, value)
        except OSError as error:
            self.warning = f"Results are not cached: {error}"


def cache_folder() -> Path:
    """Where results are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "streamliner" / "evaluations"


def json_hash(value: Any) -> str:
    """SHA-256 of a JSON value; what is not JSON counts as its `str`."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
