"""Kullback-Leibler divergence between the next-token distributions of two models."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from streamliner.measure.loss import POSITIONS_AT_ONCE


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) = sum over the vocabulary of p (log p - log q), in nats: (..., vocabulary) twice -> (...).

    Args:
        p, q: log-probabilities.
    """
    return (p.exp() * (p - q)).sum(-1)


def mean_divergence(dense: Tensor, cut: Tensor) -> Tensor:
    """Mean over the positions of each window of the divergence of `cut` from `dense`, in float32.

    Args:
        dense, cut: logits, (windows, tokens, vocabulary).

    Returns:
        (windows,) in float64.
    """
    sums = torch.zeros(len(dense), dtype=torch.float64)
    for start in range(0, dense.shape[1], POSITIONS_AT_ONCE):
        chunk = slice(start, start + POSITIONS_AT_ONCE)
        p, q = (functional.log_softmax(logits[:, chunk].float(), -1) for logits in (dense, cut))
        sums += divergence(p, q).double().sum(1).cpu()
    return sums / dense.shape[1]
