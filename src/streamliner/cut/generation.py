"""Whether a model generates the same text with a cache as without."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from streamliner.model.generate import greedy_scores, padding_token

PROMPT_TOKENS = 12
PADDING = 4
NEW_TOKENS = 8

SCORE_TOLERANCE = 1e-3
"""Largest difference of scores in float32, relative to the largest: with a cache, attention has other shapes."""


def same_generation(model: Any, sample: Tensor, tolerance: float) -> tuple[bool, bool]:
    """Compare greedy generation with and without a cache: of one prompt, and of it left-padded in a batch of two.

    Args:
        model: on the device of `sample`, in evaluation mode.
        sample: token ids, (1, tokens); the prompt is their beginning.
        tolerance: difference of two logits, relative to the largest, up to which they count as equal.
    """
    if not hasattr(model, "generate"):
        return False, False
    prompt, pad = sample[:, :PROMPT_TOKENS], padding_token(model.config)
    padded = torch.cat([torch.full_like(prompt[:, :PADDING], pad), prompt[:, PADDING:]], dim=1)
    mask = torch.ones_like(prompt).repeat(2, 1)
    mask[1, :PADDING] = 0
    return (
        _same_with_cache(model, prompt, mask[:1], pad, tolerance),
        _same_with_cache(model, torch.cat([prompt, padded]), mask, pad, tolerance),
    )


def _same_with_cache(model: Any, ids: Tensor, mask: Tensor, pad: int, tolerance: float) -> bool:
    """Whether the tokens are the same, up to the first tie that rounding broke, and in float32 the scores too.

    In half precision, rounding hides a small fault in the scores.
    """
    try:
        tokens, scores = greedy_scores(model, ids, mask, NEW_TOKENS, use_cache=True, pad=pad)
        other_tokens, other_scores = greedy_scores(model, ids, mask, NEW_TOKENS, use_cache=False, pad=pad)
        for step in range(NEW_TOKENS):
            score, other_score = scores[step], other_scores[step]
            finite = score.isfinite() & other_score.isfinite()
            largest = other_score[finite].abs().max().item()
            difference = (score - other_score)[finite].abs().max().item()
            if model.dtype == torch.float32 and not difference <= SCORE_TOLERANCE * largest:
                return False
            token, other_token = tokens[:, step, None], other_tokens[:, step, None]
            if not torch.equal(token, other_token):
                # Two tokens with almost the same score are a tie. After it the texts may differ.
                gap = (score.gather(1, token) - score.gather(1, other_token)).abs().max().item()
                return gap <= 4 * tolerance * max(largest, 1.0)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, NotImplementedError, RuntimeError):
        return False  # some models cannot generate at all, or not left-padded
    return True
