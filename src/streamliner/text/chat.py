"""Conversations -> tokens, marked by whether the model is to learn to write them.

A token whose loss does not count is stored as ~id, a negative number, so that windows, buffers and states stay
tensors of integers.
"""

import torch
from torch import Tensor

from streamliner.errors import TextError
from streamliner.text.formats import Messages
from streamliner.text.windows import text_of_conversation
from streamliner.types import PreTrainedTokenizerBase

ANSWERS = "assistant"
"""The role whose messages are answers."""


def token_ids(windows: Tensor) -> Tensor:
    """Token ids without marks."""
    return torch.where(windows < 0, ~windows, windows)


def counted(windows: Tensor) -> Tensor:
    """Whether the loss of each predicted token counts: (windows, tokens) -> (windows, tokens - 1)."""
    return windows[:, 1:] >= 0


def marked(tokens: list[int]) -> list[int]:
    """Tokens whose loss does not count."""
    return [~token for token in tokens]


def encode_answers(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> list[int]:
    """Token ids of a conversation, all marked but those of the answers and what ends them.

    What belongs to an answer is what the chat template adds for it after the prompt for an answer. Raises TextError if
    the template writes earlier messages anew for each answer, or the tokenizer does not say where its tokens begin.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise TextError(
            "The tokenizer does not say where in a text its tokens begin, so answers cannot be told from questions.",
            "Leave out --answers-only.",
        )
    text = text_of_conversation(tokenizer, messages)
    spans = [_span(tokenizer, messages, place, text) for place, each in enumerate(messages) if each["role"] == ANSWERS]
    found = tokenizer(text, add_special_tokens=False, verbose=False, return_offsets_mapping=True)
    return [
        token if any(start <= begin < stop for start, stop in spans) else ~token
        for token, (begin, _) in zip(found["input_ids"], found["offset_mapping"], strict=True)
    ]


def _span(tokenizer: PreTrainedTokenizerBase, messages: Messages, place: int, text: str) -> tuple[int, int]:
    """Where in the text of the conversation the answer at `place` is, in characters."""
    before = text_of_conversation(tokenizer, messages[:place], for_answer=True)
    after = text_of_conversation(tokenizer, messages[: place + 1])
    if not (text.startswith(before) and after.startswith(before) and text.startswith(after)):
        raise TextError(
            "The chat template writes earlier messages in another way once there are more, so that answers cannot be "
            "found in the text of a conversation.",
            "Leave out --answers-only, or give conversations of one question and one answer.",
        )
    return len(before), len(after)
