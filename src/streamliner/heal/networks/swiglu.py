"""The SwiGLU network of LLM-Streamline (arXiv 2403.19135, section 3.2)."""

from torch import Tensor, nn
from torch.nn import functional

from streamliner.heal.networks.feed_forward import FeedForward


class SwiGLU(FeedForward):
    """`down(silu(gate(x)) * up(x))`, without biases."""

    like_mlp = True

    def __init__(self, hidden_size: int, intermediate_size: int, residual: bool, eps: float) -> None:
        super().__init__(hidden_size, intermediate_size, residual, eps)
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def inner(self, x: Tensor) -> Tensor:
        """(batch, tokens, hidden) -> (batch, tokens, hidden)."""
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]
