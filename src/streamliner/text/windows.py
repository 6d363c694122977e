"""Text and a tokenizer -> token windows."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from streamliner.errors import TextError
from streamliner.text.sources import Text, read_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from streamliner.model.session import Session

NUM_SAMPLES, SEQUENCE_LENGTH = 128, 2048
"""SLEB's setting (arXiv 2402.09025, section 4.1)."""


@dataclass(frozen=True)
class CalibrationSet:
    """Token windows on which a model is measured.

    Attributes:
        windows: token ids, (windows, tokens); each begins with BOS where the tokenizer wants one.
        provenance: source and its hash, how windows were chosen, and how many tokens there really are.
    """

    windows: Tensor
    provenance: dict[str, Any]

    @property
    def num_tokens(self) -> int:
        """Tokens in all windows."""
        return self.windows.numel()

    def __str__(self) -> str:
        count, length = self.windows.shape
        return f"{self.provenance['source']}: {count} windows of {length} tokens, {self.num_tokens} in all"


def make_calibration_set(
    source: str | Text,
    tokenizer: PreTrainedTokenizerBase,
    *,
    num_samples: int = NUM_SAMPLES,
    sequence_length: int = SEQUENCE_LENGTH,
    seed: int = 0,
) -> CalibrationSet:
    """Pack documents into windows that do not overlap, and choose `num_samples` of them at random.

    Documents are tokenised one by one and joined by a blank line, so nothing is padded. Where the tokenizer adds a BOS,
    every window begins with one: without it some models' losses mean nothing. A text that is too short for
    `num_samples` windows gives fewer; `provenance["windows"]` says how many.

    Raises:
        TextError: the text does not fill one window.
    """
    if num_samples < 1:
        raise TextError(f"--num-samples must be at least 1, not {num_samples}.")
    if sequence_length < 2:
        raise TextError(f"--sequence-length must be at least 2, not {sequence_length}: a loss needs a next token.")
    text = read_text(source) if isinstance(source, str) else source
    bos = bos_tokens(tokenizer)
    stream = text_tokens(text, tokenizer)
    body = sequence_length - len(bos)
    available = len(stream) // body
    if available == 0:
        raise TextError(
            f"The text {text.name} has {len(stream)} tokens, too few for one window of {sequence_length}.",
            f"Give more text, or --sequence-length {max(2, len(stream))} or less.",
        )
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(available, generator=generator)[:num_samples]
    bodies = torch.tensor(stream[: available * body]).view(available, body)[chosen]
    windows = torch.cat([torch.tensor(bos).expand(len(chosen), len(bos)).to(bodies), bodies], dim=1)
    return CalibrationSet(
        windows,
        {
            "source": text.name,
            "origin": text.origin,
            "documents": len(text.documents),
            "text_tokens": len(stream),
            "sequence_length": sequence_length,
            "windows": len(windows),
            "windows_asked_for": num_samples,
            "windows_available": available,
            "tokens": windows.numel(),
            "bos": bool(bos),
            "seed": seed,
            "sha256": hashlib.sha256(windows.numpy().tobytes()).hexdigest(),
        },
    )


def bos_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """`[BOS]` if the tokenizer begins a text with it, else `[]`."""
    ids = tokenizer("a")["input_ids"]
    return [ids[0]] if tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id else []


def encode(tokenizer: PreTrainedTokenizerBase, document: str) -> list[int]:
    """Token ids of a document without BOS or EOS; it may be longer than the model's context."""
    return list(tokenizer(document, add_special_tokens=False, verbose=False)["input_ids"])


def text_tokens(text: Text, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of all documents, joined by a blank line."""
    separator = encode(tokenizer, "\n\n")
    stream: list[int] = []
    for document in text.documents:
        if stream:
            stream += separator
        stream += encode(tokenizer, document)
    return stream


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


def window_length(session: Session, asked: int | None, flag: str = "--sequence-length") -> int:
    """Tokens of a window: as asked for, or SLEB's 2048, or the model's limit if that is less.

    Raises:
        TextError: more was asked for than the model has positions.
    """
    most = getattr(session.config.get_text_config(decoder=True), "max_position_embeddings", None)
    length = asked or min(SEQUENCE_LENGTH, most or SEQUENCE_LENGTH)
    if most and length > most:
        raise TextError(
            f"{flag} {length} is more than the {most} positions of {session.source.name}.",
            f"Use {most} or less.",
        )
    return length
