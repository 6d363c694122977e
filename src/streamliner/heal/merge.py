"""Put what was trained into the model: adapters into the weights, networks into blocks that can express them."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from streamliner.errors import VerificationError
from streamliner.heal.graft import Graft
from streamliner.heal.networks.feed_forward import FeedForward
from streamliner.heal.stock import as_stock_block, unused_parameters

ROUNDING = {torch.float32: 1e-3}
"""Largest difference of logits, relative to the largest logit, that rounding the trained weights may cause."""
HALF_ROUNDING = 0.1
"""The same for other precisions."""


def merge(graft: Graft, precision: torch.dtype, sample: Tensor) -> int:
    """Put what was trained into the dense model of `graft`, rounded to `precision`.

    Afterwards `graft.networks` has only those that no block of the architecture can express, and `graft.in_place()`
    still runs the healed model. All tensors that change get new memory: another model that shares the old one does not
    change.

    Args:
        graft: with trained networks and adapters.
        precision: of the weights that are to be written.
        sample: token ids, (1, tokens), on which networks and blocks are compared.

    Returns:
        How many parameters of stock blocks have no effect: those of an attention that is zero.

    Raises:
        VerificationError: the model computes something else afterwards.
    """
    blocks, networks, unused = graft.blocks, graft.networks, 0
    before = _healed_logits(graft, sample)
    trained: list[nn.Parameter] = []
    if graft.adapters is not None:
        graft.adapters.merge()
        trained += graft.adapters.weights
        graft.adapters = None
    stock = stock_blocks(graft, sample)
    graft.networks = networks if stock is None else {}
    for place, block in (stock or {}).items():
        trained += _take_weights(blocks.modules[place], block)
        unused += unused_parameters(block) if isinstance(networks[place], FeedForward) else 0
    for parameter in (*trained, *(each for network in graft.networks.values() for each in network.parameters())):
        if parameter.is_floating_point():
            parameter.data.copy_(parameter.data.to(precision))
    for network in graft.networks.values():
        network.to(blocks.dtype)
    difference = (_healed_logits(graft, sample) - before).abs().max()
    tolerance = max(ROUNDING.get(dtype, HALF_ROUNDING) for dtype in (precision, blocks.dtype))
    if not difference <= tolerance * before.abs().max():
        raise VerificationError(
            f"With the trained weights put into it, the model computes other logits: they differ by {difference:.3g}.",
            "Please report it with the model's config.json.",
        )
    return unused


def stock_blocks(graft: Graft, sample: Tensor) -> dict[int, nn.Module] | None:
    """A block of the architecture for each network, by place; None if there is none for some of them."""
    found: dict[int, nn.Module] = {}
    for place, network in graft.networks.items():
        block = as_stock_block(network, graft.blocks, place, sample) if isinstance(network, FeedForward) else network
        if block is None:
            return None
        found[place] = block
    return found


def _take_weights(block: nn.Module, source: nn.Module) -> list[nn.Parameter]:
    for tensor in (*block.parameters(), *block.buffers()):
        tensor.data = tensor.data.clone()
    block.load_state_dict(source.state_dict())
    return list(block.parameters())


@torch.no_grad()
def _healed_logits(graft: Graft, sample: Tensor) -> Tensor:
    """(1, tokens, vocabulary) in float32 on the CPU; networks in float32 run in mixed precision, as in training."""
    dtype, device = graft.blocks.dtype, graft.blocks.device
    mixed = torch.autocast(device.type, dtype) if dtype != torch.float32 else nullcontext()
    with graft.in_place(), mixed:
        return graft.blocks.forward(sample).logits.float().cpu()  # type: ignore[no-any-return]
