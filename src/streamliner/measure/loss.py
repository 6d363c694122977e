"""Cross-entropy of next tokens, by window, so that a mean comes with its standard error."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean, stdev

import torch
from torch import Tensor
from torch.nn import functional

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
