"""The losses: residual streams (`mse`, `normalized-mse`), next tokens (`lm`), the dense model's distribution (`kd`).

All are means over positions, computed in float32. With q the healed model's distribution at a position, z its logits,
p the dense model's distribution and y the next token, the losses of the head and their gradients are

    lm        L = -log q[y]                              dL/dz = q - onehot(y)
    kd        L = sum_v p[v] log(p[v] / q[v])            dL/dz = q - p
    kd top-k  L = sum_{v in T} p[v] log(p[v] / q[v])     dL/dz[v] = q[v] - p[v]              for v in T
                  + P log(P / Q)                         dL/dz[v] = q[v] - q[v] P / Q        otherwise

where T are the k likeliest tokens of the dense model, and P and Q what p and q leave for all others.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from streamliner.measure.loss import divergence, rows_at_once

LOGIT_BYTES = 256_000_000
"""Bytes that the logits of a piece would take in float32. Their like exists three times, in the precision of the model:
the dense model's, and the gradient; twice that if only some predictions count."""
HALF_SCALE = 1024.0
"""Factor for gradients with respect to float16 logits: most would be below float16's smallest number."""
Head = Callable[[Tensor, Tensor], Tensor]
"""(stream at depth N, positions) -> logits at these positions, (windows, positions, vocabulary)."""


def stream_loss(kind: str, output: Tensor, target: Tensor, first: int) -> Tensor:
    """Distance of two residual streams, (windows, tokens, hidden).

    `mse` is the mean over positions and channels of the squared difference (arXiv 2403.19135, equation 4).
    `normalized-mse` divides it at each position by the target's mean square there, so that the few tokens with
    enormous activations count as much as any other.
    `first` is the first position that counts: 1 to leave out a BOS, whose activations can be thousands of times larger.
    """
    output, target = output[:, first:].float(), target[:, first:].float().to(output.device)
    squares = (output - target).square().flatten(2).mean(2)
    if kind == "normalized-mse":
        squares = squares / target.square().flatten(2).mean(2).clamp_min(1e-12)
    return squares.mean()


def next_token_loss(log_q: Tensor, targets: Tensor) -> Tensor:
    """The sum of the loss `lm` over rows: log-probabilities, (rows, vocabulary), and next tokens, (rows, 1)."""
    return -log_q.gather(-1, targets).sum()


def distillation_loss(log_q: Tensor, log_p: Tensor, top_k: int | None = None) -> tuple[Tensor, Tensor]:
    """The sum of the loss `kd` over rows, and r, (rows, vocabulary), where its gradient by the logits of q is q - r.

    `log_q`, `log_p` are log-probabilities of the healed and the dense model; `log_p` is overwritten, as each copy of
    this size costs a CPU as much time as the head. With `top_k`, only that many of the dense model's likeliest tokens
    are compared, and the sum of all others.
    """
    if top_k is None:
        p = log_p.exp()
        return log_p.sub_(log_q).mul_(p).sum(), p
    likeliest, tokens = log_p.topk(min(top_k, log_p.shape[-1]), -1)
    same = log_q.gather(-1, tokens)
    rest_p, rest_q = (torch.log((1 - x.exp().sum(-1, keepdim=True)).clamp_min(1e-9)) for x in (likeliest, same))
    value = divergence(torch.cat([likeliest, rest_p], -1), torch.cat([same, rest_q], -1)).sum()
    r = torch.exp(log_q, out=log_p).mul_((rest_p - rest_q).exp())
    return value, r.scatter_(-1, tokens, likeliest.exp())


