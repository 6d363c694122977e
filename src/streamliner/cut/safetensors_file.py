"""Read and write safetensors files one tensor at a time, whatever their types: a JSON header, then the bytes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from io import FileIO
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from streamliner.cut.file_copy import FILE_BLOCK, copy_range, pieces, write_all
from streamliner.errors import ModelError
from streamliner.model.source import INDEX_FILE, check_safetensors_file, read_index

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Types that can be computed with. Tensors of all others, such as quantised ones, are only copied."""


@dataclass(frozen=True)
class TensorFile:
    """A safetensors file."""

    path: Path
    tensors: dict[str, dict[str, Any]]  # name -> dtype, shape and data_offsets, as the header has them
    metadata: dict[str, str]  # further strings in the header
    data_start: int  # the position of the first tensor's bytes
    num_tensors: int  # in the header; `tensors` may have fewer
    other_metadata: bool = False  # whether `metadata` is no longer that of the file

    def unchanged(self, name: str) -> NewTensor:
        """The tensor `name`, to be copied or loaded as it is."""
        header = self.tensors[name]
        return NewTensor(self, name, header["dtype"], tuple(header["shape"]))

    def num_bytes(self, name: str) -> int:
        """Size of the tensor `name`."""
        begin, end = self.tensors[name]["data_offsets"]
        return int(end) - int(begin)


@dataclass(frozen=True)
class NewTensor:
    """A tensor to write."""

    file: TensorFile  # where it comes from; for one that is in no file, where the tensors next to it come from
    old_name: str  # its name there, or "" if it is not there
    dtype: str  # as a header has it, such as "BF16"
    shape: tuple[int, ...]  # after any change
    make: Callable[[], Tensor] | None = None  # computes the tensor; None where its bytes are copied

    def load(self) -> Tensor:
        """The tensor itself."""
        if self.make is not None:
            return self.make()
        with safe_open(self.file.path, framework="pt") as opened:
            return opened.get_tensor(self.old_name)  # type: ignore[no-any-return]

    def has_bytes_of(self, other: NewTensor, most: int | None = None) -> bool:
        """Whether the bytes in both files, or the first `most` of them, are the same."""
        return all(one == another for one, another in zip_longest(self.pieces(most), other.pieces(most)))

    def pieces(self, most: int | None = None) -> Iterator[bytes]:
        """The bytes in the file, or the first `most` of them."""
        begin, size = self.file.tensors[self.old_name]["data_offsets"][0], self.file.num_bytes(self.old_name)
        return pieces(self.file.path, self.file.data_start + begin, size if most is None else min(most, size))

    @property
    def offsets(self) -> list[float]:
        """Where the old tensor begins and ends in its file; after all others for a tensor that is not there."""
        known = self.file.tensors.get(self.old_name)
        return [math.inf] if known is None else known["data_offsets"]

    @property
    def nbytes(self) -> int:
        """Size in the new file."""
        if self.make is None:
            return int(self.offsets[1] - self.offsets[0])
        return math.prod(self.shape) * FLOATS[self.dtype].itemsize


def read_checkpoint(folder: Path) -> list[TensorFile]:
    """The files of a checkpoint with the tensors that transformers would load from each.

    A ModelError if a file is broken or missing.
    """
    if (folder / "model.safetensors").is_file():
        return [read_file(folder / "model.safetensors")]
    if not (folder / INDEX_FILE).is_file():
        raise ModelError(f"{folder} has neither model.safetensors nor {INDEX_FILE}.")
    weight_map = read_index(folder)
    files = []
    for name in sorted(set(weight_map.values())):
        file = read_file(folder / name)
        # A shard may have tensors that the index takes from another shard, or not at all.
        for tensor in [tensor for tensor in file.tensors if weight_map.get(tensor) != name]:
            del file.tensors[tensor]
        files.append(file)
    return files


def read_file(path: Path) -> TensorFile:
    """What the header of a safetensors file says; a ModelError if the file is broken."""
    check_safetensors_file(path)
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header: dict[str, Any] = json.loads(stream.read(length))
    metadata = header.pop("__metadata__", {"format": "pt"})
    return TensorFile(path, header, metadata, 8 + length, len(header))


def in_file_order(tensors: Mapping[str, NewTensor]) -> dict[str, NewTensor]:
    """The tensors in the order that their files have them, file after file by name."""
    return dict(sorted(tensors.items(), key=lambda item: (item[1].file.path, item[1].offsets)))


def unchanged_file(tensors: Mapping[str, NewTensor]) -> TensorFile | None:
    """The file that has exactly these tensors, as they are and under their names; None if there is none."""
    file = next((tensor.file for tensor in tensors.values()), None)
    same = (tensor.file is file and tensor.old_name == name and not tensor.make for name, tensor in tensors.items())
    whole = file and not file.other_metadata and len(tensors) == file.num_tensors and all(same)
    return file if whole else None


def write_file(target: Path, tensors: Mapping[str, NewTensor], metadata: Mapping[str, str]) -> None:
    """Write `tensors`, in the order of the files that they come from, and `metadata` into the header.

    A file that would have the tensors of another one as they are becomes a copy of it. A ModelError if one that is read
    ends too early, an OSError if one cannot be read or written.
    """
    in_order = in_file_order(tensors)
    with target.open("wb", buffering=0) as writer:
        if file := unchanged_file(tensors):
            _copy(file, 0, file.path.stat().st_size, writer)
            return
        write_all(writer, _head(in_order, metadata))
        runs: list[list[NewTensor]] = []  # tensors whose bytes follow each other in one file are copied as one
        for tensor in in_order.values():
            if runs and _follows(runs[-1][-1], tensor):
                runs[-1].append(tensor)
            else:
                runs.append([tensor])
        for run in runs:
            first, last = run[0], run[-1]
            if first.make is None:
                begin = int(first.offsets[0])
                _copy(first.file, first.file.data_start + begin, int(last.offsets[1]) - begin, writer)
            else:
                made = first.load().to(FLOATS[first.dtype]).contiguous()
                write_all(writer, made.flatten().view(torch.uint8).numpy().data)


def _head(in_order: Mapping[str, NewTensor], metadata: Mapping[str, str]) -> bytes:
    """All before the bytes of the tensors."""
    header, total = {"__metadata__": dict[str, Any](metadata)}, 0
    for name, tensor in in_order.items():
        begin, total = total, total + tensor.nbytes
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [begin, total]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    # The format aligns the data to 8 bytes. Where the bytes to copy begin at such a place, the new ones begin at the
    # same place within a block of the file system, so that Btrfs and XFS share whole blocks in place of copying them.
    first = next(iter(in_order.values()), None)
    begin = first.file.data_start + int(first.offsets[0]) if first and first.make is None else 0
    align, begin = (FILE_BLOCK, begin) if begin % 8 == 0 < begin else (8, 0)
    encoded += b" " * ((begin - 8 - len(encoded)) % align)
    return len(encoded).to_bytes(8, "little") + encoded


def _follows(before: NewTensor, after: NewTensor) -> bool:
    """Whether both are copied from one file, in which the bytes of one follow those of the other."""
    copied = before.make is None and after.make is None
    return copied and before.file is after.file and before.offsets[1] == after.offsets[0]


def _copy(file: TensorFile, begin: int, size: int, writer: FileIO) -> None:
    with file.path.open("rb", buffering=0) as reader:
        copy_range(reader, begin, size, writer)
