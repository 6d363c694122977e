"""The probe: everything that a search method may know of a model. Methods see measurements, never the model."""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from streamliner.errors import StreamlinerError
from streamliner.measure.loss import POSITIONS_AT_ONCE, Loss, head_losses, next_token_losses, positions_that_fit
from streamliner.measure.prefixes import Prefixes
from streamliner.measure.similarity import Similarity, SimilaritySum
from streamliner.model.blocks import Blocks
from streamliner.model.fork import fork, workspace
from streamliner.model.stack import check_indices
from streamliner.runs.ranks import Ranks
from streamliner.text.windows import CalibrationSet

FORK_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
"""Relative difference allowed between a forked loss and a plain one: sums over a batch are taken in another order."""


MEMORY_BUDGET = 2_000_000_000
"""Bytes that rows of streams, a block at work on them, and logits may take beside the model, if not said otherwise."""


@dataclass
class Counters:
    """What the measurements cost so far. What the journal remembered costs nothing.

    Attributes:
        forwards: of the whole model; one in which many rows fork is one.
        block_forwards: a block run on one window or row.
        window_losses: losses of one removal on one window, the check of forked ones not counted.
        tokens: that these losses are of.
        bytes_read: of offloaded weights.
        seconds: all of it.
    """

    forwards: int = 0
    block_forwards: int = 0
    window_losses: int = 0
    tokens: int = 0
    bytes_read: int = 0
    seconds: float = 0.0


class LossMemory(Protocol):
    """Where measured losses are kept between runs (`run.Journal`)."""

    losses: dict[tuple[int, ...], dict[int, float]]
    fork: tuple[str, int] | None

    def remember(self, windows: Sequence[int], losses: Mapping[tuple[int, ...], Sequence[float]]) -> None:
        """Keep losses of some removals on some windows."""

    def remember_fork(self, why_not: str, windows_at_once: int) -> None:
        """Keep why forked losses are not right, "" if they are, with so many windows in a forward."""


