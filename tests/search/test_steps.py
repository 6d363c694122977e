"""A search in steps: blocks of the cut model that a step searches are told by their indices in the dense model."""

from __future__ import annotations

import math

import pytest

from streamliner.cut.memory import cut_model
from streamliner.measure.probe import Probe
from streamliner.model.blocks import Blocks
from streamliner.search.frontier import note_of
from streamliner.search.registry import make_method, method_names
from streamliner.search.run_method import run_method
from streamliner.search.steps import Steps


@pytest.fixture
def probe(blocks, calibration):
    return Probe(blocks, calibration)


def steps_of(probe, blocks, every):
    """Steps without any repair: their models are the cut ones."""

    def cut(removed):
        return probe.of_model(Blocks(cut_model(blocks.model, removed)), None, lambda more: "")

    return Steps(every, "none", cut)


@pytest.mark.parametrize("name", method_names())
def test_every_method_works_in_steps(name, probe, blocks):
    method, steps = make_method(name), steps_of(probe, blocks, 2)
    points = run_method(probe, method, name, 5, steps=steps).points
    assert [len(set(point.removed)) for point in points] == [1, 2, 3, 4, 5]
    for point, end in zip(points, (0, 0, 2, 2, 4), strict=True):
        before = points[end - 1].removed if end else ()
        assert point.removed[: len(before)] == before
        assert all(method.protect_first <= block < 12 - method.protect_last for block in point.removed)
        assert point.loss == pytest.approx(probe.loss(point.removed).mean, rel=1e-5)
        assert not set(before) & set(point.candidates or ())
        assert math.isfinite(point.score)


@pytest.mark.parametrize("every", [1, 2, 3])
def test_without_repairs_sleb_in_steps_is_sleb(every, probe, blocks):
    whole = run_method(probe, make_method("sleb"), "sleb", 5)
    again = run_method(probe, make_method("sleb"), "sleb", 5, steps=steps_of(probe, blocks, every))
    for one, other in zip(whole.points, again.points, strict=True):
        assert one.removed == other.removed
        assert one.candidates == pytest.approx(other.candidates, rel=1e-5)
    assert again.settings == whole.settings | {"fold": "none", "fold_every": every}


def test_the_cost_of_all_steps_is_counted(probe, blocks):
    run_method(probe, make_method("sleb"), "sleb", 3, steps=steps_of(probe, blocks, 1))
    assert probe.counters.window_losses == probe.num_windows * (1 + 10 + 9 + 8)
    assert probe.progress.done == probe.counters.window_losses


def test_a_method_that_is_stuck_in_a_step_ends(probe, blocks):
    """In the second step the architecture refuses all that is left."""

    def stuck(removed):
        return probe.of_model(Blocks(cut_model(blocks.model, removed)), None, lambda more: "no")

    found = [*Steps(2, "none", stuck).search(make_method("sleb"), probe, 4)]
    assert [len(point.removed) for point in found] == [1, 2]


def test_the_note_says_of_what_the_losses_are():
    assert note_of({"metric": "iterative"}) == ""
    assert "(gain) after every removed block;" in note_of({"fold": "gain", "fold_every": 1})
    assert "(gain) after every 2 removed blocks;" in note_of({"fold": "gain", "fold_every": 2})
