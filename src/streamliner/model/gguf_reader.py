"""The reader with which transformers loads a GGUF file. The one of `gguf` makes two arrays of every token: seconds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from streamliner.model.gguf_header import ARRAY, FLOATS, STRING, TensorPlace, read_header

TOKENS = "tokenizer.ggml.tokens"


class Field(NamedTuple):
    """A key as `gguf.ReaderField` has it: `parts[index]` for each `index` of `data` are the values."""

    parts: Sequence[Any]
    data: Sequence[int]
    types: list[int]


class Tensor(NamedTuple):
    """A tensor as `gguf.ReaderTensor` has it; `data` is in the file until it is used."""

    name: str
    tensor_type: Any  # of gguf.GGMLQuantizationType
    data: np.ndarray[Any, Any]


class QuickReader:
    """Takes the place of `gguf.GGUFReader` for `transformers`; see `compat.quick_gguf`.

    It has all keys but the tokenizer's lists. Of these it has the tokens, as empty texts: a config needs their number.
    """

    def __init__(self, path: str | Path) -> None:
        header = read_header(Path(path))
        self.fields = {name: _field(name, value) for name, value in header.keys.items()}
        if (count := header.lengths.get(TOKENS)) is not None:
            self.fields[TOKENS] = Field([b""], [0] * count, [ARRAY, STRING])
        data = np.memmap(path, np.uint8, "r")
        self.tensors = [Tensor(name, *stored(data, place)) for name, place in header.places.items()]


def stored(file: np.ndarray[Any, Any], place: TensorPlace) -> tuple[Any, np.ndarray[Any, Any]]:
    """The type of a tensor, and its values as `gguf.dequantize` takes them, from the bytes of its whole file."""
    from gguf import GGMLQuantizationType, quant_shape_to_byte_shape

    kind, data = GGMLQuantizationType(place.kind), file[place.begin : place.begin + place.nbytes]
    shape = tuple(reversed(place.shape))
    if (code := FLOATS.get(place.kind)) is not None:
        return kind, data.view(code).reshape(shape)
    return kind, data.reshape(quant_shape_to_byte_shape(shape, kind))


def _field(name: str, value: Any) -> Field:
    start = [np.array([len(name)]), name.encode(), np.array([0])]  # as before the values of the library's own
    values = value if isinstance(value, list) else [value]
    kinds = [_kind(each) for each in values[:1]]
    parts = [each.encode() if isinstance(each, str) else [each] for each in values]
    indices = range(len(start), len(start) + len(parts))
    return Field([*start, *parts], indices, [ARRAY, *kinds] if isinstance(value, list) else kinds)


def _kind(value: Any) -> int:
    """The number of a type that a value can have in a file."""
    return {bool: 7, int: 11, float: 12, str: STRING}[type(value)]
