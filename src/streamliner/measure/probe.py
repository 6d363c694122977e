"""The probe: everything that a search method may know of a model. Methods see measurements, never the model."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from streamliner.blocks import Blocks, check_indices
from streamliner.calibration import CalibrationSet
from streamliner.measure.loss import POSITIONS_AT_ONCE, Loss, next_token_losses
from streamliner.measure.similarity import Similarity, SimilaritySum


@dataclass
class Counters:
    """What the measurements cost so far. What the journal remembered costs nothing."""

    forwards: int = 0
    block_forwards: int = 0
    tokens: int = 0
    seconds: float = 0.0


class LossMemory(Protocol):
    """Where measured losses are kept between runs (`run.Journal`)."""

    def losses(self) -> Mapping[tuple[int, ...], Loss]:
        """All losses measured before, by the sorted tuple of removed blocks."""

    def remember(self, removed: tuple[int, ...], loss: Loss) -> None:
        """Keep one."""


class Probe:
    """Measurements of one model on one calibration set, memoised by removal set.

    Args:
        blocks: of the model.
        calibration: the windows.
        batch_size: windows in one forward.
        memory: where losses are kept between runs.
        on_progress: see below.
        refusal: why the architecture does not let a set of blocks go, "" where it does (`cut.Structure.refusal`).

    Attributes:
        num_blocks: blocks of the dense model.
        counters: what it cost.
        on_progress: called with (windows done, windows expected) as they are measured.
    """

    def __init__(
        self,
        blocks: Blocks,
        calibration: CalibrationSet,
        *,
        batch_size: int = 1,
        memory: LossMemory | None = None,
        on_progress: Callable[[int, int], None] | None = None,
        refusal: Callable[[tuple[int, ...]], str] = lambda removed: "",
    ) -> None:
        self.num_blocks = len(blocks)
        self.counters = Counters()
        self.on_progress = on_progress
        self._blocks = blocks
        self._windows = calibration.windows
        self._batch_size = batch_size
        self._memory = memory
        self._refusal = refusal
        self._losses: dict[tuple[int, ...], Loss] = dict(memory.losses()) if memory else {}
        self._similarity: Similarity | None = None
        self._done = self._expected = 0
        # Where only the stream is wanted, the head need not run on every position.
        keeps = "logits_to_keep" in inspect.signature(blocks.model.forward).parameters
        self._without_logits: dict[str, Any] = {"logits_to_keep": 1} if keeps else {}

    def expect(self, measurements: int) -> None:
        """Announce how many more losses a search will ask for, so that progress can tell the time left."""
        self._expected += measurements * len(self._windows)

    def refusal(self, removed: Iterable[int]) -> str:
        """Why these blocks cannot be removed together, or "" if they can. No method may remove them then."""
        key = check_indices(removed, self.num_blocks)
        unread = [str(index) for index in key if index in self._blocks.unread]
        if unread:
            return f"Block {', '.join(unread)} does not run on text alone, so text cannot tell what it does."
        return self._refusal(key)

    def loss(self, removed: Iterable[int] = ()) -> Loss:
        """Loss of the model without `removed`."""
        key = check_indices(removed, self.num_blocks)
        if key not in self._losses:
            self._losses[key] = self._measure_loss(key)
            if self._memory:
                self._memory.remember(key, self._losses[key])
        else:
            self._advance(len(self._windows))
        return self._losses[key]

    def losses_without_each(self, removed: Iterable[int], candidates: Iterable[int]) -> dict[int, Loss]:
        """For each candidate the loss of the model without `removed` and without that block too."""
        removed = tuple(removed)
        return {candidate: self.loss((*removed, candidate)) for candidate in candidates}

    def similarity(self) -> Similarity:
        """Likeness of the dense model's residual streams at all pairs of depths. One pass, one batch in memory."""
        if self._similarity is None:
            self.expect(1)
            total = SimilaritySum(self.num_blocks + 1)
            for batch in self._batches():
                streams = self._streams(batch)
                if any(stream.shape != streams[0].shape for stream in streams):
                    # Gemma 4 then runs only the positions to keep through its last blocks.
                    self._without_logits = {}
                    streams = self._streams(batch)
                total.add(streams)
                self._advance(len(batch))
            self._similarity = total.result()
        return self._similarity

    def divergence(self, removed: Iterable[int]) -> Loss:
        """KL divergence of the model without `removed` from the dense one, nats per token, by window."""
        key = check_indices(removed, self.num_blocks)
        values: list[float] = []
        for batch in self._batches():
            dense, cut = self._forward(batch, ()), self._forward(batch, key)
            sums = torch.zeros(len(batch), dtype=torch.float64)
            for start in range(0, dense.shape[1], POSITIONS_AT_ONCE):
                chunk = slice(start, start + POSITIONS_AT_ONCE)
                p, q = (functional.log_softmax(logits[:, chunk].float(), -1) for logits in (dense, cut))
                sums += (p.exp() * (p - q)).double().sum((1, 2)).cpu()
            values += (sums / dense.shape[1]).tolist()
        return Loss(tuple(values))

    def _batches(self) -> Iterator[Tensor]:
        return iter(torch.split(self._windows, self._batch_size))

    def _advance(self, windows: int) -> None:
        self._done += windows
        if self.on_progress:
            self.on_progress(self._done, max(self._done, self._expected))

    def _streams(self, batch: Tensor) -> list[Tensor]:
        """The residual stream at each depth; across a block that text leaves out, twice the same."""
        streams: dict[int, Tensor] = {}
        with self._blocks.watch(streams.__setitem__):
            self._forward(batch, (), **self._without_logits)
        for depth in sorted(self._blocks.unread, reverse=True):
            streams[depth] = streams[depth + 1]
        return [streams[depth] for depth in sorted(streams)]

    @torch.inference_mode()
    def _forward(self, batch: Tensor, removed: tuple[int, ...], **inputs: Any) -> Tensor:
        start = time.perf_counter()
        with self._blocks.bypass(removed):
            logits: Tensor = self._blocks.forward(batch, **inputs).logits
        self.counters.forwards += 1
        self.counters.block_forwards += (self.num_blocks - len(removed)) * len(batch)
        self.counters.tokens += batch.numel()
        self.counters.seconds += time.perf_counter() - start
        return logits

    def _measure_loss(self, removed: tuple[int, ...]) -> Loss:
        losses: list[float] = []
        for batch in self._batches():
            losses += next_token_losses(self._forward(batch, removed), batch).tolist()
            self._advance(len(batch))
        return Loss(tuple(losses))
