"""The methods that choose blocks to remove, and their results: frontier and plan."""

from typing import Any


def __getattr__(name: str) -> Any:
    """Keep method files of earlier releases working: they import `Point` from here instead of from `streamliner`."""
    if name == "Point":
        from streamliner.search.frontier import Point

        return Point
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; `import streamliner` has the public names")
