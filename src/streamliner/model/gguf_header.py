"""What a GGUF file says before its weights: keys, and names of tensors."""

import math
import mmap
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from streamliner.errors import ModelError, first_line

VERSIONS = (2, 3)
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
BOOL, STRING, ARRAY, FLOAT32 = 7, 8, 9, 0
"""Versions of the format, and its types of values: numbers with their codes in `struct`; the type of a tensor."""
FLOATS = {0: "<f4", 1: "<f2"}
"""Types of tensors that are numbers of numpy: float32 and float16."""
ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


ALIGNMENT = 32
"""What tensors are aligned to in a file that does not say it."""


@dataclass(frozen=True)
class Entry:
    """Where a key with its value is in the file."""

    begin: int
    value: int  # where the type of the value is, followed by the value
    end: int


@dataclass(frozen=True)
class TensorPlace:
    """Where a tensor is in the file."""

    shape: tuple[int, ...]
    kind: int  # the number of its type
    begin: int

    @property
    def nbytes(self) -> int:
        """Size of the tensor; a ModelError if its type is unknown to the gguf library."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        try:
            values, size = GGML_QUANT_SIZES[GGMLQuantizationType(self.kind)]
        except (ValueError, KeyError) as error:
            unknown = f"A tensor has the type number {self.kind}, which the installed gguf library does not know."
            raise ModelError(unknown, "Try a newer one: pip install -U gguf") from error
        return math.prod(self.shape) // int(values) * int(size)


@dataclass(frozen=True)
class Header:
    """What a GGUF file says before its weights."""

    architecture: str
    keys: dict[str, Any]  # numbers, strings and lists of numbers; those of the tokenizer that are lists are left out
    tensors: tuple[str, ...]
    factors: dict[str, list[float]] = field(default_factory=dict)  # the tensors named in ROPE_TENSORS
    version: int = VERSIONS[-1]
    alignment: int = ALIGNMENT
    entries: dict[str, Entry] = field(default_factory=dict)  # all keys, also those of the tokenizer
    places: dict[str, TensorPlace] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)  # of the lists of the tokenizer

    def own(self, name: str) -> Any:
        """The value of a key of the architecture, None if there is none."""
        return self.keys.get(f"{self.architecture}.{name}")


def read_header(path: Path) -> Header:
    """Read what is before the weights of a GGUF file; a ModelError if it is broken.

    Not by the reader of `gguf`, which takes ten seconds for a large vocabulary.
    """
    state = path.stat()
    return _read(path, state.st_size, state.st_mtime_ns)


def read_headers(paths: Sequence[Path]) -> Header:
    """The header of a file that may be split: the keys of the first part, the tensors of all, without their places.

    A ModelError if one is broken, or if parts are missing.
    """
    headers = [read_header(path) for path in paths]
    if len(headers) == 1:
        return headers[0]
    tensors = tuple(name for header in headers for name in header.tensors)
    wanted = headers[0].keys.get("split.tensors.count", len(tensors))
    if len(tensors) != wanted or len(set(tensors)) != wanted:
        raise ModelError(f"The parts of {paths[0]} have {len(tensors)} tensors, not {wanted}.", "Download them again.")
    factors = {name: value for header in headers for name, value in header.factors.items()}
    return replace(headers[0], tensors=tensors, factors=factors, places={})


def check_whole(path: Path) -> None:
    """Raise ModelError if a GGUF file ends before its last tensor does; reads the header alone."""
    end, size = max((place.begin + place.nbytes for place in read_header(path).places.values()), default=0), path.stat()
    if end > size.st_size:
        found = f"it has {size.st_size:,} bytes, and its tensors end at byte {end:,}"
        raise ModelError(f"The GGUF file {path} is broken: {found}.", "Download or copy it again.")


@lru_cache(maxsize=8)
def _read(path: Path, size: int, changed: int) -> Header:
    """`size` and `changed` make a file that was replaced another one."""
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

    def skip_list(self) -> int:
        """Pass over a list, of texts without reading them, and return its length."""
        inner, count = self.numbers("I")[0], self.number("Q")
        if inner in NUMBERS:
            size = count * struct.calcsize(NUMBERS[inner])
            if size > len(self.data) - self.at:
                raise ValueError("it ends too early")
            self.at += size
        elif inner == STRING:
            data, at, length = self.data, self.at, struct.Struct("<Q").unpack_from
            for _ in range(count):
                at += 8 + length(data, at)[0]
            if at > len(data):
                raise ValueError("it ends too early")
            self.at = at
        else:
            raise KeyError(inner)
        return int(count)


def _parse(cursor: _Cursor) -> Header:
    if cursor.data[:4] != b"GGUF":
        raise ValueError("it does not begin with the letters GGUF")
    cursor.at = 4
    version, tensors, count = *cursor.numbers("I"), *cursor.numbers("Q", 2)
    if version not in VERSIONS:
        raise ValueError(f"its version is {version}, and only {' and '.join(map(str, VERSIONS))} can be read")
    keys, entries, lengths = dict[str, Any](), dict[str, Entry](), dict[str, int]()
    for _ in range(count):
        begin, name, kind_at = cursor.at, cursor.text(), cursor.at
        kind = cursor.number("I")
        if kind == ARRAY and name.startswith("tokenizer."):
            lengths[name] = cursor.skip_list()
        else:
            keys[name] = cursor.value(kind)
        if name in entries:
            raise ValueError(f"it has the key {name} twice")
        entries[name] = Entry(begin, kind_at, cursor.at)
    described = dict[str, tuple[tuple[int, ...], int, int]]()
    for _ in range(tensors):
        name = cursor.text()
        if name in described:
            raise ValueError(f"it has the tensor {name} twice")
        shape = cursor.numbers("Q", cursor.number("I"))
        described[name] = shape, cursor.number("I"), cursor.number("Q")
    alignment = keys.get("general.alignment", ALIGNMENT)
    if type(alignment) is not int or alignment < 1:
        raise ValueError(f"its alignment is {alignment!r}")
    start = -(-cursor.at // alignment) * alignment
    places = {name: TensorPlace(shape, kind, start + offset) for name, (shape, kind, offset) in described.items()}
    factors = {}
    for name in ROPE_TENSORS:
        if name in places and places[name].kind == FLOAT32:
            cursor.at = places[name].begin
            factors[name] = list(cursor.numbers("f", math.prod(places[name].shape)))
    # The parts of a split file after the first have no keys but those about the split.
    architecture = keys.get("general.architecture", "") if keys.get("split.no") else keys["general.architecture"]
    return Header(architecture, keys, tuple(places), factors, version, alignment, entries, places, lengths)
