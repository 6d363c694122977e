"""The result of a search: plans, table, plot and JSON."""

from __future__ import annotations

import json
import sys

import pytest

from streamliner.errors import MissingExtraError, PlanError
from streamliner.measure.counters import Counters
from streamliner.search.found import Found
from streamliner.search.frontier import Frontier, Point
from streamliner.search.plan import read_plan

MODEL = {"name": "tiny", "model_type": "llama", "hidden_size": 96, "vocab_size": 1024}


@pytest.fixture
def found(calibration):
    points = (Point((3,), 2.2, 2.2, 0.1), Point((3, 1), 2.5, 2.5, 0.1))
    return Found(Frontier("sleb", {}, 2.0, points, "calibration loss"), Counters(), calibration, MODEL, 12)


def test_plans_by_number_of_blocks(found, calibration):
    plan = found.plan(1)
    assert (plan.removed, plan.order, plan.loss, plan.dense_loss) == ((3,), (3,), 2.2, 2.0)
    assert found.plan().removed == (1, 3)
    assert found.plan().order == (3, 1)
    assert found.plan().calibration == calibration.provenance
    with pytest.raises(PlanError, match=r"no point with 5 blocks removed(.|\n)*1, 2"):
        found.plan(5)


def test_a_plan_says_what_it_removes(found):
    assert repr(found.plan()) == "Plan for tiny (sleb): remove 2 of 12 blocks [1, 3]: perplexity 7.389 -> 12.18"


def test_json_holds_the_plan_that_can_be_read_back(found, tmp_path):
    value = json.loads(json.dumps(found.to_json()))
    assert set(value) == {"plan", "frontier", "cost"}
    (tmp_path / "plan.json").write_text(json.dumps(value["plan"]))
    assert read_plan(tmp_path) == found.plan()


def test_the_table_has_a_row_for_each_number_of_blocks(found):
    assert repr(found).splitlines() == [
        "sleb on python-docs: 4 windows of 128 tokens, 512 in all",
        "removed  blocks (0-based, in order)  perplexity  change  score",
        "0                                    7.389",
        "1        3                           9.025       +22.1%  2.2000",
        "2        3, 1                        12.18       +64.9%  2.5000",
        "score: calibration loss",
        "0 forwards, 0 block forwards, 0 tokens, 0.0 s",
    ]
    assert found._repr_html_().count("<tr>") == 4


def test_a_point_without_a_loss_has_a_row_too(calibration):
    frontier = Frontier("mine.py:Last", {}, 2.0, (Point((3,), 0.5),))
    found = Found(frontier, Counters(), calibration, MODEL, 12)
    assert found.tables()[0].rows[-1] == ["1", "3", "", "", "0.5000"]


def test_the_plot_draws_perplexity_by_blocks(found):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    axes = found.plot()
    (line,) = axes.get_lines()
    assert line.get_xdata().tolist() == [0, 1, 2]
    assert line.get_ydata() == pytest.approx([7.389, 9.025, 12.182], abs=1e-3)
    assert found.plot(axes) is axes
    assert len(axes.get_lines()) == 2


def test_without_matplotlib_the_extra_is_named(found, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"\[plot\]'"):
        found.plot()
