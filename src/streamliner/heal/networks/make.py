"""Make the lightweight networks of LLM-Streamline (arXiv 2403.19135, section 3.2): `block`, `swiglu` or `ffn`."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from streamliner.errors import HealingError
from streamliner.heal.gaps import Gap
from streamliner.heal.networks.feed_forward import NETWORKS
from streamliner.model.blocks import Blocks

KINDS = ("block", *NETWORKS)


INITS = ("first", "last", "mean", "random")


RANDOM_SCALE = 0.02
"""Standard deviation of random weights where the config names none."""


def make_networks(
    blocks: Blocks, gaps: Sequence[Gap], kind: str, *, init: str = "first", residual: bool = True, seed: int = 0
) -> dict[int, nn.Module]:
    """A module for each place of each gap, in float32 and trainable, by the block whose place it takes.

    Args:
        blocks: of the dense model, which stays as it is.
        gaps: from `find_gaps`.
        kind: "block", "swiglu" or "ffn".
        init: of a block: the "first" of the gap (of several, the first ones), the "last", their "mean", or "random".
        residual: of swiglu and ffn (`feed_forward.FeedForward`).
        seed: of random weights.

    Raises:
        HealingError: the blocks of a gap are not of one kind, or have no feed-forward part whose size could be taken.
    """
    generator = torch.Generator().manual_seed(seed)
    networks: dict[int, nn.Module] = {}
    for gap in gaps:
        for number, place in enumerate(gap.places):
            if kind == "block":
                network = _block(blocks, gap, number, init, generator)
            else:
                network = _feed_forward(blocks, place, kind, residual, generator)
            networks[place] = network.to(blocks.device).float().requires_grad_(True)
    return networks


def _block(blocks: Blocks, gap: Gap, number: int, init: str, generator: torch.Generator) -> nn.Module:
    """A copy of the block at the place, so of its kind and index, with weights as `init` says."""
    network = copy.deepcopy(blocks.modules[gap.places[number]])
    inside = range(gap.start, gap.stop)
    sources = {"first": inside[number : number + 1], "last": inside[len(inside) - len(gap.places) + number :][:1]}
    if init == "random":
        scale = getattr(blocks.config, "initializer_range", None) or RANDOM_SCALE
        for parameter in network.parameters():
            if parameter.ndim > 1:  # norms and biases keep the block's own
                noise = torch.randn(parameter.shape, generator=generator) * scale
                parameter.data = noise.to(parameter)
        return network
    states = [blocks.modules[index].state_dict() for index in sources.get(init, inside)]
    for name, own in network.state_dict().items():
        shapes = {state[name].shape if name in state else None for state in states}
        if shapes != {own.shape}:
            raise HealingError(
                f"Block {gap.places[number]} cannot start as the {init} of blocks {gap.start} to {gap.stop - 1}: "
                f"their {name} have other shapes.",
                "Choose --init first or random.",
            )
        if own.is_floating_point():
            own.copy_(torch.stack([state[name].float() for state in states]).mean(0))
    return network


def _feed_forward(blocks: Blocks, place: int, kind: str, residual: bool, generator: torch.Generator) -> nn.Module:
    hidden = getattr(blocks.config, "hidden_size", None) or getattr(blocks.config, "n_embd", None)
    own = getattr(blocks.config, "intermediate_size", None)
    if not isinstance(hidden, int):
        raise HealingError(f"The width of the residual stream is not in the config, so there is no {kind} to make.")
    size = 4 * hidden if kind == "ffn" or not isinstance(own, int) else own
    eps = getattr(blocks.config, "rms_norm_eps", None) or 1e-6
    make: Any = NETWORKS[kind]
    network: nn.Module = make(hidden, size, residual, eps)
    for name, parameter in network.named_parameters():
        if parameter.ndim > 1:
            bound = parameter.shape[1] ** -0.5
            parameter.data.uniform_(-bound, bound, generator=generator)
            if residual and name == "down_proj.weight":
                parameter.data.zero_()
        elif name.endswith("bias"):
            parameter.data.zero_()
    # What the model's own forward may ask of a block, such as Gemma's attention_type.
    for name, value in vars(blocks.modules[place]).items():
        if not name.startswith("_") and isinstance(value, (bool, int, float, str)) and not hasattr(network, name):
            setattr(network, name, value)
    return network
