"""Find the stack: where a model keeps its blocks, which config describes them, and what its forward takes."""

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from operator import index
from typing import Any

from torch import Tensor, nn

from streamliner.errors import RemovalError, UnsupportedModelError

DECODER_COUNTS = ("decoder_layers", "num_decoder_layers")
COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_blocks")
"""Names of the number of blocks in configs. Where a config has one of DECODER_COUNTS, COUNTS describe its encoder."""


@dataclass(frozen=True)
class Stack:
    """Where a model keeps its blocks."""

    path: str  # such as "model.layers"
    modules: nn.ModuleList
    config: Any  # of the nearest `PreTrainedModel` around the blocks: the text config of a model with several parts
    count_name: str = ""  # the config's name for the number of blocks, unless it is in COUNTS or DECODER_COUNTS

    def __len__(self) -> int:
        return len(self.modules)

    @property
    def hidden_size(self) -> int | None:
        """Width of the residual stream, if the config names it."""
        return getattr(self.config, "hidden_size", None) or getattr(self.config, "n_embd", None)


def find_stack(model: nn.Module) -> Stack:
    """The decoder's blocks: the module list as long as the config says, the largest if there are several.

    A config without a known name for the number of blocks must have one number that equals a list's length. An
    UnsupportedModelError if there is no such list.
    """
    stacks, found, wanted = [], set(), set()
    for path, module in _module_lists(model):
        config = _nearest_config(model, path)
        if not len(module) or not hasattr(config, "vocab_size"):  # no vocabulary: an encoder of images or sound
            continue
        counts = _counts(config, DECODER_COUNTS) or _counts(config, COUNTS)
        others = [key for key, value in vars(config).items() if type(value) is int and value == len(module) > 1]
        found.add(len(module))
        wanted.update(counts)
        if len(module) in counts or (not counts and len(others) == 1):
            stacks.append(Stack(path, module, config, "" if counts else others[0]))
    if not stacks:
        lengths = f"its config counts {sorted(wanted) or 'no'} blocks, its module lists have lengths {sorted(found)}"
        raise UnsupportedModelError(f"No stack of blocks was found in {type(model).__name__}: {lengths}.")
    return _largest(stacks, type(model).__name__)


def _module_lists(model: nn.Module) -> list[tuple[str, nn.ModuleList]]:
    """The module lists with their paths: those of the decoder if it has any, and none inside another."""
    decoder = model.get_decoder()  # type: ignore[operator]
    inside = {id(module) for module in decoder.modules()}
    lists = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    lists = [item for item in lists if id(item[1]) in inside] or lists
    return [item for item in lists if not any(item[0].startswith(f"{path}.") for path, _ in lists)]


def _largest(stacks: list[Stack], model_name: str) -> Stack:
    """The stack with most parameters; other large lists with the same parent show that blocks are spread over them."""
    sizes = [sum(p.numel() for p in stack.modules.parameters()) for stack in stacks]
    large = [stack.path for stack, size in zip(stacks, sizes, strict=True) if size > max(sizes) / 4]
    parents = [path.rpartition(".")[0] for path in large]
    parallel = ", ".join(path for path in large if parents.count(path.rpartition(".")[0]) > 1)
    if parallel:
        raise UnsupportedModelError(f"{model_name} keeps the parts of its blocks in parallel lists: {parallel}.")
    return stacks[sizes.index(max(sizes))]


def _counts(config: Any, names: tuple[str, ...]) -> set[int]:
    values = (getattr(config, name, None) for name in names)
    return {value for value in values if type(value) is int}


def _nearest_config(model: nn.Module, path: str) -> Any:
    while path:
        module = model.get_submodule(path)
        if hasattr(module, "get_input_embeddings") and hasattr(module, "config"):
            # T5's stacks have configs of their own that no checkpoint keeps.
            return module.config if config_path(model.config, module.config) is not None else model.config
        path = path.rpartition(".")[0]
    return model.config


def config_path(config: Any, part: Any) -> tuple[str, ...] | None:
    """Attribute names that lead from a config to the nested config `part`; () if it is `config`, None if not in it."""
    if config is part:
        return ()
    for name, value in vars(config).items():
        is_config = hasattr(value, "model_type") and hasattr(value, "to_dict")
        if is_config and (path := config_path(value, part)) is not None:
            return (name, *path)
    return None


def block_kinds(stack: Stack) -> list[str]:
    """The kind of each block: what its config calls it, and the classes of the parts in which blocks differ."""
    fields = ("layer_types", "layers_block_type", "attention_layers", "attn_layers")
    lists = (getattr(stack.config, field, None) for field in fields)
    named = next((kinds for kinds in lists if isinstance(kinds, list) and len(kinds) == len(stack)), None)
    parts = [{name: type(child).__name__ for name, child in block.named_children()} for block in stack.modules]
    common = {name for name in parts[0] if all(part.get(name) == parts[0][name] for part in parts)}
    names = named or [type(module).__name__ for module in stack.modules]
    kinds = []
    for name, part in zip(names, parts, strict=True):
        own = [cls for child, cls in part.items() if child not in common and not cls.endswith(("Identity", "Norm"))]
        kinds.append(", ".join(dict.fromkeys([name, *own])))
    return kinds


def has_encoder(model: nn.Module) -> bool:
    """Whether the model has an encoder whose output the decoder reads (T5, Whisper)."""
    both = getattr(model.config, "is_encoder_decoder", False)
    return bool(both) and "decoder_input_ids" in inspect.signature(model.forward).parameters


def text_inputs(model: nn.Module, input_ids: Tensor) -> dict[str, Tensor]:
    """Arguments of the model's forward for a text. An encoder gets the same text, or silence if it reads sound."""
    if not has_encoder(model):
        return {"input_ids": input_ids}
    config: Any = model.config
    if getattr(model, "main_input_name", "input_ids") == "input_ids":
        return {"input_ids": input_ids, "decoder_input_ids": input_ids}
    shape = (len(input_ids), config.num_mel_bins, 2 * config.max_source_positions)
    return {"input_features": next(model.parameters()).new_zeros(shape), "decoder_input_ids": input_ids}


def check_indices(removed: Iterable[int], num_blocks: int) -> tuple[int, ...]:
    """`removed`, sorted. A RemovalError if a block does not exist or is named twice, or if none would stay.

    NumPy's integers, which a method of the user's may have, become Python's.
    """
    indices = tuple(sorted(index(block) for block in removed))
    wrong = [block for block in indices if not 0 <= block < num_blocks]
    if wrong:
        raise RemovalError(f"There is no block {wrong[0]}: the model's blocks are 0 to {num_blocks - 1}.")
    twice = [block for block, other in pairwise(indices) if block == other]
    if twice:
        raise RemovalError(f"Block {twice[0]} is named twice.")
    if len(indices) == num_blocks:
        raise RemovalError(f"All {num_blocks} blocks would be removed; at least one must stay.")
    return indices
