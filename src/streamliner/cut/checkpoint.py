"""Cut a checkpoint on disk: rewrite its safetensors files by names and bytes.

No model is built. Bytes are copied as they are (`file_copy.py`), so any dtype and any quantised format comes along.
Only tensors that a fold changes (`folds.py`) or that have slices for blocks are read, one at a time. A shard in which
no tensor is renamed, left out or changed stays the same file, byte for byte: those before the first removed block.
"""

import json
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from streamliner.cut.config_file import cut_config_files, write_config
from streamliner.cut.file_copy import share_file
from streamliner.cut.folds import BLOCK_AXIS, Change, block_axis, keep_slices
from streamliner.cut.names import extra_blocks, renamed_tensors, stack_prefix
from streamliner.cut.quantised import renamed_metadata
from streamliner.cut.rules import Removal
from streamliner.cut.safetensors_file import (
    FLOATS,
    NewTensor,
    TensorFile,
    in_file_order,
    read_checkpoint,
    unchanged_file,
    write_file,
)
from streamliner.cut.structure import Structure
from streamliner.errors import UnsupportedModelError
from streamliner.model.compat import names_in_memory
from streamliner.model.parts import count_parameters
from streamliner.model.source import INDEX_FILE, ModelSource, check_one_file, check_safetensors
from streamliner.model.stack import check_indices
from streamliner.runs.files import write_through
from streamliner.runs.outputs import MARK

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".onnx", ".index.json")


@dataclass(frozen=True)
class Shard:
    """A safetensors file to write."""

    name: str
    tensors: dict[str, NewTensor]  # by their new names

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def metadata(self) -> dict[str, str]:
        """The strings in the headers of the files that the tensors come from."""
        return {key: text for tensor in self.tensors.values() for key, text in tensor.file.metadata.items()}


@dataclass(frozen=True)
class CheckpointCut:
    """A cut checkpoint, before it is written."""

    folder: Path  # of the dense one
    configs: dict[str, Any]  # JSON files by name
    shards: tuple[Shard, ...]
    index: dict[str, Any] | None  # None for one file
    weight_files: frozenset[str]  # of the dense checkpoint, with the index
    left_out: tuple[str, ...]  # tensors, in words

    def needed(self, *, link: bool) -> int:
        """Bytes of the weights to write; with `link` without those of the files that stay as they are."""
        return sum(shard.nbytes for shard in self.shards if not (link and unchanged_file(shard.tensors)))


def cut_checkpoint(folder: Path, out: Path, structure: Structure, removed: tuple[int, ...]) -> None:
    """`prepare_checkpoint`, then `write_checkpoint`."""
    write_checkpoint(prepare_checkpoint(folder, structure, removed), out)


def prepare_checkpoint(
    folder: Path, structure: Structure, removed: tuple[int, ...], max_shard_bytes: int | None = None
) -> CheckpointCut:
    """Find out all about the checkpoint in `folder` without the blocks `removed`; only tensors that change are read.

    `folder` has config.json, and one safetensors file or several with their index; names of tensors may differ from
    those in memory before the last part of the stack's path. By default tensors stay in the files that they are in;
    `max_shard_bytes` packs them into files of that size, or of one tensor that is larger.
    A ModelError if a file is broken or missing, an UnsupportedModelError if config or tensors cannot follow.
    """
    removed = check_indices(removed, len(structure))
    removal = Removal.of(removed, len(structure))
    changes = structure.changes(removed)
    files = read_checkpoint(folder)
    prefix = find_prefix([name for file in files for name in file.tensors], structure)
    files = [_with_metadata(file, renamed_metadata(file.metadata, prefix, removal)) for file in files]
    file_of = {name: file for file in files for name in file.tensors}
    configs = cut_config_files(folder, structure, removed, prefix, file_of)
    names = renamed_tensors(file_of, prefix, removal, structure.shared_with_kept(removed))
    tensors = {name: _slice(name, file_of[old].unchanged(old), removal) for name, old in names.items()}
    for change in changes:
        _fold(tensors, change, prefix)
    extra = extra_blocks(file_of, prefix, len(structure))
    left_out = tuple(f"{name} (multi-token prediction, trained after all blocks)" for name in extra)
    known, metadata = [file.path.name for file in files], _index_metadata(files, structure, removed)
    return in_shards(folder, configs, tensors, known, metadata, max_shard_bytes, left_out)


