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

FORK_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
"""Relative difference allowed between a forked loss and a plain one: sums over a batch are taken in another order."""
TOKENS_AT_ONCE = 8192
"""Tokens of all rows together that one call of a block takes: enough to keep a GPU busy, a bound on memory."""


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

    def windows(self, keys: list[tuple[int, ...]]) -> Mapping[int, list[float]]:
        """Windows of which the losses of exactly these removals are known, in their order."""

    def remember_window(self, window: int, losses: Mapping[tuple[int, ...], float]) -> None:
        """Keep one window's losses of several removals."""


class Probe:
    """Measurements of one model on one calibration set, memoised by removal set.

    Args:
        blocks: of the model.
        calibration: the windows.
        batch_size: windows in one forward.
        memory: where losses are kept between runs.
        on_progress: see below.
        refusal: why the architecture does not let a set of blocks go, "" where it does (`cut.Structure.refusal`).
        fork: measure all candidates of a round in one forward a window; False for a forward each.
        say: takes a line for the user.

    Attributes:
        num_blocks: blocks of the dense model.
        counters: what it cost.
        fork: see above.
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
        fork: bool = True,
        say: Callable[[str], None] = lambda message: None,
    ) -> None:
        self.num_blocks = len(blocks)
        self.counters = Counters()
        self.on_progress = on_progress
        self._blocks = blocks
        self._windows = calibration.windows
        self._batch_size = batch_size
        self._memory = memory
        self._refusal = refusal
        self.fork = fork
        self._say = say
        self._fork_checked: bool | None = None
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
        """For each candidate the loss of the model without `removed` and without that block too.

        All are measured in one forward a window where that has been seen to give what plain forwards give.
        """
        removed = check_indices(removed, self.num_blocks)
        keys = {block: tuple(sorted((*removed, block))) for block in sorted(candidates)}
        forked = [block for block, key in keys.items() if key not in self._losses]
        if len(forked) > 1 and self._fork_is_right(removed, forked):
            self._measure_forked(removed, forked)
        else:
            forked = []
        return {block: self._losses[key] if block in forked else self.loss(key) for block, key in keys.items()}

    @torch.inference_mode()
    def _fork_is_right(self, removed: tuple[int, ...], candidates: list[int]) -> bool:
        """Compare, the first time, a few forked losses of one window with those of plain bypass."""
        if self._fork_checked is not None:
            return self._fork_checked
        why = "state goes from block to block beside the stream"
        self._fork_checked = self._blocks.forkable and self.fork
        if self._fork_checked:
            window, some = self._windows[:1], sorted({candidates[0], candidates[len(candidates) // 2], candidates[-1]})
            try:
                forked = self._forked_losses(window, removed, some)
            except Exception as error:  # a model may not take a batch that grows, in ways of its own
                self._fork_checked, why = False, f"{type(error).__name__}: {str(error)[:100]}"
            else:
                plain = [next_token_losses(self._forward(window, (*removed, c)), window).item() for c in some]
                off = max(abs(a - b) / abs(b) for a, b in zip(forked, plain, strict=True))
                self._fork_checked = off <= FORK_TOLERANCE.get(self._blocks.dtype, 1e-5)
                why = f"its losses differ by {off:.1e}"
        if not self._fork_checked and self.fork:
            self._say(f"Every candidate takes a forward of its own here: one forward for all is not right ({why}).")
        return self._fork_checked

    def _measure_forked(self, removed: tuple[int, ...], candidates: list[int]) -> None:
        keys = [tuple(sorted((*removed, block))) for block in candidates]
        known = self._memory.windows(keys) if self._memory else {}
        losses: list[list[float]] = []
        for number, window in enumerate(torch.split(self._windows, 1)):
            if number not in known:
                found = self._forked_losses(window, removed, candidates)
                if self._memory:
                    self._memory.remember_window(number, dict(zip(keys, found, strict=True)))
            else:
                found = known[number]
            losses.append(found)
            self._advance(len(candidates))
        for key, per_window in zip(keys, zip(*losses, strict=True), strict=True):
            self._losses[key] = Loss(per_window)

    @torch.inference_mode()
    def _forked_losses(self, window: Tensor, removed: tuple[int, ...], candidates: list[int]) -> list[float]:
        """Loss of one window without each candidate; the head sees one row at a time."""
        start = time.perf_counter()
        rows_at_once = max(1, TOKENS_AT_ONCE // window.shape[1])
        streams, passes = self._blocks.fork(
            removed, candidates, window, rows_at_once=rows_at_once, **self._without_logits
        )
        losses = []
        for row in torch.split(streams, 1):
            logits = self._blocks.resume(self.num_blocks, row, window).logits
            losses.append(next_token_losses(logits, window).item())
        self.counters.forwards += 1
        self.counters.block_forwards += passes
        self.counters.tokens += window.numel() * len(candidates)
        self.counters.seconds += time.perf_counter() - start
        return losses

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
