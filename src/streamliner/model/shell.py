"""Shells: a model's structure without its weights, and what two shells can be compared by."""

from __future__ import annotations

import copy
import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from accelerate import init_empty_weights
from torch import nn
from torch.overrides import TorchFunctionMode

from streamliner.model.compat import from_config
from streamliner.model.load import auto_class
from streamliner.model.source import ModelSource, explained
from streamliner.model.stack import Stack

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def build_shell(source: ModelSource, config: PretrainedConfig) -> PreTrainedModel:
    """The shell of the model that an auto class of transformers would load."""
    cls = auto_class(config)
    build = getattr(cls, "from_config", None)
    if build is None:
        return explained(source, lambda: make_shell(functools.partial(from_config, cls), config))  # type: ignore[no-any-return]
    trusted = functools.partial(build, trust_remote_code=source.trust_remote_code)
    return explained(source, lambda: make_shell(trusted, config))  # type: ignore[no-any-return]


def shell_like(model: nn.Module, config: Any) -> nn.Module:
    """The shell of a model of the same class as `model` for `config`."""
    return make_shell(functools.partial(from_config, type(model)), config)


def make_shell(build: Callable[[Any], nn.Module], config: Any) -> nn.Module:
    """`build(config)` with parameters on the meta device and real buffers."""
    with init_empty_weights(include_buffers=False), _LargeOnMeta():
        shell = build(copy.deepcopy(config))
    shell.tie_weights()  # type: ignore[operator]
    return shell


LARGE = 1 << 22
"""Elements of a tensor that no class would keep as a buffer."""


class _LargeOnMeta(TorchFunctionMode):
    """Makes large empty tensors on the meta device: accelerate would first allocate each parameter.

    Small ones stay real, as a class may fill one and keep it as a buffer.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty and kwargs.get("device") is None:
            made = func(*args, **kwargs | {"device": "meta"})
            if made.numel() > LARGE:
                return made
        return func(*args, **kwargs)


@dataclass(frozen=True)
class Outline:
    """What defines a model apart from its weights.

    Attributes:
        blocks: for each block its classes, plain attributes, shapes and fixed buffers by path within it.
        outside: shapes of the tensors outside the stack by name.
    """

    blocks: tuple[dict[str, Any], ...]
    outside: dict[str, tuple[int, ...]]


def outline(shell: nn.Module, stack: Stack) -> Outline:
    """The outline of a shell."""
    saved = shell.state_dict(keep_vars=True)
    outside = {name: tuple(tensor.shape) for name, tensor in saved.items() if not name.startswith(f"{stack.path}.")}
    return Outline(tuple(map(_block_outline, stack.modules)), outside)


def _block_outline(block: nn.Module) -> dict[str, Any]:
    result: dict[str, Any] = {}
    saved = block.state_dict(keep_vars=True).keys()
    for path, module in block.named_modules():
        prefix = f"{path}." if path else ""
        result[f"{prefix}class"] = type(module).__qualname__
        for name, value in vars(module).items():
            if not name.startswith("_") and isinstance(value, (bool, int, float, str, tuple, list, type(None))):
                result[f"{prefix}{name}"] = tuple(value) if isinstance(value, list) else value
        for name, parameter in module.named_parameters(recurse=False):
            result[f"{prefix}{name}.shape"] = tuple(parameter.shape)
        for name, buffer in module.named_buffers(recurse=False):
            # A saved buffer comes with the weights; only its shape must fit.
            fixed = f"{prefix}{name}" not in saved and not buffer.is_meta
            result[f"{prefix}{name}.buffer"] = (tuple(buffer.shape), _content_hash(buffer) if fixed else None)
    return result


def _content_hash(buffer: torch.Tensor) -> str:
    return hashlib.sha256(buffer.contiguous().flatten().view(torch.uint8).numpy().tobytes()).hexdigest()
