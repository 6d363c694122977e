"""Prompts from all over a text, for drafts and samples, and continuations to look at."""

from dataclasses import dataclass

import torch
from torch import Tensor

from streamliner.model.blocks import Blocks
from streamliner.model.generate import continue_greedily
from streamliner.runs.reporter import Reporter
from streamliner.text.windows import text_windows
from streamliner.types import PreTrainedTokenizerBase

PROMPT_TOKENS, NEW_TOKENS = 32, 40


@dataclass(frozen=True)
class Sample:
    """A prompt and how the models continue it, in their order."""

    prompt: str
    continuations: tuple[str, ...]


def spread_prompts(source: str, tokenizer: PreTrainedTokenizerBase, count: int, reporter: Reporter) -> Tensor:
    """Windows of a text at equal distances, (count, PROMPT_TOKENS): neighbours would be about the same subject.

    Fewer if the text is too short, and then the reporter says so.
    """
    if not count:
        return torch.empty(0, PROMPT_TOKENS, dtype=torch.long)
    windows = text_windows(source, tokenizer, PROMPT_TOKENS).windows
    if len(windows) < count:
        reporter.say(f"{source} has only {len(windows)} of the {count} prompts ({PROMPT_TOKENS} tokens each).")
    return windows[torch.linspace(0, len(windows) - 1, min(count, len(windows))).long()]


def continuations(blocks: Blocks, tokenizer: PreTrainedTokenizerBase, prompts: Tensor) -> list[str]:
    """Greedy continuations of `prompts`, (prompts, tokens), as text."""
    texts = (continue_greedily(blocks, prompt, NEW_TOKENS) for prompt in prompts)
    return [str(tokenizer.decode(text, skip_special_tokens=True)) for text in texts]
