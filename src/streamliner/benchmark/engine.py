"""What a benchmark asks of a program that runs models, and the programs that it knows."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    pass


Tokens = Sequence[Sequence[int]]
"""Token ids of several texts of the same length."""


class Engine(ABC):
    """A model in a program that runs it, on words that no cache of prompts helps with.

    Attributes:
        device: such as "cpu" or "cuda:0"; it decides the usual settings.
        dtype: that it computes in, as the engine tells it; the same for all models of a benchmark.
    """

    device: str
    dtype: str
    one_block: ClassVar[bool] = False
    """Whether `only_first_block` works."""

    @abstractmethod
    def prompt(self, ids: Tokens) -> object:
        """Process one text up to its first new token."""

    @abstractmethod
    def generate(self, ids: Tokens, new_tokens: int) -> object:
        """Greedily write exactly `new_tokens` behind each text."""

    def seconds(self, work: Callable[[], object]) -> float:
        """How long `work` takes."""
        begin = time.perf_counter()
        work()
        return time.perf_counter() - begin

    def only_first_block(self) -> AbstractContextManager[None]:
        """Within, all blocks but the first are bypassed: what is left is what no removal makes faster."""
        raise NotImplementedError

    def memory(self, ids: Tokens) -> dict[str, float | None]:
        """Bytes of the weights; after a prompt `ids`, of the cache and at the peak; None for what it does not tell."""
        names = ("weight_bytes", "cache_bytes_per_token", "cache_bytes_per_further_token", "peak_bytes")
        return dict.fromkeys(names)
