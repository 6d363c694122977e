"""What a benchmark needs from an engine: a program that runs a model."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from streamliner.benchmark.workload import Workload
from streamliner.model.session import Session
from streamliner.runs.reporter import Reporter

TokenIds = Sequence[Sequence[int]]
"""Token ids of one or more texts of the same length."""


@dataclass(frozen=True)
class MemoryUse:
    """Bytes that a model takes; None for what the engine does not report.

    The cache is keys and values, divided by the tokens of the prompt; a further token comes when all sliding windows
    are full. The peak is that of a prompt, weights included.
    """

    weight_bytes: float | None = None
    cache_bytes_per_token: float | None = None
    cache_bytes_per_further_token: float | None = None
    peak_bytes: float | None = None


class Engine(Protocol):
    """A model loaded into a program that runs it, with no cache from one prompt to the next.

    Attributes:
        prompt_generates: whether a prompt always generates one token, which needs a position of its own.
        device: such as "cpu" or "cuda:0".
        dtype: the precision of the computation, as the engine names it.
    """

    prompt_generates: bool
    device: str
    dtype: str

    def __init__(self, session: Session, device: str, workload: Workload, share: float, reporter: Reporter) -> None:
        """Load a model for a workload; it has this share of the parameters of all models.

        Raises:
            EvaluationError: the engine cannot load it.
        """

    @staticmethod
    def find_device(sessions: Sequence[Session]) -> str:
        """Return the device that the engine will use.

        Raises:
            EvaluationError: it cannot run these models here.
            MissingExtraError: it is not installed.
        """

    def prompt(self, ids: TokenIds) -> object:
        """Process one text up to its first new token."""

    def generate(self, ids: TokenIds, new_tokens: int) -> object:
        """Generate exactly `new_tokens` after each text, greedily."""

    def seconds(self, work: Callable[[], object], /) -> float:
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
