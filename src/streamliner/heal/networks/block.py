"""A block of the model's own architecture as the lightweight network: LLM-Streamline's "transformer layer"."""

import copy

import torch
from torch import nn

from streamliner.errors import HealingError
from streamliner.heal.gaps import Gap
from streamliner.model.blocks import Blocks
from streamliner.model.devices import present


def make_block(blocks: Blocks, gap: Gap, number: int, init: str, generator: torch.Generator) -> nn.Module:
    """A copy of the block at the gap's place `number`, so of its kind and index, with weights as `init` says.

    Raises HealingError if the blocks that `init` names have other shapes.
    """
    place, inside = gap.places[number], range(gap.start, gap.stop)
    network = copy.deepcopy(blocks.modules[place])
    if init == "random":  # norms and biases stay as they are
        scale = getattr(blocks.config, "initializer_range", None) or 0.02
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.data = (torch.randn(parameter.shape, generator=generator) * scale).to(parameter)
        return network
    sources = {"first": inside[number : number + 1], "last": [inside[number - len(gap.places)]], "mean": inside}[init]
    states = []
    for index in sources:
        with present(blocks.modules[index]):
            states.append(blocks.modules[index].state_dict())
    for name, own in network.state_dict().items():
        if {state[name].shape if name in state else None for state in states} != {own.shape}:
            raise HealingError(
                f"Block {place} cannot start as the {init} of blocks {gap.start} to {gap.stop - 1}: "
                f"the shapes of their {name} differ.",
                "Choose --init first or random.",
            )
        if own.is_floating_point():
            own.copy_(torch.stack([state[name].float() for state in states]).mean(0))
    return network
