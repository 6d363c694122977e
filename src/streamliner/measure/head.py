"""Losses of the head from the stream at depth N, some positions at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from streamliner.blocks import Blocks
from streamliner.measure.loss import summed_cross_entropy


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
