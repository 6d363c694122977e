"""Quantised checkpoints: the names of modules in their settings, and the tensors that headers of their files describe.

Settings name modules outright, or by an expression that each reader understands in its own way. A name gets its block's
new number. An expression is right if it selects the same modules under their new names as it did under the old ones:
that is tried on all modules of the checkpoint, first as it is, then with the blocks' new numbers in it. Nothing is
guessed: an expression that neither makes right is refused.
"""

import fnmatch
import json
import re
from collections.abc import Callable, Collection
from functools import cached_property
from typing import Any

from streamliner.cut.rules import Removal
from streamliner.errors import UnsupportedModelError

QUANTIZATION_FILES = ("hf_quant_config.json", "quantize_config.json", "quantization_config.json", "quant_config.json")
"""Files of ModelOpt, GPTQ, AutoRound and AutoAWQ next to config.json, which name modules too."""
SPECIAL = re.compile(r"[\\*?+^$\[\](){}|]")
"""What makes an entry an expression. A dot does not: every name has dots."""
NUMBER = re.compile(r"(?:(?<=\.)|^)((?:\\d|[\d\[\]()|?:+-])*\d(?:\\d|[\d\[\]()|?:+-])*|\\d[+*]?)(?=\\?\.|\*|\$|$)")
"""The part of an expression between two dots that says which numbers it is for: `3`, `(?:18|19)`, `1[0-9]`, `\\d`."""

Matches = Callable[[str], object]


class ModuleNames:
    """The modules of a checkpoint under the names that a reader may give them, and their names in the cut model."""

    def __init__(self, tensors: Collection[str], paths: tuple[str, ...], removal: Removal) -> None:
        """`tensors` are the names on disk; `paths` say where the blocks are, in memory and, last, on disk."""
        self._tensors, self._paths, self._removal = tensors, tuple(dict.fromkeys(paths)), removal

    def renamed(self, entry: str, *, expression: bool = False) -> str | None:
        """What `entry` of the settings must be for the cut model; None if it names removed blocks alone.

        `expression` says that it is one even where it looks like a name. An UnsupportedModelError if no way is found.
        """
        plain = not (expression or SPECIAL.search(entry) or entry.startswith("re:"))
        if plain and (found := self._renamed_name(entry)) != entry:
            return found
        prefix, body = re.fullmatch(r"((?:re:|[-+]:)?)(.*)", entry, re.DOTALL).groups()  # type: ignore[union-attr]
        renumbered = NUMBER.sub(self._new_numbers, body, count=1)
        if plain and renumbered == body:
            return entry
        wanted = [self._selected(matches, new=True) for matches in _readers(prefix, body, plain, expression)]
        if not any(self._selected(matches) for matches in _readers(prefix, body, plain, expression)):
            if plain or renumbered == body:
                return entry
            raise UnsupportedModelError(f"{_REFUSED} {entry}, which matches no module of it.", _HINT)
        if not any(wanted):
            return None
        for other in (body, renumbered):
            if [self._selected_now(matches) for matches in _readers(prefix, other, plain, expression)] == wanted:
                return prefix + other
        raise UnsupportedModelError(f"{_REFUSED} {entry}, and no change of its numbers makes it right.", _HINT)

    @cached_property
    def _new_names(self) -> dict[str, str | None]:
        """Name of each tensor and of every module around it -> its new name; None in a removed block."""
        result: dict[str, str | None] = {}
        numbers, disk = self._removal.numbers, self._paths[-1]
        for tensor in self._tensors:
            parts = tensor.split(".")
            for length in range(1, len(parts) + 1):
                name = ".".join(parts[:length])
                if name in result:
                    continue
                match = re.match(rf"{re.escape(disk)}\.(\d+)(?=\.|$)", name)
                if match is None:
                    result[name] = name
                    continue
                number, tail = numbers.get(int(match[1])), name[match.end() :]
                for path in self._paths:
                    result[f"{path}.{match[1]}{tail}"] = None if number is None else f"{path}.{number}{tail}"
        return result

    def _selected(self, matches: Matches, *, new: bool = False) -> set[str]:
        """The modules that an entry selects today; with `new` those of them that stay, by their new names."""
        found = {name: renamed for name, renamed in self._new_names.items() if matches(name)}
        return {name for name in found.values() if name is not None} if new else set(found)

    def _selected_now(self, matches: Matches) -> set[str]:
        """The modules of the cut model that an entry selects."""
        return {name for name in self._new_names.values() if name is not None and matches(name)}

    def _new_numbers(self, match: re.Match[str]) -> str:
        """The new numbers of the blocks that this part of an expression is for."""
        count, numbers = self._removal.num_blocks, self._removal.numbers
        try:
            old = [index for index in range(count) if re.fullmatch(match[1], str(index))]
        except re.error:
            return match[0]
        if not old or len(old) == count:
            return match[0]
        new = [str(numbers[index]) for index in old if index in numbers]
        return new[0] if len(new) == 1 else f"(?:{'|'.join(new)})" if new else "(?!)"  # which nothing matches

    def _renamed_name(self, name: str) -> str | None:
        """The new name of a module; None in a removed block. Names in another stack, such as a tower's, stay."""
        last = re.escape(self._paths[0].split(".")[-1])
        match = re.search(rf"(?:^|(?<=\.)|(?<=[-+:])){last}\.(\d+)(?=\.|$)", name)
        if match is None:
            return name
        before = re.sub(r"^[-+:]+", "", name[: match.start()]).rstrip(".")
        if before and not any(f".{path.rpartition('.')[0]}".endswith(f".{before}") for path in self._paths):
            return name
        number = self._removal.numbers.get(int(match[1]))
        return None if number is None else f"{name[: match.start(1)]}{number}{name[match.end(1) :]}"


