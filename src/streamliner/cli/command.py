"""A verb of the command line, made from settings: flags, `--config` and their values as settings objects."""

import errno
import inspect
import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer

from streamliner.cli.console import fail
from streamliner.errors import Interrupted, StreamlinerError, UserError, interruption
from streamliner.fields import Flag, default_of, flags_of, kind_of, long_name, weights
from streamliner.settings import ModelSettings

Settings = TypeVar("Settings")
OUTPUT = "Output"
METAVARS = {bool: " ", int: "N", float: "X"}
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)
DISK_HINT = "Make room or choose another place; what a run folder has is kept, and the same command continues."
"""Errors of a disk, which say nothing about the program."""
OUTPUT_FIELDS = ("run", "output", "verify", "overwrite", "quiet", "push_to_hub", "private")

CONFIG = Annotated[Path | None, typer.Option(help="YAML file of settings", metavar="FILE", rich_help_panel=OUTPUT)]
RECIPE = Annotated[str | None, typer.Option(help="Ready-made settings: quick, good, best or paper", metavar="NAME")]
JSON = Annotated[bool, typer.Option("--json", help="One JSON value on stdout", metavar=" ", rich_help_panel=OUTPUT)]


@dataclass(frozen=True)
class Argument:
    """A positional argument, or an option that must be given.

    Attributes:
        name: its key in a `--config` file.
        help: noun phrase for `--help`.
        metavar: what the help shows.
        flags: of an option; empty for a positional argument.
        several: whether it takes one or more values.
    """

    name: str
    help: str
    metavar: str
    flags: tuple[str, ...] = ()
    several: bool = False

    def parameter(self) -> inspect.Parameter:
        """For typer. It is optional there, as a config file may hold it."""
        kind: Any = list[str] if self.several else str
        if self.flags:
            info: Any = typer.Option(*self.flags, help=self.help, metavar=self.metavar, rich_help_panel=OUTPUT)
        else:
            info = typer.Argument(help=self.help, metavar=self.metavar)
        return _parameter(self.name, Annotated[kind | None, info], None)


MODEL = Argument("model", "Hub id, folder or GGUF file", "MODEL")
MODELS = Argument("models", "Hub ids, folders or GGUF files", "MODEL...", several=True)


class Given:
    """What the user gave to a verb: on the command line, or in a config file.

    Attributes:
        json: whether to print JSON.
        quiet: whether to print the path of the result alone.
        names: the names given, neither left at their defaults nor a recipe's.
    """

    def __init__(self, values: Mapping[str, Any], *, json: bool, recipe: Mapping[str, Any] | None = None) -> None:
        self._values, self.json, self.names = {**(recipe or {}), **values}, json, set(values)
        self.quiet = bool(values.get("quiet"))

    def value(self, name: str) -> Any:
        """The value that was given or that the recipe has, None without one."""
        return self._values.get(name)

    def argument(self, argument: Argument) -> Any:
        """The value of an argument. A UserError if it was not given."""
        value = self._values.get(argument.name)
        if not value:
            name = argument.flags[0] if argument.flags else argument.metavar
            raise UserError(f"{name} is missing: {argument.help}.", f"Add it, or `{argument.name}:` in --config FILE.")
        return [value] if argument.several and isinstance(value, str) else value

    def settings(self, cls: Callable[..., Settings]) -> Settings:
        """A settings object from the values given."""
        fields = flags_of(cls)  # type: ignore[arg-type]
        values = {name: value for name, value in self._values.items() if name in fields}
        for name, value in values.items():
            if kind_of(cls, name) is float and isinstance(value, str):  # type: ignore[arg-type]
                values[name] = _float(value, long_name(cls, name))  # type: ignore[arg-type]
            if fields[name].weighted and isinstance(value, list):
                named = dict(weights(value, long_name(cls, name)))  # type: ignore[arg-type]
                values[name] = next(iter(named)) if len(named) == 1 else named
        return cls(**values)

    def show(self, value: Any, path: Any, table: Callable[[], None]) -> None:
        """Print a result: as JSON, or its path alone if quiet, otherwise as a table."""
        if self.json:
            from streamliner.runs.files import finite

            print(json.dumps(finite(value), indent=2, ensure_ascii=False))
        elif not self.quiet:
            table()
        elif path is not None:
            print(path)

    def stopped(self, what: str, path: Any) -> NoReturn:
        """End the command, whose results so far were shown, as Ctrl-C ends one."""
        if self.json:  # which says so, and must be alone on the standard output
            raise SystemExit(Interrupted.exit_code)
        raise Interrupted(what, f"The results so far are above{f' and in {path}' if path else ''}.")


