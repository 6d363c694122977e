"""Plug-ins: packages of others with a search method, a network, an engine or a section of the report.

They are found by the entry points `streamliner.methods`, `.networks`, `.engines` and `.sections` (docs/plugins.md). A
plug-in is imported when it is used or listed, so one that is broken is in nobody's way before that.
"""

import functools
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from streamliner.errors import PluginError, first_line

KINDS = {"methods": "method", "networks": "network", "engines": "engine", "sections": "section"}
"""Group of entry points, after "streamliner.", and what one of them is called."""


@dataclass(frozen=True)
class Plugin:
    """An entry point of a package.

    Attributes:
        kind: one of the values of KINDS.
        name: the name by which users ask for it.
        distribution, version: of the package that brings it.
    """

    kind: str
    name: str
    distribution: str
    version: str
    entry: EntryPoint

    @property
    def package(self) -> str:
        """The package with its version, such as "acme 1.2"."""
        return f"{self.distribution} {self.version}"

    def load(self) -> Any:
        """Import it; a PluginError that names the package if that fails."""
        try:
            return self.entry.load()
        except (Exception, SystemExit) as error:  # the code of others may raise anything
            raise self.wrong(f"cannot be loaded: {type(error).__name__}: {first_line(error)}") from error

    def wrong(self, what: str) -> PluginError:
        """The error that something is wrong with it; `what` begins with a verb."""
        return PluginError(
            f"The {self.kind} {self.name} of the package {self.package} {what}",
            f"Repair the package, or remove it: pip uninstall {self.distribution}",
        )


def plugins(kind: str) -> list[Plugin]:
    """The plug-ins of a kind, by name; none is imported."""
    return [plugin for plugin in _all_plugins(tuple(sys.path)) if plugin.kind == kind]


def find_plugin(kind: str, name: str, own: Iterable[str]) -> Plugin | None:
    """The plug-in of that name, None if there is none; `-` and `_` are the same in names.

    Raises:
        PluginError: two packages have the name, or it is one of streamliner's `own`.
    """
    found = [plugin for plugin in plugins(kind) if _spelled(plugin.name) == _spelled(name)]
    owners = ["streamliner"] * (_spelled(name) in map(_spelled, own)) + [plugin.package for plugin in found]
    if found and len(owners) > 1:
        raise PluginError(
            f"{name} is the name of a {kind} in {' and in '.join(owners)}, so it is not clear which one is meant.",
            f"Remove a package: pip uninstall {found[-1].distribution}",
        )
    return found[0] if found else None


def _spelled(name: str) -> str:
    return name.replace("_", "-")


@functools.cache  # reading what is installed takes a tenth of a second
def _all_plugins(path: tuple[str, ...]) -> list[Plugin]:
    found = [
        Plugin(kind, entry.name, entry.dist.name, entry.dist.version, entry)
        for group, kind in KINDS.items()
        for entry in entry_points(group=f"streamliner.{group}")
        if entry.dist
    ]
    return sorted(found, key=lambda plugin: (plugin.kind, plugin.name, plugin.package))
