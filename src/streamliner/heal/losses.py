"""The losses: residual streams (`mse`, `normalized-mse`), next tokens (`lm`), the dense model's distribution (`kd`).

All are means over positions, computed in float32. With q the healed model's distribution at a position, z its logits,
p the dense model's distribution and y the next token, the losses of the head and their gradients are

    lm        L = -log q[y]                              dL/dz = q - onehot(y)
    kd        L = sum_v p[v] log(p[v] / q[v])            dL/dz = q - p
    kd top-k  L = sum_{v in T} p[v] log(p[v] / q[v])     dL/dz[v] = q[v] - p[v]              for v in T
                  + P log(P / Q)                         dL/dz[v] = q[v] (1 - P / Q)         otherwise

where T are the k likeliest tokens of the dense model, and P and Q what p and q leave for all others.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from streamliner.measure.loss import divergence

LOGIT_BYTES = 512_000_000
"""Bytes of logits in float32 that exist at once; a loss and its gradient take about three times that."""
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


def next_token_loss(log_q: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of the loss `lm` over rows, and its gradient with respect to the logits, (rows, vocabulary).

    `log_q` are log-probabilities, (rows, vocabulary), and overwritten; `targets` are next tokens, (rows, 1).
    """
    value = -log_q.gather(-1, targets).sum()
    gradient = log_q.exp_()
    return value, gradient.scatter_add_(-1, targets, -torch.ones_like(targets, dtype=gradient.dtype))


def distillation_loss(log_q: Tensor, log_p: Tensor, top_k: int | None = None) -> tuple[Tensor, Tensor]:
    """The sum of the loss `kd` over rows, and its gradient with respect to the logits of q, (rows, vocabulary).

    `log_q`, `log_p` are log-probabilities of the healed and the dense model. With `top_k`, only that many of the dense
    model's likeliest tokens are compared, and the sum of all others.
    """
    if top_k is None:
        return divergence(log_p, log_q).sum(), log_q.exp().sub_(log_p.exp())
    likeliest, tokens = log_p.topk(min(top_k, log_p.shape[-1]), -1)
    same = log_q.gather(-1, tokens)
    rest_p, rest_q = (torch.log((1 - x.exp().sum(-1, keepdim=True)).clamp_min(1e-9)) for x in (likeliest, same))
    value = divergence(torch.cat([likeliest, rest_p], -1), torch.cat([same, rest_q], -1)).sum()
    gradient = log_q.exp() * (1 - (rest_p - rest_q).exp())
    return value, gradient.scatter_(-1, tokens, same.exp() - likeliest.exp())


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
            values, by_logits = _piece_losses(logits, dense_logits, input_ids[:, positions + 1], weights, top_k, which)
        for name, value in values.items():
            sums[name] += value
        if with_gradients:
            scaled = by_logits.mul_(scale).to(logits.dtype)
            inputs = [piece if each is stream else each for each in with_gradients]
            for gradient, more in zip(gradients, torch.autograd.grad(logits, inputs, scaled), strict=True):
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
) -> tuple[dict[str, Tensor], Tensor]:
    """Sums of the losses over (windows, positions), and the gradient of their weighted sum by the logits.

    Of all positions, or of those where `which`, (windows x positions,), is true.
    """
    chosen = slice(None) if which is None else which.to(logits.device)
    log_q = functional.log_softmax(logits.flatten(0, 1)[chosen], -1, dtype=torch.float32)
    values: dict[str, Tensor] = {}
    gradients: list[Tensor] = []
    if dense_logits is not None:
        log_p = functional.log_softmax(dense_logits.flatten(0, 1)[chosen], -1, dtype=torch.float32)
        values["kd"], by_kd = distillation_loss(log_q, log_p, top_k)
        gradients.append(by_kd.mul_(weights["kd"]))
    if "lm" in weights:
        values["lm"], by_lm = next_token_loss(log_q, targets.to(log_q.device).reshape(-1, 1)[chosen])
        gradients = [gradients[0].add_(by_lm, alpha=weights["lm"]) if gradients else by_lm.mul_(weights["lm"])]
    if which is None:
        return values, gradients[0].view_as(logits)
    spread = torch.zeros_like(logits, dtype=torch.float32)
    spread.flatten(0, 1)[chosen] = gradients[0]
    return values, spread


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
