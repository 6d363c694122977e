"""`streamliner methods`."""

from textwrap import indent
from typing import Any

from rich.markup import escape

from streamliner.cli.command import Given, command
from streamliner.cli.console import console, print_line
from streamliner.settings import InspectSettings


@command(examples=("methods", "methods --json"), Methods=InspectSettings)
def methods(given: Given) -> None:
    """List the search methods with their score and their settings for --set, and the plug-ins."""
    from streamliner.verbs.methods import methods as list_methods

    found = list_methods()
    given.show(found, "\n".join(each["name"] for each in found if "score" in each), lambda: print_methods(found))


def print_methods(found: list[dict[str, Any]]) -> None:
    """A paragraph for each method and each plug-in."""
    for each in found:
        own = each["package"].startswith("streamliner ")
        head = each.get("paper", "") if own else f"({each['kind']} of the package {each['package']})"
        console.print(f"[bold]{escape(each['name'])}[/]  {escape(head)}", soft_wrap=True)
        lines = [each.get("error") or each["summary"]]
        if "score" in each:
            settings = ", ".join(f"{key}={value}" for key, value in each["settings"].items())
            lines += [f"score: {each['score']}", f"settings: {settings}"]
        for line in lines:
            print_line(indent(line, "  "))
        print_line("")
