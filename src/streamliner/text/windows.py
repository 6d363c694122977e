"""Text and a tokenizer -> windows of tokens, for calibration and for perplexity."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from streamliner.errors import TextError
from streamliner.text.calibration import NUM_SAMPLES, SEQUENCE_LENGTH, CalibrationSet
from streamliner.text.sources import Text, read_text
from streamliner.types import PreTrainedTokenizerBase


def calibration_set(
    text: str | Text | Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    num_samples: int = NUM_SAMPLES,
    sequence_length: int = SEQUENCE_LENGTH,
    seed: int = 0,
) -> CalibrationSet:
    """Cut a text into windows that do not overlap, and choose some of them at random.

    Documents are tokenised one by one and joined by a blank line, so nothing is padded. If the tokenizer adds a BOS,
    every window begins with one: without it the losses of some models mean nothing. The defaults are those of SLEB
    (arXiv 2402.09025, section 4.1).

    Args:
        text: a SOURCE such as "wikitext2" (see `text/sources.py`), or documents: a list of str, a column of a dataset.
        tokenizer: the model's.
        num_samples: number of windows. A text that is too short returns fewer; `provenance["windows"]` has the number.
        sequence_length: tokens of a window, including the BOS.
        seed: of the choice of windows.

    Returns:
        Windows of token ids, (num_samples, sequence_length), with their provenance.

    Raises:
        TextError: the text does not exist or does not fill one window.
        MissingExtraError: a text on the hub needs the `hub` extra.
    """
    if num_samples < 1:
        raise TextError(f"--num-samples must be at least 1, not {num_samples}.")
    text = read_text(text)
    bos, stream, body = _tokens_for_windows(text, tokenizer, sequence_length)
    available = len(stream) // body
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(available, generator=generator)[:num_samples]
    bodies = torch.tensor(stream[: available * body]).view(available, body)[chosen]
    windows = torch.cat([torch.tensor(bos).expand(len(chosen), len(bos)).to(bodies), bodies], dim=1)
    provenance = {
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
    }
    return CalibrationSet(windows, provenance)


@dataclass(frozen=True)
class TextWindows:
    """A text cut into windows, in its order; each begins with a BOS if the tokenizer adds one."""

    windows: Tensor  # token ids, (windows, tokens)
    first: int  # the first position of a window that predicts; the positions before it are context
    provenance: dict[str, Any]  # source and its hash, tokens, window, stride, BOS


def text_windows(
    text: str | Text | Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    stride: int | None = None,
    limit: int | None = None,
) -> TextWindows:
    """Cut a text into windows, as perplexities in the literature are measured.

    Without `stride` windows do not overlap, and every token but the first of a window is predicted (with a BOS all
    are). With `stride` each window begins `stride` tokens after the one before, and only its last `stride` tokens are
    predicted: each has at least `length - stride` tokens of context. All windows have the same number of predictions.
    A rest that does not fill a window is left out; `provenance["left_out"]` has its tokens.

    Args:
        text: a SOURCE (see `text/sources.py`), or documents.
        tokenizer: the model's.
        length: tokens of a window, including the BOS.
        stride: tokens predicted in a window.
        limit: use only the first windows, at most this many.

    Raises:
        TextError: the text does not exist or does not fill one window, or the stride is not below the length.
        MissingExtraError: a text on the hub needs the `hub` extra.
    """
    if limit is not None and limit < 1:
        raise TextError(f"--num-samples must be at least 1, not {limit}.")
    if stride is not None and not 1 <= stride < length:
        raise TextError(f"--stride must be 1 to {length - 1}, less than --sequence-length, not {stride}.")
    text = read_text(text)
    bos, tokens, body = _tokens_for_windows(text, tokenizer, length)
    starts = range(0, len(tokens) - body + 1, stride or body)[:limit]
    windows = torch.tensor([bos + tokens[start : start + body] for start in starts])
    first = 0 if stride is None else length - 1 - stride
    provenance = {
        "source": text.name,
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


def _tokens_for_windows(
    text: Text, tokenizer: PreTrainedTokenizerBase, length: int
) -> tuple[list[int], list[int], int]:
    """The BOS of each window, the tokens of the text, joined by a blank line, and how many of these a window holds."""
    if length < 2:
        raise TextError(f"--sequence-length must be at least 2, not {length}: a loss needs a next token.")
    bos, separator = bos_tokens(tokenizer), encode(tokenizer, "\n\n")
    tokens: list[int] = []
    for document in text.documents:
        tokens += (separator if tokens else []) + encode(tokenizer, document)
    if len(tokens) < length - len(bos):
        raise TextError(
            f"The text {text.name} has {len(tokens)} tokens, too few for one window of {length}.",
            f"Give more text, or --sequence-length {max(2, len(tokens))} or less.",
        )
    return bos, tokens, length - len(bos)


def bos_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """`[BOS]` if the tokenizer adds it at the start of a text, otherwise `[]`."""
    ids = tokenizer("a")["input_ids"]
    return [ids[0]] if tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id else []


def encode(tokenizer: PreTrainedTokenizerBase, document: str) -> list[int]:
    """Token ids of a document without BOS or EOS; it may be longer than the model's context."""
    return list(tokenizer(document, add_special_tokens=False, verbose=False)["input_ids"])
