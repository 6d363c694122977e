"""Sections that plug-ins bring. One that fails says so in its place, and the rest of the report is written."""

from collections.abc import Callable

from streamliner.errors import PluginError, first_line
from streamliner.plugins import Plugin, plugins
from streamliner.report.read import Results
from streamliner.report.section import Section


def plugin_sections(results: Results) -> list[Section]:
    """The sections of all plug-ins, in the order of their names."""
    return [section for plugin in plugins("section") for section in _sections(plugin, results)]


def section_of_plugin(plugin: Plugin) -> Callable[[Results], list[Section]]:
    """The function that a plug-in brings; a PluginError if it is broken."""
    function: Callable[[Results], list[Section]] = plugin.load()
    if not callable(function):
        raise plugin.wrong("is not a function from Results to a list of Section.")
    return function


def _sections(plugin: Plugin, results: Results) -> list[Section]:
    try:
        function = section_of_plugin(plugin)
        try:
            found = function(results)
        except Exception as error:  # the code of others may raise anything
            raise plugin.wrong(f"failed: {type(error).__name__}: {first_line(error)}") from error
        if not (isinstance(found, list) and all(isinstance(each, Section) for each in found)):
            raise plugin.wrong("did not return a list of Section.")
    except PluginError as error:
        return [Section(plugin.name, [str(error.args[0]), error.hint])]
    return found
