"""Whether tensors fit into a model, found out from their names and shapes alone."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from streamliner.errors import is_out_of_memory
from streamliner.model.load import silenced_transformers


@dataclass(frozen=True)
class Fit:
    """What does not fit, by names in memory.

    Attributes:
        missing: tensors that transformers would fill with random numbers.
        mismatched: tensors of another shape: name -> (shape, the shape that the model has).
        unexpected: tensors for which the model has no place.
    """

    missing: tuple[str, ...]
    mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    unexpected: tuple[str, ...]


def fit(model_class: Any, config: Any, shapes: Mapping[str, tuple[int, ...]]) -> Fit | None:
    """Let transformers load a checkpoint that has tensors of these names on disk and shapes, but no values.

    None if it cannot tell: where it merges tensors on loading, and one of them is not there.
    """
    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    arguments = {"ignore_mismatched_sizes": True, "output_loading_info": True, "device_map": {"": "meta"}}
    try:
        with silenced_transformers():
            _, info = model_class.from_pretrained(
                None, config=copy.deepcopy(config), state_dict=tensors, dtype=torch.float32, **arguments
            )
    except Exception as error:  # transformers raises errors of many types
        if is_out_of_memory(error):
            raise
        return None
    wrong = {name: (tuple(found), tuple(wanted)) for name, found, wanted in info["mismatched_keys"]}
    return Fit(tuple(sorted(info["missing_keys"])), wrong, tuple(sorted(map(str, info["unexpected_keys"]))))
