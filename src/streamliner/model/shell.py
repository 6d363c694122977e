"""A model's structure without its weights."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel
import copy
import hashlib
from collections.abc import Callable

import torch
from accelerate import init_empty_weights
from torch import nn
from torch.overrides import TorchFunctionMode

from streamliner.model.load import auto_class
from streamliner.model.source import ModelSource, explained
from streamliner.model.stack import Stack


def build_shell(source: ModelSource, config: PretrainedConfig) -> PreTrainedModel:
    """The model of `config` without its weights."""

    cls = auto_class(config)
    build = getattr(cls, "from_config", None)
    if build is None:
        return explained(source, lambda: make_shell(cls._from_config, config))  # type: ignore[no-any-return]
    trusted = functools.partial(build, trust_remote_code=source.trust_remote_code)
    return explained(source, lambda: make_shell(trusted, config))  # type: ignore[no-any-return]


KIND_LISTS = ("layer_types", "layers_block_type", "attention_layers", "attn_layers")
"""Config fields that name the kind of each block."""


def block_kinds(stack: Stack) -> list[str]:
    """A word or two for each block: what its config calls it, and the parts in which blocks differ."""
    lists = (getattr(stack.config, name, None) for name in KIND_LISTS)
    named = next((kinds for kinds in lists if isinstance(kinds, list) and len(kinds) == len(stack)), None)
    parts = [{name: type(child).__name__ for name, child in block.named_children()} for block in stack.modules]
    common = {name for name in parts[0] if all(part.get(name) == parts[0][name] for part in parts)}
    kinds = []
    for index, module in enumerate(stack.modules):
        differing = [
            cls for name, cls in parts[index].items() if name not in common and not cls.endswith(("Identity", "Norm"))
        ]
        kinds.append(", ".join(dict.fromkeys([named[index] if named else type(module).__name__, *differing])))
    return kinds


def count_parameters(module: nn.Module) -> int:
    """Parameters, shared ones once."""
    return sum(parameter.numel() for parameter in module.parameters())


LARGE = 1 << 22
"""Elements of a tensor that no class would keep as a buffer."""


@dataclass(frozen=True)
class Fingerprint:
    """What makes a model, apart from its weights.

    Attributes:
        blocks: of each block its classes, plain attributes, shapes and fixed buffers by path within it.
        outside: shapes of the tensors outside the stack by name.
    """

    blocks: tuple[dict[str, Any], ...]
    outside: dict[str, tuple[int, ...]]


def make_shell(build: Callable[[Any], nn.Module], config: Any) -> nn.Module:
    """`build(config)` with parameters on the meta device and real buffers: the structure without the weights."""
    with init_empty_weights(include_buffers=False), _LargeOnMeta():
        shell = build(copy.deepcopy(config))
    shell.tie_weights()  # type: ignore[operator]
    return shell


class _LargeOnMeta(TorchFunctionMode):
    """Large empty tensors are made on the meta device at once: accelerate would first allocate each parameter.

    Small ones are not, as a class may fill one and keep it as a buffer.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty and kwargs.get("device") is None:
            made = func(*args, **kwargs | {"device": "meta"})
            if made.numel() > LARGE:
                return made
        return func(*args, **kwargs)


def fingerprint(model: nn.Module, stack: Stack) -> Fingerprint:
    """Take the fingerprint of a shell."""
    saved = model.state_dict(keep_vars=True)
    outside = {name: tuple(tensor.shape) for name, tensor in saved.items() if not name.startswith(f"{stack.path}.")}
    return Fingerprint(tuple(_block_fingerprint(block) for block in stack.modules), outside)


def _block_fingerprint(block: nn.Module) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for path, module in block.named_modules():
        prefix = f"{path}." if path else ""
        result[f"{prefix}class"] = type(module).__qualname__
        for name, value in vars(module).items():
            if not name.startswith("_") and isinstance(value, (bool, int, float, str, tuple, list, type(None))):
                result[f"{prefix}{name}"] = tuple(value) if isinstance(value, list) else value
        for name, parameter in module.named_parameters(recurse=False):
            result[f"{prefix}{name}.shape"] = tuple(parameter.shape)
        for name, buffer in module.named_buffers(recurse=False):
            # A persistent buffer comes with the weights; only its shape must fit.
            fixed = name in module._non_persistent_buffers_set and not buffer.is_meta
            content = hashlib.sha256(buffer.contiguous().flatten().view(torch.uint8).numpy()) if fixed else None
            result[f"{prefix}{name}.buffer"] = (tuple(buffer.shape), content and content.hexdigest())
    return result
