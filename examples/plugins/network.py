"""A small network: through fewer numbers than the residual stream has, and back."""

from torch import Tensor, nn
from torch.nn import functional

from streamliner.heal.networks.feed_forward import FeedForward


class Bottleneck(FeedForward):
    """`down(silu(up(x)))` of an eighth of the residual stream's width, without biases."""

    def __init__(self, hidden_size: int, intermediate_size: int, residual: bool, eps: float) -> None:
        super().__init__(hidden_size, intermediate_size, residual, eps)
        width = max(1, hidden_size // 8)
        self.up_proj = nn.Linear(hidden_size, width, bias=False)
        self.down_proj = nn.Linear(width, hidden_size, bias=False)

    def inner(self, x: Tensor) -> Tensor:
        """(batch, tokens, hidden) -> (batch, tokens, hidden)."""
        return self.down_proj(functional.silu(self.up_proj(x)))
