"""Next-token loss, perplexity, and divergence of next-token distributions."""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from statistics import fmean, stdev

import torch
from torch import Tensor
from torch.nn import functional

from streamliner.model.blocks import Blocks

POSITIONS_AT_ONCE = 512
"""Positions whose logits are converted to float32 at once: 512 x 262k vocabulary entries take half a gigabyte."""

HEAD_BYTES = 500_000_000
"""Bytes that logits, with the copies that cross-entropy makes, may take in `text_loss`."""


@dataclass(frozen=True)
class Loss:
    """Mean next-token cross-entropy in nats per token; all windows have the same number of predictions."""

    per_window: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over all predictions."""
        return fmean(self.per_window)

    @property
    def standard_error(self) -> float:
        """Standard error of `mean` over windows; NaN for one window, or where one is not finite."""
        n = len(self.per_window)
        finite = all(map(math.isfinite, self.per_window))
        return stdev(self.per_window) / math.sqrt(n) if n > 1 and finite else math.nan

    @property
    def perplexity(self) -> float:
        """`exp(mean)`, infinite where that overflows."""
        try:
            return math.exp(self.mean)
        except OverflowError:
            return math.inf


@torch.no_grad()  # not inference mode: what a model caches here may later be trained through
def text_loss(
    blocks: Blocks,
    windows: Tensor,
    *,
    first: int = 0,
    start: tuple[int, Sequence[Tensor]] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Loss:
    """The model's loss on each window, one window in memory at a time. `.perplexity` of the result is its perplexity.

    The model is measured as it is now: inside `blocks.bypass(removed)`, without these blocks.

    Args:
        blocks: of the model.
        windows: token ids, (windows, tokens).
        first: the first position that predicts; the positions before it are context.
        start: a depth, and the residual stream there of each window, (1, tokens, hidden): what is below does not run.
        on_progress: called with (windows done, windows).
    """
    fit = positions_that_fit(blocks, HEAD_BYTES)
    losses: list[float] = []
    for number, window in enumerate(windows):
        ids = window[None]
        with blocks.resumed(start[0], start[1][number]) if start else nullcontext():
            stream = blocks.streams(ids, [len(blocks)])[len(blocks)]
        losses += head_losses(blocks, stream, ids, fit, first).tolist()
        if on_progress:
            on_progress(len(losses), len(windows))
    return Loss(tuple(losses))


def head_losses(blocks: Blocks, stream: Tensor, input_ids: Tensor, fit: int, first: int = 0) -> Tensor:
    """Mean loss of each window from the residual stream at depth N, (windows,) in float64.

    Args:
        blocks: of the model.
        stream: at depth N, (windows, tokens, hidden...).
        input_ids: (windows, tokens).
        fit: positions whose logits may be in memory at once; ignored by models that compute all logits or none.
        first: the first position that predicts; the positions before it are context.
    """
    stream = stream.to(blocks.stream_device)
    last = input_ids.shape[1] - 1
    sums = torch.zeros(len(input_ids), dtype=torch.float64)
    at_once = fit if blocks.takes_positions else last
    for start in range(first, last, at_once):
        positions = torch.arange(start, min(start + at_once, last))
        logits = blocks.logits(stream, input_ids, positions)
        sums += summed_cross_entropy(logits, input_ids[:, start + 1 : start + 1 + len(positions)])
    return sums / (last - first)


def positions_that_fit(blocks: Blocks, budget: int) -> int:
    """Positions whose logits, with cross-entropy's two copies in float32, fit `budget` bytes; at least one."""
    return max(1, budget // (int(blocks.config.vocab_size) * 12))


def next_token_losses(logits: Tensor, input_ids: Tensor) -> Tensor:
    """Mean loss of each window in float32: (windows, tokens, vocabulary), (windows, tokens) -> (windows,).

    Position t predicts token t + 1; the last position predicts nothing.
    """
    return summed_cross_entropy(logits[:, :-1], input_ids[:, 1:]) / (input_ids.shape[1] - 1)


def summed_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Sums of cross-entropies in float32: (rows, positions, vocabulary), (rows, positions) -> (rows,) in float64."""
    targets = targets.to(logits.device)
    sums = torch.zeros(len(targets), dtype=torch.float64)
    for row, target in enumerate(targets):  # the vocabulary stays the contiguous axis: five times faster on a CPU
        pieces = (torch.split(each, POSITIONS_AT_ONCE) for each in (logits[row], target))
        for predicted, chunk in zip(*pieces, strict=True):
            sums[row] += functional.cross_entropy(predicted.float(), chunk, reduction="none").double().sum().cpu()
    return sums


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) = sum over the vocabulary of p (log p - log q), in nats: (..., vocabulary) twice -> (...).

    Args:
        p, q: log-probabilities.
    """
    return (p.exp() * (p - q)).sum(-1)


def mean_divergence(dense: Tensor, cut: Tensor) -> Tensor:
    """Mean divergence of `cut` from `dense`, both logits, in float32: (windows, tokens, vocabulary) -> (windows,)."""
    sums = torch.zeros(len(dense), dtype=torch.float64)
    for chunks in zip(*(torch.split(each, POSITIONS_AT_ONCE, 1) for each in (dense, cut)), strict=True):
        p, q = (functional.log_softmax(logits.float(), -1) for logits in chunks)
        sums += divergence(p, q).double().sum(1).cpu()
    return sums / dense.shape[1]
