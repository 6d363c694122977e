"""Documents -> tokens; those of conversations may be marked by whether they are answers.

A token whose loss does not count is stored as ~id, a negative number, so that windows, buffers and states stay
tensors of integers.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from streamliner.errors import TextError
from streamliner.text.formats import COMPLETION, PROMPT, Document, Messages
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


def no_answers() -> TextError:
    """The error where only answers are to count, and no token is marked."""
    return TextError(
        "--answers-only has no effect: there are no conversations in the text.",
        'Give rows such as {"prompt": "...", "completion": "..."}, or with messages: '
        '{"messages": [{"role": "user", "content": "..."}, ...]}.',
    )


def encode(tokenizer: PreTrainedTokenizerBase, document: Document) -> list[int]:
    """Token ids of a document without what comes before or after a text; it may be longer than the model's context.

    A conversation becomes text by the tokenizer's chat template; a TextError if it has none.
    """
    text = document if isinstance(document, str) else text_of_conversation(tokenizer, document)
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def text_of_conversation(tokenizer: PreTrainedTokenizerBase, messages: Messages, *, for_answer: bool = False) -> str:
    """The text that the chat template makes of messages, and `for_answer` what comes before the next answer.

    A question and its answer in plain text need no template. Raises TextError if the tokenizer has none, or it does not
    accept the messages.
    """
    if messages and all(each["role"] in (PROMPT, COMPLETION) for each in messages):
        return "".join(each["content"] for each in messages)
    if getattr(tokenizer, "chat_template", None) is None:
        raise TextError(
            "The text has conversations, and the tokenizer has no chat template to make text of them.",
            "Use the tokenizer of the instruct model, or name a field of plain text: FILE:FIELD.",
        )
    from jinja2 import TemplateError  # transformers renders templates with it

    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=for_answer))
    except TemplateError as error:
        roles = ", ".join(each["role"] for each in messages) or "none"
        raise TextError(
            f"The chat template does not accept a conversation (roles: {roles}): {error}.",
            "Leave out such rows, or give conversations as the model was tuned on.",
        ) from error


def encode_after(
    tokenizer: PreTrainedTokenizerBase, separator: list[int], document: Document, *, answers_only: bool
) -> list[int]:
    """The tokens of a document after a separator; of a conversation with marks, if only answers count."""
    if isinstance(document, str) or not answers_only:
        return separator + encode(tokenizer, document)
    return marked(separator) + encode_answers(tokenizer, document)


def first_window(
    documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase, start: list[int], length: int, answers_only: bool
) -> list[int]:
    """The first window of documents, which begins with `start`, that has a token to predict; empty if there is none."""
    tokens: list[int] = []
    separator, body = encode(tokenizer, "\n\n"), length - len(start)
    for document in documents:
        tokens += encode_after(tokenizer, separator if tokens else [], document, answers_only=answers_only)
        while len(tokens) >= body:
            window, tokens = start + tokens[:body], tokens[body:]
            if any(token >= 0 for token in window[1:]):
                return window
    return []


def first_tokens(
    documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase, count: int, answers_only: bool
) -> list[int]:
    """The first `count` tokens of documents that are joined by a blank line; fewer if there are not so many."""
    tokens: list[int] = []
    separator = encode(tokenizer, "\n\n")
    for document in documents:
        tokens += encode_after(tokenizer, separator if tokens else [], document, answers_only=answers_only)
        if len(tokens) >= count:
            break
    return tokens[:count]


def encode_answers(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> list[int]:
    """Token ids of a conversation, all marked but those of the answers and what ends them.

    What belongs to an answer is what the chat template adds for it after the prompt for an answer; a token that is
    partly of an answer counts. Raises TextError if the template writes earlier messages anew for each answer, or the
    tokenizer does not say where its tokens begin.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise TextError(
            "The tokenizer does not say where in a text its tokens begin, so answers cannot be told from questions.",
            "Leave out --answers-only.",
        )
    text = text_of_conversation(tokenizer, messages)
    spans = [
        _span(tokenizer, messages, place, text)
        for place, each in enumerate(messages)
        if each["role"] in (ANSWERS, COMPLETION)
    ]
    found = tokenizer(text, add_special_tokens=False, verbose=False, return_offsets_mapping=True)
    return [
        token if any(begin < stop and start < end for start, stop in spans) else ~token
        for token, (begin, end) in zip(found["input_ids"], found["offset_mapping"], strict=True)
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