def in_shards(
    folder: Path,
    configs: dict[str, Any],
    tensors: dict[str, NewTensor],
    weight_files: Iterable[str],
    metadata: Mapping[str, Any] = MappingProxyType({}),
    max_shard_bytes: int | None = None,
    left_out: tuple[str, ...] = (),
) -> CheckpointCut:
    """A checkpoint of these tensors, before it is written; `metadata` is that of its index."""
    shards, index = _shards(tensors, max_shard_bytes), None
    if len(shards) > 1:
        weight_map = {name: shard.name for shard in shards for name in shard.tensors}
        described = {**metadata, "total_size": sum(shard.nbytes for shard in shards)}
        index = {"metadata": described, "weight_map": dict(sorted(weight_map.items()))}
    return CheckpointCut(folder, configs, shards, index, frozenset({INDEX_FILE, *weight_files}), left_out)


def write_checkpoint(cut: CheckpointCut, out: Path, *, link: bool = False) -> dict[str, Any]:
    """Write a cut checkpoint into the existing empty folder `out`, with the other files of the dense one.

    Other files are copied byte for byte, but for weights in other formats. With `link` weight files that stay as they
    are become reflinks, or hard links where the file system has none.
    Returns a JSON value: what was left out, in words, and how many files were made how. An OSError names the file that
    cannot be read or written.
    """
    made = {"shards": len(cut.shards), "unchanged": 0, "reflinks": 0, "hard_links": 0}
    not_linked, waiting = "", []
    with ThreadPoolExecutor(1) as pool:  # the disk writes one file while the next one is copied into its cache
        for shard in cut.shards:
            target = out / shard.name
            if link and (file := unchanged_file(shard.tensors)):
                made["unchanged"] += 1
                try:
                    made[share_file(file.path, target)] += 1
                    continue
                except OSError as error:
                    not_linked = str(error.strerror)
            write_file(target, shard.tensors, shard.metadata)
            waiting.append(pool.submit(write_through, target))
    for each in waiting:
        each.result()
    if cut.index:
        write_config(out / INDEX_FILE, cut.index)
    for name, config in cut.configs.items():
        write_config(out / name, config)
    others = [name for name in copy_other_files(cut.folder, out) if name not in cut.weight_files]
    left_out = [*cut.left_out, *(f"{name} (the same weights in another file)" for name in others)]
    return {"left_out": left_out} | ({"linked": made | {"not_linked": not_linked}} if link else {})


def find_prefix(names: Iterable[str], structure: Structure, num_blocks: int | None = None) -> str:
    """Where the blocks are in a checkpoint with tensors of these names; an UnsupportedModelError if they are not.

    `num_blocks` are the blocks that must be there, by default all.
    """
    in_memory = names_in_memory(structure.shell, names)
    count = len(structure) if num_blocks is None else num_blocks
    return stack_prefix(in_memory, structure.stack.path, count, in_memory)


def block_bytes(folder: Path, structure: Structure) -> tuple[list[int], int]:
    """Bytes of the tensors of each block of a checkpoint, and of all else that a cut keeps; reads headers alone."""
    files = read_checkpoint(folder)
    sizes = {name: file.num_bytes(name) for file in files for name in file.tensors}
    prefix, count = find_prefix(sizes, structure), len(structure)
    in_block = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    kept = renamed_tensors(sizes, prefix, Removal.of((), count), {}).values()
    blocks, rest = [0] * count, sum(file.data_start for file in files)
    for name in kept:
        if match := in_block.match(name):
            blocks[int(match[1])] += sizes[name]
        else:
            rest += sizes[name]
    return blocks, rest


def check_files(source: ModelSource, structure: Structure) -> None:
    """Raise UserError if the files of a model could not be searched or cut; reads headers alone."""
    check_one_file(source)
    if source.kind == "folder":
        check_safetensors(source)
        find_prefix([name for file in read_checkpoint(Path(source.path)) for name in file.tensors], structure)


