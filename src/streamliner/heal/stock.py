"""Whether a SwiGLU network is a block of the architecture whose attention gives zero.

That is found by trying, never by names of models.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from streamliner.heal.networks.feed_forward import FeedForward, SwiGLU
from streamliner.model.blocks import Blocks
from streamliner.model.handoff import stream_in, stream_out

TOLERANCE = 1e-5
"""Largest difference between network and block, relative to the largest value, in float32."""


GATED = ("gate_proj", "up_proj", "down_proj")


def as_stock_block(network: FeedForward, blocks: Blocks, place: int, sample: Tensor) -> nn.Module | None:
    """A block of the model's own class that does what `network` does, in float32; None if there is none.

    In a pre-norm architecture a block is `h' = h + attention(norm(h))`, then `h' + mlp(norm'(h'))`. With the
    attention's output projection zero and a SwiGLU for its mlp, it is the network. Anything else (another activation,
    norms behind the parts) shows in the comparison, with what the model calls its block with on `sample` (1, tokens).
    """
    if not isinstance(network, SwiGLU) or not network.residual:
        return None
    network = copy.deepcopy(network).float()
    arguments = _arguments(blocks, place, sample)
    stream = stream_in(*arguments).float()
    # Ordinary values: those of a real stream differ so much in size that a wrong part could hide.
    noise = torch.randn(stream.shape, generator=torch.Generator().manual_seed(0)).to(stream)
    for block in _candidates(network, blocks.modules[place]):
        try:
            with torch.no_grad():
                args, kwargs = _with_stream(noise, *arguments)
                found, wanted = stream_out(block(*args, **kwargs)), network(noise)
        except (RuntimeError, TypeError, ValueError):
            continue
        if found.shape == wanted.shape and (found - wanted).abs().max() <= TOLERANCE * wanted.abs().max():
            return block
    return None


def carried_for_nothing(block: nn.Module) -> int:
    """Parameters of a stock block's attention whose output is zero: all outside its gated part and its norms."""
    mlps = {id(module) for path in _gated(block) for module in block.get_submodule(path).modules()}
    linears = (module for module in block.modules() if isinstance(module, nn.Linear) and id(module) not in mlps)
    return sum(parameter.numel() for module in linears for parameter in module.parameters())


def _gated(block: nn.Module) -> list[str]:
    """Paths of the parts of a block that have a gate."""
    return [path for path, module in block.named_modules() if all(hasattr(module, name) for name in GATED)]


def _candidates(network: SwiGLU, original: nn.Module) -> Iterator[nn.Module]:
    """Copies of a block with the network's weights: its norm in each place, as it is and as what is added to one."""
    weight = network.norm.weight
    assert isinstance(weight, Tensor)
    for path in _gated(original):
        for norm, module in original.named_children():
            own = getattr(module, "weight", None)
            if isinstance(own, Tensor) and own.shape == weight.shape:
                for offset in (0.0, 1.0):
                    block = copy.deepcopy(original).float()
                    if _take_over(block, path, norm, network, weight - offset):
                        yield block


@torch.no_grad()
def _take_over(block: Any, path: str, norm: str, network: SwiGLU, norm_weight: Tensor) -> bool:
    """Put the network's weights into a block, and zeros into what its attention puts out; False if shapes differ."""
    mlp = block.get_submodule(path)
    own, theirs = ([getattr(each, name) for name in GATED] for each in (mlp, network))
    if any(a.weight.shape != b.weight.shape or a.bias is not None for a, b in zip(own, theirs, strict=True)):
        return False
    inside = {id(module) for module in mlp.modules()}
    for module in block.modules():
        if isinstance(module, nn.Linear) and module.out_features == len(norm_weight) and id(module) not in inside:
            for parameter in module.parameters():
                parameter.zero_()
    for a, b in zip(own, theirs, strict=True):
        a.weight.copy_(b.weight)
    block.get_submodule(norm).weight.copy_(norm_weight)
    return True


@torch.no_grad()
def _arguments(blocks: Blocks, place: int, sample: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What the model calls the block with."""
    found: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append((args, kwargs))

    handle = blocks.modules[place].register_forward_pre_hook(note, with_kwargs=True)
    try:
        blocks.forward(sample)
    finally:
        handle.remove()
    return found[0]


def _with_stream(
    stream: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    def wide(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(wide, value))
        return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value

    named = {key: wide(value) for key, value in kwargs.items()}
    if args:
        return (stream, *map(wide, args[1:])), named
    return (), named | {"hidden_states": stream}
