"""Cut a model in memory: rebuild it from the cut config, sharing the kept tensors.

Rebuilding beats patching the live model: whatever a block derives from its index or from the config at construction is
derived anew, and what the rebuilt block got wrong shows in a comparison of fingerprints before anything is written.
"""

from __future__ import annotations

import copy
import re
from typing import Any

from torch import nn

from streamliner.cut.folds import Change, block_axis, keep_slices
from streamliner.cut.rules import Removal
from streamliner.cut.structure import Structure
from streamliner.errors import UnsupportedModelError
from streamliner.model.stack import check_indices


def cut_model(model: nn.Module, removed: tuple[int, ...] | list[int]) -> nn.Module:
    """A new model without the blocks `removed`. It shares the kept tensors with `model`, which stays as it is.

    Raises:
        RemovalError: the blocks cannot be removed.
        UnsupportedModelError: the cut model would not be the dense model with the blocks bypassed.
    """
    structure = Structure.of(model)
    removed = check_indices(removed, len(structure))
    changes = structure.changes(removed)
    if any(getattr(module, "layers_are_rescaled", False) for module in model.modules()):
        raise UnsupportedModelError(
            "This model scaled its weights by block in its first forward (rescale_every).",
            "Cut the checkpoint on disk, or a model that has not run yet.",
        )
    shell = structure.cut_shell(removed)
    path = structure.stack.path
    renamed = cut_tensors(model.state_dict(), path, removed, len(structure), changes)
    result = shell.load_state_dict(renamed, strict=False, assign=True)
    shell.tie_weights()  # type: ignore[operator]
    lacking = [name for name, parameter in shell.named_parameters() if parameter.is_meta]
    if result.unexpected_keys or lacking:
        raise UnsupportedModelError(
            f"The cut {type(model).__name__} has other tensors than expected: {(result.unexpected_keys + lacking)[0]}."
        )
    buffers = dict(model.named_buffers())
    device = next(iter(renamed.values())).device
    for name, buffer in shell.named_buffers():
        # Buffers outside the stack may depend on the model's dtype or device: take the dense model's own.
        if name in buffers and not name.startswith(path + ".") and buffers[name].shape == buffer.shape:
            buffer.data = buffers[name].data
        else:
            buffer.data = buffer.data.to(device)
    if getattr(model, "generation_config", None) is not None:
        shell.generation_config = copy.deepcopy(model.generation_config)
    shell.requires_grad_(False)
    return shell.eval()


def cut_tensors(
    tensors: dict[str, Any], path: str, removed: tuple[int, ...], num_blocks: int, changes: list[Change]
) -> dict[str, Any]:
    """`tensors` without those of removed blocks, with `path.{i}.` renumbered and the folds of `changes` done."""
    removal = Removal.of(removed, num_blocks)
    numbers = removal.numbers
    pattern = re.compile(re.escape(path) + r"\.(\d+)\.")
    result: dict[str, Any] = {}
    blocks: dict[int, dict[str, Any]] = {new: {} for new in numbers.values()}
    for name, tensor in tensors.items():
        match = pattern.match(name)
        axis = block_axis(name)
        if match is not None:
            if int(match[1]) in numbers:
                blocks[numbers[int(match[1])]][name[match.end() :]] = tensor
        else:
            result[name] = tensor if axis is None else keep_slices(tensor, axis, removal)
    for change in changes:
        block = blocks[change.place.new]
        for name, tensor in change.apply(block).items():
            if tensor is None:
                del block[name]
            else:
                block[name] = tensor
    for new, block in blocks.items():
        result |= {f"{path}.{new}.{name}": tensor for name, tensor in block.items()}
    return result
