"""Training text: an endless stream of token windows from one source or several, each with its share of the tokens.

No source is held in memory. The state of the stream is small and exact, so a run that was killed continues with the
window that would have come next.
"""

import hashlib
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from streamliner.errors import TextError
from streamliner.text.chat import counted, encode, encode_after, no_answers, token_ids
from streamliner.text.formats import Document
from streamliner.text.sources import stream_documents
from streamliner.text.windows import prefix_tokens
from streamliner.types import PreTrainedTokenizerBase

PRESETS: dict[str, tuple[tuple[str, float], ...]] = {"slimpajama": (("hf:DKYoon/SlimPajama-6B", 1.0),)}
"""`slimpajama`: the sample that LLM-Streamline (arXiv 2403.19135) trains on. Its rows have the proportions of
SlimPajama: web pages (CommonCrawl, C4), code, books, papers, Wikipedia and StackExchange."""

SHUFFLE = 256
"""Windows in the buffer from which the next one is drawn."""


class TrainingText:
    """Windows from several sources, drawn by weight and then shuffled within a buffer.

    The first windows of each source are held out for validation, in every pass through it. A TextError if a source does
    not exist, or has no window left to train on.

    Args:
        sources: pairs of a SOURCE and its weight.
        sequence_length: tokens of a window, including the BOS.
        validation_windows: windows held out in all; at least one of each source unless 0.
        answers_only: mark all of a conversation but the answers (`text/chat.py`), in batches and held-out windows.

    Attributes:
        held_out: the held-out windows, (windows, tokens), with marks as batches have them.
        validation: the same without marks.
        fingerprint: SHA-256 of the held-out windows and of the first training window of each source.
        prefix: how many tokens the tokenizer put before the text of each window, such as 1 for a BOS.
    """

    def __init__(
        self,
        sources: Sequence[tuple[str, float]],
        tokenizer: PreTrainedTokenizerBase,
        *,
        sequence_length: int,
        validation_windows: int,
        seed: int,
        answers_only: bool = False,
    ) -> None:
        if sequence_length < 2:
            raise TextError(f"--sequence-length must be at least 2, not {sequence_length}.")
        self.sequence_length = sequence_length
        self._weights = [weight for _, weight in sources]
        self._packers = [
            _Packer(name, tokenizer, sequence_length, held_out, answers_only)
            for (name, _), held_out in zip(sources, _shares(validation_windows, self._weights), strict=True)
        ]
        self._random = random.Random(seed)
        self._buffer: list[list[int]] = []
        held_out, first = zip(*(packer.first_windows() for packer in self._packers), strict=True)
        self.prefix = len(prefix_tokens(tokenizer))
        self.held_out = torch.tensor(list(chain.from_iterable(held_out)), dtype=torch.long).view(-1, sequence_length)
        self.validation = token_ids(self.held_out)
        every = torch.cat([self.held_out, torch.tensor(first)])
        if answers_only and not (every < 0).any():
            raise no_answers()
        if validation_windows and not counted(self.held_out).any():
            raise TextError(
                f"None of the {len(self.held_out)} held-out windows has an answer.",
                "Give more --validation-windows, or a longer --sequence-length.",
            )
        self.fingerprint = hashlib.sha256(every.numpy().tobytes()).hexdigest()

    @property
    def passes(self) -> dict[str, int]:
        """How often each source was read to its end so far."""
        return {packer.source: packer.passes for packer in self._packers}

    def batch(self, count: int) -> Tensor:
        """The next windows, (count, tokens); with `answers_only` some tokens are marked."""
        return torch.tensor([self._next() for _ in range(count)])

    def windows_in_a_pass(self) -> int:
        """Training windows in one pass through all sources. Reads them all once."""
        return sum(packer.count() for packer in self._packers)

    def frequent_tokens(self, count: int, windows: int) -> Tensor:
        """Ids of the `count` most frequent tokens, the first one most, by the first `windows` windows of each source.

        Each source counts by its weight. Reads these windows once. Fewer if the text has fewer.
        """
        shares: Counter[int] = Counter()
        for packer, weight in zip(self._packers, self._weights, strict=True):
            found = packer.token_counts(windows)
            shares.update({token: weight * number / found.total() for token, number in found.items()})
        return torch.tensor(sorted(shares, key=lambda token: (-shares[token], token))[:count])

    def state(self) -> tuple[dict[str, Any], Tensor]:
        """The position in the stream, for `load`: a JSON value, and the windows in the buffer, (windows, tokens)."""
        version, internal, gauss = self._random.getstate()
        drawn = {"random": [version, list(internal), gauss], "sources": [packer.state() for packer in self._packers]}
        return drawn, torch.tensor(self._buffer, dtype=torch.int32)

    def load(self, state: dict[str, Any], buffer: Tensor) -> None:
        """Continue at the position that `state` returned."""
        version, internal, gauss = state["random"]
        self._random.setstate((version, tuple(internal), gauss))
        for packer, own in zip(self._packers, state["sources"], strict=True):
            packer.load(own)
        self._buffer = buffer.tolist()

    def _next(self) -> list[int]:
        while len(self._buffer) < SHUFFLE:
            (packer,) = self._random.choices(self._packers, self._weights)
            self._buffer.append(packer.next())
        place = self._random.randrange(SHUFFLE)
        self._buffer[place], self._buffer[-1] = self._buffer[-1], self._buffer[place]
        return self._buffer.pop()


