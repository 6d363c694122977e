"""Run folders, journals and plans written by commit cbaae7f work with today's code."""

from __future__ import annotations

import json
import math
import shutil

import pytest

from command import run
from places import SUPPORT, TINY
from streamliner.search.plan import read_plan

EARLIER = SUPPORT / "run-of-cbaae7f"
SEARCHES = {"sleb": "sleb", "block_influence": "block-influence"}
"""The name of a method in that commit, which names its run folder here -> the name today."""


def search(capsys, folder, method, *arguments, status=0):
    return run(
        capsys,
        *("search", TINY, "--method", method, "--remove", "2", "--num-samples", "3", "--sequence-length", "48"),
        *("--dtype", "float32", "--protect-first", "4", "--protect-last", "4", "--calibration", EARLIER / "text.txt"),
        *("-o", folder, *arguments),
        status=status,
    )


@pytest.fixture(params=SEARCHES)
def earlier(request, tmp_path):
    """A finished run folder of that commit, to write in."""
    return shutil.copytree(EARLIER / request.param, tmp_path / request.param)


def test_a_finished_run_is_not_measured_again(capsys, earlier):
    journal = (earlier / "journal.jsonl").read_bytes()
    for method in (earlier.name, SEARCHES[earlier.name]):
        found = json.loads(search(capsys, earlier, method, "--json")[0])
        assert found["cost"]["window_losses"] == 0
        assert found["plan"]["method"] == SEARCHES[earlier.name]
    assert (earlier / "journal.jsonl").read_bytes() == journal


def test_a_killed_run_continues(capsys, earlier):
    expected = json.loads((earlier / "frontier.json").read_text())["points"]
    journal = (earlier / "journal.jsonl").read_text()
    (earlier / "journal.jsonl").write_text(journal[: len(journal) * 3 // 4])
    for name in ("frontier.json", "plan.json"):
        (earlier / name).unlink()
    out, err = search(capsys, earlier, SEARCHES[earlier.name], "--json")
    assert "Continuing the run" in err
    found = json.loads(out)
    assert found["cost"]["window_losses"] > 0
    for point, before in zip(found["frontier"]["points"], expected, strict=True):
        assert point["removed"] == before["removed"]
        assert point["loss"] == pytest.approx(before["loss"], rel=1e-5)
    assert json.loads((earlier / "frontier.json").read_text())["points"][0]["removed"] == expected[0]["removed"]


def test_another_run_is_refused(capsys, earlier):
    _, err = search(capsys, earlier, "streamline", status=2)
    assert "is of another run: method was" in err


def test_a_plan_can_be_read_and_cut(capsys, earlier, tmp_path):
    plan = read_plan(earlier)
    assert plan.removed == tuple(sorted(plan.order))
    run(capsys, "cut", TINY, "--plan", earlier, "-o", tmp_path / "out", "-q")
    assert read_plan(tmp_path / "out").removed == plan.removed


def test_a_report_reads_it(capsys, earlier, tmp_path):
    run(capsys, "report", earlier, "-o", tmp_path / "report.html")
    loss = json.loads((earlier / "frontier.json").read_text())["points"][0]["loss"]
    assert f"{math.exp(loss):.4g}" in (tmp_path / "report.html").read_text()
