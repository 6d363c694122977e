"""Training text as an endless stream of token windows, from one source or several, each with its share of the tokens.

No source is held whole. The state of a stream is small and exact, so that a run that was killed goes on with the window
that would have come next.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from streamliner.errors import TextError
from streamliner.text.sources import stream_documents
from streamliner.text.windows import bos_tokens, encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


PRESETS: dict[str, tuple[tuple[str, float], ...]] = {"slimpajama": (("hf:DKYoon/SlimPajama-6B", 1.0),)}
"""`slimpajama`: the sample that LLM-Streamline (arXiv 2403.19135) trains on. Its rows are mixed as SlimPajama is: web
pages (CommonCrawl, C4), code, books, papers, Wikipedia and StackExchange."""


SHUFFLE = 256
"""Windows among which the next one is drawn."""


class _Source:
    """One text, packed into windows as it is read; it begins anew when it ends.

    Documents are tokenised one by one, joined by a blank line and cut into windows, as in a calibration set.
    """

    def __init__(self, name: str, tokenizer: PreTrainedTokenizerBase, length: int, held_out: int) -> None:
        self.name, self.held_out = name, held_out
        self._tokenizer = tokenizer
        self._bos, self._separator = bos_tokens(tokenizer), encode(tokenizer, "\n\n")
        self._body = length - len(self._bos)
        self._reader: Iterator[str] | None = None
        self.documents = self.packed = self.passes = 0  # of this pass, of this pass, in all
        self._rest: list[int] = []

    def pack(self) -> list[int] | None:
        """The next window of this pass, None at its end."""
        if self._reader is None:
            self._reader = stream_documents(self.name, self.documents)
        while len(self._rest) < self._body:
            document = next(self._reader, None)
            if document is None:
                return None
            self.documents += 1
            if document.strip():
                self._rest += (self._separator if self._rest or self.packed else []) + encode(self._tokenizer, document)
        window, self._rest = self._bos + self._rest[: self._body], self._rest[self._body :]
        self.packed += 1
        return window

    def next(self) -> list[int]:
        """The next window that is not held out."""
        while True:
            window = self.pack()
            if window is None:
                if self.packed <= self.held_out:
                    raise TextError(
                        f"The text {self.name} fills {self.packed} windows of {self._body + len(self._bos)} tokens, "
                        f"and {self.held_out} are held out for validation: none is left.",
                        "Give more text, a smaller --sequence-length, or fewer --validation-windows.",
                    )
                self.rewind()
                self.passes += 1
            elif self.packed > self.held_out:
                return window

    def rewind(self) -> None:
        """Back to the first document."""
        self._reader, self._rest, self.documents, self.packed = None, [], 0, 0

    def state(self) -> dict[str, Any]:
        """JSON value from which `load` goes on."""
        return {"documents": self.documents, "packed": self.packed, "passes": self.passes, "rest": self._rest}

    def load(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        self._reader = None
        self.documents, self.packed, self.passes = state["documents"], state["packed"], state["passes"]
        self._rest = list(state["rest"])


class Mixture:
    """Windows from several sources, drawn by weight, then shuffled within a buffer.

    The first windows of each source are held out for validation, in every pass through it.

    Attributes:
        sequence_length: tokens of a window.
        validation: the windows held out, (windows, tokens).
        fingerprint: SHA-256 over the windows held out and the first one of each source behind them.
        has_bos: whether windows begin with a BOS.
    """

    def __init__(
        self,
        sources: Sequence[tuple[str, float]],
        tokenizer: PreTrainedTokenizerBase,
        *,
        sequence_length: int,
        validation_windows: int,
        seed: int,
    ) -> None:
        if sequence_length < 2:
            raise TextError(f"--sequence-length must be at least 2, not {sequence_length}.")
        self.sequence_length = sequence_length
        self._weights = [weight for _, weight in sources]
        self._sources = [
            _Source(name, tokenizer, sequence_length, held_out)
            for (name, _), held_out in zip(sources, _shares(validation_windows, self._weights), strict=True)
        ]
        self._random = random.Random(seed)
        self._buffer: list[list[int]] = []
        held: list[list[int]] = []
        first: list[list[int]] = []
        for source in self._sources:
            for _ in range(source.held_out):
                window = source.pack()
                if window is None:
                    break
                held.append(window)
            source.rewind()
            first.append(source.next())  # a text that is too short is told now
            source.rewind()
        self.has_bos = bool(bos_tokens(tokenizer))
        self.validation = torch.tensor(held, dtype=torch.long).view(-1, sequence_length)
        self.fingerprint = hashlib.sha256(torch.tensor(held + first).numpy().tobytes()).hexdigest()

    @property
    def passes(self) -> dict[str, int]:
        """How often each source was read to its end so far."""
        return {source.name: source.passes for source in self._sources}

    def batch(self, count: int) -> Tensor:
        """The next windows, (count, tokens)."""
        return torch.tensor([self._next() for _ in range(count)])

    def windows_in_a_pass(self) -> int:
        """Windows to train on in one pass through all sources; reads them all once."""
        total = 0
        for source in self._sources:
            before = source.state()
            source.rewind()
            while source.pack() is not None:
                pass
            total += source.packed - source.held_out
            source.load(before)
        return total

    def state(self) -> tuple[dict[str, Any], Tensor]:
        """JSON value and the windows in the buffer, (windows, tokens), from which `load` goes on."""
        version, internal, gauss = self._random.getstate()
        drawn = {"random": [version, list(internal), gauss], "sources": [source.state() for source in self._sources]}
        return drawn, torch.tensor(self._buffer, dtype=torch.int32)

    def load(self, state: dict[str, Any], buffer: Tensor) -> None:
        """Go on where `state` was taken."""
        version, internal, gauss = state["random"]
        self._random.setstate((version, tuple(internal), gauss))
        for source, own in zip(self._sources, state["sources"], strict=True):
            source.load(own)
        self._buffer = buffer.tolist()

    def _next(self) -> list[int]:
        while len(self._buffer) < SHUFFLE:
            (source,) = self._random.choices(self._sources, self._weights)
            self._buffer.append(source.next())
        place = self._random.randrange(SHUFFLE)
        self._buffer[place], self._buffer[-1] = self._buffer[-1], self._buffer[place]
        return self._buffer.pop()


def _shares(count: int, weights: Sequence[float]) -> list[int]:
    """`count` divided by weight, each at least one if `count` is not 0."""
    if not count:
        return [0 for _ in weights]
    return [max(1, round(count * weight / sum(weights))) for weight in weights]
