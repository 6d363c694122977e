"""Perplexity of a text: tokens, window, stride, BOS and standard error stated."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from streamliner.measure.loss import Loss, head_losses, positions_that_fit
from streamliner.model.blocks import Blocks

if TYPE_CHECKING:
    pass

from streamliner.text.windows import TextWindows

HEAD_BYTES = 500_000_000
"""Of logits, with cross-entropy's copies, at once."""


@torch.inference_mode()
def perplexity(blocks: Blocks, text: TextWindows, on_progress: Callable[[int, int], None] | None = None) -> Loss:
    """The model's loss on each window; `Loss.perplexity` is the perplexity. One window is in memory at a time."""
    fit = positions_that_fit(blocks, HEAD_BYTES)
    losses: list[float] = []
    for window in text.windows:
        ids = window[None]
        stream = blocks.streams(ids, [len(blocks)])[len(blocks)]
        losses += head_losses(blocks, stream, ids, fit, text.first).tolist()
        if on_progress:
            on_progress(len(losses), len(text.windows))
    return Loss(tuple(losses))