_REFUSED = "The quantisation settings name blocks by"
_HINT = "Write the names of the modules there one by one, then cut."


def _readers(prefix: str, body: str, plain: bool, expression: bool) -> list[Matches]:
    """The ways in which libraries ask whether an entry of the settings selects a module; all must agree on the cut."""
    if plain:  # AWQ: a part of the name
        return [lambda name: body in name]
    try:
        pattern = re.compile(body)
        if prefix == "re:":  # compressed-tensors and vLLM; torchao
            return [pattern.match, pattern.fullmatch]
        if prefix or expression:  # GPTQModel's `dynamic`
            return [pattern.match]
        # transformers: up to the end of a part of the name, or its last letters; ModelOpt and Quark: as file names.
        bounded = re.compile(rf"(?:{body})(?:(?<=\.)|(?=\.|$))")
        regex = [lambda name: bounded.match(name) or name.endswith(body)]
    except re.error as error:
        if prefix or expression:
            raise UnsupportedModelError(
                f"{_REFUSED} {prefix}{body}, which is not understood: {error}.", _HINT
            ) from error
        regex = []  # "*.mlp" is a file name's pattern alone
    return [*regex, lambda name: fnmatch.fnmatchcase(name, body)]


def renamed_modules(value: Any, names: ModuleNames, *, expressions: bool = False) -> Any:
    """The quantisation settings `value` of the cut model: names of modules are renamed in lists and as keys.

    `expressions` says that keys are regular expressions. An UnsupportedModelError if an entry cannot follow.
    """
    if isinstance(value, list):
        items = ((item, _renamed_item(item, names)) for item in value)
        return [new for old, new in items if new is not None or old is None]
    if not isinstance(value, dict):
        return value
    result = {}
    for key, item in value.items():
        new_key = names.renamed(key, expression=expressions)
        new = renamed_modules(item, names, expressions=key == "dynamic")
        # A group of compressed-tensors whose modules are all gone would be an error to its reader.
        emptied = isinstance(item, dict) and bool(item.get("targets")) and new["targets"] == []
        if new_key is not None and not emptied:
            result[new_key] = new
    return result


def _renamed_item(item: Any, names: ModuleNames) -> Any:
    return names.renamed(item) if isinstance(item, str) else renamed_modules(item, names)


def renamed_metadata(metadata: dict[str, str], prefix: str, removal: Removal) -> dict[str, str]:
    """The strings in the header of a safetensors file for the cut model; `prefix` is where the blocks are on disk.

    torchao keeps there, under the name of each tensor, how it is stored, and in `tensor_names` the list of all.
    """
    pattern, numbers = re.compile(re.escape(prefix) + r"\.(\d+)\."), removal.numbers

    def new_name(name: str) -> str | None:
        match = pattern.match(name)
        number = numbers.get(int(match[1])) if match else None
        return name if match is None else None if number is None else f"{prefix}.{number}.{name[match.end() :]}"

    renamed = {new: text for name, text in metadata.items() if (new := new_name(name)) is not None}
    if "tensor_names" in renamed:
        old = json.loads(renamed["tensor_names"])
        renamed["tensor_names"] = json.dumps([new for name in old if (new := new_name(name)) is not None])
    return renamed
