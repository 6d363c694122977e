"""Lightweight networks without attention: SwiGLU and FFN, in the place of a block.

A checkpoint that no stock architecture can express carries this file, so it imports nothing but torch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class FeedForward(nn.Module):
    """Residual stream -> residual stream, each position alone.

    With `residual`, `h + f(norm(h))`, where f begins as zero, so that the network begins as a bypass. Without, `f(h)`,
    as in the code of LLM-Streamline's authors (arXiv 2403.19135).
    """

    def __init__(self, hidden_size: int, residual: bool, eps: float) -> None:
        super().__init__()
        self.residual = residual
        self.norm = nn.RMSNorm(hidden_size, eps=eps) if residual else nn.Identity()

    up_proj: nn.Linear

    def inner(self, state: Tensor) -> Tensor:
        """The f of the class's docstring."""
        raise NotImplementedError

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Stream in, (batch, tokens, hidden), stream out; what else a block is called with does not matter."""
        out = self.inner(self.norm(hidden_states.to(self.up_proj.weight.dtype)))
        return hidden_states + out if self.residual else out


class SwiGLU(FeedForward):
    """`down(silu(gate(h)) * up(h))`, without biases; the paper's size is that of the model's own feed-forward part."""

    def __init__(self, hidden_size: int, intermediate_size: int, residual: bool = True, eps: float = 1e-6) -> None:
        super().__init__(hidden_size, residual, eps)
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def inner(self, state: Tensor) -> Tensor:
        """(batch, tokens, hidden) -> the same."""
        return self.down_proj(functional.silu(self.gate_proj(state)) * self.up_proj(state))  # type: ignore[no-any-return]


class FFN(FeedForward):
    """`down(relu(up(h)))` with biases; the paper's size is four times the stream's."""

    def __init__(self, hidden_size: int, intermediate_size: int, residual: bool = True, eps: float = 1e-6) -> None:
        super().__init__(hidden_size, residual, eps)
        self.up_proj = nn.Linear(hidden_size, intermediate_size)
        self.down_proj = nn.Linear(intermediate_size, hidden_size)

    def inner(self, state: Tensor) -> Tensor:
        """(batch, tokens, hidden) -> the same."""
        return self.down_proj(torch.relu(self.up_proj(state)))  # type: ignore[no-any-return]


NETWORKS: dict[str, type[FeedForward]] = {"swiglu": SwiGLU, "ffn": FFN}
