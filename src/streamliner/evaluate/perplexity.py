"""Perplexity of a text: tokens, window, stride, BOS and standard error stated."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from streamliner.blocks import Blocks
from streamliner.calibration import bos_tokens, text_tokens
from streamliner.errors import TextError
from streamliner.measure import Loss
from streamliner.measure.head import head_losses, positions_that_fit
from streamliner.sources import read_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HEAD_BYTES = 500_000_000
"""Of logits, with cross-entropy's copies, at once."""


@dataclass(frozen=True)
class TextWindows:
    """A text cut into windows.

    Attributes:
        windows: token ids, (windows, tokens), in the order of the text, each behind a BOS where the tokenizer has one.
        first: the first position of a window that predicts; those before it are context.
        provenance: source and its hash, tokens, window, stride, BOS.
    """

    windows: torch.Tensor
    first: int
    provenance: dict[str, Any]


def text_windows(
    source: str, tokenizer: PreTrainedTokenizerBase, length: int, stride: int | None = None, limit: int | None = None
) -> TextWindows:
    """Cut a text into windows of `length` tokens, BOS included.

    Without `stride` windows do not overlap and every token but a window's first is predicted (with a BOS all are), as
    perplexities in the literature are measured. With it a window begins `stride` tokens behind the one before, and only
    its last `stride` tokens are predicted, so each has at least `length - stride` tokens of context, and all windows
    have as many predictions. A rest that fills no window is left out, and told.

    Args:
        source: a SOURCE.
        tokenizer: the model's.
        length: tokens of a window.
        stride: tokens predicted in a window.
        limit: at most so many windows, the first ones.

    Raises:
        TextError: the text fills no window, or the stride is not in a window.
    """
    if length < 2:
        raise TextError(f"--window must be at least 2, not {length}: a loss needs a next token.")
    if stride is not None and not 1 <= stride < length:
        raise TextError(f"--stride must be 1 to {length - 1}, less than the window, not {stride}.")
    text = read_text(source)
    bos, tokens = bos_tokens(tokenizer), text_tokens(text, tokenizer)
    body = length - len(bos)
    starts = range(0, len(tokens) - body + 1, stride or body)[:limit]
    if not starts:
        raise TextError(
            f"The text {source} has {len(tokens)} tokens, too few for one window of {length}.",
            f"Use --window {max(2, len(tokens))} or less.",
        )
    windows = torch.tensor([bos + tokens[start : start + body] for start in starts])
    first = 0 if stride is None else length - 1 - stride
    provenance = {
        "source": source,
        "origin": text.origin,
        "text_tokens": len(tokens),
        "windows": len(windows),
        "window": length,
        "stride": stride or body,
        "bos": bool(bos),
        "predictions": len(windows) * (length - 1 - first),
        "left_out": len(tokens) - (starts[-1] + body),
        "sha256": hashlib.sha256(f"{tuple(windows.shape)}".encode() + windows.numpy().tobytes()).hexdigest(),
    }
    return TextWindows(windows, first, provenance)


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
