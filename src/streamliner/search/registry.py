"""What a method is, where methods are found, and what they share.

The folder is the registry: `search/NAME.py` holds one frozen dataclass with a `search` method; its fields are its
hyper-parameters. `path/to/file.py:Class` names a method that is not ours.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import importlib.util
import pkgutil
import sys
import types
import typing
from pathlib import Path
from typing import Any

from streamliner.errors import MethodError

if typing.TYPE_CHECKING:
    pass

from streamliner.search.method import Method


def method_names() -> list[str]:
    """Names of the methods that come with streamliner."""
    from streamliner.search import methods

    return sorted(module.name for module in pkgutil.iter_modules(methods.__path__))


def method_class(name: str) -> type:
    """The class of a method by name, or `path/to/file.py:Class`.

    Raises:
        MethodError: there is none.
    """
    if ".py:" in name:
        return _class_from_file(*name.rsplit(":", 1))
    if name not in method_names():
        close = difflib.get_close_matches(name, method_names(), 1)
        raise MethodError(
            f"There is no method {name}." + (f" Did you mean {close[0]}?" if close else ""),
            f"Methods: {', '.join(method_names())}; or path/to/file.py:Class.",
        )
    module = importlib.import_module(f"streamliner.search.methods.{name}")
    classes = [value for value in vars(module).values() if _is_method(value) and value.__module__ == module.__name__]
    return typing.cast(type, classes[0])


def make_method(name: str, settings: dict[str, Any]) -> Method:
    """The method `name` with `settings` for some of its fields; text values are turned into the fields' types.

    Raises:
        MethodError: no such method, no such setting, or a value that does not fit.
    """
    cls = method_class(name)
    hints, fields = typing.get_type_hints(cls), {field.name for field in dataclasses.fields(cls)}
    values = {}
    for key, value in settings.items():
        if key not in fields:
            raise MethodError(f"The method {name} has no setting {key}.", f"It has: {', '.join(sorted(fields))}.")
        values[key] = _typed(name, key, value, hints[key])
    method: Method = cls(**values)
    return method


def _is_method(value: Any) -> bool:
    return isinstance(value, type) and dataclasses.is_dataclass(value) and hasattr(value, "search")


def _class_from_file(file: str, class_name: str) -> type:
    path = Path(file)
    if not path.is_file():
        raise MethodError(f"There is no file {file}.", "A method of your own is named path/to/file.py:Class.")
    spec = importlib.util.spec_from_file_location(f"streamliner_method_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise MethodError(f"{file} cannot be loaded as Python.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's own code may raise anything
        raise MethodError(f"{file} cannot be loaded: {type(error).__name__}: {error}") from error
    cls = getattr(module, class_name, None)
    if not _is_method(cls):
        raise MethodError(f"{file} has no method {class_name}.", "It must be a dataclass with search(probe, limit).")
    return typing.cast(type, cls)


def _typed(method: str, key: str, value: Any, hint: Any) -> Any:
    if typing.get_origin(hint) is typing.Literal:
        choices = typing.get_args(hint)
        if value not in choices:
            raise MethodError(f"{key} of {method} must be one of {', '.join(choices)}, not {value}.")
        return value
    if isinstance(hint, types.UnionType) or not isinstance(hint, type):
        return value
    try:
        return hint(value)
    except (TypeError, ValueError) as error:
        raise MethodError(f"{key} of {method} must be of type {hint.__name__}, not {value!r}.") from error
