"""Read and write safetensors files one tensor at a time, whatever their types: a JSON header, then the bytes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from streamliner.errors import ModelError
from streamliner.model.source import INDEX_FILE, check_safetensors_file, read_index

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Types that can be computed with. Tensors of all others, such as quantised ones, are only copied."""

COPY_BYTES = 16 << 20


@dataclass(frozen=True)
class TensorFile:
    """A safetensors file."""

    path: Path
    tensors: dict[str, dict[str, Any]]  # name -> dtype, shape and data_offsets, as the header has them
    metadata: dict[str, str]  # further strings in the header
    data_start: int  # the position of the first tensor's bytes

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
        return [_read_file(folder / "model.safetensors")]
    if not (folder / INDEX_FILE).is_file():
        raise ModelError(f"{folder} has neither model.safetensors nor {INDEX_FILE}.")
    weight_map = read_index(folder)
    files = []
    for name in sorted(set(weight_map.values())):
        file = _read_file(folder / name)
        # A shard may have tensors that the index takes from another shard, or not at all.
        for tensor in [tensor for tensor in file.tensors if weight_map.get(tensor) != name]:
            del file.tensors[tensor]
        files.append(file)
    return files


def _read_file(path: Path) -> TensorFile:
    check_safetensors_file(path)
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header: dict[str, Any] = json.loads(stream.read(length))
    metadata = header.pop("__metadata__", {"format": "pt"})
    return TensorFile(path, header, metadata, data_start=8 + length)


def write_file(target: Path, source: TensorFile, tensors: Mapping[str, NewTensor]) -> int:
    """Write `tensors`, which come from `source`, in the order they have there. Returns the bytes of the tensors."""
    in_order = dict(sorted(tensors.items(), key=lambda item: item[1].offsets))
    header, total = {"__metadata__": dict[str, Any](source.metadata)}, 0
    for name, tensor in in_order.items():
        begin, total = total, total + tensor.nbytes
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [begin, total]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # the format aligns the data to 8 bytes
    with source.path.open("rb") as reader, target.open("wb") as writer:
        writer.write(len(encoded).to_bytes(8, "little") + encoded)
        for tensor in in_order.values():
            if tensor.make is None:
                reader.seek(source.data_start + int(tensor.offsets[0]))
                for left in range(tensor.nbytes, 0, -COPY_BYTES):
                    writer.write(reader.read(min(left, COPY_BYTES)))
            else:
                made = tensor.load().to(FLOATS[tensor.dtype]).contiguous()
                writer.write(made.flatten().view(torch.uint8).numpy().tobytes())
        if writer.tell() != 8 + len(encoded) + total:
            raise ModelError("A safetensors file ends too early.", "Download or copy it again.")
    return total
