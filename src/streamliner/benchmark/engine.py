"""What a benchmark asks of a program that runs models, and the programs that it knows."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar

from streamliner.errors import EvaluationError

if TYPE_CHECKING:
    from streamliner.benchmark.settings import BenchmarkSettings
    from streamliner.session import Reporter, Session

Tokens = Sequence[Sequence[int]]
"""Token ids of several texts of the same length."""

ENGINES = ("transformers", "vllm", "llama.cpp")


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


def open_engines(
    name: str, sessions: Sequence[Session], given: dict[str, int | None], reporter: Reporter
) -> tuple[list[Engine], BenchmarkSettings]:
    """Complete the settings for the device and the models, then load all models at once.

    Raises:
        EvaluationError: no such engine, it is not installed, or it cannot run these models.
        TextError: a model has fewer positions than were asked for.
    """
    if name not in ENGINES:
        raise EvaluationError(f"There is no engine {name}.", f"Use one of: {', '.join(ENGINES)}.")
    from streamliner.benchmark import llama_cpp, plain, vllm
    from streamliner.benchmark.settings import BenchmarkSettings

    module: Any = {"transformers": plain, "vllm": vllm, "llama.cpp": llama_cpp}[name]
    device = module.find_device(sessions)
    # Engines that give no answer without a new token need room for it.
    room = 0 if module is plain else 1
    limit = min(session.window_length(None) for session in sessions)
    settings = BenchmarkSettings.usual(device, limit - room, **given)
    for session in sessions:
        session.window_length(settings.prompt_tokens + room, "--prompt-tokens")
        session.window_length(settings.context_tokens + settings.new_tokens, "--context-tokens and --new-tokens")
    whole = sum(session.parameters for session in sessions)
    engines: list[Engine] = []
    for session in sessions:
        engines.append(module.open_one(session, device, settings, session.parameters / whole, reporter))
    dtypes = {engine.dtype for engine in engines}
    if len(dtypes) > 1:
        raise EvaluationError(
            f"The models compute in {' and '.join(sorted(dtypes))}, which a speed-up would tell too.",
            "Add --dtype, such as --dtype bfloat16.",
        )
    return engines, settings
