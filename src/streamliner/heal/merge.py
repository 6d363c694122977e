"""Put what was trained into the model: adapters into the weights, networks into blocks that can express them."""

import copy
import math
from contextlib import nullcontext
from itertools import product

import torch
from torch import Tensor, nn

from streamliner.errors import VerificationError, is_out_of_memory
from streamliner.heal.graft import Graft
from streamliner.heal.networks.feed_forward import FeedForward
from streamliner.heal.networks.swiglu import SwiGLU
from streamliner.model.blocks import Blocks
from streamliner.model.handoff import Call, stream_out
from streamliner.model.parts import GATED, find_part, gated_parts, linears_outside, weighted_children

ROUNDING, HALF_ROUNDING = 1e-3, 0.1
"""Largest difference of logits that rounding trained weights may cause, float32 and others: `difference_of_logits`.

Of the median position, since in 16 bits single ones may differ as much as those of two texts: there rounding decides
whether a token becomes an attention sink."""
TOLERANCE = 1e-5
"""Largest difference between a network and a stock block, relative to the largest value, in float32."""


def merge(graft: Graft, precision: torch.dtype | None, sample: Tensor) -> int:
    """Put what was trained into the dense model of `graft`, rounded to `precision`, by default the model's own.

    Afterwards `graft.networks` has only those that no block of the architecture can express, and `graft.in_place()`
    still runs the healed model. All tensors that change get new memory: another model that shares the old one does not
    change. Networks and blocks are compared on `sample`, token ids of shape (1, tokens).

    Returns how many parameters of stock blocks have no effect: those of an attention that is zero. Raises
    VerificationError if the model computes something else afterwards.
    """
    blocks, networks, unused = graft.blocks, graft.networks, 0
    precision = precision or blocks.dtype
    before = _healed_logits(graft, sample)
    trained: list[nn.Parameter] = []
    if graft.adapters is not None:
        graft.adapters.merge()
        trained += graft.adapters.weights
        graft.adapters = None
    if graft.head is not None:
        trained += graft.head.merge()
        graft.head = None
    stock = stock_blocks(graft, sample)
    graft.networks = networks if stock is None else {}
    for place, source in (stock or {}).items():
        block = blocks.modules[place]
        for tensor in (*block.parameters(), *block.buffers()):
            tensor.data = tensor.data.clone()
        block.load_state_dict(source.state_dict())
        trained += block.parameters()
        if isinstance(networks[place], FeedForward):  # all but the gated part and the norms
            without_effect = linears_outside(block, gated_parts(block))
            unused += sum(parameter.numel() for linear in without_effect for parameter in linear.parameters())
    trained += [parameter for network in graft.networks.values() for parameter in network.parameters()]
    for parameter in trained:
        if parameter.is_floating_point():
            parameter.data.copy_(parameter.data.to(precision))
    for network in graft.networks.values():
        network.to(blocks.dtype)
    difference = difference_of_logits(_healed_logits(graft, sample), before)
    if not difference <= (ROUNDING if precision == blocks.dtype == torch.float32 else HALF_ROUNDING):
        raise VerificationError(
            "The model with the trained weights does not compute the same as the healed model: logits differ by "
            f"{difference:.1%} of their spread.",
            "Please report it with the model's config.json.",
        )
    return unused


def difference_of_logits(found: Tensor, expected: Tensor) -> float:
    """Of the median position, the root mean square of the difference as a part of the logits' standard deviation.

    (windows, tokens, vocabulary) twice. Not a number where one of them is not.
    """
    parts = (found - expected).square().mean(-1).sqrt() / expected.std(-1)
    return parts.median().item() if parts.isfinite().all() else math.nan


def stock_blocks(graft: Graft, sample: Tensor) -> dict[int, nn.Module] | None:
    """A block of the architecture for each network, by place; None if there is none for some of them."""
    found: dict[int, nn.Module] = {}
    for place, network in graft.networks.items():
        block = _as_stock_block(network, graft.blocks, place, sample) if isinstance(network, FeedForward) else network
        if block is None:
            return None
        found[place] = block
    return found


@torch.no_grad()
def _healed_logits(graft: Graft, sample: Tensor) -> Tensor:
    """(1, tokens, vocabulary) in float32 on the CPU; networks in float32 run in mixed precision, as in training."""
    dtype, device = graft.blocks.dtype, graft.blocks.device
    mixed = torch.autocast(device.type, dtype) if dtype != torch.float32 else nullcontext()
    with graft.in_place(), mixed:
        return graft.blocks.forward(sample).logits.float().cpu()  # type: ignore[no-any-return]


def _as_stock_block(network: FeedForward, blocks: Blocks, place: int, sample: Tensor) -> nn.Module | None:
    """A block of the model's own class that computes what `network` does, in float32; None if there is none.

    In a pre-norm architecture a block is `h = x + attention(norm(x))`, then `h + mlp(norm'(h))`. With the output
    projection of its attention zero and a SwiGLU as its mlp, it is the network. This is found by trying, never by
    names of models: anything else, such as another activation or norms after the parts, shows in the comparison.
    """
    if not isinstance(network, SwiGLU) or not network.residual:
        return None
    network = copy.deepcopy(network).float()
    call = blocks.called_with(place, sample).float()
    # Ordinary values: those of a real stream differ so much in size that a wrong part could go unnoticed.
    noise = torch.randn(call.stream.shape, generator=torch.Generator().manual_seed(0)).to(call.stream)
    call, original = call.with_stream(noise), blocks.modules[place]
    wanted, weight = network(call.stream).detach(), network.norm.weight
    assert isinstance(weight, Tensor)
    norms = weighted_children(original, weight.shape)
    for path, norm, offset in product(gated_parts(original), norms, (0.0, 1.0)):  # some norms scale by 1 + weight
        block = copy.deepcopy(original).float()
        if _put_weights(block, path, norm, network, weight - offset) and _computes(block, call, wanted):
            return block
    return None


@torch.no_grad()
def _computes(block: nn.Module, call: Call, wanted: Tensor) -> bool:
    try:
        found = stream_out(call.run(block))
    except (RuntimeError, TypeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        return False
    return found.shape == wanted.shape and bool((found - wanted).abs().max() <= TOLERANCE * wanted.abs().max())


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
