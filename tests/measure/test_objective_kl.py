"""The objective "kl": divergence from the dense model, on every path of the probe, against plain forwards."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional

import zoo
from families import make_model
from places import TINY
from streamliner.measure.counters import Counters
from streamliner.measure.forked import ForkedPath
from streamliner.measure.loss import head_divergences, mean_divergences
from streamliner.measure.plain import PlainPath
from streamliner.measure.probe import Probe
from streamliner.model.blocks import Blocks
from streamliner.model.fork import Fork
from streamliner.model.load import load_model
from streamliner.model.source import locate
from streamliner.runs.journal import Journal
from streamliner.search.registry import make_method
from streamliner.search.run_method import run_method
from streamliner.text.calibration import CalibrationSet

WINDOWS = torch.randint(8, 120, (3, 20), generator=torch.Generator().manual_seed(0))
MARKED = torch.where(torch.arange(20) % 3 == 0, ~WINDOWS, WINDOWS)
"""A third of the tokens does not count."""


def kl_probe(blocks, windows, **options):
    return Probe(blocks, CalibrationSet(windows, {}), objective="kl", **options)


def by_torch(model, windows, removed):
    """Of two plain forwards, by torch's own function."""
    ids = torch.where(windows < 0, ~windows, windows)
    blocks = Blocks(model)
    with torch.no_grad():
        dense = model(input_ids=ids, use_cache=False).logits.double().log_softmax(-1)
        with blocks.bypass(removed):
            cut = model(input_ids=ids, use_cache=False).logits.double().log_softmax(-1)
    each = functional.kl_div(cut, dense, log_target=True, reduction="none").sum(-1)[:, :-1]
    return [row[target >= 0].mean().item() for row, target in zip(each, windows[:, 1:], strict=True)]