Verb = Callable[[Given], None]


def command(
    *arguments: Argument,
    examples: tuple[str, ...],
    without: tuple[str, ...] = (),
    recipes: bool = False,
    **panels: type,
) -> Callable[[Verb], Callable[..., None]]:
    """Make a typer command of a function that takes what was given.

    Args:
        arguments: the positional arguments and required options.
        examples: command lines that the help ends with, without "streamliner".
        without: fields that this verb does not have.
        recipes: whether it takes `--recipe`.
        panels: settings classes by the heading under which the help shows their flags. A field that two classes share
            is one flag.
    """

    def decorate(verb: Verb) -> Callable[..., None]:
        parameters = [argument.parameter() for argument in arguments]
        known = {argument.name for argument in arguments}
        for panel, settings in panels.items():
            for name, flag in flags_of(settings).items():
                if not flag.python_only and name not in known and name not in without:
                    known.add(name)
                    parameters.append(_option(settings, name, flag, OUTPUT if name in OUTPUT_FIELDS else panel))

        def callback(ctx: typer.Context, **values: Any) -> None:
            config, json, recipe = values.pop("config"), values.pop("json"), values.pop("recipe", None)
            typed = {name: value for name, value in values.items() if _was_typed(ctx, name)}
            from streamliner.runs.yaml_config import read_config, read_recipe

            silence: AbstractContextManager[None] = nullcontext()
            if ModelSettings in panels.values():  # verbs without models start faster without torch
                from streamliner.model.load import silenced_transformers

                silence = silenced_transformers()
            try:
                with silence:
                    chosen = (read_config(config, known) if config else {}) | typed
                    usual = read_recipe(recipe, known, chosen) if recipe else {}
                    verb(Given(chosen, json=json, recipe=usual))
            except (Exception, Interrupted) as error:
                told = interruption(error) or _told(error)
                if told is None:
                    raise
                fail(told, callback.__name__, as_json=json)

        extra = [_parameter("config", CONFIG, None), _parameter("json", JSON, False)]
        extra += [_parameter("recipe", RECIPE, None)] if recipes else []
        context = inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
        callback.__signature__ = inspect.Signature([context, *parameters, *extra])  # type: ignore[attr-defined]
        callback.__annotations__ = {each.name: each.annotation for each in (context, *parameters, *extra)}
        callback.examples = examples  # type: ignore[attr-defined]
        callback.__name__, callback.__doc__ = verb.__name__.removesuffix("_"), verb.__doc__
        return callback

    return decorate


def _told(error: BaseException) -> StreamlinerError | None:
    """An error as it is printed; None if it is a mistake of this program."""
    if isinstance(error, OSError) and error.errno in DISK:
        return StreamlinerError(f"{error.strerror}: {error.filename or 'the disk'}.", DISK_HINT)
    return error if isinstance(error, StreamlinerError) else None


def _float(text: str, name: str) -> float:
    """A number that YAML took for text, such as 3e-4."""
    try:
        return float(text)
    except ValueError as error:
        raise UserError(f"{name} {text} is not a number.", f"Write for instance {name} 0.1.") from error


def _was_typed(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name not in ("DEFAULT", "DEFAULT_MAP")


def _option(settings: type, name: str, flag: Flag, panel: str) -> inspect.Parameter:
    default = default_of(settings, name)
    kind = kind_of(settings, name)
    choices = ", ".join((*flag.choices, *["a plug-in"] * bool(flag.plugins)))
    help_text = flag.help + (f": {choices}" if choices and ":" not in flag.help else "")
    if isinstance(default, (int, float, str)) and not isinstance(default, bool):
        help_text += f" [dim](default: {default})[/]"
    names = flag.names if flag.names or (kind is bool and default) else (f"--{name.replace('_', '-')}",)
    metavar = flag.metavar or METAVARS.get(kind, "NAME")
    info = typer.Option(*names, help=help_text, metavar=metavar, rich_help_panel=panel, show_default=False)
    return _parameter(name, Annotated[kind if kind is bool else kind | None, info], default if kind is bool else None)


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
