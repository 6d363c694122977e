"""Search methods by name. The folder `methods/` is the registry: each file in it holds one method.

On the command line `methods/block_influence.py` is `block-influence`. Packages may bring others (`plugins.py`), and
`path/to/file.py:Class` is a user's own method.
"""

import dataclasses
import importlib
import importlib.util
import pkgutil
import sys
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from streamliner.errors import MethodError, did_you_mean
from streamliner.plugins import Plugin, find_plugin, plugins
from streamliner.search import methods
from streamliner.search.method import Method

WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
NEEDED = ("score", "protect_first", "protect_last", "search")
"""What the class of a method has."""


def method_names() -> list[str]:
    """Names of the methods that come with streamliner."""
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(methods.__path__))


def full_name(name: str) -> str:
    """The name of a method as it is recorded; earlier releases wrote underscores (`block_influence`)."""
    return name if ".py:" in name else name.replace("_", "-")


def method_class(name: str) -> type[Method]:
    """The class of a method by name, or from `path/to/file.py:Class`.

    Raises:
        MethodError: there is none.
        PluginError: it is a plug-in, and broken or ambiguous.
    """
    if ".py:" in name:
        return _class_from_file(*name.rsplit(":", 1))
    known = method_names()
    if (plugin := find_plugin("method", name, known)) is not None:
        return class_of_plugin(plugin)
    if full_name(name) not in known:
        known += [plugin.name for plugin in plugins("method")]
        hint = did_you_mean(name, known, f"Methods: {', '.join(known)}; or path/to/file.py:Class.")
        raise MethodError(f"There is no method {name}.", hint)
    return own_method(name)


def own_method(name: str) -> type[Method]:
    """The class of a method that comes with streamliner."""
    module = importlib.import_module(f"{methods.__name__}.{name.replace('-', '_')}")
    classes = [value for value in vars(module).values() if _is_method(value) and value.__module__ == module.__name__]
    return typing.cast(type[Method], classes[0])


def make_method(name: str, settings: Mapping[str, Any] | None = None) -> Method:
    """The search method `name`, with some of its fields set; text is converted to the type of the field.

    A MethodError if there is no such method or setting, or a value does not fit.
    """
    cls, settings = method_class(name), settings or {}
    hints, fields = typing.get_type_hints(cls), {field.name for field in dataclasses.fields(cls)}
    for key in sorted(settings.keys() - fields):
        hint = did_you_mean(key, sorted(fields), f"It has: {', '.join(sorted(fields))}.")
        raise MethodError(f"The method {name} has no setting {key}.", hint)
    return cls(**{key: _converted(name, key, value, hints[key]) for key, value in settings.items()})


def class_of_plugin(plugin: Plugin) -> type[Method]:
    """The method that a plug-in brings; a PluginError if it is broken."""
    cls = plugin.load()
    missing = [name for name in NEEDED if not hasattr(cls, name)]
    if not _is_method(cls) or missing:
        raise plugin.wrong(f"is not a dataclass with {', '.join(missing or NEEDED)} (see `Method`, search/method.py).")
    return typing.cast(type[Method], cls)


def _is_method(value: object) -> bool:
    return isinstance(value, type) and dataclasses.is_dataclass(value) and hasattr(value, "search")


def _class_from_file(file: str, class_name: str) -> type[Method]:
    path = Path(file)
    if not path.is_file():
        raise MethodError(f"There is no file {file}.", "Your own method is named path/to/file.py:Class.")
    spec = importlib.util.spec_from_file_location(f"streamliner_method_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise MethodError(f"{file} cannot be loaded as Python.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's code may raise anything
        raise MethodError(f"{file} cannot be loaded: {type(error).__name__}: {error}") from error
    cls = getattr(module, class_name, None)
    if cls is None:
        names = [name for name, value in vars(module).items() if _is_method(value) and value.__module__ == spec.name]
        hint = did_you_mean(class_name, names, f"Its methods: {', '.join(names) or 'none'}.")
        raise MethodError(f"{file} has no method {class_name}.", hint)
    missing = [name for name in NEEDED if not hasattr(cls, name)]
    if not _is_method(cls) or missing:
        what = f"{class_name} in {file} is not a dataclass with {', '.join(missing or NEEDED)}."
        raise MethodError(what, "See docs/tutorials/own-method.md.")
    return typing.cast(type[Method], cls)


def _converted(method: str, key: str, value: Any, hint: Any) -> Any:
    """`value` as the type of the field `key`."""
    choices = typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else (value,)
    if value not in choices:
        hint = did_you_mean(str(value), choices)
        raise MethodError(f"{key} of {method} must be one of {', '.join(choices)}, not {value}.", hint)
    if isinstance(hint, types.UnionType) or not isinstance(hint, type):
        return value
    if hint is bool:
        value = WORDS.get(str(value).lower(), value)
        if not isinstance(value, bool):
            raise MethodError(f"{key} of {method} must be true or false, not {value!r}.")
    try:
        return hint(value)
    except (TypeError, ValueError) as error:
        raise MethodError(f"{key} of {method} must be of type {hint.__name__}, not {value!r}.") from error
