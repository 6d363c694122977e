"""The portfolio is never worse than its starts, and finds the optimum of the fixture for less than SLEB's cost."""

from __future__ import annotations

import pytest

from streamliner.measure.probe import Probe
from streamliner.search.neighbours import LocalSearch
from streamliner.search.registry import make_method
from streamliner.search.run_method import run_method


def found(blocks, calibration, name, limit=4):
    probe = Probe(blocks, calibration)
    return run_method(probe, make_method(name), name, limit), probe.counters.window_losses


def test_it_is_within_a_percent_of_the_optimum_and_not_dearer_than_sleb(blocks, calibration):
    (best, spent), (sleb, of_sleb), (optimum, _) = (
        found(blocks, calibration, name) for name in ("best", "sleb", "exhaustive")
    )
    assert spent <= of_sleb
    assert best.points[-1].loss <= sleb.points[-1].loss
    assert best.points[-1].loss <= 1.01 * optimum.points[-1].loss
    assert [len(point.removed) for point in best.points] == [1, 2, 3, 4]


@pytest.mark.parametrize("z", [0.0, 3.0])
def test_swaps_leave_a_bad_start(blocks, calibration, z):
    probe = Probe(blocks, calibration)
    search = LocalSearch(probe, lambda removed: True, list(range(1, 11)), z, budget=10_000)
    search.measure([(9, 10)])
    end = search.climb((9, 10))
    assert search.losses[end].mean < search.losses[9, 10].mean
    swaps = [tuple(sorted({block, other})) for block in end for other in range(1, 11) if other not in end]
    assert min(loss.mean for loss in probe.losses(swaps).values()) >= search.losses[end].mean - 1e-9


def test_without_a_budget_nothing_more_is_measured(blocks, calibration):
    probe = Probe(blocks, calibration)
    search = LocalSearch(probe, lambda removed: True, list(range(1, 11)), 3.0, budget=4)
    search.measure([(3, 4), (4, 5)])
    assert list(search.losses) == [(3, 4)]
    assert search.climb((3, 4)) == (3, 4)
