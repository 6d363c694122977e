"""Similarity of the residual streams at any two depths, from one pass that stores no hidden states."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

TOKENS_AT_ONCE = 256
"""Tokens of a window whose normalised streams, at all depths, are in memory at once."""


@dataclass(frozen=True)
class Similarity:
    """Similarity of the residual streams at depths 0 to N, as (N+1, N+1) float64 tensors.

    Attributes:
        cosine: mean over all tokens of the cosine between the streams at two depths (LLM-Streamline, ShortGPT, SLEB).
        angle: mean over windows of the angle at the last token, in units of pi (arXiv 2403.17887, equation 5).
    """

    cosine: Tensor
    angle: Tensor


class SimilaritySum:
    """Sums over windows of what `Similarity` averages, at N + 1 `depths`: cosines in float32, their sums in float64."""

    def __init__(self, depths: int) -> None:
        self._cosine = torch.zeros(depths, depths, dtype=torch.float64)
        self._angle = torch.zeros(depths, depths, dtype=torch.float64)
        self._tokens = self._windows = 0

    def add(self, streams: list[Tensor]) -> None:
        """Add windows: the stream at each depth, each (windows, tokens, hidden...)."""
        flat = [stream.flatten(2) for stream in streams]
        together, products = flat[-1].device, []  # blocks may be on several devices
        for start in range(0, flat[0].shape[1], TOKENS_AT_ONCE):
            chunk = slice(start, start + TOKENS_AT_ONCE)
            units = [functional.normalize(s[:, chunk].float(), dim=-1).flatten().to(together) for s in flat]
            stacked = torch.stack(units)
            products.append(stacked @ stacked.T)
        self._cosine += torch.stack(products).cpu().double().sum(0)
        last = torch.stack([functional.normalize(s[:, -1].float(), dim=-1).to(together) for s in flat], dim=1)
        last = last.cpu().double()  # not all devices have float64
        self._angle += torch.arccos((last @ last.mT).clamp(-1, 1)).sum(0) / math.pi
        self._tokens += flat[0].shape[0] * flat[0].shape[1]
        self._windows += flat[0].shape[0]

    def result(self, total: Callable[[Tensor], Tensor] = lambda values: values) -> Similarity:
        """The means; `total` adds up the sums of several processes (`Ranks.total`)."""
        counts = total(torch.tensor([self._tokens, self._windows], dtype=torch.float64))
        return Similarity(total(self._cosine) / counts[0], total(self._angle) / counts[1])
