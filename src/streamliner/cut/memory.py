"""Cut a model in memory: build a model from the cut config and give it the kept tensors.

Patching the model instead would keep whatever a block derived from its old index or the old config. A rebuilt model
derives it again, and `structure.py` has compared every block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from streamliner.cut.folds import Change, block_axis, keep_slices
from streamliner.cut.names import renamed_tensors
from streamliner.cut.removal import Removal
from streamliner.cut.structure import Structure
from streamliner.errors import UnsupportedModelError
from streamliner.model.shell import fill_shell, scales_weights_by_block
from streamliner.model.stack import check_indices

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def cut_model(model: PreTrainedModel, removed: tuple[int, ...] | list[int]) -> PreTrainedModel:
    """A new model without the blocks `removed`. It shares the kept tensors with `model`, which stays as it is.

    Raises:
        RemovalError: the blocks do not exist.
        UnsupportedModelError: the cut model would not be the dense model with the blocks bypassed.
    """
    structure = Structure.of(model)
    removed = check_indices(removed, len(structure))
    changes = structure.changes(removed)
    if scales_weights_by_block(model):
        raise UnsupportedModelError(
            "This model scaled its weights by block in its first forward (rescale_every).",
            "Cut the checkpoint on disk, or a model that has not run yet.",
        )
    path = structure.stack.path
    tensors = _cut_tensors(model.state_dict(), path, Removal.of(removed, len(structure)), changes)
    return fill_shell(structure.cut_shell(removed), tensors, model, path)


def _cut_tensors(tensors: dict[str, Tensor], path: str, removal: Removal, changes: list[Change]) -> dict[str, Tensor]:
    """Rename, slice, fold: as for a checkpoint on disk (`checkpoint.py`)."""
    result = {}
    for name, old_name in renamed_tensors(tensors, path, removal).items():
        axis = block_axis(name)
        result[name] = tensors[old_name] if axis is None else keep_slices(tensors[old_name], axis, removal)
    for change in changes:
        block = f"{path}.{change.place.new}."
        needed = {name: result[block + name] for name in change.names() if block + name in result}
        for name, tensor in change.apply(needed).items():
            if tensor is None:
                result.pop(block + name, None)
            else:
                result[block + name] = tensor
    return result
