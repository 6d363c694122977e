"""What a benchmark needs from an engine: a program that runs a model."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

TokenIds = Sequence[Sequence[int]]
"""Token ids of one or more texts of the same length."""


@dataclass(frozen=True)
class MemoryUse:
    """Bytes that a model takes; None for what the engine does not report.

    Attributes:
        weight_bytes: of the weights.
        cache_bytes_per_token: of keys and values, divided by the tokens of the prompt.
        cache_bytes_per_further_token: what one more token adds once all sliding windows are full.
        peak_bytes: the most while a prompt was processed, weights included.
    """

    weight_bytes: float | None = None
    cache_bytes_per_token: float | None = None
    cache_bytes_per_further_token: float | None = None
    peak_bytes: float | None = None


class Engine(Protocol):
    """A model loaded into a program that runs it, with no cache from one prompt to the next.

    Attributes:
        device: such as "cpu" or "cuda:0".
        dtype: the precision of the computation, as the engine names it.
    """

    device: str
    dtype: str

    def prompt(self, ids: TokenIds) -> object:
        """Process one text up to its first new token."""

    def generate(self, ids: TokenIds, new_tokens: int) -> object:
        """Generate exactly `new_tokens` after each text, greedily."""

    def seconds(self, work: Callable[[], object]) -> float:
        """Return how long `work` takes."""

    @property
    def only_first_block(self) -> Callable[[], AbstractContextManager[None]] | None:
        """A context in which all blocks but the first are bypassed; None if the engine cannot do that."""

    def memory_use(self, ids: TokenIds) -> MemoryUse:
        """Return the bytes of the model, measured with a prompt `ids`."""


def clock_seconds(work: Callable[[], object]) -> float:
    """Seconds on the clock that `work` takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin
