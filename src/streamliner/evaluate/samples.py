"""How models go on with the same beginnings: to look at, not to measure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from streamliner.model.blocks import Blocks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


NEW_TOKENS = 40


@torch.inference_mode()
def continuations(blocks: Blocks, tokenizer: PreTrainedTokenizerBase, prompts: Tensor) -> list[str]:
    """Greedy continuations of `prompts`, (prompts, tokens), as text."""
    found = []
    for prompt in prompts:
        ids = prompt[None].to(blocks.device)
        out = blocks.model.generate(  # type: ignore[operator]
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0
        )
        found.append(str(tokenizer.decode(out[0, len(prompt) :], skip_special_tokens=True)))
    return found
