"""transformers: plain forwards with a cache, in this process."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from streamliner.benchmark.engine import MemoryUse, TokenIds, clock_seconds
from streamliner.benchmark.workload import Workload
from streamliner.errors import EvaluationError
from streamliner.model.devices import best_device, wait_for
from streamliner.model.generate import cache_bytes, fill_cache, greedy
from streamliner.model.parts import weight_bytes
from streamliner.model.session import Session
from streamliner.model.stack import has_encoder
from streamliner.runs.reporter import Reporter


class TransformersEngine:
    """A model of transformers; of its `generate` nothing is timed."""

    prompt_generates = False

    @staticmethod
    def find_device(sessions: Sequence[Session]) -> str:
        """Return the device that all models go to, or are on."""
        for session in sessions:
            if has_encoder(session.shell):  # its work has another shape
                raise EvaluationError(f"{session.source.name} has an encoder; only decoder-only models can be timed.")
        return str(sessions[0].settings.device or best_device())

    def __init__(self, session: Session, device: str, workload: Workload, share: float, reporter: Reporter) -> None:
        self.blocks = session.load(reporter)
        self.device, self.dtype = str(self.blocks.device), str(self.blocks.dtype).removeprefix("torch.")

    def prompt(self, ids: TokenIds) -> object:
        """One forward; returns the cache."""
        return fill_cache(self.blocks, self._tensor(ids))

    def generate(self, ids: TokenIds, new_tokens: int) -> Tensor:
        """Token by token."""
        return greedy(self.blocks, self._tensor(ids), new_tokens)

    def seconds(self, work: Callable[[], object]) -> float:
        """On the clock, from when all devices are idle until they are done."""

        def until_done() -> None:
            work()
            wait_for(self.blocks.device)

        wait_for(self.blocks.device)
        return clock_seconds(until_done)

    def only_first_block(self) -> AbstractContextManager[None]:
        """Bypass all blocks but the first."""
        return self.blocks.bypass(range(1, len(self.blocks)))

    def memory_use(self, ids: TokenIds) -> MemoryUse:
        """Bytes of weights and cache; the peak only on a GPU, as a CPU does not report that of one model."""
        weights, device = weight_bytes(self.blocks.model), self.blocks.device
        on_gpu = device.type == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device) if on_gpu else 0  # other models are there too
        cache = self.prompt(ids)
        peak = torch.cuda.max_memory_allocated(device) - before + weights if on_gpu else None
        per_token, per_further_token = cache_bytes(cache, sum(map(len, ids))) or (None, None)
        return MemoryUse(weights, per_token, per_further_token, peak)

    def _tensor(self, ids: TokenIds) -> Tensor:
        return torch.tensor(ids, device=self.blocks.device)
