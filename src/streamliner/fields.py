"""A setting is named once: a field of a frozen dataclass in `settings.py`.

From the field come the flag of the command line with its help, the key in a `--config` file, and the keyword in
Python. This module has what such a field may say, and how text becomes a value. It imports nothing heavy.
"""

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from streamliner.errors import UserError, did_you_mean
from streamliner.plugins import find_plugin, plugins

P = ParamSpec("P")
Subject = TypeVar("Subject")
Settings = TypeVar("Settings")
Result = TypeVar("Result")

KINDS: tuple[Any, ...] = (str, bool, int, float)
"""What the command line can read, in the order of preference in a union."""


@dataclasses.dataclass(frozen=True)
class Flag:
    """How a setting appears on the command line.

    Attributes:
        help: noun phrase for `--help`.
        names: the flags; empty for `--field-name`.
        metavar: what the help shows for the value.
        choices: the values allowed; empty for any.
        plugins: the kind of plug-ins whose names are allowed too.
        minimum: the least value allowed.
        repeatable: whether the flag may be given several times.
        weighted: whether these are names with weights, "NAME[=W]": the setting is then a mapping.
        python_only: whether the setting takes an object, and so has no flag.
    """

    help: str = ""
    names: tuple[str, ...] = ()
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    plugins: str = ""
    minimum: float | None = None
    repeatable: bool = False
    weighted: bool = False
    python_only: bool = False


def flag(default: Any, help: str, *names: str, **more: Any) -> Any:
    """A dataclass field with a default and a `Flag`."""
    return dataclasses.field(default=default, metadata={"flag": Flag(help, names, **more)})


def flags_of(settings: type) -> dict[str, Flag]:
    """The flags of a settings class by field."""
    return {each.name: each.metadata["flag"] for each in dataclasses.fields(settings)}


def default_of(settings: type, field: str) -> Any:
    """The default of a field."""
    return next(each.default for each in dataclasses.fields(settings) if each.name == field)


def long_name(settings: type, field: str) -> str:
    """What a user types for a field, such as "--num-samples"."""
    names = [name for name in flags_of(settings)[field].names if name.startswith("--")]
    return names[0] if names else f"--{field.replace('_', '-')}"


def kind_of(settings: type, field: str) -> Any:
    """The type in which the command line reads a field: bool, int, float, str, or a list of str if repeatable."""
    if flags_of(settings)[field].repeatable:
        return list[str]
    annotation = next(each.type for each in dataclasses.fields(settings) if each.name == field)
    words = re.findall(r"\w+", str(annotation))
    return next((kind for kind in KINDS if kind.__name__ in words), str)


def check_values(settings: Any) -> None:
    """Raise UserError if a value is not among its flag's choices, or less than its minimum."""
    for field, flag in flags_of(type(settings)).items():
        value = getattr(settings, field)
        if value is None or flag.python_only:
            continue
        name = long_name(type(settings), field)
        if flag.choices and value not in flag.choices:
            _check_plugin(name, flag, str(value))
        if flag.minimum is not None and not value >= flag.minimum:
            raise UserError(f"{name} must be at least {flag.minimum:g}, not {value}.")


def _check_plugin(name: str, flag: Flag, value: str) -> None:
    """Raise UserError unless a plug-in has the name that is none of the flag's choices."""
    if not flag.plugins or find_plugin(flag.plugins, value, flag.choices) is None:
        known = (*flag.choices, *(each.name for each in plugins(flag.plugins)))
        choose = f"Choose one of {', '.join(known)}."
        raise UserError(f"{name} has no {value}.", did_you_mean(value, known, choose))


def recorded(settings: Any) -> dict[str, Any]:
    """The values of settings as a JSON value; objects that Python users passed are left out."""
    values = {field: getattr(settings, field) for field in flags_of(type(settings))}
    return {field: plain(value) for field, value in values.items() if is_plain(value)}


def is_plain(value: Any) -> bool:
    """Whether JSON can hold a value."""
    if isinstance(value, Mapping):
        return all(is_plain(item) for item in value.values())
    if isinstance(value, (list, tuple)):
        return all(is_plain(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str, Path))


