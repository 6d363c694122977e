"""The forked path: losses of many removals from one forward per window, checked against the plain path."""

import math
import tempfile
from collections.abc import Sequence
from functools import cached_property, partial

import torch
from torch import Tensor

from streamliner.errors import MISFITS, is_of_device, is_out_of_memory
from streamliner.measure.counters import Counters
from streamliner.measure.loss import head_divergences, head_losses, positions_that_fit
from streamliner.measure.plain import PlainPath
from streamliner.measure.prefixes import Prefixes
from streamliner.model.blocks import Blocks
from streamliner.model.devices import reserve
from streamliner.model.fork import Fork, Removed, workspace
from streamliner.text.chat import token_ids

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
"""Allowed relative difference between a forked loss and a plain one: they sum over a batch in different orders.

A divergence may be near 0 where the logits, and so their rounding, are as large as ever: below 1 nat it is absolute."""
DIVERGENCE_VALUES = 8
"""Values in float32 for each position and entry of the vocabulary at work in `head_divergences`: the dense model's
log-probabilities, logits, two copies of them, and what `divergence` makes."""


class ForkedPath:
    """Losses of many removals at once (`model/fork.py`), within a budget of memory.

    A quarter of the budget, in bytes, is for streams that fork, a quarter for streams kept from the round before, and
    half for a block or the head at work. With the objective "kl" half of the kept streams are the dense model's at
    depth N.
    """

    def __init__(
        self,
        blocks: Blocks,
        windows: Tensor,
        plain: PlainPath,
        counters: Counters,
        budget: int,
        objective: str = "loss",
    ) -> None:
        # Offloaded weights are read once for all windows; otherwise one window at a time takes the least memory.
        self.windows_at_once = len(windows) if blocks.offloaded else 1
        self._blocks, self._windows, self._plain = blocks, windows, plain
        self._counters, self._budget, self._objective = counters, budget, objective
        self._prefixes = Prefixes(budget // (4 if objective == "loss" else 8))
        self._dense: dict[int, Tensor] = {}  # window -> the dense model's stream at depth N

    def forget(self) -> None:
        """Free the streams that are kept for the next round."""
        self._prefixes.forget()
        self._dense.clear()

    def losses(
        self, numbers: Sequence[int], removals: Sequence[Removed], objective: str | None = None
    ) -> list[list[float]]:
        """Loss without each set of blocks on each of the windows `numbers`, (removals, windows).

        `objective` is what is measured, if not what this path is for.
        """
        windows = token_ids(self._windows[list(numbers)])
        dense = self._dense_streams(numbers) if (objective or self._objective) == "kl" else [None] * len(windows)
        losses: list[list[float]] = []
        for group in self._groups(windows, removals):
            fork = Fork(
                self._blocks,
                group,
                windows,
                rows_at_once=self.rows_at_once,
                empty=self._empty,
                start=self._prefixes.find(numbers, group),
                keep=partial(self._prefixes.keep, numbers, group),
            )
            rows = self._forward(fork)
            by_window = [self._of_rows(*each) for each in zip(rows, self._windows[list(numbers)], dense, strict=True)]
            losses += [list(each) for each in zip(*by_window, strict=True)]
        return losses

    def _forward(self, fork: Fork) -> Tensor:
        rows = fork.forward()
        self._counters.forwards += 1
        self._counters.block_forwards += fork.row_passes
        self._counters.bytes_read += fork.bytes_read
        return rows

    def _dense_streams(self, numbers: Sequence[int]) -> list[Tensor]:
        """The dense model's stream at depth N on some windows, (tokens, hidden...) each; kept as far as they fit."""
        found = {number: self._dense[number] for number in numbers if number in self._dense}
        if missing := [number for number in numbers if number not in found]:
            left = self._budget // 8 - sum(stream.nbytes for stream in self._dense.values())
            # With offloaded weights a second time would cost a read of the whole model.
            empty = partial(self._empty, most=left)
            rows = self._forward(
                Fork(self._blocks, [()], token_ids(self._windows[missing]), self.rows_at_once, empty=empty)
            )
            found |= {number: rows[place, 0] for place, number in enumerate(missing)}
            if rows.nbytes <= left or self._blocks.offloaded:
                self._dense |= found
        return [found[number] for number in numbers]

    def why_wrong(self, removals: Sequence[Removed]) -> str:
        """Why this path does not match the plain one for this model, "" if it does: tested on a few of `removals`.

        One row at a time, the streams must be those of bypass to the bit, so that a mistake cannot hide in rounding.
        In a batch of rows sums have another order: then the losses may differ a little.
        """
        if not self._blocks.forkable:
            return "blocks exchange more than the residual stream"
        some = list(dict.fromkeys((removals[0], removals[len(removals) // 2], removals[-1])))
        if len(some) == 1:  # a second set, so that something forks
            some += [tuple(sorted((*some[0], block))) for block in [len(self._blocks) // 2] if block not in some[0]]
        # One window; two where windows go through the blocks together.
        numbers = range(min(2, self.windows_at_once))
        try:
            if not self._equals_bypass(numbers, some):
                return "streams are not those of bypass"
            forked = self.losses(numbers, some)
        except MISFITS as error:  # of a model that does not accept a growing batch
            if is_out_of_memory(error) or is_of_device(error):
                raise
            return f"{type(error).__name__}: {str(error)[:100]}"
        for removed, found in zip(some, forked, strict=True):
            plain = [self._plain_loss(self._windows[[number]], removed) for number in numbers]
            least = 1.0 if self._objective == "kl" else 0.0
            difference = max(abs(a - b) / max(abs(b), least) for a, b in zip(found, plain, strict=True))
            if not difference <= TOLERANCE.get(self._blocks.dtype, 1e-5):
                return f"losses differ by {difference:.1e}"
        return ""

    def _plain_loss(self, window: Tensor, removed: Removed) -> float:
        dense = self._plain.logits(window) if self._objective == "kl" else None
        return self._plain.losses(window, removed, dense)[0]

    def _equals_bypass(self, numbers: Sequence[int], removals: Sequence[Removed]) -> bool:
        """Whether streams that fork, one row at a time, are those of bypass to the bit.

        Also true where bypass itself gives other bits the second time, as some kernels of GPUs do.
        """
        windows, last = token_ids(self._windows[list(numbers)]), len(self._blocks)
        fork = Fork(self._blocks, removals, windows, rows_at_once=1, empty=self._empty)
        rows = self._forward(fork)
        for window, ids in enumerate(torch.split(windows, 1)):
            for row, removed in zip(rows[window], removals, strict=True):
                with self._blocks.bypass(removed):
                    plain = [self._blocks.streams(ids, [last])[last][0].to(row.device)]
                    if not torch.equal(row, plain[0]):
                        plain.append(self._blocks.streams(ids, [last])[last][0].to(row.device))
                self._counters.forwards += len(plain)
                self._counters.block_forwards += len(plain) * (last - len(removed))
                self._counters.bytes_read += len(plain) * sum(self._blocks.offloaded_bytes)
                if len(plain) > 1 and torch.equal(*plain):
                    return False
        return True

    @cached_property
    def rows_at_once(self) -> int:
        """Rows that a block may run on in one call."""
        one_row = workspace(self._blocks, token_ids(self._windows[:1]))
        self._counters.bytes_read += sum(self._blocks.offloaded_bytes)
        return max(1, self._budget // 2 // one_row)

    def _groups(self, windows: Tensor, removals: Sequence[Removed]) -> list[Sequence[Removed]]:
        """Removals whose streams fit the budget together. With offloaded weights all of them: their streams spill."""
        if self._blocks.offloaded:
            return [removals]
        one_row = windows.numel() * self._blocks.stream_bytes
        most = max(1, self._budget // 4 // one_row)
        return [removals[start : start + most] for start in range(0, len(removals), most)]

    def _empty(
        self, shape: Sequence[int], *, dtype: torch.dtype, device: torch.device, most: int | None = None
    ) -> Tensor:
        """A tensor for streams. Where it would take more than `most` bytes, it is in a file that disappears with it."""
        size = math.prod(shape)
        most = self._budget // 4 if most is None else most
        if size * dtype.itemsize <= most or not self._blocks.offloaded:
            return torch.empty(*shape, dtype=dtype, device=device)
        with tempfile.NamedTemporaryFile(prefix="streamliner-") as file:
            reserve(file.fileno(), file.name, size * dtype.itemsize)
            return torch.from_file(file.name, shared=True, size=size, dtype=dtype).view(*shape)

    def _of_rows(self, rows: Tensor, window: Tensor, dense: Tensor | None) -> list[float]:
        """Loss of each row of streams at depth N, (rows, tokens, hidden...), which are all of one window.

        With the dense model's stream there, (tokens, hidden...), the divergence from it.
        """
        if dense is not None:
            fit = positions_that_fit(self._blocks, self._budget // 2, DIVERGENCE_VALUES)
            return head_divergences(self._blocks, dense, rows, window, fit).tolist()  # type: ignore[no-any-return]
        fit = positions_that_fit(self._blocks, self._budget // 2)
        return head_losses(self._blocks, rows, window[None], fit).tolist()  # type: ignore[no-any-return]
