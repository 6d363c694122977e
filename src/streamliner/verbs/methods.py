"""`streamliner methods`: what the search methods are, and what else installed packages bring."""

import dataclasses
import inspect
import sys
from collections.abc import Callable, Iterable
from typing import Any

from streamliner._version import __version__
from streamliner.errors import PluginError
from streamliner.heal_settings import NETWORKS
from streamliner.plugins import Plugin, find_plugin, plugins
from streamliner.search.registry import class_of_plugin, method_names, own_method
from streamliner.settings import ENGINES


def methods() -> list[dict[str, Any]]:
    """The search methods, then the other plug-ins, as JSON values.

    Each has its kind, name and package. A method has its paper, summary, score and settings too; a plug-in that
    cannot be used has an `error` in their place.
    """
    own = method_names()
    found = [_describe(name, f"streamliner {__version__}", own_method(name)) for name in own]
    found += [_plugin(plugin, class_of_plugin, own) for plugin in plugins("method")]
    return found + (_other_plugins() if any(map(plugins, ("network", "engine", "section"))) else [])


def _other_plugins() -> list[dict[str, Any]]:
    """Imports of their own, which take seconds, as most people have no such plug-in."""
    from streamliner.benchmark.choose_engine import engine_of_plugin
    from streamliner.heal.networks.plugin_network import network_of_plugin
    from streamliner.report.sections.plugin_sections import section_of_plugin

    return [
        *(_plugin(each, network_of_plugin, NETWORKS) for each in plugins("network")),
        *(_plugin(each, engine_of_plugin, ENGINES) for each in plugins("engine")),
        *(_plugin(each, section_of_plugin, ()) for each in plugins("section")),
    ]


def _plugin(plugin: Plugin, load: Callable[[Plugin], Any], own: Iterable[str]) -> dict[str, Any]:
    try:
        if plugin.kind != "section":  # which nobody asks for by name
            find_plugin(plugin.kind, plugin.name, own)
        value = load(plugin)
    except PluginError as error:
        return {"kind": plugin.kind, "name": plugin.name, "package": plugin.package, "error": str(error)}
    if plugin.kind == "method":
        return _describe(plugin.name, plugin.package, value)
    return {"kind": plugin.kind, "name": plugin.name, "package": plugin.package, "summary": _summary(value)}


def _describe(name: str, package: str, cls: Any) -> dict[str, Any]:
    module = inspect.getdoc(sys.modules[cls.__module__]) or ""
    return {
        "kind": "method",
        "name": name,
        "package": package,
        "paper": module.partition("\n")[0],
        "summary": _summary(cls),
        "score": cls.score,
        "settings": {field.name: field.default for field in dataclasses.fields(cls)},
    }


def _summary(value: Any) -> str:
    return (inspect.getdoc(value) or "").partition("\n")[0]
