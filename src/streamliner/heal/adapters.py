"""LoRA on the remaining blocks, through `peft`; merged into their weights at the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from streamliner.errors import HealingError, MissingExtraError
from streamliner.model.blocks import Blocks


def check_peft() -> None:
    """Raise MissingExtraError without the `heal` extra."""
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("LoRA", "heal") from error


def add_adapters(blocks: Blocks, indices: Sequence[int], rank: int, seed: int) -> None:
    """Put trainable adapters of `rank`, in float32, on all linear maps of these blocks. They begin as nothing.

    Raises:
        MissingExtraError: without the `heal` extra.
        HealingError: the blocks have no linear maps.
    """
    check_peft()
    from peft import LoraConfig, inject_adapter_in_model
    from transformers.pytorch_utils import Conv1D

    names = [
        f"{blocks.path}.{index}.{name}"
        for index in indices
        for name, module in blocks.modules[index].named_modules()
        if isinstance(module, (nn.Linear, Conv1D))
    ]
    if not names:
        raise HealingError("The blocks of this model have no linear maps for adapters.", "Choose a --network.")
    config = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=names)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, blocks.model)
    for parameter in adapter_parameters(blocks).values():
        parameter.data = parameter.data.float()


def adapter_parameters(blocks: Blocks) -> dict[str, nn.Parameter]:
    """The adapters' parameters by name in the model."""
    return {name: parameter for name, parameter in blocks.model.named_parameters() if "lora_" in name}


@contextmanager
def adapters_off(blocks: Blocks) -> Iterator[None]:
    """While open, the model is as it was before `add_adapters`."""
    layers = _layers(blocks)
    for _, layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for _, layer in layers:
            layer._disable_adapters = False


def merge_adapters(blocks: Blocks) -> list[nn.Parameter]:
    """Add the adapters to the weights, and take the adapters out; returns the weights that changed."""
    changed: list[nn.Parameter] = []
    for name, layer in _layers(blocks):
        layer.merge()
        parent, _, own = name.rpartition(".")
        base = layer.get_base_layer()
        changed.append(base.weight)
        setattr(blocks.model.get_submodule(parent), own, base)
    return changed


def _layers(blocks: Blocks) -> list[tuple[str, Any]]:
    return [(name, module) for name, module in blocks.model.named_modules() if hasattr(module, "lora_A")]
