"""transformers: plain forwards with a cache, in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from streamliner.benchmark.engine import Engine, MemoryUse, TokenIds, clock_seconds
from streamliner.benchmark.workload import Workload
from streamliner.errors import EvaluationError
from streamliner.model.blocks import Blocks
from streamliner.model.devices import best_device, is_spread, wait_for
from streamliner.model.generate import fill_cache, greedy
from streamliner.model.session import Session
from streamliner.model.size import cache_bytes, weight_bytes
from streamliner.model.stack import has_encoder
from streamliner.runs.reporter import Reporter


def find_device(sessions: Sequence[Session]) -> str:
    """Return the device that all models go to, or are on.

    Raises:
        EvaluationError: a model has an encoder, whose work has another shape.
    """
    for session in sessions:
        if has_encoder(session.shell):
            raise EvaluationError(f"{session.source.name} has an encoder; only decoder-only models can be timed.")
    return str(sessions[0].settings.device or best_device())


def load(session: Session, device: str, workload: Workload, share: float, reporter: Reporter) -> Engine:
    """Load a model as its session says."""
    return TransformersEngine(session.load(reporter))


class TransformersEngine:
    """A model of transformers; of its `generate` nothing is timed."""

    def __init__(self, blocks: Blocks) -> None:
        self.blocks = blocks
        self.device = str(blocks.device)
        self.dtype = str(blocks.dtype).removeprefix("torch.")

    def prompt(self, ids: TokenIds) -> object:
        """One forward; returns the cache."""
        return fill_cache(self.blocks, self._tensor(ids))

    def generate(self, ids: TokenIds, new_tokens: int) -> Tensor:
        """Token by token."""
        return greedy(self.blocks, self._tensor(ids), new_tokens)

    def seconds(self, work: Callable[[], object]) -> float:
        """Seconds of the device: by its events on one GPU, otherwise on the clock until all devices are done."""
        device = self.blocks.device
        if device.type == "cuda" and not is_spread(self.blocks.model):
            return _event_seconds(device, work)

        def until_done() -> None:
            work()
            wait_for(device)

        wait_for(device)
        return clock_seconds(until_done)

    def only_first_block(self) -> AbstractContextManager[None]:
        """Bypass all blocks but the first."""
        return self.blocks.bypass(range(1, len(self.blocks)))

    def memory_use(self, ids: TokenIds) -> MemoryUse:
        """Bytes of weights and cache; the peak only on a GPU, as a CPU does not report that of one model."""
        weights, device = weight_bytes(self.blocks.model), self.blocks.device
        on_gpu = device.type == "cuda"
        before = 0
        if on_gpu:
            before = torch.cuda.memory_allocated(device)  # other models are there too
            torch.cuda.reset_peak_memory_stats(device)
        cache = self.prompt(ids)
        peak = torch.cuda.max_memory_allocated(device) - before + weights if on_gpu else None
        per_token, per_further_token = cache_bytes(cache, sum(map(len, ids))) or (None, None)
        return MemoryUse(weights, per_token, per_further_token, peak)

    def _tensor(self, ids: TokenIds) -> Tensor:
        return torch.tensor(ids, device=self.blocks.device)


def _event_seconds(device: torch.device, work: Callable[[], object]) -> float:
    event: Any = torch.cuda.Event
    with torch.cuda.device(device):
        start, end = event(enable_timing=True), event(enable_timing=True)
        torch.cuda.synchronize()
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / 1000
