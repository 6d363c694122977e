"""Sizes: parameters, bytes of weights, bytes of a cache."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def count_parameters(module: nn.Module) -> int:
    """Parameters, shared ones once."""
    return sum(parameter.numel() for parameter in module.parameters())


def weight_bytes(model: nn.Module) -> int:
    """Bytes of parameters and buffers, shared ones once."""
    return sum(tensor.nbytes for tensor in {*model.parameters(), *model.buffers()})


def cache_bytes(cache: Any, tokens: int) -> tuple[float, float] | None:
    """Bytes of keys and values per token in a cache of `tokens` tokens, over all texts in it.

    Returns:
        Bytes per token, and bytes that one further token takes once sliding windows are full. None if the model keeps
        no keys and values.
    """
    layers = getattr(cache, "layers", None) or []
    pairs = [(layer, getattr(layer, name, None)) for layer in layers for name in ("keys", "values")]
    kept = [(layer, tensor) for layer, tensor in pairs if isinstance(tensor, Tensor) and tensor.ndim > 2]
    growing = sum(tensor.nbytes / tensor.shape[-2] for layer, tensor in kept if not layer.is_sliding)
    return (sum(tensor.nbytes for _, tensor in kept) / tokens, growing) if layers else None


def cache_numbers(config: Any) -> int:
    """Numbers that the keys and values of one token take in one block with full attention.

    `config` is that of the stack. An upper bound where blocks attend to a window or share keys.
    """
    heads: int = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * heads * width
