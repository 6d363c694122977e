"""All candidates of a round in one forward: the losses of plain bypass, with about half of the block forwards."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

import zoo
from families import FAMILIES, make_model
from streamliner.measure.counters import Counters
from streamliner.measure.forked import ForkedPath
from streamliner.measure.plain import PlainPath
from streamliner.measure.prefixes import Prefixes
from streamliner.measure.probe import Probe
from streamliner.model.blocks import Blocks
from streamliner.model.fork import Fork
from streamliner.runs.journal import Journal
from streamliner.search.registry import make_method
from streamliner.search.run_method import run_method
from streamliner.text.calibration import CalibrationSet
from streamliner.text.windows import calibration_set

WINDOWS = torch.randint(8, 120, (3, 20), generator=torch.Generator().manual_seed(0))


def sleb(probe, limit):
    return run_method(probe, make_method("sleb", {}), "sleb", limit)


@pytest.mark.parametrize("family", FAMILIES)
def test_forked_losses_are_those_of_bypass(family):
    blocks, text = Blocks(make_model(family)), CalibrationSet(WINDOWS, {})
    said = []
    fast, plain = Probe(blocks, text, say=said.append), Probe(blocks, text, fork=False)
    for removed, candidates in [((), range(6)), ((2,), (1, 3, 4)), ((5,), (0, 3)), ((0,), (4, 5))]:
        found, expected = (probe.losses_without_each(removed, candidates) for probe in (fast, plain))
        assert list(found) == list(expected)
        for block in found:
            assert found[block].per_window == pytest.approx(expected[block].per_window, rel=1e-5)
    assert said == []
    assert fast.counters.forwards < plain.counters.forwards


def test_block_forwards_of_a_search_are_about_half(blocks, calibration):
    one = CalibrationSet(calibration.windows[:1], {})
    fast, plain = Probe(blocks, one), Probe(blocks, one, fork=False)
    lists = [sleb(probe, 4).points[-1].removed for probe in (fast, plain)]
    assert lists[0] == lists[1]
    assert plain.counters.block_forwards == 12 + sum((10 - r) * (11 - r) for r in range(4))
    # In a stack of n, block p sees a row for each candidate before it, and up to the last candidate one more for all.
    rounds = sum(1 + (n - 3) * (n - 2) // 2 + (n - 3) + (n - 2) for n in (12, 11, 10, 9))
    check = 2 * (26 + 3 * 11)  # candidates 1, 6 and 10, forked and plain: row by row, and in a batch
    kept = 4  # block 0, before the first candidate, runs in the check and then in no round
    assert fast.counters.block_forwards == 12 + check + rounds - kept


@pytest.mark.parametrize("budget", [100_000, 1_000_000, 4_000_000])
def test_a_small_budget_gives_the_same_losses(blocks, calibration, budget):
    """Few removals at once, few rows through a block, few positions through the head."""
    whole = Probe(blocks, calibration).losses_without_each((), range(1, 11))
    said = []
    probe = Probe(blocks, calibration, memory_budget=budget, say=said.append)
    parts = probe.losses_without_each((), range(1, 11))
    assert said == []
    plain, windows = PlainPath(blocks, Counters()), calibration.windows
    assert ForkedPath(blocks, windows, plain, Counters(), budget).rows_at_once < 10
    for block in whole:
        assert parts[block].per_window == pytest.approx(whole[block].per_window, rel=1e-5)


def test_what_did_not_change_is_kept(blocks, calibration, monkeypatch):
    """Blocks before the first candidate run once for two rounds, and the losses are those without that."""
    rounds = [((), (6, 8)), ((8,), (6, 9)), ((8, 9), (7, 10)), ((8,), (3, 4))]

    def measure():
        probe, losses, passes = Probe(blocks, calibration), [], []
        for removed, candidates in rounds:
            before = probe.counters.block_forwards
            losses.append(probe.losses_without_each(removed, candidates))
            passes.append(probe.counters.block_forwards - before)
        return losses, passes

    losses, passes = measure()
    monkeypatch.setattr(Prefixes, "find", lambda *args: None)
    expected, without = measure()
    for found, plain in zip(losses, expected, strict=True):
        for block in plain:
            assert found[block].per_window == pytest.approx(plain[block].per_window, rel=1e-5)
    windows = len(calibration.windows)
    # In the first round the check, on one window, has kept the stream at depth 6.
    assert [a - b for a, b in zip(without, passes, strict=True)] == [6, 6 * windows, 6 * windows, 0]


@pytest.mark.parametrize("model_type", ["zaya", "glm_moe_dsa", "gemma3n_text", "bloom"])
def test_where_it_does_not_match_each_candidate_takes_its_own_forward(model_type):
    blocks, text = Blocks(zoo.tiny_model(model_type)), CalibrationSet(WINDOWS, {})
    said = []
    fast, plain = Probe(blocks, text, say=said.append), Probe(blocks, text, fork=False)
    for removed in ((), (4,)):
        candidates = [block for block in (0, 1, 5) if block not in removed]
        assert fast.losses_without_each(removed, candidates) == plain.losses_without_each(removed, candidates)
    assert len(said) == 1
    assert "its own forward" in said[0]


def test_a_fork_that_is_wrong_is_noticed(blocks, calibration, monkeypatch):
    right, said = Fork.forward, []
    monkeypatch.setattr(Fork, "forward", lambda fork: right(fork).flip(1))
    found = Probe(blocks, calibration, say=said.append).losses_without_each((), (3, 4))
    assert found == Probe(blocks, calibration, fork=False).losses_without_each((), (3, 4))
    assert "streams are not those of bypass" in said[0]


def test_a_mistake_smaller_than_rounding_in_bfloat16_is_noticed(tiny, calibration, monkeypatch):
    """One row at a time the streams must be equal to the bit: a tolerance would let this pass."""
    blocks, right, said = Blocks(tiny.to(torch.bfloat16)), Fork.forward, []

    def almost_right(fork):
        rows = right(fork)
        rows[0, 0, 5, 3] *= 1.01
        return rows

    monkeypatch.setattr(Fork, "forward", almost_right)
    Probe(blocks, calibration, say=said.append).losses_without_each((), (3, 4))
    assert "streams are not those of bypass" in said[0]
    monkeypatch.setattr(ForkedPath, "_equals_bypass", lambda *args: True)
    assert not ForkedPath(blocks, calibration.windows, PlainPath(blocks, Counters()), Counters(), 10**9).why_wrong(
        [(3,), (4,)]
    )


def test_a_killed_round_continues_at_its_window(blocks, calibration, tmp_path):
    undisturbed = sleb(Probe(blocks, calibration, journal=Journal(tmp_path / "a", {})), 2)
    lines = (tmp_path / "a" / "journal.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) == 1 + 4 + 1 + 2 * 4  # whose run, dense losses, whether forking is right, two rounds
    for kept in range(1, len(lines)):
        folder = tmp_path / f"b{kept}"
        folder.mkdir()
        (folder / "journal.jsonl").write_text("".join(lines[:kept]) + lines[kept][:7])
        probe = Probe(blocks, calibration, journal=Journal(folder, {}))
        assert sleb(probe, 2) == undisturbed
        assert (folder / "journal.jsonl").read_text() == "".join(lines)
        check = 2 * (1 + 3) if kept <= 5 else 0  # a forked forward and three plain ones, row by row and in a batch
        assert probe.counters.forwards == len(lines) - kept - (kept <= 5) + check


@pytest.mark.parametrize("seed", range(3))
def test_adaptive_finds_the_exact_list_with_fewer_losses(blocks, tokenizer, seed):
    text = calibration_set("python-docs", tokenizer, num_samples=8, sequence_length=64, seed=seed)
    lists, points = [], []
    for effort in ("exact", "adaptive"):
        found = run_method(Probe(blocks, text), make_method("sleb", {"effort": effort}), "sleb", 6)
        lists.append(found.points[-1].removed)
        points.append(found.points)
    assert lists[0] == lists[1]
    assert [len(point.candidates) for point in points[0]] == [10, 9, 8, 7, 6, 5]
    assert sum(point.window_losses for point in points[1]) < 0.9 * 45 * 8
    assert all(point.margin is None or point.margin > 0 for point in points[1])
    for exact, adaptive in zip(*points, strict=True):
        assert adaptive.loss == pytest.approx(exact.loss, rel=1e-5)


def test_adaptive_without_slack_left_is_exact(blocks, calibration):
    """With slack 0 every candidate may be the least, and with z 0 none is dropped."""
    found = [
        run_method(
            Probe(blocks, calibration), make_method("sleb", {"effort": effort, "slack": 0.0, "z": 0.0}), "sleb", 4
        )
        for effort in ("exact", "adaptive")
    ]
    assert [sorted(point.candidates) for point in found[0].points] == [
        sorted(point.candidates) for point in found[1].points
    ]


@pytest.mark.parametrize("fork", [True, False])
def test_progress_ends_where_it_was_expected_to(blocks, calibration, fork):
    steps = []
    sleb(Probe(blocks, calibration, fork=fork, on_progress=lambda *step: steps.append(step)), 3)
    expected = (1 + 10 + 9 + 8) * len(calibration.windows)
    assert steps[-1] == (expected, expected)
    assert all(total == expected for _, total in steps[len(calibration.windows) :])
    assert all(before[0] < after[0] for before, after in itertools.pairwise(steps))


def test_losses_are_kept_in_full(blocks, calibration, tmp_path):
    first = sleb(Probe(blocks, calibration, journal=Journal(tmp_path / "a", {})), 2)
    again = sleb(Probe(blocks, calibration, journal=Journal(tmp_path / "a", {})), 2)
    assert dataclasses.asdict(first) == dataclasses.asdict(again)
