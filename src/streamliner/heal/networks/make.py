"""Make the lightweight networks of a plan's gaps: the choice by name."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from streamliner.errors import HealingError
from streamliner.heal.gaps import Gap
from streamliner.heal.networks.block import make_block
from streamliner.heal.networks.feed_forward import FeedForward
from streamliner.heal.networks.ffn import FFN
from streamliner.heal.networks.swiglu import SwiGLU
from streamliner.model.blocks import Blocks
from streamliner.model.parts import plain_attributes

FEED_FORWARDS: dict[str, type[FeedForward]] = {"swiglu": SwiGLU, "ffn": FFN}
"""Networks without attention by name."""


def make_networks(
    blocks: Blocks, gaps: Sequence[Gap], kind: str, *, init: str = "first", residual: bool = True, seed: int = 0
) -> dict[int, nn.Module]:
    """A module for each place of each gap, in float32 and trainable, by the block whose place it takes.

    Args:
        blocks: of the dense model, which does not change.
        gaps: where networks go.
        kind: "block", or a name in FEED_FORWARDS.
        init: of a block: the "first" of the gap (of several places, the first ones), the "last", their "mean", or
            "random".
        residual: see `FeedForward`.
        seed: of random weights.

    Raises:
        HealingError: the blocks of a gap have other shapes, or the config has no width of the residual stream.
    """
    generator = torch.Generator().manual_seed(seed)
    networks: dict[int, nn.Module] = {}
    for gap in gaps:
        for number, place in enumerate(gap.places):
            if kind == "block":
                network = make_block(blocks, gap, number, init, generator)
            else:
                network = _make_feed_forward(blocks, place, kind, residual, generator)
            networks[place] = network.to(blocks.device).float().requires_grad_(True)
    return networks


def _make_feed_forward(
    blocks: Blocks, place: int, kind: str, residual: bool, generator: torch.Generator
) -> FeedForward:
    hidden = blocks.stack.hidden_size
    mlp = getattr(blocks.config, "intermediate_size", None)
    if not isinstance(hidden, int):
        raise HealingError(
            f"The config of this model does not name the width of its residual stream, which {kind} needs.",
            "Choose --network block.",
        )
    size = FEED_FORWARDS[kind].usual_size(hidden, mlp if isinstance(mlp, int) else None)
    eps = getattr(blocks.config, "rms_norm_eps", None) or 1e-6
    network = FEED_FORWARDS[kind](hidden, size, residual, eps)
    _draw_weights(network, generator)
    # The model's own forward may ask a block for them, such as Gemma for its attention_type.
    for name, value in plain_attributes(blocks.modules[place]).items():
        if not hasattr(network, name):
            setattr(network, name, value)
    return network


def _draw_weights(network: FeedForward, generator: torch.Generator) -> None:
    """Uniform as in `nn.Linear`, biases zero; with `residual` the last map is zero too, so the network is a bypass."""
    for name, parameter in network.named_parameters():
        if parameter.ndim > 1:
            bound = parameter.shape[1] ** -0.5
            parameter.data.uniform_(-bound, bound, generator=generator)
            if network.residual and name == "down_proj.weight":
                parameter.data.zero_()
        elif name.endswith("bias"):
            parameter.data.zero_()
