"""Networks of plug-ins. A healed checkpoint carries the source of its network's class, so that is checked first."""

import ast
import builtins
import inspect
import textwrap

from streamliner.heal.networks.feed_forward import FeedForward
from streamliner.plugins import Plugin

CARRIED = ("Any", "FeedForward", "Tensor", "functional", "nn", "torch")
"""What the class of a network finds in the file that a checkpoint carries."""


def network_of_plugin(plugin: Plugin) -> type[FeedForward]:
    """The class that a plug-in brings; a PluginError if it is broken, or its source alone is not enough."""
    cls = plugin.load()
    if not (isinstance(cls, type) and issubclass(cls, FeedForward) and cls is not FeedForward):
        raise plugin.wrong("is not a subclass of FeedForward.")
    try:
        missing = missing_names(class_source(cls))
    except OSError as error:
        raise plugin.wrong("has no source file, which a checkpoint would carry.") from error
    if missing:
        raise plugin.wrong(
            f"uses {', '.join(missing)}, and a checkpoint carries the class alone. Import what it needs in its methods."
        )
    return cls


def class_source(cls: type) -> str:
    """The source of a class, as if at the left margin of a file."""
    return textwrap.dedent(inspect.getsource(cls))


def missing_names(source: str) -> list[str]:
    """Names that the source of a class uses and neither makes, nor Python or the file in the checkpoint has."""
    used: set[str] = set()
    made = {*CARRIED, *dir(builtins), "__class__"}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name):
            (used if isinstance(node.ctx, ast.Load) else made).add(node.id)
        elif isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            made.add(node.name)
        elif isinstance(node, ast.arg):
            made.add(node.arg)
        elif isinstance(node, ast.alias):
            made.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.ExceptHandler) and node.name:
            made.add(node.name)
    return sorted(used - made)
