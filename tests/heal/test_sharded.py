"""Frozen blocks that are divided among processes with FSDP2."""

from __future__ import annotations

from dataclasses import replace

import pytest

from both_ranks import divided_blocks_compute_the_same
from command import run
from kill import start_both
from places import TINY
from streamliner.errors import HealingError
from streamliner.heal.checks import check_sharded
from streamliner.model.session import Session, open_model
from streamliner.model.stack import find_stack
from streamliner.runs.ranks import Ranks
from streamliner.settings import ModelSettings


def test_blocks_that_are_divided_between_two_processes_compute_the_same(tmp_path):
    """Losses and gradients; each holds half of the blocks, and afterwards the first has whole ones again."""
    status, _, err = start_both(tmp_path, divided_blocks_compute_the_same).wait()
    assert status == 0, err


def test_one_process_has_nobody_to_divide_with(capsys, tmp_path):
    run(capsys, "cut", TINY, "--blocks", "4", "-o", tmp_path / "cut", "--no-verify", "-q")
    heal = ("heal", tmp_path / "cut", "--dense", TINY, "-o", tmp_path / "healed", "--shard", "-q")
    _, err = run(capsys, *heal, status=2)
    assert "--shard divides the frozen blocks among several processes, and there is one" in " ".join(err.split())
    assert not (tmp_path / "healed").exists()


def test_what_cannot_be_divided_is_refused(tiny):
    two = Ranks(rank=0, size=2)
    offloaded = replace(open_model(TINY, ModelSettings(device="cpu", offload="disk")), ranks=two)
    with pytest.raises(HealingError, match="--shard and --offload exclude each other"):
        check_sharded(offloaded)
    tiny.model.layers[7].mlp = tiny.model.layers[3].mlp
    sharing = replace(Session.of(tiny), ranks=two)
    sharing.stack = find_stack(tiny)
    with pytest.raises(HealingError, match="share weights"):
        check_sharded(sharing)
