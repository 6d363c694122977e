"""Fill a model's structure with tensors."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from streamliner.errors import UnsupportedModelError


def scales_weights_by_block(model: nn.Module) -> bool:
    """Whether a forward divided the weights by numbers that depend on the block's index (RWKV's `rescale_every`)."""
    rescaled = any(getattr(module, "layers_are_rescaled", False) for module in model.modules())
    return rescaled and getattr(model.config, "rescale_every", 0) > 0  # the flag is set even where nothing was scaled


def fill_shell(shell: nn.Module, tensors: Mapping[str, Tensor], dense: nn.Module, stack_path: str) -> nn.Module:
    """Give a shell its weights; it shares `tensors`, and buffers outside the stack with `dense`.

    Args:
        shell: of the cut model, from `make_shell`.
        tensors: by their names in `shell`.
        dense: the model that they come from.
        stack_path: of the blocks, the same in both.

    Returns:
        `shell`, frozen, in evaluation mode.

    Raises:
        UnsupportedModelError: a tensor is missing, or the shell has no place for one.
    """
    unexpected = shell.load_state_dict(tensors, strict=False, assign=True).unexpected_keys
    shell.tie_weights()  # type: ignore[operator]
    missing = [name for name, parameter in shell.named_parameters() if parameter.is_meta]
    if unexpected or missing:
        raise UnsupportedModelError(
            f"The cut {type(dense).__name__} has other tensors than expected: {(unexpected + missing)[0]}."
        )
    _take_buffers(shell, dense, stack_path, next(iter(tensors.values())).device)
    if getattr(dense, "generation_config", None) is not None:
        shell.generation_config = copy.deepcopy(dense.generation_config)
    shell.requires_grad_(False)
    return shell.eval()


def _take_buffers(shell: nn.Module, dense: nn.Module, stack_path: str, device: torch.device) -> None:
    """Outside the stack take the dense model's buffers, which may depend on its dtype; inside keep the shell's own."""
    buffers = dict(dense.named_buffers())
    for name, buffer in shell.named_buffers():
        outside = not name.startswith(f"{stack_path}.")
        if outside and name in buffers and buffers[name].shape == buffer.shape:
            buffer.data = buffers[name].data
        else:
            buffer.data = buffer.data.to(device)
