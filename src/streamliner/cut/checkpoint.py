"""Cut a checkpoint on disk: rewrite safetensors files by names and bytes.

No model is built and no more than one tensor is held. A tensor's bytes are copied as they are, so any dtype and any
quantised format comes along; only tensors that a fold changes or that have an axis of blocks are read (`tensors.py`).
"""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import safe_open
from torch import Tensor

from streamliner.cut.config_file import cut_config_files
from streamliner.cut.folds import BLOCK_AXIS, Change, block_axis, keep_slices
from streamliner.cut.rules import Removal
from streamliner.cut.structure import Structure
from streamliner.errors import ModelError, UnsupportedModelError
from streamliner.model.source import INDEX_FILE, check_safetensors_file
from streamliner.model.stack import check_indices
from streamliner.runs.files import MARK

MTP = re.compile(r"(^|\.)mtp\.")
"""Tensors of blocks for predicting several tokens that do not lie behind the last block."""


COPY_BYTES = 16 << 20


DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Of tensors that can be changed; all others are only copied."""


WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".onnx")


@dataclass(frozen=True)
class Entry:
    """One tensor of the cut checkpoint.

    Attributes:
        name: its new name.
        source: the file that it comes from, or whose neighbour it is.
        old_name: its name there; empty for a tensor that is not there.
        header: dtype and shape as safetensors writes them.
        tensor: makes the tensor where bytes are not just copied.
    """

    name: str
    source: str
    old_name: str
    header: dict[str, Any]
    tensor: Callable[[], Tensor] | None = None


def cut_checkpoint(folder: Path, out: Path, structure: Structure, removed: tuple[int, ...]) -> None:
    """Write into the existing empty folder `out` the checkpoint in `folder` without the blocks `removed`.

    Everything that is neither weights nor config is copied verbatim.

    Args:
        folder: config.json, one or several safetensors files with their index, tokenizer files.
        out: where to write.
        structure: of the model; names on disk may differ in front of the last part of its stack's path.
        removed: block indices.

    Raises:
        ModelError: a file is broken or missing.
        UnsupportedModelError: the config or the tensors cannot follow.
    """
    removed = check_indices(removed, len(structure))
    changes = structure.changes(removed)
    headers = _read_headers(folder)
    prefix = stack_prefix(
        [name for tensors in headers.values() for name in tensors], structure.stack.path, len(structure)
    )
    configs = cut_config_files(folder, structure, removed, prefix)
    entries = _entries(folder, headers, structure, removed, changes, prefix)

    files = [file for file in headers if any(entry.source == file for entry in entries)]
    weight_map: dict[str, str] = {}
    total = 0
    for number, file in enumerate(files, 1):
        name = "model.safetensors" if len(files) == 1 else f"model-{number:05}-of-{len(files):05}.safetensors"
        here = [entry for entry in entries if entry.source == file]
        total += _write_tensors(folder / file, out / name, headers[file], here)
        weight_map |= {entry.name: name for entry in here}
    if len(files) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        _write_json(out / INDEX_FILE, index)
    for name, value in configs.items():
        _write_json(out / name, value)
    for other in sorted(folder.iterdir()):
        is_weights = other.name.endswith((*WEIGHT_SUFFIXES, ".index.json"))
        is_ours = other.name.startswith(".") or other.name == MARK or (out / other.name).exists()
        if other.is_file() and not is_weights and not is_ours:
            shutil.copyfile(other, out / other.name)


def stack_prefix(names: list[str], stack_path: str, num_blocks: int) -> str:
    """Where the blocks are in a checkpoint: P such that its tensors are called `P.{0..N-1}.*`.

    Raises:
        UnsupportedModelError: none or several fit.
    """
    last = stack_path.split(".")[-1]
    pattern = re.compile(rf"((?:[^.]+\.)*?{re.escape(last)})\.(\d+)\.")
    found: dict[str, set[int]] = {}
    for name in names:
        match = pattern.match(name)
        if match:
            found.setdefault(match[1], set()).add(int(match[2]))
    fitting = [prefix for prefix, indices in found.items() if indices >= set(range(num_blocks))]

    def likeness(prefix: str) -> tuple[int, int]:
        """Equal parts at the end, then equal parts anywhere: releases order the names before a stack otherwise."""
        ours, theirs = stack_path.split("."), prefix.split(".")
        tail = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(ours[::-1], theirs[::-1], strict=False))
        return len(list(tail)), len(set(ours) & set(theirs))

    best = [prefix for prefix in fitting if likeness(prefix) == max(map(likeness, fitting))]
    if len(best) != 1:
        raise UnsupportedModelError(
            f"The {num_blocks} blocks of {stack_path} are not found in the checkpoint: "
            f"{len(best)} groups of tensor names fit, among {sorted(found) or 'none'}."
        )
    return best[0]


def _entries(
    folder: Path,
    headers: dict[str, dict[str, Any]],
    structure: Structure,
    removed: tuple[int, ...],
    changes: list[Change],
    prefix: str,
) -> list[Entry]:
    """The tensors of the cut checkpoint. Blocks past the last (multi-token prediction) go."""
    num_blocks, removal = len(structure), Removal.of(removed, len(structure))
    numbers = removal.numbers
    where = {name: file for file, tensors in headers.items() for name in tensors if name != "__metadata__"}
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    shared = structure.shared_with_kept(removed)
    result: dict[str, Entry] = {}
    inside: dict[int, dict[str, str]] = {old: {} for old in numbers}
    for name, file in where.items():
        match, header = pattern.match(name), headers[file][name]
        axis = block_axis(name)
        if match is not None:
            old, tail = int(match[1]), name[match.end() :]
            if old not in numbers and (old, tail) in shared:
                # A tensor that several blocks share is stored with one of them; it moves to one that stays.
                old, tail = shared[old, tail]
                if f"{prefix}.{old}.{tail}" in where:
                    continue
            if old in numbers:
                new_name = f"{prefix}.{numbers[old]}.{tail}"
                result[new_name] = Entry(new_name, file, name, header)
                inside[old][tail] = name
        elif axis is not None:
            shape = list(header["shape"])
            if header["dtype"] not in DTYPES:
                raise UnsupportedModelError(f"The tensor {name} has an axis of blocks, and is quantised.")
            if shape[axis] % num_blocks:
                raise UnsupportedModelError(f"The tensor {name} of shape {shape} has no axis of {num_blocks} blocks.")
            shape[axis] = shape[axis] // num_blocks * len(numbers)

            def sliced(path: Path = folder / file, name: str = name, axis: int = axis) -> Tensor:
                return keep_slices(_read_tensor(path, name), axis, removal)

            result[name] = Entry(name, file, name, header | {"shape": shape}, sliced)
        elif any(f"{end.removesuffix('.weight')}." in name for end in BLOCK_AXIS):
            raise UnsupportedModelError(f"The tensor {name} belongs to one with an axis of blocks, and is quantised.")
        elif not MTP.search(name):
            result[name] = Entry(name, file, name, header)
    for change in changes:
        tails = inside[change.place.old]
        files = {tail: (folder / where[name], name) for tail, name in tails.items() if tail in change.names()}

        def changed(change: Change = change, files: dict[str, tuple[Path, str]] = files) -> dict[str, Tensor | None]:
            return change.apply({tail: _read_tensor(*place) for tail, place in files.items()})

        for tail, tensor in changed().items():  # done once for the shapes and again on writing: none is held
            new_name = f"{prefix}.{change.place.new}.{tail}"
            if tensor is None:
                result.pop(new_name, None)
                continue
            neighbour = tails[tail] if tail in tails else files[next(iter(files))][1]
            header = {"dtype": headers[where[neighbour]][neighbour]["dtype"], "shape": list(tensor.shape)}
            made = _Made(changed, tail)
            result[new_name] = Entry(new_name, where[neighbour], tails.get(tail, ""), header, made)
    return list(result.values())


@dataclass(frozen=True)
class _Made:
    """Makes one of the tensors that a fold gives."""

    changed: Callable[[], dict[str, Tensor | None]]
    tail: str

    def __call__(self) -> Tensor:
        tensor = self.changed()[self.tail]
        assert tensor is not None
        return tensor


def _read_tensor(file: Path, name: str) -> Tensor:
    with safe_open(file, framework="pt") as opened:
        tensor: Tensor = opened.get_tensor(name)
    return tensor


def _read_headers(folder: Path) -> dict[str, dict[str, Any]]:
    """File -> its header, of the files and tensors that transformers would load."""
    if (folder / "model.safetensors").is_file():
        return {"model.safetensors": _read_header(folder / "model.safetensors")}
    index = folder / INDEX_FILE
    if not index.is_file():
        raise ModelError(f"{folder} holds neither model.safetensors nor {INDEX_FILE}.")
    weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    headers = {}
    for file in sorted(set(weight_map.values())):
        if Path(file).name != file:
            raise ModelError(f"{index} names a file outside its folder: {file}.")
        if not (folder / file).is_file():
            raise ModelError(f"{index} names {file}, which is not there.", "Download the model again.")
        header = _read_header(folder / file)
        # A shard may hold tensors that the index takes from another, or not at all.
        headers[file] = {
            name: header[name] for name in header if weight_map.get(name) == file or name == "__metadata__"
        }
    return headers


def _read_header(file: Path) -> dict[str, Any]:
    check_safetensors_file(file)
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header: dict[str, Any] = json.loads(stream.read(length))
    return header


def _write_tensors(source: Path, target: Path, header: dict[str, Any], entries: list[Entry]) -> int:
    """Write a file with `entries`, those of `source` in its order. Returns the bytes of the tensors."""
    new_header: dict[str, Any] = {"__metadata__": header.get("__metadata__", {"format": "pt"})}
    ends = {name: tensor["data_offsets"] for name, tensor in header.items() if name != "__metadata__"}
    in_order = sorted(entries, key=lambda entry: ends.get(entry.old_name, [math.inf]))
    position = 0
    for entry in in_order:
        if entry.tensor is None:
            begin, end = header[entry.old_name]["data_offsets"]
            size = end - begin
        else:
            size = math.prod(entry.header["shape"]) * DTYPES[entry.header["dtype"]].itemsize
        new_header[entry.name] = entry.header | {"data_offsets": [position, position + size]}
        position += size
    encoded = json.dumps(new_header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # the format wants the data aligned to 8 bytes
    with source.open("rb") as reader, target.open("wb") as writer:
        data_start = 8 + int.from_bytes(reader.read(8), "little")
        writer.write(len(encoded).to_bytes(8, "little") + encoded)
        for entry in in_order:
            if entry.tensor is None:
                begin, end = header[entry.old_name]["data_offsets"]
                reader.seek(data_start + begin)
                _copy_bytes(reader, writer, end - begin)
            else:
                made = entry.tensor().to(DTYPES[entry.header["dtype"]]).contiguous()
                writer.write(made.flatten().view(torch.uint8).numpy().tobytes())
    return position


def _copy_bytes(reader: BinaryIO, writer: BinaryIO, count: int) -> None:
    while count:
        piece = reader.read(min(count, COPY_BYTES))
        if not piece:
            raise ModelError("A safetensors file ended early.", "Download or copy it again.")
        writer.write(piece)
        count -= len(piece)


def _write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
