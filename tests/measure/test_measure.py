"""The probe against plain computations."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, strategies as st
from torch.nn import functional

from places import TINY
from streamliner.measure import loss as loss_module
from streamliner.measure.loss import Loss, text_loss
from streamliner.measure.probe import Probe
from streamliner.model.blocks import Blocks
from streamliner.model.load import load_model
from streamliner.model.source import locate
from streamliner.text.calibration import CalibrationSet


def test_loss_is_that_of_transformers_and_batching_changes_nothing(blocks, calibration):
    expected = [
        blocks.model(input_ids=w[None], labels=w[None], use_cache=False).loss.item() for w in calibration.windows
    ]
    for batch_size in (1, 3):
        found = Probe(blocks, calibration, batch_size=batch_size).loss()
        assert found.per_window == pytest.approx(expected, rel=1e-5)
    assert found.mean == pytest.approx(sum(expected) / 4, rel=1e-6)
    spread = torch.tensor(expected, dtype=torch.float64).std().item() / 2
    assert found.standard_error == pytest.approx(spread, rel=1e-3)


def test_loss_in_chunks_of_positions_is_the_same(blocks, calibration, monkeypatch):
    whole = Probe(blocks, calibration).loss()
    monkeypatch.setattr(loss_module, "rows_at_once", lambda logits: 7)
    assert Probe(blocks, calibration).loss().per_window == pytest.approx(whole.per_window, rel=1e-6)


def test_text_loss_measures_the_model_as_it_is(blocks, calibration):
    steps = []
    found = text_loss(blocks, calibration.windows, on_progress=lambda *step: steps.append(step))
    assert found.per_window == pytest.approx(Probe(blocks, calibration).loss().per_window, rel=1e-5)
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    with blocks.bypass((3, 5)):
        found = text_loss(blocks, calibration.windows)
    assert found.per_window == pytest.approx(Probe(blocks, calibration).loss((3, 5)).per_window, rel=1e-5)


def test_each_removal_is_measured_once(blocks, calibration):
    probe = Probe(blocks, calibration, fork=False)
    first = probe.losses_without_each((2,), [3, 4])
    forwards = probe.counters.forwards
    assert probe.loss((4, 2)) == first[4]
    assert probe.counters.forwards == forwards == 8
    assert probe.counters.block_forwards == 8 * 10
    assert probe.counters.tokens == 2 * calibration.num_tokens


def test_similarity_is_that_of_stored_hidden_states(blocks, calibration):
    stored = []
    with blocks.watch(lambda depth, stream: stored.append(stream)):
        blocks.forward(calibration.windows)
    found = Probe(blocks, calibration, batch_size=3).similarity()
    for i in range(13):
        for j in range(13):
            cosine = functional.cosine_similarity(stored[i].double(), stored[j].double(), dim=-1)
            assert found.cosine[i, j].item() == pytest.approx(cosine.mean().item(), abs=1e-5)
            angle = torch.arccos(cosine[:, -1].clamp(-1, 1)).mean().item() / math.pi
            assert found.angle[i, j].item() == pytest.approx(angle, abs=1e-3)


def test_the_last_depth_is_before_the_final_norm(blocks, calibration):
    """output_hidden_states gives the last depth after the norm; the similarity must not."""
    states = blocks.model(input_ids=calibration.windows, output_hidden_states=True).hidden_states
    after = functional.cosine_similarity(states[11].double(), states[12].double(), dim=-1).mean().item()
    assert abs(Probe(blocks, calibration).similarity().cosine[11, 12].item() - after) > 1e-3


def test_one_window_has_no_standard_error(blocks, calibration):
    loss = Probe(blocks, CalibrationSet(calibration.windows[:1], {})).loss()
    assert math.isnan(loss.standard_error)


@given(st.lists(st.floats(0, 1e4), min_size=2, max_size=20))
def test_loss_statistics(values):
    loss = Loss(tuple(values))
    assert min(values) - 1e-9 <= loss.mean <= max(values) + 1e-9
    assert loss.standard_error >= 0
    assert loss.perplexity >= 1


def test_losses_in_float32_are_those_of_a_model_in_float32(tiny, calibration):
    """And the weights of 16 bits, buffers too, are as before."""
    expected = Probe(Blocks(tiny), calibration, fork=False).loss((3,))
    half = load_model(locate(str(TINY)), dtype="bfloat16")
    before = {
        name: (tensor.dtype, tensor.clone()) for name, tensor in (*half.named_parameters(), *half.named_buffers())
    }
    probe = Probe(Blocks(half), calibration)
    found = probe.losses_in_float32([(3,)])[(3,)]
    assert found.per_window == pytest.approx(expected.per_window, rel=1e-6)
    for name, tensor in (*half.named_parameters(), *half.named_buffers()):
        assert tensor.dtype == before[name][0]
        assert torch.equal(tensor, before[name][1])
    assert Probe(Blocks(tiny), calibration).losses_in_float32([(3,)]) == {}


def test_the_resolution_is_how_far_differences_are_from_those_in_float32(tiny, calibration):
    half = Probe(Blocks(load_model(locate(str(TINY)), dtype="bfloat16")), calibration)
    found, exact = (half.losses_without_each((), range(1, 11)), Probe(Blocks(tiny), calibration))
    exact = exact.losses_without_each((), range(1, 11))
    errors = [(found[a].mean - found[b].mean) - (exact[a].mean - exact[b].mean) for a in found for b in found if a < b]
    spread = (sum(error**2 for error in errors) / len(errors)) ** 0.5
    assert spread < half.resolution < 10 * spread
    assert Probe(Blocks(tiny), calibration).resolution == 0
