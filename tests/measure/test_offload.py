"""Weights of blocks that stay on disk: the same losses, and a round reads each block's weights once."""

from __future__ import annotations

import pytest
import torch

from places import TINY
from streamliner.errors import ModelError
from streamliner.measure.probe import Probe
from streamliner.model.fingerprint import weights_hash
from streamliner.model.fork import Fork
from streamliner.model.session import open_model
from streamliner.search.registry import make_method
from streamliner.search.run_method import run_method
from streamliner.settings import ModelSettings


@pytest.fixture
def offloaded():
    return open_model(TINY, ModelSettings(dtype="float32", device="cpu", offload="disk")).load()


def bytes_of_blocks(blocks):
    return sum(parameter.numel() * 4 for parameter in blocks.modules.parameters())


@pytest.mark.parametrize("objective", ["loss", "kl"])
def test_losses_and_list_are_those_of_the_model_in_memory(blocks, offloaded, calibration, objective):
    assert offloaded.offloaded
    assert not blocks.offloaded
    assert all(parameter.is_meta for parameter in offloaded.modules.parameters())
    assert weights_hash(offloaded.model) == weights_hash(blocks.model)
    probes = [Probe(each, calibration, objective=objective) for each in (blocks, offloaded)]
    here, there = (run_method(probe, make_method("sleb", {}), "sleb", 3) for probe in probes)
    assert here.points[-1].removed == there.points[-1].removed
    for a, b in zip(here.points, there.points, strict=True):
        assert a.candidates == pytest.approx(b.candidates, rel=1e-5)
        assert a.loss == pytest.approx(b.loss, rel=1e-5)
    assert all(parameter.is_meta for parameter in offloaded.modules.parameters())


@pytest.mark.parametrize("objective", ["loss", "kl"])
def test_a_round_reads_the_weights_once(offloaded, calibration, objective):
    probe = Probe(offloaded, calibration, objective=objective)
    probe.losses_without_each((), range(1, 11))  # with the check
    before = probe.counters.bytes_read
    probe.losses_without_each((4,), [1, 2, 3, 5, 6, 7, 8, 9, 10])
    # What comes before block 1, the first candidate, did not change and is kept.
    of_the_first = sum(parameter.numel() * 4 for parameter in offloaded.modules[0].parameters())
    assert probe.counters.bytes_read - before == bytes_of_blocks(offloaded) - of_the_first - of_the_first  # and block 4
    assert probe.counters.window_losses == (10 + 9) * 4


@pytest.mark.parametrize("objective", ["loss", "kl"])
def test_streams_that_do_not_fit_spill_to_a_file(offloaded, calibration, monkeypatch, objective):
    spilled = []
    real = torch.from_file
    monkeypatch.setattr(torch, "from_file", lambda *args, **kwargs: spilled.append(args) or real(*args, **kwargs))
    expected = Probe(offloaded, calibration, objective=objective).losses_without_each((), range(1, 11))
    assert not spilled
    found = Probe(offloaded, calibration, memory_budget=1_000_000, objective=objective).losses_without_each(
        (), range(1, 11)
    )
    assert spilled
    for block in expected:
        assert found[block].per_window == pytest.approx(expected[block].per_window, rel=1e-5)


def test_offloading_to_where_it_runs_is_refused():
    with pytest.raises(ModelError, match="runs on the CPU"):
        open_model(TINY, ModelSettings(device="cpu", offload="cpu"))
    with pytest.raises(ModelError, match="cannot be combined with --offload"):
        open_model(TINY, ModelSettings(device="auto", offload="disk"))


def test_a_block_runs_as_before_after_its_weights_were_present(offloaded, calibration):
    """The hooks are back: a plain forward loads the weights and drops them."""
    ids = calibration.windows[:1]
    with torch.inference_mode():
        before = offloaded.forward(ids).logits
        Fork(offloaded, [(), (3,)], ids).forward()
        assert torch.equal(offloaded.forward(ids).logits, before)
    assert all(parameter.is_meta for parameter in offloaded.modules.parameters())
