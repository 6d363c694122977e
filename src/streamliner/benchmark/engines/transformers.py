"""The engine that the rest of streamliner works in: transformers, with plain forwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch
from torch import Tensor

from streamliner.benchmark.engine import Engine, Tokens
from streamliner.benchmark.settings import BenchmarkSettings
from streamliner.errors import EvaluationError
from streamliner.model.blocks import Blocks
from streamliner.model.devices import best_device
from streamliner.model.session import Session
from streamliner.model.stack import has_encoder
from streamliner.runs.reporter import Reporter


def find_device(sessions: Sequence[Session]) -> str:
    """The one that all models go to.

    Raises:
        EvaluationError: a model runs behind an encoder, whose work has another shape.
    """
    for session in sessions:
        if has_encoder(session.shell):
            raise EvaluationError(f"{session.source.name} writes behind an encoder; only decoders alone are timed.")
    return str(sessions[0].settings.device or best_device())


def open_one(session: Session, device: str, settings: BenchmarkSettings, share: float, reporter: Reporter) -> Engine:
    """Load it."""
    return Plain(session.load(reporter))


class Plain(Engine):
    """Forwards with a cache; nothing of `generate` is timed."""

    one_block: ClassVar[bool] = True

    def __init__(self, blocks: Blocks) -> None:
        self.blocks = blocks
        self.device = str(blocks.device)
        self.dtype = str(blocks.dtype).removeprefix("torch.")

    @torch.inference_mode()
    def prompt(self, ids: Tokens) -> object:
        """One forward."""
        return self.blocks.model(input_ids=self._tensor(ids), use_cache=True, **self.blocks.one_position)

    @torch.inference_mode()
    def generate(self, ids: Tokens, new_tokens: int) -> Tensor:
        """Token by token; returns the last ones, (texts, 1)."""
        blocks, words = self.blocks, self._tensor(ids)
        keep = {"logits_to_keep": torch.tensor([words.shape[1] - 1])} if blocks.takes_positions else {}
        cache = None
        for _ in range(new_tokens):
            out = blocks.model(input_ids=words, use_cache=True, **{blocks.cache_name: cache}, **keep)
            cache, keep = getattr(out, blocks.cache_name), {}
            words = out.logits[:, -1:].argmax(-1)
        return words

    def seconds(self, work: Callable[[], object]) -> float:
        """Of the device: by its events on one GPU; else the clock, waiting for all that compute."""
        device = self.blocks.device
        if device.type == "cpu":
            return super().seconds(work)
        if device.type == "cuda" and not getattr(self.blocks.model, "hf_device_map", None):
            make: Any = torch.cuda.Event
            with torch.cuda.device(device):
                start, end = make(enable_timing=True), make(enable_timing=True)
                torch.cuda.synchronize()
                start.record()
                work()
                end.record()
                torch.cuda.synchronize()
            return float(start.elapsed_time(end)) / 1000

        def until_done() -> None:
            work()
            self._wait()

        self._wait()
        return super().seconds(until_done)

    def _wait(self) -> None:
        if self.blocks.device.type == "cuda":
            for number in range(torch.cuda.device_count()):
                torch.cuda.synchronize(number)
        elif self.blocks.device.type == "mps":
            torch.mps.synchronize()

    def only_first_block(self) -> AbstractContextManager[None]:
        """By bypass."""
        return self.blocks.bypass(range(1, len(self.blocks)))

    def memory(self, ids: Tokens) -> dict[str, float | None]:
        """Bytes of weights and cache; the peak on a GPU only, as a processor does not tell that of one model."""
        model = self.blocks.model
        tensors = {id(each): each for each in (*model.parameters(), *model.buffers())}
        weights, peak = sum(tensor.nbytes for tensor in tensors.values()), None
        on_gpu = self.blocks.device.type == "cuda"
        if on_gpu:
            before = torch.cuda.memory_allocated(self.blocks.device)  # other models are there too
            torch.cuda.reset_peak_memory_stats(self.blocks.device)
        out = self.prompt(ids)
        if on_gpu:
            peak = torch.cuda.max_memory_allocated(self.blocks.device) - before + weights
        return {
            "weight_bytes": weights,
            **self._cache_bytes(out, sum(map(len, ids))),
            "peak_bytes": peak,
        }

    def _cache_bytes(self, out: object, tokens: int) -> dict[str, float | None]:
        """Keys and values per token of what went in, and of a further one when sliding windows are full.

        None if the model keeps none so.
        """
        layers = getattr(getattr(out, self.blocks.cache_name), "layers", None)
        if not layers:
            return {"cache_bytes_per_token": None, "cache_bytes_per_further_token": None}
        kept, growing = 0, 0.0
        for layer in layers:
            for tensor in (getattr(layer, name, None) for name in ("keys", "values")):
                if isinstance(tensor, Tensor) and tensor.ndim > 2:
                    kept += tensor.nbytes
                    growing += 0 if layer.is_sliding else tensor.nbytes / tensor.shape[-2]
        return {"cache_bytes_per_token": kept / tokens, "cache_bytes_per_further_token": growing}

    def _tensor(self, ids: Tokens) -> Tensor:
        return torch.tensor(ids, device=self.blocks.device)
