"""Cut a model in memory: build a model from the cut config and give it the kept tensors.

Patching the model instead would keep whatever a block derived from its old index or the old config. A rebuilt model
derives it again, and `structure.py` has compared every block.
"""

from torch import Tensor

from streamliner.cut.folds import block_axis, keep_slices
from streamliner.cut.names import renamed_tensors
from streamliner.cut.rules import Removal
from streamliner.cut.structure import Structure
from streamliner.errors import UnsupportedModelError
from streamliner.model.devices import is_spread, spread_as
from streamliner.model.precision import quantised_by
from streamliner.model.shell import fill_shell, scales_weights_by_block
from streamliner.model.stack import check_indices, find_stack
from streamliner.types import PreTrainedModel


def kept_names(model: PreTrainedModel, removed: tuple[int, ...]) -> dict[str, str]:
    """New name -> old name of the saved tensors that stay when blocks are removed."""
    stack = find_stack(model)
    return renamed_tensors(model.state_dict(), stack.path, Removal.of(removed, len(stack)), {})


def cut_model(
    model: PreTrainedModel, removed: tuple[int, ...] | list[int], *, without_weights: bool = False
) -> PreTrainedModel:
    """A new model without the blocks `removed`. It shares the kept tensors with `model`, which stays as it is.

    With `without_weights`, tensors that wait on the disk or on another device are on the meta device in it.

    A RemovalError if the blocks do not exist, an UnsupportedModelError if the cut model would not be the dense model
    with the blocks bypassed.
    """
    if method := quantised_by(model.config):
        found = f"The weights of this model are quantised in memory ({method}), so they have no place in a stock model."
        hint = "Cut its checkpoint, which keeps them as they are: streamliner cut FOLDER --blocks 3,7 -o OUT"
        raise UnsupportedModelError(found, hint)
    structure = Structure.of(model)
    removed = check_indices(removed, len(structure))
    changes = structure.changes(removed)
    if scales_weights_by_block(model):
        raise UnsupportedModelError(
            "This model scaled its weights by block in its first forward (rescale_every).",
            "Cut the checkpoint on disk, or a model that has not run yet.",
        )
    # Rename, slice, fold: as for a checkpoint on disk (`checkpoint.py`).
    path, removal, dense = structure.stack.path, Removal.of(removed, len(structure)), model.state_dict()
    if not without_weights and any(tensor.is_meta for tensor in dense.values()):
        found = "Some weights of this model are not in memory (they are loaded when needed)."
        raise UnsupportedModelError(found, "Cut its checkpoint: streamliner cut FOLDER --blocks 3,7 -o OUT")
    tensors: dict[str, Tensor | None] = {}
    for name, old_name in renamed_tensors(dense, path, removal, {}).items():
        axis = block_axis(name)
        tensors[name] = dense[old_name] if axis is None else keep_slices(dense[old_name], axis, removal)
    for change in changes:
        tensors |= change.apply(tensors, path)
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    cut = fill_shell(structure.cut_shell(removed), kept, model, path)
    if is_spread(model) and not without_weights:
        cut = spread_as(cut, model, path, removal.kept)
    return cut  # type: ignore[return-value]
