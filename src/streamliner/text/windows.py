"""Text and a tokenizer -> windows of tokens, for calibration and for perplexity."""

import hashlib
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from streamliner.errors import TextError
from streamliner.text.calibration import COUNTED, NUM_SAMPLES, SEQUENCE_LENGTH, CalibrationSet
from streamliner.text.chat import counted, encode, first_tokens, first_window, marked, no_answers
from streamliner.text.formats import Document
from streamliner.text.large import LargeText
from streamliner.text.sources import Text, large_text, read_text
from streamliner.types import PreTrainedTokenizerBase


def calibration_set(
    text: str | Text | Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    num_samples: int = NUM_SAMPLES,
    sequence_length: int = SEQUENCE_LENGTH,
    seed: int = 0,
    answers_only: bool = False,
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
        answers_only: count only the loss of answers, in conversations and in rows with `prompt` and `completion`.
            Windows without a token of an answer are not chosen.

    Returns:
        Windows of token ids, (num_samples, sequence_length), with their provenance.

    Raises:
        TextError: the text does not exist or does not fill one window, or has no answers with `answers_only`.
        MissingExtraError: a text on the hub needs the `hub` extra.
    """
    found = _windows_of(text, _Wanted(tokenizer, num_samples, sequence_length, seed, answers_only))
    if answers_only and COUNTED not in found.provenance:
        raise no_answers()
    return found


@dataclass(frozen=True)
class _Wanted:
    """Of `calibration_set`."""

    tokenizer: PreTrainedTokenizerBase
    num_samples: int
    sequence_length: int
    seed: int
    answers_only: bool

    def made(self, windows: Tensor, about: dict[str, Any], *, has_answers: bool) -> CalibrationSet:
        """The calibration set of these windows; `about` is what its provenance says of the text."""
        record: dict[str, Any] = {
            "sequence_length": self.sequence_length,
            "windows": len(windows),
            "windows_asked_for": self.num_samples,
            "tokens": windows.numel(),
            "seed": self.seed,
            "sha256": hashlib.sha256(windows.numpy().tobytes()).hexdigest(),
        }
        answers = {COUNTED: int(counted(windows).sum())} if has_answers else {}
        return CalibrationSet(windows, about | record | answers)


def _windows_of(text: str | Text | Iterable[str], wanted: _Wanted) -> CalibrationSet:
    """As `calibration_set`, also for a text that has no conversations."""
    tokenizer, length, answers_only = wanted.tokenizer, wanted.sequence_length, wanted.answers_only
    if wanted.num_samples < 1:
        raise TextError(f"--num-samples must be at least 1, not {wanted.num_samples}.")
    if isinstance(text, str) and (large := large_text(text)) is not None:
        return _sampled_set(large, wanted)
    text = read_text(text)
    bos, stream, body = _tokens_for_windows(text.name, text.documents, tokenizer, length, None, answers_only)
    start = marked(bos) if answers_only else bos
    bodies = torch.tensor(stream[: len(stream) // body * body]).view(-1, body)
    every = torch.cat([torch.tensor(start).expand(len(bodies), len(bos)).to(bodies), bodies], dim=1)
    usable = counted(every).any(1).nonzero()[:, 0]
    if not len(usable):
        raise TextError(
            f"No window of {length} tokens of the text {text.name} has a token of an answer.",
            "Give rows with answers, or a larger --sequence-length.",
        )
    generator = torch.Generator().manual_seed(wanted.seed)
    windows = every[usable[torch.randperm(len(usable), generator=generator)[: wanted.num_samples]]]
    about = {
        "source": text.name,
        "origin": text.origin,
        "documents": len(text.documents),
        "text_tokens": len(stream),
        "windows_available": len(usable),
        **_prefix_record(bos),
    }
    return wanted.made(windows, about, has_answers=any(token < 0 for token in stream))


def mixed_set(
    texts: Mapping[str, float],
    tokenizer: PreTrainedTokenizerBase,
    *,
    num_samples: int = NUM_SAMPLES,
    sequence_length: int = SEQUENCE_LENGTH,
    seed: int = 0,
    answers_only: bool = False,
) -> CalibrationSet:
    """A calibration set from several texts, by their weights; see `calibration_set`.

    The windows of the texts alternate, so that the first ones, on which a search may drop a candidate, have some of
    each. Each text has one window at least. The order of `texts` does not matter. With `answers_only` a text without
    conversations counts whole.
    """
    total = sum(texts.values())
    counts = {name: max(1, round(num_samples * weight / total)) for name, weight in sorted(texts.items())}
    wanted = _Wanted(tokenizer, num_samples, sequence_length, seed, answers_only)
    parts = [_windows_of(name, replace(wanted, num_samples=count)) for name, count in counts.items()]
    if answers_only and not any(COUNTED in part.provenance for part in parts):
        raise no_answers()
    if len(parts) == 1:
        return parts[0]
    places = [
        ((place + 0.5) / len(part.windows), window) for part in parts for place, window in enumerate(part.windows)
    ]
    windows = torch.stack([window for _, window in sorted(places, key=lambda each: each[0])])
    source = " + ".join(f"{part.provenance['source']} ({len(part.windows)})" for part in parts)
    about = {"source": source, "parts": [part.provenance for part in parts]}
    return wanted.made(windows, about, has_answers=answers_only)


def _sampled_set(text: LargeText, wanted: _Wanted) -> CalibrationSet:
    """Windows from random places of a text too large to tokenise: one from each of `num_samples` equal parts."""
    count, length, answers_only = wanted.num_samples, wanted.sequence_length, wanted.answers_only
    random = torch.rand(count, generator=torch.Generator().manual_seed(wanted.seed))
    prefix, windows = prefix_tokens(wanted.tokenizer), []
    start = marked(prefix) if answers_only else prefix
    for part, within in enumerate(random.tolist()):
        for share in ((part + within) / count, part / count, 0.0):  # the end may be too near
            documents = text.documents_from(share, 16 * length)
            if window := first_window(documents, wanted.tokenizer, start, length, answers_only):
                break
        if not window:
            missing = " with a token of an answer" if answers_only else ""
            raise TextError(f"The text {text.name} is too short for a window of {length} tokens{missing}.")
        windows.append(window)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(wanted.seed))
    every = torch.tensor(windows)[order]  # a search may drop a candidate on the first windows: they must be any
    about = {"source": text.name, "origin": text.origin, "bytes": text.size, **_prefix_record(prefix)}
    return wanted.made(every, about, has_answers=bool((every[:, len(prefix) :] < 0).any()))


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
    large = large_text(text) if isinstance(text, str) and limit is not None else None
    if large is not None and limit is not None:
        name, origin, documents, most = large.name, large.origin, large.documents_from(0), limit * length
    else:
        text = read_text(text)
        name, origin, documents, most = text.name, text.origin, iter(text.documents), None
    bos, tokens, body = _tokens_for_windows(name, documents, tokenizer, length, most)
    starts = range(0, len(tokens) - body + 1, stride or body)[:limit]
    windows = torch.tensor([bos + tokens[start : start + body] for start in starts])
    first = 0 if stride is None else length - 1 - stride
    provenance = {
        "source": name,
        "origin": origin,
        "text_tokens": None if large else len(tokens),  # nobody counts those of a large text
        "windows": len(windows),
        "window": length,
        "stride": stride or body,
        **_prefix_record(bos),
        "predictions": len(windows) * (length - 1 - first),
        "left_out": None if large else len(tokens) - (starts[-1] + body),
        "sha256": hashlib.sha256(f"{tuple(windows.shape)}".encode() + windows.numpy().tobytes()).hexdigest(),
    }
    return TextWindows(windows, first, provenance)


def _tokens_for_windows(
    name: str,
    documents: Iterable[Document],
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    most: int | None = None,
    answers_only: bool = False,
) -> tuple[list[int], list[int], int]:
    """What begins each window, the tokens of the text, joined by a blank line, and how many of these a window holds."""
    prefix = prefix_tokens(tokenizer)
    least = max(2, len(prefix) + 1)
    if length < least:
        raise TextError(f"--sequence-length must be at least {least}, not {length}: a loss needs a next token.")
    tokens = first_tokens(documents, tokenizer, sys.maxsize if most is None else most, answers_only)
    if len(tokens) < length - len(prefix):
        raise TextError(
            f"The text {name.removeprefix('text ')} has {len(tokens)} tokens, too few for one window of {length}.",
            f"Give more text, or --sequence-length {max(2, len(tokens))} or less.",
        )
    return prefix, tokens, length - len(prefix)


def prefix_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer puts before every text: a BOS, several tokens (GLM), or nothing. What it puts after is not."""
    whole, bare = list(tokenizer("a")["input_ids"]), encode(tokenizer, "a")
    starts = (at for at in range(len(whole) - len(bare) + 1) if whole[at : at + len(bare)] == bare)
    return whole[: next(starts, 0)]


def _prefix_record(prefix: list[int]) -> dict[str, Any]:
    """The prefix in a provenance: earlier releases knew a BOS alone."""
    return {"bos": bool(prefix)} | ({"prefix": prefix} if len(prefix) > 1 else {})
