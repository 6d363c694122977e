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
from functools import partial
from typing import Any

import torch
from torch import Tensor

from streamliner.model.blocks import Blocks
from streamliner.model.compat import TorchDispatchMode
from streamliner.model.handoff import Call, stream_out

Removed = tuple[int, ...]
"""Sorted indices of the blocks that a removal leaves out."""


def fork(
    blocks: Blocks,
    removals: Sequence[Removed],
    input_ids: Tensor,
    *,
    rows_at_once: int = 1 << 30,
    empty: Callable[..., Tensor] = torch.empty,
    start: tuple[int, Tensor] | None = None,
    keep: Callable[[int, Tensor], None] = lambda depth, stream: None,
    **inputs: Any,
) -> tuple[Tensor, int]:
    """The stream at depth N without each of `removals`, on each window, from one forward.

    Masks and positions of the first window are used for all. This is wrong for a model whose blocks get something by
    token id, which the caller must find by comparing with plain forwards.

    Args:
        blocks: of the model.
        removals: different sets of blocks.
        input_ids: (windows, tokens).
        rows_at_once: most rows that a block is called with.
        empty: makes the tensor of all rows, as `torch.empty` does.
        start: a depth up to which all removals agree, and the stream there, (windows, tokens, hidden...), as `keep`
            got it: blocks below do not run.
        keep: called with the depth where removals first differ, and the stream there.
        inputs: further arguments of the model's forward.

    Returns:
        The streams, (windows, removals, tokens, hidden...), and how many times a block ran on a row.
    """
    run = Fork(blocks, removals, input_ids, rows_at_once=rows_at_once, empty=empty, start=start, keep=keep)
    return run.forward(**inputs), run.row_passes


class Fork:
    """One forward with rows that split; see `fork` for the arguments.

    Attributes:
        rows: a stream for each removal, (windows, removals, tokens, hidden...). Removals that share a row use that of
            the first of them.
        row_passes: how many times a block ran on a row.
    """

    def __init__(
        self,
        blocks: Blocks,
        removals: Sequence[Removed],
        input_ids: Tensor,
        *,
        rows_at_once: int,
        empty: Callable[..., Tensor],
        start: tuple[int, Tensor] | None,
        keep: Callable[[int, Tensor], None],
    ) -> None:
        self.rows: Tensor | None = None
        self.row_passes = 0
        self._blocks, self._removals, self._input_ids = blocks, removals, input_ids
        self._rows_at_once, self._empty, self._keep = rows_at_once, empty, keep
        self._start_depth: int = start[0] if start else 0
        self._start_stream: Tensor | None = start[1] if start else None
        left_out = tuple(block for block in removals[0] if block < self._start_depth)
        # What was left out so far -> the removals that left out just that, by number.
        self._groups: dict[Removed, tuple[int, ...]] = {left_out: tuple(range(len(removals)))}

    def forward(self, **inputs: Any) -> Tensor:
        """Run the model once and return `rows`."""
        if self._start_stream is None and len(self._input_ids) > 1:
            self._embed_all(**inputs)
        forwards = {
            index: partial(self._run_block, index, module.forward) for index, module in enumerate(self._blocks.modules)
        }
        with self._blocks.substituted(forwards):
            self._blocks.forward(self._input_ids[:1], **inputs)
        assert self.rows is not None
        return self.rows

    def _embed_all(self, **inputs: Any) -> None:
        """Put the stream at depth 0 of each window into the first row."""
        for window, ids in enumerate(torch.split(self._input_ids, 1)):
            stream = _embedding(self._blocks, ids, **inputs)
            self.rows = self._make_rows(stream) if self.rows is None else self.rows
            self.rows[window, 0] = stream[0]

    def _make_rows(self, stream: Tensor) -> Tensor:
        shape = (len(self._input_ids), len(self._removals), *stream.shape[1:])
        return self._empty(shape, dtype=stream.dtype, device=stream.device)

    def _run_block(self, index: int, original: Callable[..., Any], call: Call) -> Any:
        """Takes the place of a block's forward."""
        if index < self._start_depth:
            return self._blocks.hand_on(index, call.stream, call)
        if self.rows is None:
            self.rows = self._make_rows(call.stream)
            self.rows[:, 0] = call.stream if self._start_stream is None else self._start_stream
        self._split(index, self.rows)
        self._advance(index, original, call, self.rows)
        # The rest of the model continues with one row: its logits are not used.
        return self._blocks.handoffs[index].stateless(self.rows[0, :1].to(call.stream.device))

    def _split(self, index: int, rows: Tensor) -> None:
        """Split groups in which some removals leave out block `index` and others do not; one part gets a new row."""
        if len(self._groups) == 1 and 0 < sum(index in removed for removed in self._removals) < len(self._removals):
            self._keep(index, rows[:, 0])
        groups: dict[Removed, tuple[int, ...]] = {}
        for left_out, members in self._groups.items():
            without = tuple(number for number in members if index in self._removals[number])
            through = tuple(number for number in members if index not in self._removals[number])
            if without and through:
                new = through[0] if without[0] == members[0] else without[0]
                rows[:, new] = rows[:, members[0]]
            groups |= {(*left_out, index): without} if without else {}
            groups |= {left_out: through} if through else {}
        self._groups = groups

    def _advance(self, index: int, original: Callable[..., Any], call: Call, rows: Tensor) -> None:
        """Run block `index` on the rows of the removals that keep it."""
        through = sorted(members[0] for left_out, members in self._groups.items() if index not in left_out)
        places = [(window, row) for window in range(len(rows)) for row in through]
        self.row_passes += len(places)
        with self._blocks.present(index) if places else nullcontext():
            for first in range(0, len(places), self._rows_at_once):
                part = tuple(zip(*places[first : first + self._rows_at_once], strict=True))
                some = rows[part[0], part[1]].to(call.stream.device)
                rows[part[0], part[1]] = stream_out(call.with_stream(some).run(original)).to(rows.device)


def _embedding(blocks: Blocks, input_ids: Tensor, **inputs: Any) -> Tensor:
    """The stream at depth 0."""
    found: list[Tensor] = []
    with (
        blocks.substituted({index: blocks.pass_on(index) for index in range(len(blocks))}),
        blocks.watch(lambda depth, stream: found.append(stream) if depth == 0 else None),
    ):
        blocks.forward(input_ids, **inputs)
    return found[0]


def workspace(blocks: Blocks, input_ids: Tensor, **inputs: Any) -> int:
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
        blocks.forward(input_ids, **inputs)
    return max(sizes)


class _Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the bytes of the results of operations that do not share memory with their arguments."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        given = {tensor.untyped_storage().data_ptr() for tensor in _tensors([args, kwargs])}
        made = (tensor for tensor in _tensors(result) if tensor.untyped_storage().data_ptr() not in given)
        self.bytes += sum(tensor.nbytes for tensor in made)
        return result


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [tensor for item in value for tensor in _tensors(item)] if isinstance(value, (tuple, list)) else []
