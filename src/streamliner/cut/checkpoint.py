"""Cut a checkpoint on disk: rewrite safetensors files by names and bytes.

No model is built and no more than a few megabytes are held. A tensor's bytes are copied as they are, so any dtype and
any quantised format comes along.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any, BinaryIO

from streamliner.blocks import Stack
from streamliner.cut.config import cut_config, renumbered_names, with_legacy_rope
from streamliner.cut.model import config_path, new_numbers
from streamliner.cut.output import MARK
from streamliner.errors import ModelError, UnsupportedModelError
from streamliner.models import check_safetensors_file

INDEX_FILE = "model.safetensors.index.json"
COPY_BYTES = 16 << 20
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".onnx")


def cut_checkpoint(folder: Path, out: Path, config: Any, stack: Stack, removed: tuple[int, ...]) -> None:
    """Write into the existing empty folder `out` the checkpoint in `folder` without the blocks `removed`.

    Everything that is neither weights nor config is copied verbatim.

    Args:
        folder: config.json, one or several safetensors files with their index, tokenizer files.
        out: where to write.
        config: the whole model's loaded `PretrainedConfig`, in which defaults are filled in.
        stack: the stack of a model of that config; names on disk may differ in front of the last part of its path.
        removed: ascending block indices.

    Raises:
        ModelError: a file is broken or missing.
        UnsupportedModelError: the config or the names on disk cannot follow.
    """
    files = _weight_files(folder)
    headers = {file: _read_header(folder / file) for file in files}
    num_blocks = len(stack)
    names = [name for tensors in headers.values() for name in tensors if name != "__metadata__"]
    prefix = stack_prefix(names, stack.path, num_blocks)
    config_dict = cut_config_file(folder / "config.json", config, stack, removed)

    wanted = {file: _wanted(tensors, prefix, removed, num_blocks) for file, tensors in headers.items()}
    wanted = {file: tensors for file, tensors in wanted.items() if tensors}
    weight_map: dict[str, str] = {}
    total = 0
    for number, (file, tensors) in enumerate(wanted.items(), 1):
        name = "model.safetensors" if len(wanted) == 1 else f"model-{number:05}-of-{len(wanted):05}.safetensors"
        total += _copy_tensors(folder / file, out / name, headers[file], tensors)
        weight_map |= dict.fromkeys(tensors.values(), name)
    if len(wanted) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        _write_json(out / INDEX_FILE, index)
    _write_json(out / "config.json", config_dict)
    for other in sorted(folder.iterdir()):
        is_weights = other.name.endswith((*WEIGHT_SUFFIXES, ".index.json"))
        is_ours = other.name.startswith(".") or other.name == MARK or (out / other.name).exists()
        if other.is_file() and not is_weights and not is_ours:
            shutil.copyfile(other, out / other.name)


def read_sizes(folder: Path) -> int:
    """Bytes of the safetensors files in `folder`."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def cut_config_file(file: Path, config: Any, stack: Stack, removed: tuple[int, ...]) -> dict[str, Any]:
    """The content of config.json for the cut model: the user's own file, with only those keys changed that must be."""
    result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    complete = stack.config.to_dict()
    cut = cut_config(complete, removed, len(stack))
    part = result
    for name in config_path(config, stack.config):
        part = part.setdefault(name, {})
    # Keys that the file has but the class does not echo (an alias of a count, another engine's list) follow as well.
    part |= cut_config({key: part[key] for key in part if key not in complete}, removed, len(stack))
    part |= {key: value for key, value in cut.items() if value != complete.get(key)}
    part |= with_legacy_rope(part)
    if "quantization_config" in result:
        numbers = new_numbers(removed, len(stack))
        names = renumbered_names(result["quantization_config"], stack.path.split(".")[-1], numbers)
        result["quantization_config"] = names
    return result


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

    def common_tail(prefix: str) -> int:
        ours, theirs = stack_path.split(".")[::-1], prefix.split(".")[::-1]
        return next(
            (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs))
        )

    best = [p for p in fitting if common_tail(p) == max(map(common_tail, fitting))]
    if len(best) != 1:
        raise UnsupportedModelError(
            f"The {num_blocks} blocks of {stack_path} are not found in the checkpoint: "
            f"{len(best)} groups of tensor names fit, among {sorted(found) or 'none'}."
        )
    return best[0]


def _wanted(tensors: dict[str, Any], prefix: str, removed: tuple[int, ...], num_blocks: int) -> dict[str, str]:
    """Old name -> new name of the tensors to keep. Blocks past the last (multi-token prediction) go."""
    numbers = new_numbers(removed, num_blocks)
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    result = {}
    for name in tensors:
        match = pattern.match(name)
        if name == "__metadata__":
            continue
        if match is None:
            result[name] = name
        elif int(match[1]) in numbers:
            result[name] = f"{prefix}.{numbers[int(match[1])]}.{name[match.end() :]}"
    return result


def _weight_files(folder: Path) -> list[str]:
    index = folder / INDEX_FILE
    if index.is_file():
        files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        for file in files:
            if Path(file).name != file:
                raise ModelError(f"{index} names a file outside its folder: {file}.")
            if not (folder / file).is_file():
                raise ModelError(f"{index} names {file}, which is not there.", "Download the model again.")
        return files
    if (folder / "model.safetensors").is_file():
        return ["model.safetensors"]
    raise ModelError(f"{folder} holds neither model.safetensors nor {INDEX_FILE}.")


def _read_header(file: Path) -> dict[str, Any]:
    check_safetensors_file(file)
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header: dict[str, Any] = json.loads(stream.read(length))
    return header


def _copy_tensors(source: Path, target: Path, header: dict[str, Any], wanted: dict[str, str]) -> int:
    """Copy the tensors in `wanted` (old name -> new) in the order of the file. Returns their bytes."""
    new_header: dict[str, Any] = {"__metadata__": header.get("__metadata__", {"format": "pt"})}
    order = sorted(wanted, key=lambda name: header[name]["data_offsets"])
    position = 0
    for name in order:
        begin, end = header[name]["data_offsets"]
        new_header[wanted[name]] = header[name] | {"data_offsets": [position, position + end - begin]}
        position += end - begin
    encoded = json.dumps(new_header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # the format wants the data aligned to 8 bytes
    with source.open("rb") as reader, target.open("wb") as writer:
        data_start = 8 + int.from_bytes(reader.read(8), "little")
        writer.write(len(encoded).to_bytes(8, "little") + encoded)
        for name in order:
            begin, end = header[name]["data_offsets"]
            reader.seek(data_start + begin)
            _copy_bytes(reader, writer, end - begin)
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
