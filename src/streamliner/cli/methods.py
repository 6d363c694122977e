"""`streamliner methods`."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from typing import Any

from streamliner.cli import options
from streamliner.cli.console import console, print_json


def methods(json: options.Json = False) -> None:
    """List the search methods, what they minimise, and their settings for --set."""
    from streamliner.search.registry import method_class, method_names

    described = [_describe(name, method_class(name)) for name in method_names()]
    if json:
        print_json(described)
        return
    for method in described:
        console.print(f"[bold]{method['name']}[/]  {method['paper']}", soft_wrap=True)
        console.print(f"  {method['summary']}", soft_wrap=True)
        console.print(f"  score: {method['score']}", soft_wrap=True)
        settings = ", ".join(f"{key}={value}" for key, value in method["settings"].items())
        console.print(f"  settings: {settings}\n", markup=False, soft_wrap=True)


def _describe(name: str, cls: Any) -> dict[str, Any]:
    module = inspect.getdoc(sys.modules[cls.__module__]) or ""
    return {
        "name": name,
        "paper": module.splitlines()[0],
        "summary": (inspect.getdoc(cls) or "").splitlines()[0],
        "score": cls.score,
        "settings": {field.name: field.default for field in dataclasses.fields(cls)},
    }
