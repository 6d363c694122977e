"""The house keeps its promises: imports follow the way of the data, and only `model/` looks inside a model."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "streamliner"
ROOMS = (
    *("errors", "format", "settings", "runs", "model", "text", "measure", "search", "cut", "heal"),
    *("evaluate", "benchmark", "report", "verbs", "cli"),
)
"""In the order of the data's way: a room imports from those before it, and from itself."""
OUTSIDE = ("__init__", "__main__", "_version")
MODULES = sorted(SOURCE.rglob("*.py"))


def name_of(path):
    return str(path.relative_to(SOURCE).with_suffix("")).replace("/", ".").removesuffix(".__init__")


def imports_of(path):
    """The modules of streamliner that a module imports anywhere, also inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "streamliner":
            for alias in node.names:
                whole = f"{node.module}.{alias.name}".removeprefix("streamliner.")
                known = (SOURCE / whole.replace(".", "/")).with_suffix(".py").exists()
                found.add(whole if known else (node.module or "").removeprefix("streamliner").lstrip("."))
        elif isinstance(node, ast.Import):
            found.update(a.name.removeprefix("streamliner.") for a in node.names if a.name.startswith("streamliner."))
    return found - {"", name_of(path)}


def room(name):
    return name.partition(".")[0]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_follow_the_data(path):
    if room(name_of(path)) in OUTSIDE:
        return
    place = ROOMS.index(room(name_of(path)))
    for other in imports_of(path) - set(OUTSIDE):
        assert ROOMS.index(room(other)) <= place, f"{name_of(path)} imports {other}"


def test_no_circles():
    graph = {name_of(path): imports_of(path) for path in MODULES}
    done: set[str] = set()

    def visit(name, way):
        assert name not in way, " -> ".join([*way[way.index(name) :], name])
        if name not in done:
            for other in sorted(graph.get(name, ())):
                visit(other, [*way, name])
            done.add(name)

    for name in graph:
        visit(name, [])