@pytest.mark.parametrize("windows", [WINDOWS, MARKED], ids=["all", "some"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_every_path_gives_the_divergence_of_two_plain_forwards(family, windows):
    model = make_model(family)
    blocks, said = Blocks(model), []
    fast, small = kl_probe(blocks, windows, say=said.append), kl_probe(blocks, windows, memory_budget=50_000)
    plain = kl_probe(blocks, windows, fork=False, batch_size=2)
    assert fast.loss().per_window == (0, 0, 0)
    for removed, candidates in [((), range(6)), ((2,), (1, 3, 4)), ((0,), (4, 5))]:
        found = [probe.losses_without_each(removed, candidates) for probe in (fast, small, plain)]
        for block in candidates:
            expected = pytest.approx(by_torch(model, windows, {*removed, block}), rel=1e-3, abs=2e-6)
            for losses in found:
                assert losses[block].per_window == expected
    assert said == []
    assert fast.counters.forwards < plain.counters.forwards


def test_the_text_loss_is_measured_too(blocks, calibration):
    kl, usual = Probe(blocks, calibration, objective="kl"), Probe(blocks, calibration)
    for removed in ((), (3, 5)):
        assert kl.text_loss(removed) == usual.loss(removed) == usual.text_loss(removed)
    assert kl.loss((3, 5)) != kl.text_loss((3, 5))


def test_dense_streams_are_computed_once_if_they_fit(blocks, calibration):
    window = calibration.windows[:1]
    passes = []
    for budget in (2_000_000_000, 100_000):
        probe = kl_probe(blocks, window, memory_budget=budget)
        probe.losses_without_each((), (3, 4))
        before = probe.counters.block_forwards
        probe.losses_without_each((), (5, 6))
        passes.append(probe.counters.block_forwards - before)
    assert passes[1] - passes[0] >= len(blocks)


def test_the_head_never_has_more_positions_than_fit(blocks, calibration, monkeypatch):
    window, right, most = calibration.windows[0], Blocks.logits, []

    def logits(self, stream, input_ids, positions):
        most.append(len(stream) * len(positions))
        return right(self, stream, input_ids, positions)

    monkeypatch.setattr(Blocks, "logits", logits)
    rows = Fork(blocks, [(3,), (4,), (5,)], window[None]).forward()[0]
    dense = Fork(blocks, [()], window[None]).forward()[0, 0]
    for fit in (1000, 50, 1):
        found = head_divergences(blocks, dense, rows, window, fit)
        assert max(most) <= fit
        most.clear()
        expected = [by_torch(blocks.model, window[None], [block])[0] for block in (3, 4, 5)]
        assert found.tolist() == pytest.approx(expected, rel=1e-4)


def test_a_fork_that_is_wrong_is_noticed(blocks, calibration, monkeypatch):
    """Also where the streams are right, and the head is not."""
    right, said = ForkedPath._of_rows, []

    def wrong(self, rows, window, dense):
        return [value * 1.01 + 1e-3 for value in right(self, rows, window, dense)]

    monkeypatch.setattr(ForkedPath, "_of_rows", wrong)
    found = Probe(blocks, calibration, objective="kl", say=said.append).losses_without_each((), (3, 4))
    assert found == Probe(blocks, calibration, objective="kl", fork=False).losses_without_each((), (3, 4))
    assert "losses differ by" in said[0]


@pytest.mark.parametrize("model_type", ["zaya", "gemma3n_text"])
def test_where_it_does_not_match_each_candidate_takes_its_own_forward(model_type):
    blocks, said = Blocks(zoo.tiny_model(model_type)), []
    fast, plain = kl_probe(blocks, WINDOWS, say=said.append), kl_probe(blocks, WINDOWS, fork=False)
    assert fast.losses_without_each((), (0, 1, 5)) == plain.losses_without_each((), (0, 1, 5))
    assert "its own forward" in said[0]


def test_a_divergence_near_zero_is_not_taken_for_a_mistake(tiny, calibration):
    """A block that does nothing: relative differences of its divergence say nothing."""
    for module in (tiny.model.layers[4].self_attn.o_proj, tiny.model.layers[4].mlp.down_proj):
        module.weight.data.mul_(1e-4)
    said = []
    probe = Probe(Blocks(tiny), calibration, objective="kl", say=said.append)
    losses = probe.losses_without_each((), (4, 5))
    assert said == []
    assert 0 <= losses[4].mean < 1e-5 < losses[5].mean


def test_in_sixteen_bits_close_candidates_are_decided_in_float32(tiny, calibration):
    exact = Probe(Blocks(tiny), calibration, objective="kl", fork=False).loss((3,))
    half = Probe(Blocks(load_model(locate(str(TINY)), dtype="bfloat16")), calibration, objective="kl")
    assert half.losses_in_float32([(3,)])[(3,)].per_window == pytest.approx(exact.per_window, rel=1e-5)
    assert 0 < half.resolution < 0.1
    assert half.loss((3,)).mean == pytest.approx(exact.mean, abs=0.05)


def test_exhaustive_search_finds_the_least_divergence(blocks, calibration):
    text = CalibrationSet(calibration.windows[:2], {})
    method = make_method("exhaustive", {"protect_first": 3, "protect_last": 4})
    point = run_method(Probe(blocks, text, objective="kl"), method, "exhaustive", 2).points[1]
    every = {
        pair: sum(by_torch(blocks.model, text.windows, pair)) / 2 for pair in itertools.combinations(range(3, 8), 2)
    }
    assert point.removed == min(every, key=every.__getitem__)
    assert point.score == pytest.approx(min(every.values()), rel=1e-4)
    assert point.divergence == point.score
    assert point.loss == Probe(blocks, text).loss(point.removed).mean


@pytest.mark.parametrize("method", ["sleb", "best", "refine", "evolution", "beam", "streamline"])
def test_every_method_works_on_it_and_a_killed_one_continues(blocks, calibration, tmp_path, method):
    def search(folder):
        probe = Probe(blocks, calibration, objective="kl", journal=Journal(folder, {}))
        return run_method(probe, make_method(method), method, 2), probe.counters.window_losses

    frontier, cost = search(tmp_path / "a")
    assert frontier.objective == "kl"
    assert frontier.dense_loss == Probe(blocks, calibration).loss().mean
    for point in frontier.points:
        assert point.divergence == Probe(blocks, calibration, objective="kl").loss(point.removed).mean or (
            point.divergence == pytest.approx(by_mean(blocks, calibration, point.removed), rel=1e-4)
        )
    lines = (tmp_path / "a" / "journal.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "journal.jsonl").write_text("".join(lines[: len(lines) // 2]) + lines[-1][:5])
    again, rest = search(tmp_path / "b")
    assert again == frontier
    assert rest < cost


def by_mean(blocks, calibration, removed):
    found = by_torch(blocks.model, calibration.windows, removed)
    return sum(found) / len(found)


def test_plain_means_are_of_the_positions_that_count():
    logits = torch.randn(2, 3, 20, 30, generator=torch.Generator().manual_seed(0))
    found = mean_divergences(*logits, MARKED)
    p, q = logits.double().log_softmax(-1)
    each = (p.exp() * (p - q)).sum(-1)[:, :-1]
    counts = MARKED[:, 1:] >= 0
    expected = [row[which].mean().item() for row, which in zip(each, counts, strict=True)]
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


def test_the_forked_path_alone_is_right_for_the_dense_model(blocks, calibration):
    path = ForkedPath(blocks, calibration.windows, PlainPath(blocks, Counters()), Counters(), 10**9, "kl")
    with torch.inference_mode():
        assert path.losses([0], [(), (3,)])[0][0] == pytest.approx(0, abs=1e-6)