def head_losses(
    stream: Tensor,
    dense_stream: Tensor | None,
    input_ids: Tensor,
    head: Head,
    *,
    weights: dict[str, float],
    top_k: int | None,
    vocab_size: int,
    counted: Tensor | None = None,
    dense_head: Head | None = None,
    head_parameters: Sequence[Tensor] = (),
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum of `lm` and `kd` with gradients to `stream` and `head_parameters`, and each loss without.

    The gradient is found along with the value, piece by piece: the logits of a whole batch would not fit in memory.
    With respect to the logits it is known in closed form, so autograd need not keep copies of them.

    Streams are those of the healed and, for `kd`, the dense model at depth N, (windows, tokens, hidden). `weights` are
    by loss; `vocab_size` bounds the memory of the logits. `counted`, (windows, predictions), says which predictions the
    mean is of; None for all. `dense_head` is the dense model's if it is another one, as `head_parameters` are trained.
    """
    windows, predictions = input_ids.shape[0], input_ids.shape[1] - 1
    with_gradients = [each for each in (stream, *head_parameters) if each.requires_grad and torch.is_grad_enabled()]
    gradients = [torch.zeros_like(each, dtype=torch.float32) for each in with_gradients]
    scale = HALF_SCALE if stream.dtype == torch.float16 else 1.0
    sums = {name: torch.zeros((), device=stream.device) for name in weights}
    at_once = max(1, LOGIT_BYTES // (4 * vocab_size * windows))
    for positions in torch.split(torch.arange(predictions, device=stream.device), at_once):
        piece = stream.detach().requires_grad_(stream.requires_grad)
        logits = head(piece, positions)
        with torch.no_grad():
            dense_logits = None if dense_stream is None else (dense_head or head)(dense_stream, positions)
            which = None if counted is None else counted[:, positions].flatten()
            targets = input_ids[:, positions + 1]
            values, by_logits = _piece_losses(logits, dense_logits, targets, weights, top_k, which, scale)
        for name, value in values.items():
            sums[name] += value
        if with_gradients:
            inputs = [piece if each is stream else each for each in with_gradients]
            for gradient, more in zip(gradients, torch.autograd.grad(logits, inputs, by_logits), strict=True):
                gradient += more.float() / scale
    count = windows * predictions if counted is None else counted.sum().clamp_min(1)
    parts = {name: value / count for name, value in sums.items()}
    total = torch.stack([weights[name] * value for name, value in parts.items()]).sum()
    found = [gradient / count for gradient in gradients]
    return _WithGradient.apply(total, found, *with_gradients), parts  # type: ignore[no-untyped-call]


def _piece_losses(
    logits: Tensor,
    dense_logits: Tensor | None,
    targets: Tensor,
    weights: dict[str, float],
    top_k: int | None,
    which: Tensor | None,
    scale: float,
) -> tuple[dict[str, Tensor], Tensor]:
    """Sums of the losses over (windows, positions), and the gradient of their weighted sum by the logits, times scale.

    Of all positions, or of those where `which`, (windows x positions,), is true.
    """
    chosen = slice(None) if which is None else which.to(logits.device)
    rows = [
        each.to(logits.device).flatten(0, 1)[chosen] for each in (logits, dense_logits, targets) if each is not None
    ]
    gradient = torch.empty_like(rows[0])
    at_once = rows_at_once(logits)
    values = {name: torch.zeros((), device=logits.device) for name in weights}
    for into, ours, *dense, following in zip(*(torch.split(each, at_once) for each in (gradient, *rows)), strict=True):
        log_q = functional.log_softmax(ours, -1, dtype=torch.float32)
        of_rows, by_logits = _row_losses(log_q, *dense, following=following[:, None], weights=weights, top_k=top_k)
        into[:] = by_logits.mul_(scale)
        for name, value in of_rows.items():
            values[name] += value
    if which is None:
        return values, gradient.view_as(logits)
    spread = torch.zeros_like(logits)
    spread.flatten(0, 1)[chosen] = gradient
    return values, spread


def _row_losses(
    log_q: Tensor,
    dense_logits: Tensor | None = None,
    *,
    following: Tensor,
    weights: dict[str, float],
    top_k: int | None,
) -> tuple[dict[str, Tensor], Tensor]:
    """Sums of the losses over rows, and the gradient of their weighted sum by the logits, (rows, vocabulary).

    `log_q` are log-probabilities, (rows, vocabulary), and overwritten; `following` are next tokens, (rows, 1).
    """
    values: dict[str, Tensor] = {}
    if "lm" in weights:
        values["lm"] = next_token_loss(log_q, following)
    if dense_logits is not None:
        log_p = functional.log_softmax(dense_logits, -1, dtype=torch.float32)
        values["kd"], r = distillation_loss(log_q, log_p, top_k)
    gradient = log_q.exp_().mul_(sum(weights.values()))
    if "kd" in values:
        gradient.sub_(r, alpha=weights["kd"])
    if "lm" in weights:
        gradient.scatter_add_(-1, following, torch.full_like(following, -weights["lm"], dtype=gradient.dtype))
    return values, gradient


class _WithGradient(torch.autograd.Function):
    """A value whose gradients with respect to some tensors are already known."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: list[Tensor], *tensors: Tensor) -> Tensor:  # type: ignore[override]
        """Return the value."""
        ctx.gradients, ctx.dtypes = gradients, [each.dtype for each in tensors]
        return value.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:  # type: ignore[override]
        """Scale the gradients."""
        known = zip(ctx.gradients, ctx.dtypes, strict=True)
        return None, None, *((upstream * gradient).to(dtype) for gradient, dtype in known)
