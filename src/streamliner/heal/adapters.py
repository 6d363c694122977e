"""LoRA adapters on the remaining blocks (arXiv 2106.09685), with `peft`; merged into the weights at the end."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from streamliner.errors import HealingError
from streamliner.model.blocks import Blocks
from streamliner.model.parts import find_part, linear_names


class Adapters:
    """Trainable adapters in float32, with scale 2, on all linear maps of some blocks. At the start they add zero.

    HealingError is raised if there are no linear maps.
    """

    def __init__(self, blocks: Blocks, indices: Sequence[int], rank: int, seed: int) -> None:
        from peft import LoraConfig, LoraModel

        targets = [f"{blocks.path}.{index}.{name}" for index in indices for name in linear_names(blocks.modules[index])]
        if not targets:
            raise HealingError("The blocks of this model have no linear maps for adapters.", "Choose a --network.")
        self._linears = [find_part(blocks.model, name) for name in targets]
        config = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=targets)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._lora: Any = LoraModel(blocks.model, config, "default")
        for name, parameter in blocks.model.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.float()

    @property
    def weights(self) -> list[nn.Parameter]:
        """Those of the linear maps, which `merge` changes. While blocks are divided among processes they are others."""
        return [linear.weight for linear in self._linears]  # type: ignore[misc]

    @contextmanager
    def off(self) -> Iterator[None]:
        """While open, the model computes what it did without adapters."""
        self._lora.disable_adapter_layers()
        try:
            yield
        finally:
            self._lora.enable_adapter_layers()

    def merge(self) -> None:
        """Add the adapters to `weights`, which get new memory, and take them out of the model."""
        for weight in self.weights:
            weight.data = weight.data.clone()  # the old memory may belong to another model too
        self._lora.merge_and_unload()
