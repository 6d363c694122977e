"""Many removals in one forward: rows of a batch that split where the removals differ.

Removals that leave out the same blocks so far share a row. With A = {1}, B = {2} and C = {1, 3} on blocks 0 to 3:

           block 0      block 1     block 2      block 3
    A, C ---[run]---+----skip--------[run]---+----[run]----  A
                    |                        |
                    |                        +----skip-----  C
                    |
                    +----[run]-------skip---------[run]----  B

Block 0 runs on one row instead of three. Each block is called once with the rows of all removals that keep it, so its
weights are read once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from streamliner.model.blocks import Blocks
from streamliner.model.compat import TorchDispatchMode, tree_leaves
from streamliner.model.devices import present
from streamliner.model.handoff import Call, stream_out

Removed = tuple[int, ...]
"""Sorted indices of the blocks that a removal leaves out."""


@dataclass
class Fork:
    """One forward in which rows split; `forward` runs it.

    Masks and positions of the first window are used for all. This is wrong for a model whose blocks get something by
    token id, which the caller must find by comparing with plain forwards.
    """

    blocks: Blocks
    removals: Sequence[Removed]  # different ones
    input_ids: Tensor  # (windows, tokens)
    rows_at_once: int = 1 << 30  # most rows that a block is called with
    empty: Callable[..., Tensor] = torch.empty  # makes the tensor of all rows
    start: tuple[int, Tensor] | None = None  # what `keep` got earlier, for removals that agree below: these blocks rest
    keep: Callable[[int, Tensor], None] = lambda depth, stream: None  # gets the stream where removals first differ
    row_passes: int = field(default=0, init=False)  # how many times a block ran on a row
    bytes_read: int = field(default=0, init=False)  # of offloaded weights
    _rows: Tensor | None = field(default=None, init=False)
    _numbers: list[list[int]] = field(default_factory=list, init=False)  # at each depth, the row of each removal
    _places: list[Tensor] = field(
        default_factory=list, init=False
    )  # for each block, where the rows are that it runs on

    def forward(self) -> Tensor:
        """The stream at depth N without each of the removals, (windows, removals, tokens, hidden...)."""
        below = range(self.start[0] if self.start else 0)
        self._numbers = [self._row_numbers(depth) for depth in range(len(self.blocks) + 1)]
        hardly_any_logits = self.blocks.last_logits(self.input_ids.shape[1])
        if self.start is None and len(self.input_ids) > 1:
            with self.blocks.substituted({index: self.blocks.pass_on(index) for index in range(len(self.blocks))}):
                for window, ids in enumerate(torch.split(self.input_ids, 1)):
                    stream = self.blocks.called_with(0, ids, **hardly_any_logits).stream
                    self._rows_for(stream)[window, 0] = stream[0]
        forwards = {i: partial(self._run_block, i, module.forward) for i, module in enumerate(self.blocks.modules)}
        with self.blocks.substituted(forwards | {index: self.blocks.pass_on(index) for index in below}):
            self.blocks.forward(self.input_ids[:1], **hardly_any_logits)
        assert self._rows is not None
        return self._rows

    def _rows_for(self, stream: Tensor) -> Tensor:
        """The rows, made for streams such as this one of a window by the first call."""
        if self._rows is None:
            shape = (len(self.input_ids), len(self.removals), *stream.shape[1:])
            self._rows = self.empty(shape, dtype=stream.dtype, device=stream.device)
            self._places = self._all_places(self._rows.device)
        return self._rows

    def _all_places(self, device: torch.device) -> list[Tensor]:
        """For each block the places of its rows among all rows of all windows; they go to the device at once."""
        some = [
            {row for row, removed in zip(after, self.removals, strict=True) if index not in removed}
            for index, after in enumerate(self._numbers[1:])
        ]
        windows, count = range(len(self.input_ids)), len(self.removals)
        places = [[window * count + row for window in windows for row in sorted(numbers)] for numbers in some]
        together = torch.tensor([place for each in places for place in each]).to(device)
        return list(torch.split(together, [len(each) for each in places]))

    def _run_block(self, index: int, original: Callable[..., Any], call: Call) -> Any:
        """Takes the place of a block's forward."""
        first = self._rows is None
        rows = self._rows_for(call.stream)
        if first:
            rows[:, 0] = self.start[1] if self.start else call.stream
        before, after = self._numbers[index], self._numbers[index + 1]
        if any(after) and not any(before):
            self.keep(index, rows[:, 0])
        for number, row in enumerate(after):
            if row == number != before[number]:
                rows[:, number] = rows[:, before[number]]
        if len(self._places[index]):
            self._advance(index, original, call, rows.flatten(0, 1))
        # The rest of the model continues with one row: its logits are not used.
        return self.blocks.hand_on(index, rows[0, :1].to(call.stream.device), call)

    def _row_numbers(self, depth: int) -> list[int]:
        """For each removal its row at a depth: the number of the first that leaves out the same blocks below."""
        first: dict[Removed, int] = {}
        below = (tuple(block for block in removed if block < depth) for removed in self.removals)
        return [first.setdefault(left_out, number) for number, left_out in enumerate(below)]

    def _advance(self, index: int, original: Callable[..., Any], call: Call, rows: Tensor) -> None:
        """Run block `index` on its rows among those of all windows, (windows x removals, tokens, hidden...)."""
        self.row_passes += len(self._places[index])
        self.bytes_read += self.blocks.offloaded_bytes[index]
        with present(self.blocks.modules[index]):
            for places in torch.split(self._places[index], self.rows_at_once):
                some = rows[places].to(call.stream.device)
                rows[places] = stream_out(call.with_stream(some).run(original)).to(rows.device)


def workspace(blocks: Blocks, input_ids: Tensor) -> int:
    """Bytes that a block needs at most for one row of these tokens: all that the hungriest allocates in one call.

    Measured in one forward of the model on `input_ids`, (1, tokens).
    """
    sizes: list[int] = []

    def measured(index: int, original: Callable[..., Any], call: Call) -> Any:
        with present(blocks.modules[index]), _Allocations() as allocations:  # type: ignore[no-untyped-call]
            output = call.run(original)
        sizes.append(allocations.bytes)
        return output

    with blocks.substituted({i: partial(measured, i, module.forward) for i, module in enumerate(blocks.modules)}):
        blocks.forward(input_ids, **blocks.last_logits(input_ids.shape[1]))
    return max(sizes)


class _Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the bytes of the results of operations that do not share memory with their arguments."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        made = (leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        self.bytes += sum(tensor.nbytes for tensor in made if tensor.untyped_storage().data_ptr() not in given)
        return result
