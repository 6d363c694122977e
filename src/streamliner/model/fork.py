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

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from streamliner.model.blocks import Blocks
from streamliner.model.compat import TorchDispatchMode, tree_leaves
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
    _rows: Tensor | None = field(default=None, init=False)
    # What was left out so far -> the removals that left out just that, by number. They share the row of the first.
    _groups: dict[Removed, tuple[int, ...]] = field(default_factory=dict, init=False)

    def forward(self) -> Tensor:
        """The stream at depth N without each of the removals, (windows, removals, tokens, hidden...)."""
        below = range(self.start[0] if self.start else 0)
        self._groups = {tuple(block for block in self.removals[0] if block in below): tuple(range(len(self.removals)))}
        hardly_any_logits = self.blocks.keep_positions([0])
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
        return self._rows

    def _run_block(self, index: int, original: Callable[..., Any], call: Call) -> Any:
        """Takes the place of a block's forward."""
        first = self._rows is None
        rows = self._rows_for(call.stream)
        if first:
            rows[:, 0] = self.start[1] if self.start else call.stream
        self._split(index, rows)
        self._advance(index, original, call, rows)
        # The rest of the model continues with one row: its logits are not used.
        return self.blocks.hand_on(index, rows[0, :1].to(call.stream.device), call)

    def _split(self, index: int, rows: Tensor) -> None:
        """Split groups in which some removals leave out block `index` and others do not; one part gets a new row."""
        if len(self._groups) == 1 and 0 < sum(index in removed for removed in self.removals) < len(self.removals):
            self.keep(index, rows[:, 0])
        groups: dict[Removed, tuple[int, ...]] = {}
        for left_out, members in self._groups.items():
            without = tuple(number for number in members if index in self.removals[number])
            through = tuple(number for number in members if index not in self.removals[number])
            if without and through:
                rows[:, max(without[0], through[0])] = rows[:, members[0]]
            groups |= {(*left_out, index): without} if without else {}
            groups |= {left_out: through} if through else {}
        self._groups = groups

    def _advance(self, index: int, original: Callable[..., Any], call: Call, rows: Tensor) -> None:
        """Run block `index` on the rows of the removals that keep it."""
        through = sorted(members[0] for left_out, members in self._groups.items() if index not in left_out)
        places = [(window, row) for window in range(len(rows)) for row in through]
        self.row_passes += len(places)
        with self.blocks.present(index) if places else nullcontext():
            for first in range(0, len(places), self.rows_at_once):
                part = tuple(zip(*places[first : first + self.rows_at_once], strict=True))
                some = rows[part[0], part[1]].to(call.stream.device)
                rows[part[0], part[1]] = stream_out(call.with_stream(some).run(original)).to(rows.device)


def workspace(blocks: Blocks, input_ids: Tensor) -> int:
    """Bytes that a block needs at most for one row of these tokens: all that the hungriest allocates in one call.

    Measured in one forward of the model on `input_ids`, (1, tokens).
    """
    sizes: list[int] = []

    def measured(index: int, original: Callable[..., Any], call: Call) -> Any:
        with blocks.present(index), _Allocations() as allocations:
            output = call.run(original)
        sizes.append(allocations.bytes)
        return output

    with blocks.substituted({i: partial(measured, i, module.forward) for i, module in enumerate(blocks.modules)}):
        blocks.forward(input_ids, **blocks.keep_positions([0]))
    return max(sizes)


class _Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the bytes of the results of operations that do not share memory with their arguments."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        made = (leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        self.bytes += sum(tensor.nbytes for tensor in made if tensor.untyped_storage().data_ptr() not in given)
        return result