def copy_other_files(folder: Path, out: Path, *, weights: bool = False) -> list[str]:
    """Copy the files of a checkpoint that `out` does not have yet: tokenizer, templates, code, also in folders.

    Hidden files and the plan are left out, and weights too unless `weights` is true; links to folders are not followed.
    Returns the names of files with weights that were left out.
    """
    left_out = []
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder)
        if any(part.startswith(".") for part in name.parts) or file.name == MARK or (out / name).exists():
            continue
        if file.is_file() and file.name.endswith(WEIGHT_SUFFIXES) and not weights:
            left_out.append(str(name))
        elif file.is_file():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, out / name)
    return left_out


def _slice(name: str, tensor: NewTensor, removal: Removal) -> NewTensor:
    """The tensor; of one with a slice for each block, the slices of kept blocks."""
    axis = block_axis(name)
    if axis is None:
        if any(f"{end.removesuffix('.weight')}." in name for end in BLOCK_AXIS):
            raise UnsupportedModelError(f"The tensor {name} is part of a quantised tensor with a slice for each block.")
        return tensor
    shape, count = list(tensor.shape), removal.num_blocks
    if tensor.dtype not in FLOATS:
        raise UnsupportedModelError(f"The tensor {name} has a slice for each block, and is quantised.")
    if shape[axis] % count:
        found = f"The tensor {name} of shape {shape}"
        raise UnsupportedModelError(f"{found} does not consist of slices for {count} blocks.")
    shape[axis] = shape[axis] // count * len(removal.kept)
    return replace(tensor, shape=tuple(shape), make=lambda: keep_slices(tensor.load(), axis, removal))


def _fold(tensors: dict[str, NewTensor], change: Change, prefix: str) -> None:
    """Change the tensors of a block that computes with its index."""
    names = [change.where(prefix) + name for name in change.fold.needs]
    needed = {name: tensors[name] for name in names if name in tensors}

    def changed() -> dict[str, Any]:
        return change.apply({name: tensor.load() for name, tensor in needed.items()}, prefix)

    def make(name: str) -> Callable[[], Tensor]:
        return lambda: changed()[name]

    # Computed here for the shapes, and again on writing, so that none is held in memory.
    for name, tensor in changed().items():
        if tensor is None:
            tensors.pop(name, None)
        else:
            near = tensors.get(name) or replace(next(iter(needed.values())), old_name="")
            tensors[name] = replace(near, shape=tuple(tensor.shape), make=make(name))


def _with_metadata(file: TensorFile, metadata: dict[str, str]) -> TensorFile:
    return replace(file, metadata=metadata, other_metadata=metadata != file.metadata)


def _shards(tensors: dict[str, NewTensor], max_bytes: int | None) -> tuple[Shard, ...]:
    """As many files as tensors come from, or as `max_bytes` needs."""
    groups: list[dict[str, NewTensor]] = []
    size, last = 0, None
    for name, tensor in in_file_order(tensors).items():
        size += tensor.nbytes
        if not groups or (tensor.file is not last if max_bytes is None else size > max_bytes):
            groups.append({})
            size = tensor.nbytes
        groups[-1][name], last = tensor, tensor.file
    count = len(groups)
    names = [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
    return tuple(map(Shard, names if count > 1 else ["model.safetensors"], groups))


def _index_metadata(files: list[TensorFile], structure: Structure, removed: tuple[int, ...]) -> dict[str, Any]:
    """What the index of the dense checkpoint says besides the places of the tensors, for the cut one."""
    folder = files[0].path.parent
    if files[0].path.name == "model.safetensors" or not (folder / INDEX_FILE).is_file():
        return {}
    found = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8")).get("metadata")
    metadata = dict(found) if isinstance(found, dict) else {}
    if isinstance(metadata.get("total_parameters"), int):  # those that quantised tensors stand for
        metadata["total_parameters"] -= count_parameters(structure.shell)
        metadata["total_parameters"] += count_parameters(structure.cut_shell(removed))
    return metadata
