"""Beam, evolution and refinement: never worse than their starts, within their budget, reproducible."""

from __future__ import annotations

import pytest

from command import run
from places import TINY
from streamliner.errors import MethodError
from streamliner.measure.probe import Probe
from streamliner.search.method import measured
from streamliner.search.methods.best import similar_intervals
from streamliner.search.methods.refine import Refine
from streamliner.search.neighbours import LocalSearch
from streamliner.search.registry import make_method
from streamliner.search.run_method import run_method


def found(blocks, calibration, name, limit=4, **settings):
    probe = Probe(blocks, calibration)
    return run_method(probe, make_method(name, settings), name, limit), probe


def test_a_beam_of_one_is_sleb(blocks, calibration):
    beam, sleb = (
        found(blocks, calibration, name, **settings)[0] for name, settings in (("beam", {"width": 1}), ("sleb", {}))
    )
    assert [tuple(sorted(point.removed)) for point in sleb.points] == [point.removed for point in beam.points]


def test_a_wider_beam_is_not_worse_here(blocks, calibration):
    losses = [found(blocks, calibration, "beam", width=width)[0].points[-1].loss for width in (1, 3, 8)]
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize(("name", "settings"), [("evolution", {"offspring": 8}), ("refine", {"budget": 1.0})])
def test_it_is_near_the_optimum_and_keeps_its_budget(blocks, calibration, name, settings):
    frontier, probe = found(blocks, calibration, name, **settings)
    optimum, _ = found(blocks, calibration, "exhaustive")
    starts = probe.losses(similar_intervals(probe, list(range(1, 11)), 4))
    point = frontier.points[-1]
    assert [len(each.removed) for each in frontier.points] == [1, 2, 3, 4]
    assert point.loss <= min(loss.mean for loss in starts.values())
    assert point.loss <= 1.05 * optimum.points[-1].loss
    exact = make_method("sleb").losses_left(probe, (), 4) * probe.num_windows
    generation = 8 * probe.num_windows if name == "evolution" else 0  # the last one may go over it
    assert probe.counters.window_losses <= exact + generation + 5 * probe.num_windows


def test_evolution_depends_on_its_seed_alone(blocks, calibration):
    first, again = (found(blocks, calibration, "evolution", offspring=4, budget=0.3, seed=1) for _ in range(2))
    assert first[0] == again[0]
    assert first[1].counters.window_losses == again[1].counters.window_losses


@pytest.mark.parametrize("name", ["evolution", "refine"])
def test_what_is_known_from_a_killed_run_changes_nothing(blocks, calibration, name):
    """Its losses are known then, and count as spent all the same."""
    method, probe = make_method(name), Probe(blocks, calibration)
    first = run_method(probe, method, name, 4)
    assert run_method(probe, method, name, 4) == first


@pytest.mark.parametrize(("name", "settings"), [("evolution", {"offspring": 4}), ("refine", {"budget": 1.0})])
def test_at_every_number_of_blocks(blocks, calibration, name, settings):
    frontier, probe = found(blocks, calibration, name, 3, every=True, **settings)
    single = min(loss.mean for loss in probe.losses([(block,) for block in range(1, 11)]).values())
    assert frontier.points[0].loss == pytest.approx(single)
    assert [len(point.removed) for point in frontier.points] == [1, 2, 3]


def test_runs_are_shifted_as_a_whole(blocks, calibration):
    search = LocalSearch(Probe(blocks, calibration), lambda removed: True, list(range(1, 11)), 3.0, 0)
    assert set(search._shifts((1, 4, 5, 6))) == {
        (1, 2, 3, 4),
        (1, 3, 4, 5),
        (1, 5, 6, 7),
        (1, 6, 7, 8),
        (1, 7, 8, 9),
        (1, 8, 9, 10),
    }


def test_blocks_are_added_to_the_interval_whose_loss_rises_least_per_block(blocks, calibration):
    method, probe = Refine(z=0), Probe(blocks, calibration)
    points = [measured(probe, interval) for interval in ((3,), (3, 4), (8, 9), (2, 3, 4))]
    interval = (3, 4) if points[1].score < points[2].score else (8, 9)
    longer = probe.losses([tuple(sorted((*interval, new))) for new in range(1, 11) if new not in interval])
    best = min(longer, key=lambda each: longer[each].mean)
    assert method._grown(probe, points[:3], 3, 9 * probe.num_windows) == ([best], 8 * probe.num_windows)
    assert method._grown(probe, points[:3], 3, 9 * probe.num_windows - 1) == ([], 0)  # no set would be left for swaps
    assert method._grown(probe, points[:1], 3, 1000) == ([], 0)  # less than half of the blocks


def refuse(removed):
    """As for a model in which every third block stays."""
    return "of images" if {*removed} & {3, 6, 9} else ""


@pytest.mark.parametrize("settings", [{}, {"budget": 1.0}, {"budget": 1.0, "every": True}])
def test_refine_where_no_interval_is_long_enough_starts_from_greedy_sets(blocks, calibration, settings):
    probe = Probe(blocks, calibration, refusal=refuse)
    points = run_method(probe, make_method("refine", settings), "refine", 3).points
    assert len(points[-1].removed) == 3
    assert not any({*point.removed} & {3, 6, 9} for point in points)
    if settings:
        sleb = run_method(probe, make_method("sleb"), "sleb", 3).points[-1]
        assert points[-1].loss <= sleb.loss


def test_an_interval_that_may_not_be_removed_as_a_whole_is_no_start(blocks, calibration):
    probe = Probe(blocks, calibration, refusal=lambda removed: "together" if {*removed} >= {4, 5} else "")
    assert not any({*each} >= {4, 5} for each in similar_intervals(probe, list(range(1, 11)), 2))
    points = run_method(probe, make_method("refine"), "refine", 3).points
    assert not any({*point.removed} >= {4, 5} for point in points)


@pytest.mark.parametrize("name", ["evolution", "refine"])
def test_more_blocks_than_may_be_removed(blocks, calibration, name):
    probe = Probe(blocks, calibration, refusal=refuse)
    with pytest.raises(MethodError, match="No set of 8 blocks"):
        run_method(probe, make_method(name), name, 8)


def test_a_plan_is_refined(capsys, tmp_path):
    text = ("--num-samples", "2", "--sequence-length", "64")
    run(capsys, "search", TINY, "-o", tmp_path / "start", "--method", "streamline", "--remove", "3", *text)
    refine = ("search", TINY, "--method", "refine", "--set", f"start={tmp_path / 'start'}", *text, "-o")
    run(capsys, *refine, tmp_path / "better", "--remove", "3")
    out, err = run(capsys, *refine, tmp_path / "other", "--remove", "4", status=2)
    assert "removes 3 blocks, but you asked for 4" in out + err


def test_nothing_to_spend(blocks, calibration):
    with pytest.raises(MethodError, match="too small to measure one set"):
        found(blocks, calibration, "refine", budget=0.01)
    with pytest.raises(MethodError, match="at least 1"):
        make_method("evolution", {"offspring": 0})
