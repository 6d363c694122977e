"""Rows that split: the streams of plain bypass, each block run once per group of removals."""

from __future__ import annotations

import pytest
import torch

from close import assert_close
from families import make_model
from streamliner.model.blocks import Blocks
from streamliner.model.fork import Fork, workspace

IDS = torch.randint(2, 128, (2, 20), generator=torch.Generator().manual_seed(0))
REMOVALS = [(1,), (2,), (1, 3)]  # those of the drawing in fork.py


def bypassed(blocks, removed, ids):
    with blocks.bypass(removed):
        return blocks.streams(ids, [len(blocks)])[len(blocks)]


@pytest.fixture
def four_blocks():
    return Blocks(make_model("llama", num_hidden_layers=4))


@torch.inference_mode()
@pytest.mark.parametrize("windows", [1, 2])
@pytest.mark.parametrize("rows_at_once", [1, 2, 100])
def test_rows_are_the_streams_of_bypass(four_blocks, windows, rows_at_once):
    ids = IDS[:windows]
    fork = Fork(four_blocks, REMOVALS, ids, rows_at_once=rows_at_once)
    rows = fork.forward()
    # Block 0 runs on one row, block 1 on that of {2}, block 2 on that of {1} and {1, 3}, block 3 on {1} and on {2}.
    assert fork.row_passes == windows * (1 + 1 + 1 + 2)
    for number, removed in enumerate(REMOVALS):
        assert_close(rows[:, number], bypassed(four_blocks, removed, ids))


@torch.inference_mode()
def test_what_was_kept_is_where_the_next_forward_starts(four_blocks):
    kept = []
    Fork(four_blocks, [(0, 2), (0, 3)], IDS, keep=lambda depth, stream: kept.append((depth, stream.clone()))).forward()
    assert [depth for depth, _ in kept] == [2]
    fork = Fork(four_blocks, [(0,), (0, 2)], IDS, start=kept[0])
    rows = fork.forward()
    assert fork.row_passes == len(IDS) * (1 + 2)
    for number, removed in enumerate([(0,), (0, 2)]):
        assert_close(rows[:, number], bypassed(four_blocks, removed, IDS))


@torch.inference_mode()
def test_workspace_is_at_least_what_the_largest_part_returns(four_blocks):
    largest = 20 * 48 * 4  # tokens x intermediate size x bytes
    assert largest < workspace(four_blocks, IDS[:1]) < 100 * largest
    assert workspace(four_blocks, IDS[:1, :10]) < workspace(four_blocks, IDS[:1])
