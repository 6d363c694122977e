"""Cut a checkpoint on disk: rewrite its safetensors files by names and bytes.

No model is built, and no more than one tensor is in memory. Bytes are copied as they are, so any dtype and any
quantised format comes along. Only tensors that a fold changes (`folds.py`) or that have slices for blocks are read.
"""

import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from streamliner.cut.config_file import cut_config_files, write_config
from streamliner.cut.folds import BLOCK_AXIS, Change, block_axis, keep_slices
from streamliner.cut.names import extra_blocks, renamed_tensors, stack_prefix
from streamliner.cut.quantised import renamed_metadata
from streamliner.cut.rules import Removal
from streamliner.cut.safetensors_file import FLOATS, NewTensor, TensorFile, read_checkpoint, write_file
from streamliner.cut.structure import Structure
from streamliner.errors import UnsupportedModelError
from streamliner.model.compat import names_in_memory
from streamliner.model.source import INDEX_FILE, ModelSource, check_one_file, check_safetensors
from streamliner.model.stack import check_indices
from streamliner.runs.outputs import MARK

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".onnx", ".index.json")


def cut_checkpoint(folder: Path, out: Path, structure: Structure, removed: tuple[int, ...]) -> list[str]:
    """Write into the existing empty folder `out` the checkpoint in `folder` without the blocks `removed`.

    `folder` has config.json, and one safetensors file or several with their index; names of tensors may differ from
    those in memory before the last part of the stack's path. Other files are copied byte for byte, but for weights in
    other formats. Returns what was left out, in words.
    A ModelError if one is broken or missing, an UnsupportedModelError if config or tensors cannot follow the removal.
    """
    removed = check_indices(removed, len(structure))
    removal = Removal.of(removed, len(structure))
    changes = structure.changes(removed)
    files = read_checkpoint(folder)
    prefix = find_prefix([name for file in files for name in file.tensors], structure)
    files = [replace(file, metadata=renamed_metadata(file.metadata, prefix, removal)) for file in files]
    file_of = {name: file for file in files for name in file.tensors}
    configs = cut_config_files(folder, structure, removed, prefix, file_of)
    names = renamed_tensors(file_of, prefix, removal, structure.shared_with_kept(removed))
    tensors = {name: _slice(name, file_of[old].unchanged(old), removal) for name, old in names.items()}
    for change in changes:
        _fold(tensors, change, prefix)
    _write_weights(tensors, files, out)
    for name, config in configs.items():
        write_config(out / name, config)
    known = {INDEX_FILE, *(file.path.name for file in files)}
    others = [
        f"{name} (the same weights in another file)" for name in copy_other_files(folder, out) if name not in known
    ]
    extra = extra_blocks(file_of, prefix, len(structure))
    return [f"{name} (multi-token prediction, trained behind all blocks)" for name in extra] + others


def find_prefix(names: Iterable[str], structure: Structure) -> str:
    """Where the blocks are in a checkpoint with tensors of these names; an UnsupportedModelError if they are not."""
    in_memory = names_in_memory(structure.shell, names)
    return stack_prefix(in_memory, structure.stack.path, len(structure), in_memory)


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
            raise UnsupportedModelError(f"The tensor {name} belongs to a quantised one with a slice for each block.")
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


def _write_weights(tensors: dict[str, NewTensor], files: list[TensorFile], out: Path) -> None:
    """Write as many files as tensors come from, and their index if there are several."""
    groups = [(file, {name: new for name, new in tensors.items() if new.file is file}) for file in files]
    groups = [(file, group) for file, group in groups if group]
    weight_map, total = dict[str, str](), 0
    for number, (file, group) in enumerate(groups, 1):
        name = "model.safetensors" if len(groups) == 1 else f"model-{number:05}-of-{len(groups):05}.safetensors"
        total += write_file(out / name, file, group)
        weight_map |= dict.fromkeys(group, name)
    if len(groups) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        write_config(out / INDEX_FILE, index)
