"""Many removals in one forward: rows of a batch split where removals part. And what memory a block takes for a row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from streamliner.model.blocks import Blocks, ForwardFunction
from streamliner.model.handoff import stream_in, stream_out

_Classes = dict[tuple[int, ...], tuple[int, ...]]


def fork(
    blocks: Blocks,
    removals: Sequence[tuple[int, ...]],
    input_ids: Tensor,
    *,
    rows_at_once: int = 1 << 30,
    empty: Callable[..., Tensor] = torch.empty,
    start: tuple[int, Tensor] | None = None,
    keep: Callable[[int, Tensor], None] = lambda depth, stream: None,
    **inputs: Any,
) -> tuple[Tensor, int]:
    """Depth N of the model without each set of `removals`, on each window, from one forward.

    Where sets agree in what they leave out so far they are one row of the batch; a row splits at the first block
    that some of its sets leave out and others do not. So each block's weights are touched once, and what sets have
    in common is computed once.

    Args:
        removals: different sets of blocks to leave out.
        input_ids: (windows, tokens).
        rows_at_once: most rows that a block is run on in one call.
        empty: makes the tensor of all rows, `torch.empty` or one that puts it elsewhere.
        start: a depth up to which all removals agree, and the stream there, (windows, tokens, hidden...), as `keep`
            got it: blocks below do not run.
        keep: called with the depth where the first two part, and the stream there.
        inputs: further arguments of the model's forward.

    Returns:
        The streams, (windows, removals, tokens, hidden...), and how many rows went through blocks.
    """
    passes = 0
    rows: Tensor | None = None
    # What was left out so far -> the sets that did so; the row of the first of them is the row of all.
    depth, stream_there = start or (0, None)
    heads: _Classes = {tuple(block for block in removals[0] if block < depth): tuple(range(len(removals)))}

    def room(stream: Tensor) -> Tensor:
        shape = (len(input_ids), len(removals), *stream.shape[1:])
        return empty(shape, dtype=stream.dtype, device=stream.device)

    def run(index: int, original: ForwardFunction) -> ForwardFunction:
        def forward(*args: Any, **kwargs: Any) -> Any:
            nonlocal passes, rows, heads
            stream = stream_in(args, kwargs)
            if index < depth:
                return blocks.hand_on(index, stream, args, kwargs)
            if rows is None:
                rows = room(stream)
                rows[:, 0] = stream if stream_there is None else stream_there
            every = rows
            if len(heads) == 1 and 0 < sum(index in removed for removed in removals) < len(removals):
                keep(index, rows[:, 0])
            heads = _split(heads, removals, index, lambda old, new: every[:, new].copy_(every[:, old]))
            through = sorted(sets[0] for left_out, sets in heads.items() if index not in left_out)
            places = [(window, row) for window in range(len(rows)) for row in through]
            passes += len(places)
            with blocks.present(index) if places else nullcontext():
                for first in range(0, len(places), rows_at_once):
                    part = tuple(zip(*places[first : first + rows_at_once], strict=True))
                    some = rows[part[0], part[1]].to(stream.device)
                    rows[part[0], part[1]] = stream_out(original(some, *args[1:], **kwargs)).to(rows.device)
            # The model itself goes on with one row: the head need not see them all.
            returned = blocks._returned[index]
            out = rows[0, :1].to(stream.device)
            return out if returned is None else returned[0]([out, *(None for _ in returned[1])])

        return forward

    if start is None and len(input_ids) > 1:
        for window, ids in enumerate(torch.split(input_ids, 1)):
            embedded = _embedded(blocks, ids, **inputs)
            rows = room(embedded) if rows is None else rows
            rows[window, 0] = embedded[0]
    # Masks and positions of the first window serve all. Where blocks get something for each token by its id, that
    # is wrong for the other windows, and the check that the probe makes finds it.
    with blocks.replaced({index: run(index, module.forward) for index, module in enumerate(blocks.modules)}):
        blocks.forward(input_ids[:1], **inputs)
    assert rows is not None
    return rows, passes


def _embedded(blocks: Blocks, input_ids: Tensor, **inputs: Any) -> Tensor:
    """The stream at depth 0."""
    found: list[Tensor] = []
    with (
        blocks.replaced({index: blocks.pass_on(index) for index in range(len(blocks))}),
        blocks.watch(lambda depth, stream: found.append(stream) if depth == 0 else None),
    ):
        blocks.forward(input_ids, **inputs)
    return found[0]


def workspace(blocks: Blocks, input_ids: Tensor, **inputs: Any) -> int:
    """At most so many bytes does a block take for one row of these tokens: all that it allocates in one call.

    `input_ids` is (1, tokens). Measured in one forward of the model.
    """
    most = 0

    def measured(index: int, original: ForwardFunction) -> ForwardFunction:
        def forward(*args: Any, **kwargs: Any) -> Any:
            nonlocal most
            with blocks.present(index), _Allocations() as allocations:
                output = original(*args, **kwargs)
            most = max(most, allocations.bytes)
            return output

        return forward

    with blocks.replaced({index: measured(index, module.forward) for index, module in enumerate(blocks.modules)}):
        blocks.forward(input_ids, **inputs)
    return most


class _Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the bytes of all that operations put out."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.bytes += sum(
            item.nbytes
            for item in (out if isinstance(out, (tuple, list)) else (out,))
            if isinstance(item, Tensor) and not item._is_view()
        )
        return out


def _split(
    heads: _Classes,
    removals: Sequence[tuple[int, ...]],
    index: int,
    copy: Callable[[int, int], object],
) -> _Classes:
    """Split each class of sets at block `index`; `copy(old, new)` where one needs a row of its own."""
    split: _Classes = {}
    for left_out, sets in heads.items():
        without = tuple(number for number in sets if index in removals[number])
        within = tuple(number for number in sets if index not in removals[number])
        if without and within:
            copy(sets[0], within[0] if without[0] == sets[0] else without[0])
        split |= {(*left_out, index): without} if without else {}
        split |= {left_out: within} if within else {}
    return split
