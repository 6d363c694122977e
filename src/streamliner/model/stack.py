"""Find the stack: where a model keeps its blocks, which config describes them, and what its forward takes."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from streamliner.errors import RemovalError, UnsupportedModelError

DECODER_COUNTS = ("decoder_layers", "num_decoder_layers")


COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_blocks")
"""Names under which configs keep the number of blocks; beside one of the decoder's own the others count the encoder."""


@dataclass(frozen=True)
class Stack:
    """Where a model keeps its blocks.

    Attributes:
        path: such as "model.layers".
        modules: the blocks in order.
        config: the config that describes them: that of the nearest `PreTrainedModel` around them, so the text config
            of a model with several parts.
        count_name: the config's own name for the number of blocks where it is none that is known, else "".
    """

    path: str
    modules: nn.ModuleList
    config: Any
    count_name: str = ""

    def __len__(self) -> int:
        return len(self.modules)


def find_stack(model: nn.Module) -> Stack:
    """The decoder's blocks: the module list as long as its config says, the largest if there are several.

    Where the config has no name for the number of blocks that is known, the one number in it that equals the length of
    a module list will do.

    Raises:
        UnsupportedModelError: there is no such list.
    """
    decoder = model.get_decoder()  # type: ignore[operator]
    inside = {id(module) for module in decoder.modules()}
    lists = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    lists = [item for item in lists if id(item[1]) in inside] or lists
    lists = [item for item in lists if not any(item[0].startswith(f"{path}.") for path, _ in lists)]
    stacks, found, wanted = [], set(), set()
    for path, module in lists:
        config = _nearest_config(model, path)
        if not len(module) or not hasattr(config, "vocab_size"):  # without words: an encoder of images or sound
            continue
        counts = _counts(config, DECODER_COUNTS) or _counts(config, COUNTS)
        others = [key for key, value in vars(config).items() if type(value) is int and value == len(module) > 1]
        found.add(len(module))
        wanted.update(counts)
        if len(module) in counts:
            stacks.append(Stack(path, module, config))
        elif not counts and len(others) == 1:
            stacks.append(Stack(path, module, config, others[0]))
    if not stacks:
        raise UnsupportedModelError(
            f"No stack of blocks was found in {type(model).__name__}: its config counts {sorted(wanted) or 'no'} "
            f"blocks, and its module lists have lengths {sorted(found)}."
        )
    sizes = [sum(p.numel() for p in stack.modules.parameters()) for stack in stacks]
    parts = [stack.path for stack, size in zip(stacks, sizes, strict=True) if size > max(sizes) / 4]
    parents = [path.rpartition(".")[0] for path in parts]
    parallel = [path for path, parent in zip(parts, parents, strict=True) if parents.count(parent) > 1]
    if parallel:
        raise UnsupportedModelError(
            f"{type(model).__name__} keeps the parts of its blocks in parallel lists ({', '.join(parallel)}), "
            "not in one list of blocks."
        )
    return stacks[sizes.index(max(sizes))]


def has_encoder(model: nn.Module) -> bool:
    """Whether the model writes text behind an encoder that reads (T5, Whisper)."""
    whole = getattr(model.config, "is_encoder_decoder", False)
    return bool(whole) and "decoder_input_ids" in inspect.signature(model.forward).parameters


def text_inputs(model: nn.Module, input_ids: Tensor) -> dict[str, Tensor]:
    """What the model's forward takes to run over text: behind an encoder, the same text or silence for it too."""
    if not has_encoder(model):
        return {"input_ids": input_ids}
    config: Any = model.config
    if getattr(model, "main_input_name", "input_ids") == "input_ids":
        return {"input_ids": input_ids, "decoder_input_ids": input_ids}
    weight = next(model.parameters())
    silence = weight.new_zeros(len(input_ids), config.num_mel_bins, 2 * config.max_source_positions)
    return {"input_features": silence, "decoder_input_ids": input_ids}


def _counts(config: Any, names: tuple[str, ...]) -> set[int]:
    values = (getattr(config, name, None) for name in names)
    return {value for value in values if type(value) is int}


def _nearest_config(model: nn.Module, path: str) -> Any:
    parts = path.split(".")
    for length in range(len(parts), 0, -1):
        module = model.get_submodule(".".join(parts[:length]))
        if hasattr(module, "get_input_embeddings") and hasattr(module, "config"):
            # T5's stacks have configs of their own that no checkpoint keeps.
            return module.config if _holds(model.config, module.config) else model.config
    return model.config


def _holds(config: Any, part: Any) -> bool:
    nested = [value for value in vars(config).values() if hasattr(value, "model_type") and hasattr(value, "to_dict")]
    return config is part or any(_holds(value, part) for value in nested)


def check_indices(removed: Iterable[int], num_blocks: int) -> tuple[int, ...]:
    """`removed` sorted; each index once and of a block that exists, and at least one block stays.

    Raises:
        RemovalError: otherwise.
    """
    indices = tuple(sorted(removed))
    wrong = [index for index in indices if not 0 <= index < num_blocks]
    if wrong:
        raise RemovalError(
            f"There is no block {wrong[0]}: the model has {num_blocks} blocks.", f"Blocks are 0 to {num_blocks - 1}."
        )
    twice = sorted({index for index in indices if indices.count(index) > 1})
    if twice:
        raise RemovalError(f"Block {twice[0]} is named twice.")
    if len(indices) == num_blocks:
        raise RemovalError(f"All {num_blocks} blocks would go; at least one must stay.")
    return indices
