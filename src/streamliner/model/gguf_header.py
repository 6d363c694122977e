"""What a GGUF file says before its weights: keys, and names of tensors."""

import math
import mmap
import struct
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from streamliner.errors import ModelError, first_line

VERSIONS = (2, 3)
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY, FLOAT32 = 8, 9, 0
"""Versions of the format, and its types of values: numbers with their codes in `struct`; the type of a tensor."""
ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


@dataclass(frozen=True)
class Header:
    """What a GGUF file says before its weights."""

    architecture: str
    keys: dict[str, Any]  # numbers, strings and lists of numbers; those of the tokenizer that are lists are left out
    tensors: tuple[str, ...]
    factors: dict[str, list[float]] = field(default_factory=dict)  # the tensors named in ROPE_TENSORS

    def own(self, name: str) -> Any:
        """The value of a key of the architecture, None if there is none."""
        return self.keys.get(f"{self.architecture}.{name}")


@lru_cache(maxsize=8)
def read_header(path: Path) -> Header:
    """Read what is before the weights of a GGUF file; a ModelError if it is broken.

    Not by the reader of `gguf`, which takes ten seconds for a large vocabulary.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _parse(_Cursor(data))
    except (ValueError, struct.error, KeyError, UnicodeDecodeError, OverflowError) as error:
        raise ModelError(
            f"The GGUF file {path} is broken: {first_line(error)}", "Download or copy it again."
        ) from error


class _Cursor:
    """Reads values one after another, and never past the end."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 0

    def numbers(self, code: str, count: int = 1) -> tuple[Any, ...]:
        if count * struct.calcsize(f"<{code}") > len(self.data) - self.at:
            raise ValueError("it ends too early")
        form = struct.Struct(f"<{count}{code}")
        found = form.unpack_from(self.data, self.at)
        self.at += form.size
        return found

    def number(self, code: str) -> Any:
        return self.numbers(code)[0]

    def text(self) -> str:
        length = self.number("Q")
        if length > len(self.data) - self.at:
            raise ValueError("it ends too early")
        self.at += length
        return self.data[self.at - length : self.at].decode()

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            return self.number(NUMBERS[kind])
        inner, count = self.numbers("I")[0], self.number("Q")
        if inner in NUMBERS:
            return list(self.numbers(NUMBERS[inner], count))
        if count > len(self.data) - self.at:
            raise ValueError("it ends too early")
        return [self.value(inner) for _ in range(count)]


def _parse(cursor: _Cursor) -> Header:
    if cursor.data[:4] != b"GGUF":
        raise ValueError("it does not begin with the letters GGUF")
    cursor.at = 4
    version, tensors, count = *cursor.numbers("I"), *cursor.numbers("Q", 2)
    if version not in VERSIONS:
        raise ValueError(f"its version is {version}, and only {' and '.join(map(str, VERSIONS))} can be read")
    keys: dict[str, Any] = {}
    for _ in range(count):
        name = cursor.text()
        value = cursor.value(cursor.number("I"))
        if not (name.startswith("tokenizer.") and isinstance(value, list)):
            keys[name] = value
    places = {}
    for _ in range(tensors):
        name = cursor.text()
        shape = cursor.numbers("Q", cursor.number("I"))
        places[name] = (math.prod(shape), *cursor.numbers("I"), cursor.number("Q"))
    alignment = keys.get("general.alignment", 32)
    start = -(-cursor.at // alignment) * alignment
    factors = {}
    for name in ROPE_TENSORS:
        if name in places and places[name][1] == FLOAT32:
            size, _, cursor.at = places[name]
            cursor.at += start
            factors[name] = list(cursor.numbers("f", size))
    return Header(keys["general.architecture"], keys, tuple(places), factors)
