"""`streamliner methods`: what the search methods are."""

import dataclasses
import inspect
import sys
from typing import Any

from streamliner.search.registry import method_class, method_names


def methods() -> list[dict[str, Any]]:
    """For each method its name, paper, summary, score and settings, as JSON values."""
    return [_describe(name, method_class(name)) for name in method_names()]


def _describe(name: str, cls: Any) -> dict[str, Any]:
    module = inspect.getdoc(sys.modules[cls.__module__]) or ""
    return {
        "name": name,
        "paper": module.splitlines()[0],
        "summary": (inspect.getdoc(cls) or "").splitlines()[0],
        "score": cls.score,
        "settings": {field.name: field.default for field in dataclasses.fields(cls)},
    }
