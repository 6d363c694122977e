"""A block of the model's own architecture as the lightweight network: LLM-Streamline's "transformer layer"."""

from __future__ import annotations

import copy

import torch
from torch import nn

from streamliner.errors import HealingError
from streamliner.heal.gaps import Gap
from streamliner.model.blocks import Blocks

RANDOM_SCALE = 0.02
"""Standard deviation of random weights where the config has no `initializer_range`."""


def make_block(blocks: Blocks, gap: Gap, number: int, init: str, generator: torch.Generator) -> nn.Module:
    """A copy of the block at the gap's place `number`, so of its kind and index, with weights as `init` says.

    Raises:
        HealingError: the blocks that `init` names have other shapes.
    """
    place = gap.places[number]
    network = copy.deepcopy(blocks.modules[place])
    if init == "random":
        _draw_weights(network, getattr(blocks.config, "initializer_range", None) or RANDOM_SCALE, generator)
        return network
    states = [blocks.modules[index].state_dict() for index in _sources(gap, number, init)]
    for name, own in network.state_dict().items():
        shapes = {state[name].shape if name in state else None for state in states}
        if shapes != {own.shape}:
            raise HealingError(
                f"Block {place} cannot start as the {init} of blocks {gap.start} to {gap.stop - 1}: "
                f"the shapes of their {name} differ.",
                "Choose --init first or random.",
            )
        if own.is_floating_point():
            own.copy_(torch.stack([state[name].float() for state in states]).mean(0))
    return network


def _sources(gap: Gap, number: int, init: str) -> list[int]:
    """The blocks whose mean the new weights are."""
    inside = list(range(gap.start, gap.stop))
    if init == "first":
        return [inside[number]]
    if init == "last":
        return [inside[number - len(gap.places)]]
    return inside


def _draw_weights(network: nn.Module, scale: float, generator: torch.Generator) -> None:
    """Random matrices; norms and biases stay as they are."""
    for parameter in network.parameters():
        if parameter.ndim > 1:
            noise = torch.randn(parameter.shape, generator=generator) * scale
            parameter.data = noise.to(parameter)
