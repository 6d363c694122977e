"""`streamliner methods`."""

from typing import Any

from streamliner.cli.command import Given, command
from streamliner.cli.console import console, print_line
from streamliner.settings import InspectSettings


@command(Methods=InspectSettings)
def methods(given: Given) -> None:
    """List the search methods, what they minimise, and their settings for --set."""
    from streamliner.verbs.methods import methods as list_methods

    found = list_methods()
    given.show(found, "\n".join(method["name"] for method in found), lambda: print_methods(found))


def print_methods(found: list[dict[str, Any]]) -> None:
    """A paragraph for each method."""
    for method in found:
        console.print(f"[bold]{method['name']}[/]  {method['paper']}", soft_wrap=True)
        settings = ", ".join(f"{key}={value}" for key, value in method["settings"].items())
        for line in (method["summary"], f"score: {method['score']}", f"settings: {settings}\n"):
            print_line(f"  {line}")
