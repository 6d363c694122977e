"""Cut a checkpoint on disk: rewrite its safetensors files by names and bytes.

No model is built, and no more than one tensor is in memory. Bytes are copied as they are, so any dtype and any
quantised format comes along. Only tensors with a slice for each block, and those that a fold changes (`folds.py`), are
read.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import Tensor

from streamliner.cut.config_file import cut_config_files, write_config
from streamliner.cut.folds import BLOCK_AXIS, Change, block_axis, keep_slices
from streamliner.cut.names import renamed_tensors, stack_prefix
from streamliner.cut.removal import Removal
from streamliner.cut.safetensors_file import FLOATS, NewTensor, TensorFile, read_checkpoint, write_file
from streamliner.cut.structure import Structure
from streamliner.errors import UnsupportedModelError
from streamliner.model.source import INDEX_FILE
from streamliner.model.stack import check_indices
from streamliner.runs.files import MARK

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".onnx", ".index.json")


def cut_checkpoint(folder: Path, out: Path, structure: Structure, removed: tuple[int, ...]) -> None:
    """Write into the existing empty folder `out` the checkpoint in `folder` without the blocks `removed`.

    Everything that is neither weights nor config is copied byte for byte.

    Args:
        folder: config.json, one safetensors file or several with their index, tokenizer files.
        out: where to write.
        structure: of the model. Names on disk may differ from those in memory before the last part of the stack's path.
        removed: block indices.

    Raises:
        ModelError: a file is broken or missing.
        UnsupportedModelError: the config or the tensors cannot follow the removal.
    """
    removed = check_indices(removed, len(structure))
    removal = Removal.of(removed, len(structure))
    changes = structure.changes(removed)
    files = read_checkpoint(folder)
    prefix = stack_prefix([name for file in files for name in file.tensors], structure.stack.path, len(structure))
    configs = cut_config_files(folder, structure, removed, prefix)
    tensors = _rename(files, prefix, removal, structure.shared_with_kept(removed))
    tensors = _slice(tensors, removal)
    tensors = _fold(tensors, changes, prefix)
    _write_weights(tensors, files, out)
    for name, config in configs.items():
        write_config(out / name, config)
    copy_other_files(folder, out)


def copy_other_files(folder: Path, out: Path, *, weights: bool = False) -> None:
    """Copy the files of a checkpoint that `out` does not have yet: tokenizer, templates, code.

    Hidden files and the plan are left out, and weights too unless `weights` is true.
    """
    for file in sorted(folder.iterdir()):
        if not file.is_file() or file.name.startswith(".") or file.name == MARK or (out / file.name).exists():
            continue
        if weights or not file.name.endswith(WEIGHT_SUFFIXES):
            shutil.copyfile(file, out / file.name)


def _rename(
    files: list[TensorFile], prefix: str, removal: Removal, shared: Mapping[tuple[int, str], tuple[int, str]]
) -> dict[str, NewTensor]:
    """First pass: the tensors that stay, by their new names."""
    file_of = {name: file for file in files for name in file.tensors}
    names = renamed_tensors(file_of, prefix, removal, shared)
    return {name: file_of[old_name].unchanged(old_name) for name, old_name in names.items()}


def _slice(tensors: dict[str, NewTensor], removal: Removal) -> dict[str, NewTensor]:
    """Second pass: tensors with a slice for each block keep those of kept blocks."""
    result = dict(tensors)
    for name, tensor in tensors.items():
        axis = block_axis(name)
        if axis is not None:
            result[name] = _sliced(name, tensor, axis, removal)
        elif any(f"{end.removesuffix('.weight')}." in name for end in BLOCK_AXIS):
            raise UnsupportedModelError(f"The tensor {name} belongs to a quantised one with a slice for each block.")
    return result


def _sliced(name: str, tensor: NewTensor, axis: int, removal: Removal) -> NewTensor:
    shape, count = list(tensor.shape), removal.num_blocks
    if tensor.dtype not in FLOATS:
        raise UnsupportedModelError(f"The tensor {name} has a slice for each block, and is quantised.")
    if shape[axis] % count:
        raise UnsupportedModelError(
            f"The tensor {name} of shape {shape} does not consist of slices for {count} blocks."
        )
    shape[axis] = shape[axis] // count * len(removal.kept)
    return replace(tensor, shape=tuple(shape), make=lambda: keep_slices(tensor.load(), axis, removal))


def _fold(tensors: dict[str, NewTensor], changes: list[Change], prefix: str) -> dict[str, NewTensor]:
    """Third pass: tensors of blocks that compute with their index change."""
    result = dict(tensors)
    for change in changes:
        block = f"{prefix}.{change.place.new}."
        needed = {name: result[block + name] for name in change.names() if block + name in result}
        # Computed here for the shapes, and again on writing, so that none is held in memory.
        for name, tensor in _changed(change, needed).items():
            if tensor is None:
                result.pop(block + name, None)
                continue
            old = result.get(block + name)
            near, old_name = (old, old.old_name) if old else (next(iter(needed.values())), "")
            make = partial(_folded, change, needed, name)
            result[block + name] = NewTensor(near.file, old_name, near.dtype, tuple(tensor.shape), make)
    return result


def _folded(change: Change, needed: Mapping[str, NewTensor], name: str) -> Tensor:
    tensor = _changed(change, needed)[name]
    assert tensor is not None
    return tensor


def _changed(change: Change, needed: Mapping[str, NewTensor]) -> dict[str, Tensor | None]:
    return change.apply({name: tensor.load() for name, tensor in needed.items()})


def _write_weights(tensors: dict[str, NewTensor], files: list[TensorFile], out: Path) -> None:
    """Write as many files as tensors come from, and their index if there are several."""
    groups = [(file, {name: new for name, new in tensors.items() if new.file is file}) for file in files]
    groups = [(file, group) for file, group in groups if group]
    weight_map: dict[str, str] = {}
    total = 0
    for number, (file, group) in enumerate(groups, 1):
        name = "model.safetensors" if len(groups) == 1 else f"model-{number:05}-of-{len(groups):05}.safetensors"
        total += write_file(out / name, file, group)
        weight_map |= dict.fromkeys(group, name)
    if len(groups) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        write_config(out / INDEX_FILE, index)
