"""Whether a SwiGLU network is a block of the architecture whose attention is zero.

This is found by trying, never by names of models.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from streamliner.heal.networks.feed_forward import FeedForward
from streamliner.heal.networks.swiglu import SwiGLU
from streamliner.model.blocks import Blocks
from streamliner.model.handoff import Call, stream_out
from streamliner.model.parts import GATED, find_part, gated_parts, linears_outside, weighted_children

TOLERANCE = 1e-5
"""Largest difference between network and block, relative to the largest value, in float32."""


def as_stock_block(network: FeedForward, blocks: Blocks, place: int, sample: Tensor) -> nn.Module | None:
    """A block of the model's own class that computes what `network` does, in float32; None if there is none.

    In a pre-norm architecture a block is `h = x + attention(norm(x))`, then `h + mlp(norm'(h))`. With the output
    projection of its attention zero and a SwiGLU as its mlp, it is the network. Anything else, such as another
    activation or norms after the parts, shows in the comparison.
    The block is compared as the model calls it at `place` on `sample`, token ids of shape (1, tokens).
    """
    if not isinstance(network, SwiGLU) or not network.residual:
        return None
    network = copy.deepcopy(network).float()
    call = blocks.called_with(place, sample).float()
    # Ordinary values: those of a real stream differ so much in size that a wrong part could go unnoticed.
    noise = torch.randn(call.stream.shape, generator=torch.Generator().manual_seed(0)).to(call.stream)
    for block in _candidates(network, blocks.modules[place]):
        if _computes_the_same(block, network, call.with_stream(noise)):
            return block
    return None


def unused_parameters(block: nn.Module) -> int:
    """Parameters of a stock block that its zero attention makes useless: all but its gated part and its norms."""
    linears = linears_outside(block, gated_parts(block))
    return sum(parameter.numel() for linear in linears for parameter in linear.parameters())


@torch.no_grad()
def _computes_the_same(block: nn.Module, network: SwiGLU, call: Call) -> bool:
    wanted = network(call.stream)
    try:
        found = stream_out(call.run(block))
    except (RuntimeError, TypeError, ValueError):
        return False
    return found.shape == wanted.shape and bool((found - wanted).abs().max() <= TOLERANCE * wanted.abs().max())


def _candidates(network: SwiGLU, original: nn.Module) -> Iterator[nn.Module]:
    """Copies of a block with the network's weights: its norm in each place, as the weight and as 1 + weight."""
    weight = network.norm.weight
    assert isinstance(weight, Tensor)
    for path in gated_parts(original):
        for norm in weighted_children(original, weight.shape):
            for offset in (0.0, 1.0):
                block = copy.deepcopy(original).float()
                if _put_weights(block, path, norm, network, weight - offset):
                    yield block


@torch.no_grad()
def _put_weights(block: nn.Module, path: str, norm: str, network: SwiGLU, norm_weight: Tensor) -> bool:
    """Put the network's weights into a block, and zeros into what its attention returns; False if shapes differ."""
    pairs = [(getattr(find_part(block, path), name), getattr(network, name)) for name in GATED]
    if any(own.weight.shape != other.weight.shape or own.bias is not None for own, other in pairs):
        return False
    for linear in linears_outside(block, [path]):
        if linear.out_features == len(norm_weight):
            for parameter in linear.parameters():
                parameter.zero_()
    for own, other in pairs:
        own.weight.copy_(other.weight)
    find_part(block, norm).weight.copy_(norm_weight)  # type: ignore[operator, union-attr]
    return True
