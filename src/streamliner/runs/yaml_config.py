"""A run's settings as a YAML file: read for `--config`, written into the run folder so that it can be repeated."""

from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from streamliner.errors import UserError, did_you_mean
from streamliner.fields import flags_of, pairs, recorded
from streamliner.runs.files import write_text

CONFIG = "config.yaml"
RUN_FILES = ("run.json", "healing.json")
"""What run folders have next to it: of a search, and of a healing."""
RECIPES = "recipes"
"""Folder of the package with a config file for each recipe."""
BUDGETS = ("tokens", "steps", "epochs")
"""Settings of which one may be given."""


def recipe_names() -> list[str]:
    """Names of the recipes that come with streamliner."""
    return sorted(file.name.removesuffix(".yaml") for file in (files("streamliner") / RECIPES).iterdir())


def read_recipe(name: str, known: Iterable[str], given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a recipe that a verb knows; a UserError if there is no such recipe.

    Without its budget if another is `given`, and without the effort of sleb if another method or another effort is.
    """
    if name not in recipe_names():
        hint = did_you_mean(name, recipe_names(), f"Choose one of {', '.join(recipe_names())}.")
        raise UserError(f"There is no recipe {name}.", hint)
    values = yaml.safe_load((files("streamliner") / RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))
    dropped = set(BUDGETS) if set(BUDGETS) & set(given) else set()
    if given.get("method", "sleb") != "sleb" or "effort" in pairs(given.get("set", ()), "--set"):
        dropped |= {"search_effort"}
    return {key: value for key, value in values.items() if key in set(known) - dropped}


def read_config(file: Path, known: Iterable[str]) -> dict[str, Any]:
    """The settings in a YAML file; `null` stands for the default. A UserError for a name that is not `known`.

    The file in a run folder is of the run in this folder, which may have been moved since it was written.
    """
    try:
        values = yaml.safe_load(file.expanduser().read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"The config file {file} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"The config file {file} holds no settings.", "Write for instance `remove: 20%` on a line.")
    values = {str(name).replace("-", "_"): value for name, value in values.items()}
    for name in sorted(values.keys() - set(known)):
        hint = did_you_mean(name, known) or f"Settings: {', '.join(sorted(known))}."
        raise UserError(f"The config file {file} has {name}, which is not a setting of this verb.", hint)
    if file.name == CONFIG and any((file.parent / name).exists() for name in RUN_FILES):
        values["run"] = str(file.parent)
    return {name: value for name, value in values.items() if value is not None}


def write_config(folder: Path, verb: str, arguments: Mapping[str, Any], *settings: Any) -> None:
    """Write the resolved settings of a run, each with its help; a field that two settings objects share once.

    `arguments` have no default, such as the model.
    """
    lines = [f"# To repeat this run: streamliner {verb} --config {CONFIG}. Flags on the command line win."]
    lines += [_line(name, value) for name, value in arguments.items()]
    done = set(arguments)
    for each in settings:
        flags = flags_of(type(each))
        for name, value in recorded(each).items():
            if name not in done and not flags[name].python_only:
                done.add(name)
                lines.append(f"{_line(name, value)}  # {flags[name].help}")
    write_text(folder / CONFIG, "\n".join(lines) + "\n")


def _line(name: str, value: Any) -> str:
    """`name: value` on one line."""
    return str(yaml.safe_dump({name: value}, default_flow_style=True, allow_unicode=True, width=10**6)).strip()[1:-1]
