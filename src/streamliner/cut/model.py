"""Cut a model in memory: rebuild it from the cut config, sharing the kept tensors.

Rebuilding beats patching the live model: whatever a block derives from its index or from the config at construction is
derived anew, and what the rebuilt block got wrong shows in a comparison of fingerprints before anything is written.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn

from streamliner.blocks import Stack, check_indices, find_stack
from streamliner.cut.config import cut_config
from streamliner.errors import UnsupportedModelError

INDEX_NAMES = ("layer_idx", "layer_id", "layer_index", "layer_number", "block_idx", "idx", "index")
"""Attributes in which a block keeps its own position."""


def cut_model_config(config: Any, stack: Stack, removed: tuple[int, ...]) -> Any:
    """The config object of the cut model: a copy of `config`, with the part that describes the stack cut."""
    cut = cut_config(stack.config.to_dict(), removed, len(stack))
    cut.pop("quantization_config", None)  # the weights in memory are dense; a checkpoint keeps its own
    try:
        part = type(stack.config).from_dict(cut)
    except Exception as error:  # validators of configs raise types of their own
        reason = str(error).strip().splitlines()[-1].strip()
        raise UnsupportedModelError(f"The config of the cut model would not be valid: {reason}") from error
    part._attn_implementation = stack.config._attn_implementation
    path = config_path(config, stack.config)
    if not path:
        return part
    result = copy.deepcopy(config)
    parent = result
    for name in path[:-1]:
        parent = getattr(parent, name)
    setattr(parent, path[-1], part)
    return result


def config_path(config: Any, part: Any) -> tuple[str, ...]:
    """Names that lead from a config to the nested config `part`; none if it is the same object.

    Raises:
        UnsupportedModelError: it is not in there.
    """
    if config is part:
        return ()
    for name, value in vars(config).items():
        if hasattr(value, "model_type") and hasattr(value, "to_dict"):
            try:
                return (name, *config_path(value, part))
            except UnsupportedModelError:
                continue
    raise UnsupportedModelError(f"{type(config).__name__} does not hold the config that describes the blocks.")


def make_shell(build: Callable[[Any], nn.Module], config: Any) -> nn.Module:
    """`build(config)` with parameters on the meta device and real buffers: the structure without the weights."""
    with init_empty_weights(include_buffers=False):
        shell = build(copy.deepcopy(config))
    shell.tie_weights()  # type: ignore[operator]
    return shell


def cut_model(model: nn.Module, removed: tuple[int, ...] | list[int]) -> nn.Module:
    """A new model without the blocks `removed`. It shares the kept tensors with `model`, which stays as it is.

    Raises:
        RemovalError: a block that is not there, or all of them.
        UnsupportedModelError: the cut model cannot be expressed by its class; the message names what.
    """
    stack = find_stack(model)
    path, removed = stack.path, check_indices(removed, len(stack))
    config = cut_model_config(model.config, stack, removed)
    build = type(model)._from_config  # type: ignore[attr-defined]
    shell = make_shell(build, config)
    check_fingerprints(make_shell(build, model.config), shell, removed)
    renamed = rename_blocks(model.state_dict(), path, removed, len(stack))
    result = shell.load_state_dict(renamed, strict=False, assign=True)
    shell.tie_weights()  # type: ignore[operator]
    tied = [name for name, parameter in shell.named_parameters() if parameter.is_meta]
    if result.unexpected_keys or tied:
        raise UnsupportedModelError(
            f"The cut {type(model).__name__} has other tensors than expected: {(result.unexpected_keys + tied)[0]}."
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


def rename_blocks(tensors: dict[str, Any], path: str, removed: tuple[int, ...], num_blocks: int) -> dict[str, Any]:
    """`tensors` without those of removed blocks, with `path.{i}.` renumbered."""
    numbers = new_numbers(removed, num_blocks)
    pattern = re.compile(re.escape(path) + r"\.(\d+)\.")
    renamed = {}
    for name, tensor in tensors.items():
        match = pattern.match(name)
        if match is None:
            renamed[name] = tensor
        elif int(match[1]) in numbers:
            renamed[f"{path}.{numbers[int(match[1])]}.{name[match.end() :]}"] = tensor
    return renamed


def new_numbers(removed: tuple[int, ...], num_blocks: int) -> dict[int, int]:
    """Old index -> new index of the kept blocks."""
    return {old: new for new, old in enumerate(i for i in range(num_blocks) if i not in removed)}


def check_fingerprints(dense: nn.Module, cut: nn.Module, removed: tuple[int, ...]) -> None:
    """Compare each kept block as its class builds it in the dense and in the cut model, before any weight moves.

    Raises:
        UnsupportedModelError: a block would not be the same; the message names block and attribute.
    """
    old_blocks, new_blocks = find_stack(dense).modules, find_stack(cut).modules
    for old, new in new_numbers(removed, len(old_blocks)).items():
        before, after = fingerprint(old_blocks[old], old), fingerprint(new_blocks[new], new)
        for key in sorted(set(before) | set(after)):
            if before.get(key) != after.get(key):
                raise UnsupportedModelError(
                    f"Block {old} would not be the same block in the cut model: {key} "
                    f"is {before.get(key)!r} and would be {after.get(key)!r}.",
                    "This architecture ties something to a block's position that streamliner does not know yet.",
                )


def fingerprint(block: nn.Module, index: int) -> dict[str, Any]:
    """What makes a block, apart from its weights and its index: classes, plain attributes, shapes, fixed buffers."""
    result: dict[str, Any] = {}
    for path, module in block.named_modules():
        prefix = f"{path}." if path else ""
        result[f"{prefix}class"] = type(module).__qualname__
        for name, value in vars(module).items():
            if name.startswith("_") or not isinstance(value, (bool, int, float, str, tuple, type(None))):
                continue
            own_index = name in INDEX_NAMES and value == index and not isinstance(value, bool)
            result[f"{prefix}{name}"] = "the block's index" if own_index else value
        for name, parameter in module.named_parameters(recurse=False):
            result[f"{prefix}{name}.shape"] = tuple(parameter.shape)
        for name, buffer in module.named_buffers(recurse=False):
            result[f"{prefix}{name}.buffer"] = (tuple(buffer.shape), str(buffer.dtype), _values(buffer))
    return result


def _values(buffer: torch.Tensor) -> Any:
    return None if buffer.is_meta else buffer.flatten().tolist()
