"""The FFN network of LLM-Streamline (arXiv 2403.19135, section 3.2)."""

import torch
from torch import Tensor, nn

from streamliner.heal.networks.feed_forward import FeedForward


class FFN(FeedForward):
    """`down(relu(up(x)))`, with biases."""

    def __init__(self, hidden_size: int, intermediate_size: int, residual: bool, eps: float) -> None:
        super().__init__(hidden_size, intermediate_size, residual, eps)
        self.up_proj = nn.Linear(hidden_size, intermediate_size)
        self.down_proj = nn.Linear(intermediate_size, hidden_size)

    def inner(self, x: Tensor) -> Tensor:
        """(batch, tokens, hidden) -> (batch, tokens, hidden)."""
        return self.down_proj(torch.relu(self.up_proj(x)))  # type: ignore[no-any-return]
