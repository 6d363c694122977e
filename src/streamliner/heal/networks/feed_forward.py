"""What lightweight networks without attention share: a norm before, and a sum with the residual stream after."""

from typing import Any

from torch import Tensor, nn


class FeedForward(nn.Module):
    """A network that maps the residual stream to the residual stream, each position alone.

    With `residual` it computes `x + f(norm(x))` and starts as a bypass, because f starts as zero. Without, it computes
    `f(x)`, as in the code of LLM-Streamline's authors (arXiv 2403.19135).
    A subclass is f: `inner`, and its linear maps, of which `down_proj` is the last one.
    """

    like_mlp = False  # whether it is usually as wide as the model's own MLP, instead of 4 x the residual stream
    down_proj: nn.Linear

    def __init__(self, hidden_size: int, intermediate_size: int, residual: bool, eps: float) -> None:
        super().__init__()
        self.hidden_size, self.intermediate_size = hidden_size, intermediate_size
        self.residual, self.eps = residual, eps
        self.norm = nn.RMSNorm(hidden_size, eps=eps) if residual else nn.Identity()

    def inner(self, x: Tensor) -> Tensor:
        """The function f, (batch, tokens, hidden) -> (batch, tokens, hidden)."""
        raise NotImplementedError

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Map (batch, tokens, hidden) to the same shape; a block's further arguments are ignored."""
        out = self.inner(self.norm(hidden_states.to(self.down_proj.weight.dtype)))
        return hidden_states + out if self.residual else out
