"""What a network is trained on: streams (`mse`, `normalized-mse`), next tokens (`lm`), the dense model's words (`kd`).

All are means over positions, in float32. Losses of the head are taken some positions at a time together with their
gradient, so that no more logits exist at once than a budget allows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

STREAM_LOSSES = ("mse", "normalized-mse")


HEAD_LOSSES = ("lm", "kd")


LOSSES = (*STREAM_LOSSES, *HEAD_LOSSES)


LOGIT_BYTES = 512_000_000
"""Of logits in float32 at once; a loss and its gradient hold about three times that."""


HALF_SCALE = 1024.0
"""Of gradients by logits in float16, whose values are at most about 2 and mostly below its smallest number."""


Head = Callable[[Tensor, Tensor], Tensor]
"""(stream at depth N, positions) -> logits of these positions."""


def stream_loss(kind: str, output: Tensor, target: Tensor, first: int) -> Tensor:
    """Distance of two residual streams, (windows, tokens, hidden).

    `mse` is LLM-Streamline's (arXiv 2403.19135, equation 4), the mean over positions and channels of the squared
    difference. `normalized-mse` divides it for each position by the target's mean square there, so that the few
    tokens with enormous activations count as much as any other.

    Args:
        kind: one of STREAM_LOSSES.
        output: with gradients.
        target: without.
        first: positions before it are left out: a BOS, whose activations can be thousands of times larger.
    """
    output, target = output[:, first:].float(), target[:, first:].float().to(output.device)
    squares = (output - target).square().flatten(2).mean(2)
    if kind == "normalized-mse":
        squares = squares / target.square().flatten(2).mean(2).clamp_min(1e-12)
    return squares.mean()


def divergence(q: Tensor, p: Tensor, top_k: int | None = None) -> tuple[Tensor, Tensor]:
    """Kullback-Leibler divergence of the cut model's words from the dense model's, and its gradient by logits.

    With `top_k`, of the distributions over the dense model's `top_k` likeliest words and "any other word".

    Args:
        q, p: log-probabilities of the cut and the dense model, (rows, words).
        top_k: how many words to tell apart.

    Returns:
        The sum over rows, and the gradient by the cut model's logits, (rows, words).
    """
    if top_k is None:
        probabilities = p.exp()
        return (probabilities * (p - q)).sum(), q.exp().sub_(probabilities)
    p, words = p.topk(min(top_k, p.shape[-1]), -1)
    some = q.gather(-1, words)
    rest_p, rest_q = _rest(p), _rest(some)
    value = (p.exp() * (p - some)).sum() + (rest_p.exp() * (rest_p - rest_q)).sum()
    # Within "any other word" the model keeps its own proportions, so all of them share one factor.
    gradient = q.exp() * (1 - (rest_p - rest_q).exp())
    return value, gradient.scatter_(-1, words, some.exp() - p.exp())


def _rest(log_probabilities: Tensor) -> Tensor:
    """Logarithm of what probabilities leave to one, (rows, k) -> (rows, 1)."""
    return torch.log((1 - log_probabilities.exp().sum(-1, keepdim=True)).clamp_min(1e-9))


def head_losses(
    head: Head,
    stream: Tensor,
    dense_stream: Tensor | None,
    input_ids: Tensor,
    weights: dict[str, float],
    top_k: int | None,
    num_words: int,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted sum of `lm` and `kd`, with gradients to `stream`, and each of them without.

    Args:
        head: the model's own final norm and head.
        stream: of the healed model at depth N, (windows, tokens, hidden).
        dense_stream: of the dense model there; needed for `kd`.
        input_ids: (windows, tokens).
        weights: of "lm" and "kd".
        top_k: of `divergence`.
        num_words: of the vocabulary, to bound memory.
    """
    parts: dict[str, Tensor] = {}
    total: Tensor = _HeadLosses.apply(  # type: ignore[no-untyped-call]
        stream, head, dense_stream, input_ids, weights, top_k, num_words, parts
    )
    return total, parts


class _HeadLosses(torch.autograd.Function):
    """Computes the gradient along with the value, piece by piece, as the logits of a whole batch would not fit."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        stream: Tensor,
        head: Head,
        dense_stream: Tensor | None,
        input_ids: Tensor,
        weights: dict[str, float],
        top_k: int | None,
        num_words: int,
        parts: dict[str, Tensor],
    ) -> Tensor:
        """See `head_losses`; fills `parts`."""
        windows, tokens = input_ids.shape
        count = windows * (tokens - 1)
        at_once = max(1, LOGIT_BYTES // (4 * num_words * windows))
        needed = ctx.needs_input_grad[0]
        # In float16 small gradients would vanish and large ones overflow before anybody scales them.
        gradient = torch.zeros_like(stream, dtype=torch.float32) if needed else None
        scale = HALF_SCALE if stream.dtype == torch.float16 else 1.0
        sums = {name: torch.zeros((), device=stream.device) for name in weights}
        for start in range(0, tokens - 1, at_once):
            positions = torch.arange(start, min(start + at_once, tokens - 1))
            piece = stream.detach()
            with torch.set_grad_enabled(needed):
                piece.requires_grad_(needed)
                logits = head(piece, positions)
            # The gradient by logits is known, so autograd need not keep copies of what is as large as they are.
            q = functional.log_softmax(logits.detach().flatten(0, 1), -1, dtype=torch.float32)
            by_logits = torch.zeros_like(q) if len(weights) > 1 else None
            if "kd" in weights:
                assert dense_stream is not None
                dense = head(dense_stream, positions).flatten(0, 1)
                value, each = divergence(q, functional.log_softmax(dense, -1, dtype=torch.float32), top_k)
                sums["kd"] += value
                by_logits = each.mul_(weights["kd"]) if by_logits is None else by_logits.add_(each, alpha=weights["kd"])
                del dense, each
            if "lm" in weights:
                targets = input_ids[:, start + 1 : start + 1 + len(positions)].to(q.device).reshape(-1, 1)
                sums["lm"] -= q.gather(-1, targets).sum()
                each = q.exp_()
                each.scatter_add_(-1, targets, -torch.ones_like(targets, dtype=q.dtype))
                by_logits = each.mul_(weights["lm"]) if by_logits is None else by_logits.add_(each, alpha=weights["lm"])
                del each
            if gradient is not None:
                assert by_logits is not None
                by_logits = by_logits.mul_(scale).view_as(logits).to(logits.dtype)
                gradient += torch.autograd.grad(logits, piece, by_logits)[0].float() / scale
        parts |= {name: value / count for name, value in sums.items()}
        ctx.gradient, ctx.dtype = None if gradient is None else gradient / count, stream.dtype
        return torch.stack([weights[name] * value for name, value in parts.items()]).sum()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:  # type: ignore[override]
        """Scale the gradient that `forward` found."""
        return ((upstream * ctx.gradient).to(ctx.dtype), *(None,) * 7)