class Probe:
    """Measurements of one model on one calibration set, memoised by removal set and window.

    Args:
        blocks: of the model.
        calibration: the windows.
        batch_size: windows in one forward where losses are not forked.
        memory: where losses are kept between runs.
        on_progress: see below.
        refusal: why the architecture does not let a set of blocks go, "" where it does (`cut.Structure.refusal`).
        fork: measure all removals that are asked for together in one forward a window; False for a forward each.
        memory_budget: bytes beside the model for streams, a block at work and logits.
        ranks: the processes that share the windows; all must ask for the same measurements.
        say: takes a line for the user.

    Attributes:
        num_blocks: blocks of the dense model.
        num_windows: of the calibration set.
        windows_at_once: windows in one forward that reads every block's weights once.
        counters: what it cost this process.
        on_progress: called with (losses done, losses expected) as they are measured.
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
        memory_budget: int = MEMORY_BUDGET,
        ranks: Ranks | None = None,
        say: Callable[[str], None] = lambda message: None,
    ) -> None:
        self.num_blocks = len(blocks)
        self.num_windows = len(calibration.windows)
        self.counters = Counters()
        self.on_progress = on_progress
        self._blocks = blocks
        self._windows = calibration.windows
        self._batch_size = batch_size
        self._memory = memory
        self._refusal = refusal
        self._budget = memory_budget
        self._ranks = ranks or Ranks()
        self._say = say
        self._fork_right: bool | None = None if fork else False
        self._workspace: int | None = None
        self._prefixes = Prefixes(memory_budget // 4)
        self._losses: dict[tuple[int, ...], dict[int, float]] = (
            {key: dict(losses) for key, losses in memory.losses.items()} if memory else {}
        )
        self._similarity: Similarity | None = None
        self._done = self._expected = 0
        # Weights that are read for each forward are read once for all windows; else a window at a time takes less room.
        self.windows_at_once = self.num_windows if blocks.offloaded else 1
        if fork and memory and memory.fork and memory.fork[1] == self.windows_at_once:
            self._fork_right = not memory.fork[0]
        # Where only the stream is wanted, the head need not run on every position.
        self._without_logits = blocks.one_position

    def expect(self, measurements: int) -> None:
        """Announce how many more losses a search will ask for, so that progress can tell the time left."""
        self._expected += measurements * self.num_windows

    def expect_less(self, losses: int) -> None:
        """Announce losses of one window each that a search will not need after all."""
        self._expected -= losses

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
        return self.losses([key])[key]

    def losses_without_each(self, removed: Iterable[int], candidates: Iterable[int]) -> dict[int, Loss]:
        """For each candidate the loss of the model without `removed` and without that block too."""
        removed = tuple(removed)
        keys = {block: tuple(sorted((*removed, block))) for block in sorted(candidates)}
        losses = self.losses(keys.values())
        return {block: losses[key] for block, key in keys.items()}

    def losses(self, removals: Iterable[Iterable[int]], windows: range | None = None) -> dict[tuple[int, ...], Loss]:
        """Losses of the model without each set of blocks, on some windows or all; keys are sorted.

        They are measured together, in one forward a window that forks where sets differ, where that has been seen to
        give what plain forwards give.
        """
        keys = list(dict.fromkeys(check_indices(removed, self.num_blocks) for removed in removals))
        numbers = range(self.num_windows) if windows is None else windows
        together: dict[tuple[int, ...], list[tuple[int, ...]]] = {}  # windows to measure -> removals
        for key in keys:
            unknown = tuple(number for number in numbers if number not in self._losses.get(key, {}))
            together.setdefault(unknown, []).append(key)
        for unknown, some in together.items():
            self._advance(len(some) * (len(numbers) - len(unknown)))
            if unknown:
                self._measure(some, unknown)
        return {key: Loss(tuple(self._losses[key][number] for number in numbers)) for key in keys}

    @torch.inference_mode()
    def _measure(self, keys: list[tuple[int, ...]], windows: Sequence[int]) -> None:
        """Losses of all `keys` on all `windows`, none of them known, this process its share of the windows."""
        start, read = time.perf_counter(), self._blocks.bytes_read
        fork = (len(keys) > 1 or self._blocks.offloaded) and self._fork_is_right(keys)
        mine = [windows[place] for place in self._ranks.share(len(windows))]
        found = torch.zeros(len(keys), len(windows), dtype=torch.float64)
        if fork:
            for i in range(0, len(mine), self.windows_at_once):
                group = mine[i : i + self.windows_at_once]
                self._enter(found, keys, windows, group, self._forked_losses(group, keys))
        else:
            for i in range(0, len(mine), self._batch_size):
                for key in keys:
                    group = mine[i : i + self._batch_size]
                    losses = next_token_losses(self._forward(self._windows[group], key), self._windows[group])
                    self._enter(found, [key], windows, group, [losses.tolist()], keys.index(key))
        for key, losses in zip(keys, self._ranks.total(found).tolist(), strict=True):
            self._losses.setdefault(key, {}).update(zip(windows, losses, strict=True))
        self._advance(len(keys) * (len(windows) - len(mine)))
        self.counters.seconds += time.perf_counter() - start
        self.counters.bytes_read += self._blocks.bytes_read - read

    def _enter(
        self,
        table: Tensor,
        keys: list[tuple[int, ...]],
        windows: Sequence[int],
        group: list[int],
        losses: list[list[float]],
        first: int = 0,
    ) -> None:
        """Put losses, (keys, windows of the group), into the table and the journal."""
        places = [windows.index(number) for number in group]
        table[first : first + len(keys), places] = torch.tensor(losses, dtype=torch.float64)
        if self._memory:
            self._memory.remember(group, dict(zip(keys, losses, strict=True)))
        self.counters.window_losses += len(keys) * len(group)
        self.counters.tokens += len(keys) * len(group) * self._windows.shape[1]
        self._advance(len(keys) * len(group))

    def _fork_is_right(self, keys: list[tuple[int, ...]]) -> bool:
        """Compare, the first time, a few forked losses of one window with those of plain bypass."""
        if self._fork_right is None:
            why = self._why_not_fork(keys)
            self._fork_right = self._ranks.total(torch.tensor(float(not why))).item() == self._ranks.size
            if not self._fork_right:
                why = why or "another process says so"
                self._say(f"Every candidate takes a forward of its own here: one forward for all is not right ({why}).")
            if self._memory:
                self._memory.remember_fork(why, self.windows_at_once)
        return self._fork_right

    def _why_not_fork(self, keys: list[tuple[int, ...]]) -> str:
        if not self._blocks.forkable:
            return "state goes from block to block beside the stream"
        some = list(dict.fromkeys((keys[0], keys[len(keys) // 2], keys[-1])))
        if len(some) == 1:  # nothing forks
            some += [tuple(sorted((*some[0], block))) for block in [self.num_blocks // 2] if block not in some[0]]
        # Where windows go through blocks together, two of them.
        numbers = range(min(2 if self._blocks.offloaded else 1, self.num_windows))
        windows = self._windows[: len(numbers)]
        try:
            forked = self._forked_losses(numbers, some)
        except (StreamlinerError, MemoryError, OSError, torch.OutOfMemoryError):
            raise  # these say nothing of the model
        except Exception as error:  # a model may not take a batch that grows, in ways of its own
            return f"{type(error).__name__}: {str(error)[:100]}"
        for key, found in zip(some, forked, strict=True):
            plain = [next_token_losses(self._forward(window[None], key), window[None]).item() for window in windows]
            off = max(abs(a - b) / abs(b) for a, b in zip(found, plain, strict=True))
            if not off <= FORK_TOLERANCE.get(self._blocks.dtype, 1e-5):
                return f"its losses differ by {off:.1e}"
        return ""

    def _forked_losses(self, numbers: Sequence[int], keys: list[tuple[int, ...]]) -> list[list[float]]:
        """Loss of each removal on each window, (keys, windows)."""
        windows = self._windows[list(numbers)]
        losses: list[list[float]] = []
        for some in self._that_fit(windows, keys):
            rows, passes = fork(
                self._blocks,
                some,
                windows,
                rows_at_once=self._rows_at_once(),
                empty=self._room,
                start=self._prefixes.find(numbers, some),
                keep=self._prefixes.keeper(numbers, some),
                **self._without_logits,
            )
            by_window = [self._head_losses(rows[i], window) for i, window in enumerate(windows)]
            losses += [list(each) for each in zip(*by_window, strict=True)]
            self.counters.forwards += 1
            self.counters.block_forwards += passes
        return losses

    def _that_fit(self, windows: Tensor, keys: list[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
        """Groups of removals whose streams fit a quarter of the budget; of offloaded weights all, and they spill."""
        if self._blocks.offloaded:
            return [keys]
        row = windows.numel() * self._blocks.stream_bytes
        most = max(1, self._budget // 4 // row)
        return [keys[start : start + most] for start in range(0, len(keys), most)]

    def _room(self, shape: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """A tensor for streams: a file that is gone when nobody holds it, where it would not fit the budget."""
        if math.prod(shape) * dtype.itemsize <= self._budget // 4 or not self._blocks.offloaded:
            return torch.empty(*shape, dtype=dtype, device=device)
        with tempfile.NamedTemporaryFile(prefix="streamliner-") as file:
            os.posix_fallocate(file.fileno(), 0, math.prod(shape) * dtype.itemsize)  # a full disk is told here
            return torch.from_file(file.name, shared=True, size=math.prod(shape), dtype=dtype).view(*shape)

    def _rows_at_once(self) -> int:
        if self._workspace is None:
            self._workspace = workspace(self._blocks, self._windows[:1], **self._without_logits)
        return max(1, self._budget // 2 // self._workspace)

    def _head_losses(self, rows: Tensor, window: Tensor) -> list[float]:
        """Loss of each row of streams at depth N, (rows, tokens, hidden...), of one window."""
        fit = positions_that_fit(self._blocks, self._budget // 2)
        losses: list[float] = []
        for some in torch.split(rows, max(1, fit // len(window))):
            ids = window.expand(len(some), -1)
            losses += head_losses(self._blocks, some, ids, fit).tolist()
        return losses

    @property
    def measured_similarity(self) -> Similarity | None:
        """What `similarity` gave, None if nobody asked for it."""
        return self._similarity

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
            self._similarity = total.result(self._ranks.total)
            self._advance(self.num_windows - sum(map(len, self._shares())))
        return self._similarity

    def divergence(self, removed: Iterable[int]) -> Loss:
        """KL divergence of the model without `removed` from the dense one, nats per token, by window."""
        key = check_indices(removed, self.num_blocks)
        values = torch.zeros(self.num_windows, dtype=torch.float64)
        for numbers in self._shares():
            batch = self._windows[numbers]
            dense, cut = self._forward(batch, ()), self._forward(batch, key)
            sums = torch.zeros(len(batch), dtype=torch.float64)
            for start in range(0, dense.shape[1], POSITIONS_AT_ONCE):
                chunk = slice(start, start + POSITIONS_AT_ONCE)
                p, q = (functional.log_softmax(logits[:, chunk].float(), -1) for logits in (dense, cut))
                sums += (p.exp() * (p - q)).double().sum((1, 2)).cpu()
            values[numbers] = sums / dense.shape[1]
        return Loss(tuple(self._ranks.total(values).tolist()))

    def _batches(self) -> Iterator[Tensor]:
        return (self._windows[numbers] for numbers in self._shares())

    def _shares(self) -> list[list[int]]:
        """This process's windows, in batches."""
        mine = list(self._ranks.share(self.num_windows))
        return [mine[start : start + self._batch_size] for start in range(0, len(mine), self._batch_size)]

    def _advance(self, losses: int) -> None:
        if not losses:
            return
        self._done += losses
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
        with self._blocks.bypass(removed):
            logits: Tensor = self._blocks.forward(batch, **inputs).logits
        self.counters.forwards += 1
        self.counters.block_forwards += (self.num_blocks - len(removed)) * len(batch)
        kept = (block for block in range(self.num_blocks) if block not in removed)
        self.counters.bytes_read += sum(map(self._blocks.offloaded_bytes, kept))
        return logits
