"""Shells: a model's structure without its weights; comparing two of them, and filling one with weights."""

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from streamliner.errors import UnsupportedModelError
from streamliner.model.compat import from_config
from streamliner.model.stack import Stack


def make_shell(model_class: Any, config: Any, **options: Any) -> Any:
    """The shell of a model for `config`: parameters on the meta device, real buffers.

    `model_class` may be an auto class of transformers; `options` are of its `from_config`.
    """
    build = getattr(model_class, "from_config", None) or partial(from_config, model_class)
    with init_empty_weights(include_buffers=False), _WithoutWeights():
        shell = build(copy.deepcopy(config), **options)
    shell.tie_weights()
    return shell


FILLS = ("normal_", "uniform_", "kaiming_uniform_", "xavier_uniform_", "fill_", "constant_", "zero_", "zeros_", "ones_")
"""Functions that give a tensor its first values. On the meta device there are none, yet each takes 0.5 ms."""


class _WithoutWeights(TorchFunctionMode):
    """Makes large empty tensors on the meta device, as accelerate would first allocate each parameter, and fills none.

    Small ones stay real, as a class may fill one and keep it as a buffer.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in FILLS:
            filled = args[0] if args else kwargs.get("tensor")
            if isinstance(filled, Tensor) and filled.is_meta:
                return filled
        if func is torch.empty and kwargs.get("device") is None:
            made = func(*args, **kwargs | {"device": "meta"})
            if made.numel() > 1 << 22:
                return made
        return func(*args, **kwargs)


@dataclass(frozen=True)
class Outline:
    """What defines a model apart from its weights."""

    blocks: tuple[dict[str, Any], ...]  # of each: classes, plain attributes, shapes, fixed buffers by path within it
    outside: dict[str, tuple[int, ...]]  # shapes of the tensors outside the stack by name


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


def _content_hash(buffer: Tensor) -> str:
    return hashlib.sha256(buffer.contiguous().flatten().view(torch.uint8).numpy().tobytes()).hexdigest()


def fill_shell(shell: nn.Module, tensors: Mapping[str, Tensor], dense: nn.Module, stack_path: str) -> nn.Module:
    """Give the shell of a cut model its weights; return it frozen, in evaluation mode.

    It shares `tensors`, which are by their names in it, and its buffers outside the stack with `dense`. An
    UnsupportedModelError if a tensor is missing, or has no place in the shell.
    """
    unexpected = shell.load_state_dict(tensors, strict=False, assign=True).unexpected_keys
    shell.tie_weights()  # type: ignore[operator]
    _untie(shell, tensors)
    meta = {name for name, tensor in tensors.items() if tensor.is_meta}
    wrong = unexpected + [name for name, each in shell.named_parameters() if each.is_meta and name not in meta]
    if wrong:
        raise UnsupportedModelError(f"The cut {type(dense).__name__} has other tensors than expected: {wrong[0]}.")
    device, buffers = next(iter(tensors.values())).device, dict(dense.named_buffers())
    for name, buffer in shell.named_buffers():
        # Outside the stack take the dense model's, which may depend on its dtype.
        other = buffer if name.startswith(f"{stack_path}.") else buffers.get(name, buffer)
        buffer.data = buffer.data.to(device) if other is buffer or other.shape != buffer.shape else other.data
    if getattr(dense, "generation_config", None) is not None:
        shell.generation_config = copy.deepcopy(dense.generation_config)
    shell.requires_grad_(False)
    return shell.eval()


def _untie(shell: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give parameters back that `tie_weights` replaced, though in `tensors` they are not tied.

    A fine-tuned model may have a head of its own beside a config that says it has none.
    """
    for name, tensor in tensors.items():
        if "." in name and (owner := shell.get_submodule(name.rpartition(".")[0])) is not None:
            own = getattr(owner, name.rpartition(".")[2])
            if isinstance(own, nn.Parameter) and own.data_ptr() != tensor.data_ptr() and not torch.equal(own, tensor):
                setattr(owner, name.rpartition(".")[2], nn.Parameter(tensor, requires_grad=False))
                for config in (shell.config, shell.config.get_text_config(decoder=True)):  # type: ignore[operator, union-attr]
                    config.tie_word_embeddings = False  # type: ignore[union-attr]


def scales_weights_by_block(model: nn.Module) -> bool:
    """Whether a forward divided the weights by numbers that depend on the block's index (RWKV's `rescale_every`)."""
    rescaled = any(getattr(module, "layers_are_rescaled", False) for module in model.modules())
    return rescaled and getattr(model.config, "rescale_every", 0) > 0  # the flag is set even where nothing was scaled