def plain(value: Any) -> Any:
    """Tuples as lists, mappings as dicts, paths as text."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def with_keywords(
    settings: Callable[P, Settings],
) -> Callable[[Callable[[Subject, Settings], Result]], Callable[Concatenate[Subject, P], Result]]:
    """Give a function of a subject and a settings object the settings' fields as keywords, with their types."""

    def decorate(function: Callable[[Subject, Settings], Result]) -> Callable[Concatenate[Subject, P], Result]:
        @functools.wraps(function)
        def call(subject: Subject, /, *args: P.args, **keywords: P.kwargs) -> Result:
            known = flags_of(settings)  # type: ignore[arg-type]
            for name in sorted(keywords.keys() - known):
                hint = did_you_mean(name, known, f"help({function.__name__}) names all.")
                raise TypeError(f"{function.__name__} has no setting {name}. {hint}")
            return function(subject, settings(*args, **keywords))

        first, *_ = inspect.signature(function).parameters.values()
        fields = inspect.signature(settings).parameters.values()
        call.__signature__ = inspect.Signature([first, *fields])  # type: ignore[attr-defined]
        helps = (f"    {name}: {each.help}." for name, each in flags_of(settings).items() if each.help)  # type: ignore[arg-type]
        call.__doc__ = f"{inspect.getdoc(function)}\n\nSettings:\n" + "\n".join(helps)
        return call

    return decorate


def number(text: str | float, flag: str, unit: str) -> int:
    """A count or size in decimal units: "500MB", "60M", "1.3G" or a number; a UserError if it is none, or below 1."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kMGT]?)B?", str(text).strip(), re.IGNORECASE)
    count = round(float(match[1]) * 1000 ** " kmgt".index(match[2].lower() or " ")) if match else 0
    if count < 1:
        raise UserError(f"{flag} {text} is not a number of {unit}.", f"Write for instance {flag} 500M or 2G.")
    return count


def seconds(text: str | float, flag: str) -> float:
    """A time: "90s", "10m", "2h", or seconds as a number; a UserError if it is none."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([smh]?)", str(text).strip(), re.IGNORECASE)
    found = float(match[1]) * {"s": 1, "": 1, "m": 60, "h": 3600}[match[2].lower()] if match else 0.0
    if not found:
        raise UserError(f"{flag} {text} is not a time.", f"Write for instance {flag} 90s, 10m or 2h.")
    return found


def names(value: str | Iterable[str]) -> tuple[str, ...]:
    """Names from a list, or from text with commas between them."""
    parts = value.split(",") if isinstance(value, str) else value
    return tuple(part.strip() for part in parts if part.strip())


def weights(value: str | Iterable[Any] | Mapping[str, float], flag: str) -> tuple[tuple[str, float], ...]:
    """Names with weights: "a", ["a", "b=0.5"], [["a", 1.0]] or {"a": 1.0} -> (("a", 1.0), ("b", 0.5)).

    A UserError if a weight is not a number above 0.
    """
    if isinstance(value, Mapping):
        pairs: list[tuple[Any, Any]] = list(value.items())
    else:
        items = [value] if isinstance(value, str) else value
        pairs = [_pair(item) if isinstance(item, str) else tuple(item) for item in items]
    result = []
    for name, weight in pairs:
        try:
            result.append((str(name), float(weight)))
        except (TypeError, ValueError) as error:
            raise UserError(f"{flag} {name}={weight}: that is not a weight.", f"Write {flag} {name}=0.5.") from error
        if not 0 < result[-1][1] < float("inf"):
            raise UserError(f"The weight of {flag} {name} must be more than 0, not {weight}.")
    return tuple(result)


def _pair(text: str) -> tuple[str, str]:
    name, equals, weight = text.rpartition("=")
    is_path = any(Path(each).expanduser().exists() for each in (text, text.rpartition(":")[0]) if each)
    return (name, weight) if equals and not is_path else (text, "1")  # a folder may be called year=2024


def pairs(value: Iterable[str] | Mapping[str, Any], flag: str) -> dict[str, Any]:
    """KEY=VALUE texts as a dict. A UserError if a text has no "="."""
    if isinstance(value, Mapping):
        return dict(value)
    result = {}
    for text in value:
        key, equals, item = text.partition("=")
        if not equals:
            raise UserError(f"{flag} {text} is not KEY=VALUE.", f"Write for instance {flag} metric=one-shot.")
        result[key] = item
    return result
