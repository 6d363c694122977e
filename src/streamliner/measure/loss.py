"""Losses of the head from the stream at depth N, some positions at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean, stdev

import torch
from torch import Tensor
from torch.nn import functional

from streamliner.model.blocks import Blocks


def positions_that_fit(blocks: Blocks, budget: int) -> int:
    """Positions whose logits, with cross-entropy's two copies in float32, fit `budget` bytes; at least one."""
    return max(1, budget // (int(blocks.config.vocab_size) * 12))


def head_losses(blocks: Blocks, stream: Tensor, input_ids: Tensor, fit: int, first: int = 0) -> Tensor:
    """Mean next-token cross-entropy of each window, (windows,) in float64.

    Args:
        blocks: whose model's own final norm and head are run.
        stream: at depth N, (windows, tokens, hidden...).
        input_ids: (windows, tokens).
        fit: positions whose logits may be there at once, where the model can be asked for some.
        first: the first position that predicts; those before are context.
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


POSITIONS_AT_ONCE = 512
"""Logits are widened to float32 for so many positions at a time: 512 x 262k words are half a gigabyte."""


@dataclass(frozen=True)
class Loss:
    """Mean next-token cross-entropy, nats per token.

    Attributes:
        per_window: the mean of each window. All windows have the same number of predictions.
    """

    per_window: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over all predictions."""
        return fmean(self.per_window)

    @property
    def standard_error(self) -> float:
        """Standard error of `mean` over windows; NaN for one window, or where one overflowed."""
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


def next_token_losses(logits: Tensor, input_ids: Tensor) -> Tensor:
    """Mean cross-entropy of each window, in float32: (windows, tokens, words), (windows, tokens) -> (windows,).

    Position t predicts token t + 1; the last position predicts nothing.
    """
    return summed_cross_entropy(logits[:, :-1], input_ids[:, 1:]) / (input_ids.shape[1] - 1)


def summed_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum of cross-entropies of each row in float32: (rows, positions, words), (rows, positions) -> (rows,) float64."""
    targets = targets.to(logits.device)
    sums = torch.zeros(len(targets), dtype=torch.float64)
    for row, target in enumerate(targets):  # words stay the last, contiguous axis: five times faster on a CPU
        for start in range(0, len(target), POSITIONS_AT_ONCE):
            chunk = target[start : start + POSITIONS_AT_ONCE]
            predicted = logits[row, start : start + len(chunk)].float()
            sums[row] += functional.cross_entropy(predicted, chunk, reduction="none").double().sum().cpu()
    return sums
