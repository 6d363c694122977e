"""A cut model as a draft for its parent: speculative (assisted) generation.

The draft proposes a few tokens, the parent verifies them in one forward and keeps those that it agrees with, and adds
one of its own: Leviathan et al., "Fast Inference from Transformers via Speculative Decoding" (arXiv 2211.17192). What
comes out is the parent's text, so only speed is at stake.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from streamliner.evaluate.perplexity import HEAD_BYTES
from streamliner.measure.loss import positions_that_fit
from streamliner.model.blocks import Blocks


@dataclass(frozen=True)
class Acceptance:
    """How often a parent keeps what a draft proposes, on text that the parent wrote.

    Attributes:
        rate: share of proposed tokens that are kept, given that those before were.
        standard_error: of the rate, over texts; nan for one.
        tokens_per_verification: kept tokens and the parent's own, by the number of proposed tokens: the mean over all
            places, where real rounds begin behind the one before.
        positions: tokens of the parent's text that this was measured on.
    """

    rate: float
    standard_error: float
    tokens_per_verification: dict[int, float]
    positions: int

    def to_json(self) -> dict[str, Any]:
        """As a JSON value."""
        return {
            "acceptance_rate": self.rate,
            "standard_error": self.standard_error,
            "tokens_per_verification": {str(key): value for key, value in self.tokens_per_verification.items()},
            "positions": self.positions,
        }


PROPOSED = (2, 4, 8)
"""Numbers of tokens that a draft proposes at a time."""


@torch.inference_mode()
def write_texts(
    parent: Blocks,
    prompts: Tensor,
    new_tokens: int,
    *,
    sampled: bool,
    seed: int = 0,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """What the parent writes: (prompts, tokens of a prompt + `new_tokens`), the prompts included.

    Args:
        parent: the model that a draft would work for.
        prompts: token ids, (prompts, tokens).
        new_tokens: that the parent writes behind each.
        sampled: at temperature 1, or else greedy.
        seed: of the sampling.
        on_progress: called with prompts done and in all.
    """
    texts = []
    # The model's own words: beyond the end of a text, and without the checkpoint's penalties and limits, which would
    # fill what a config that is given leaves open.
    model: Any = parent.model
    own, model.generation_config = model.generation_config, GenerationConfig(top_k=0, pad_token_id=0)
    try:
        for number, prompt in enumerate(prompts):
            torch.manual_seed(seed + number)
            ids = prompt[None].to(parent.device)
            mask = torch.ones_like(ids)
            texts.append(model.generate(ids, attention_mask=mask, max_new_tokens=new_tokens, do_sample=sampled).cpu())
            on_progress(number + 1, len(prompts))
    finally:
        model.generation_config = own
    return torch.cat(texts)


@torch.inference_mode()
def acceptance(
    parent: Blocks,
    draft: Blocks,
    texts: Tensor,
    new_tokens: int,
    *,
    sampled: bool,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Acceptance:
    """See at each token that the parent wrote whether the draft would have been followed.

    Greedy, a proposal is kept if it is the parent's own word. Sampled at temperature 1, it is kept with probability
    `sum over words of min(p, q)`, p of the parent and q of the draft (arXiv 2211.17192, section 3.2). Both models see
    the parent's text, as they do when proposals are kept.

    Args:
        parent, draft: with the same tokenizer.
        texts: of the parent, from `write_texts`.
        new_tokens: as given to that.
        sampled: as given to that.
        on_progress: called with texts done and in all.
    """
    kept: list[Tensor] = []
    for number, text in enumerate(texts):
        kept.append(_kept(parent, draft, text[None], len(text) - new_tokens, sampled))
        on_progress(number + 1, len(texts))
    table = torch.stack(kept)
    counts = [count for count in PROPOSED if 2 * count <= new_tokens]  # half of the text are places to propose at
    return Acceptance(
        table.mean().item(),
        table.mean(1).std().item() / len(table) ** 0.5 if len(table) > 1 else math.nan,
        {count: tokens_per_verification(table, count, max(counts)) for count in counts},
        table.numel(),
    )


def tokens_per_verification(kept: Tensor, proposed: int, room: int) -> float:
    """Mean of 1 + the number of proposals kept in a row, over all places behind which `room` tokens follow.

    `kept` is (texts, tokens): the probability that a proposal at the place is kept, given that those before were.
    """
    rows = [row[start : start + proposed] for row in kept for start in range(len(row) - room + 1)]
    return 1 + torch.stack(rows).cumprod(1).sum(1).mean().item()


def _kept(parent: Blocks, draft: Blocks, text: Tensor, prompt: int, sampled: bool) -> Tensor:
    """Probability that the draft's proposal for each token behind the prompt is kept, (tokens,) in float64."""
    streams = [blocks.streams(text.cpu(), [len(blocks)])[len(blocks)] for blocks in (parent, draft)]
    at_once = positions_that_fit(parent, HEAD_BYTES)
    found = []
    for start in range(prompt - 1, text.shape[1] - 1, at_once):
        positions = torch.arange(start, min(start + at_once, text.shape[1] - 1))
        p, q = (
            blocks.logits(stream, text.cpu(), positions)[0].float().cpu()
            for blocks, stream in zip((parent, draft), streams, strict=True)
        )
        words = min(p.shape[-1], q.shape[-1])  # models of a family pad one vocabulary to different widths
        p, q = p[..., :words], q[..., :words]
        if sampled:
            found.append(torch.minimum(p.softmax(-1), q.softmax(-1)).sum(-1).clamp(max=1))
        else:
            found.append((q.argmax(-1) == text[0, positions + 1].cpu()).float())
    return torch.cat(found).double()