class _Packer:
    """Packs one source into windows as it is read, as for a calibration set, and starts again at its end."""

    def __init__(
        self, source: str, tokenizer: PreTrainedTokenizerBase, length: int, held_out: int, answers_only: bool
    ) -> None:
        self.source, self.passes = source, 0
        self._tokenizer, self._held_out, self._answers_only = tokenizer, held_out, answers_only
        self._bos, self._separator = prefix_tokens(tokenizer), encode(tokenizer, "\n\n")
        self._body = length - len(self._bos)
        self._reader: Iterator[Document] | None = None
        self._tokens: list[int] = []  # of the documents at work, all of them: a document may be a whole book
        self._at = 0  # the first of these tokens that no window has
        self._documents = self._packed = 0  # of this pass

    def next(self) -> list[int]:
        while True:
            window = self._pack()
            if window is None and self._packed <= self._held_out:
                raise TextError(
                    f"The text {self.source} fills {self._packed} windows of {self._body + len(self._bos)} tokens, "
                    f"and {self._held_out} are held out for validation: none is left to train on.",
                    "Give more text, a smaller --sequence-length, or fewer --validation-windows.",
                )
            if window is None:
                self._rewind()
                self.passes += 1
            elif self._packed > self._held_out:
                return window

    def first_windows(self) -> tuple[list[list[int]], list[int]]:
        """The windows held out at the start of the source, and the first training window after them."""
        packed = [self._pack() for _ in range(self._held_out)]
        first = self.next()  # a TextError if the source is too short to have one, so none of `packed` is None
        self._rewind()
        return [window for window in packed if window is not None], first

    def count(self) -> int:
        """Training windows in one pass; reads the source once."""
        before = self.state()
        self._rewind()
        while self._pack() is not None:
            pass
        found = self._packed - self._held_out
        self.load(before)
        return found

    def token_counts(self, windows: int) -> Counter[int]:
        """How often each token id is in the first training windows of a pass."""
        before, found = self.state(), Counter(self._bos)
        self._rewind()
        while self._packed - self._held_out < windows and (window := self._pack()) is not None:
            if self._packed > self._held_out:
                found.update(token_ids(torch.tensor(window)).tolist())
        self.load(before)
        return found

    def state(self) -> dict[str, Any]:
        """The position in the source as a JSON value, for `load`."""
        rest = self._tokens[self._at :]
        return {"documents": self._documents, "packed": self._packed, "passes": self.passes, "rest": rest}

    def load(self, state: dict[str, Any]) -> None:
        self._rewind()
        self._documents, self._packed, self.passes = state["documents"], state["packed"], state["passes"]
        self._tokens = list(state["rest"])

    def _pack(self) -> list[int] | None:
        """The next window of this pass, None at its end."""
        if self._reader is None:
            self._reader = stream_documents(self.source, self._documents)
        while len(self._tokens) - self._at < self._body:
            document = next(self._reader, None)
            if document is None:
                return None
            self._documents += 1
            if not isinstance(document, str) or document.strip():
                separator = self._separator if self._tokens or self._packed else []
                tokens = encode_after(self._tokenizer, separator, document, answers_only=self._answers_only)
                self._tokens = [*self._tokens[self._at :], *tokens]
                self._at = 0
        window = self._bos + self._tokens[self._at : self._at + self._body]
        self._at += self._body
        self._packed += 1
        return window

    def _rewind(self) -> None:
        self._reader, self._tokens, self._at, self._documents, self._packed = None, [], 0, 0, 0


def _shares(count: int, weights: Sequence[float]) -> list[int]:
    """`count` divided by weight, each at least one unless `count` is 0."""
    return [max(1, round(count * weight / sum(weights))) if count else 0 for weight in weights]
