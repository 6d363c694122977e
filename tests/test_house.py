"""The house keeps its promises: imports follow the way of the data, and only `model/` looks inside a model."""

from __future__ import annotations

import ast
import importlib

import pytest

from places import ROOT

SOURCE = ROOT / "src" / "streamliner"
ROOMS = (
    *(
        "errors",
        "plugins",
        "types",
        "format",
        "fields",
        "text",
        "settings",
        "heal_settings",
        "runs",
        "model",
        "measure",
        "search",
        "cut",
        "heal",
    ),
    *("evaluate", "benchmark", "report", "verbs", "api", "cli"),
)
"""In the order of the data's way: a room imports from those before it, and from itself."""
INSIDE_A_MODEL = {
    *("named_modules", "named_children", "children", "get_submodule", "get_decoder", "get_input_embeddings"),
    *("get_output_embeddings", "register_forward_hook", "register_forward_pre_hook", "named_buffers", "lm_head"),
    *("past_key_values", "logits_to_keep", "tie_weights"),
}
"""Attributes and arguments with which code looks inside a model."""
LONG_FILE, LONG_FUNCTION = 300, 60
REASON = "# Long:"
"""A comment in a longer file or function that says why it is one."""
OUTSIDE = ("__init__", "__main__", "_version")
MODULES = sorted(SOURCE.rglob("*.py"))
EXAMPLES = sorted(path for folder in ("examples", "benchmarks") for path in (ROOT / folder).glob("*.py"))


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


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_examples_and_benchmarks_use_names_that_exist(path):
    """They run for minutes, so no test runs them whole."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "streamliner":
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


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


def test_no_two_files_share_a_name():
    names: dict[str, list[str]] = {}
    for path in MODULES:
        if path.name != "__init__.py":
            names.setdefault(path.name, []).append(room(name_of(path)))
    shared = {name: rooms for name, rooms in names.items() if len(rooms) > 1 and sorted(rooms) != ["cli", "verbs"]}
    # Each verb has a file that does it and one that parses and prints it.
    assert not shared


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_private_names_stay_private(path):
    """Private names of other libraries are in `model/compat.py`; of our own classes, only `self` and `cls` use them."""
    if name_of(path) == "model.compat":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            assert isinstance(node.value, ast.Name), f"line {node.lineno}: {node.attr}"
            assert node.value.id in ("self", "cls"), f"line {node.lineno}: {node.attr}"
        if isinstance(node, ast.ImportFrom):
            private = [alias.name for alias in node.names if is_private(alias.name)]
            parts = [part for part in (node.module or "").split(".") if is_private(part) and part != "_version"]
            assert not private + parts, f"line {node.lineno}: {private + parts}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_model_looks_inside_a_model(path):
    if room(name_of(path)) == "model":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        used = node.attr if isinstance(node, ast.Attribute) else node.arg if isinstance(node, ast.keyword) else ""
        assert used not in INSIDE_A_MODEL, f"line {node.lineno}: {used}"
        targets = node.targets if isinstance(node, ast.Assign) else []
        assert not any(isinstance(each, ast.Attribute) and each.attr == "forward" for each in targets), node.lineno


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_files_and_functions_are_short(path):
    text = path.read_text()
    lines = text.splitlines()
    assert len(lines) <= LONG_FILE or REASON in text
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= LONG_FUNCTION:
            assert any(REASON in line for line in lines[node.lineno - 1 : node.end_lineno]), node.name


def is_private(name):
    return name.startswith("_") and not name.startswith("__")
