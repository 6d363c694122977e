"""A search that was killed continues: the result is that of one that was not, and no loss is measured twice."""

from __future__ import annotations

import random

import pytest

from kill import count_lines, finish, kill_when
from places import TINY
from streamliner.runs.files import read_json_lines


def search(folder, effort):
    return [
        *("search", TINY, "--remove", "6", "-o", folder, "--quiet", "--search-effort", effort),
        *("--num-samples", "20", "--sequence-length", "128"),
    ]


@pytest.mark.parametrize("effort", ["exact", "adaptive"])
def test_sigkill_at_ten_random_moments(tmp_path, effort):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(*search(whole, effort))
    moments = random.Random(effort)
    journal, kills = killed / "journal.jsonl", 0
    for until in sorted(moments.sample(range(count_lines(whole / "journal.jsonl")), 10)):
        reached = lambda until=until: count_lines(journal) >= until  # noqa: E731
        kills += kill_when(reached, moments.random() * 0.02, *search(killed, effort))
    assert kills >= 8
    finish(*search(killed, effort))
    for name in ("frontier.json", "plan.json"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    measured = [
        (tuple(removed), window)
        for line in read_json_lines(journal)
        for removed in line.get("removed", [])
        for window in line["windows"]
    ]
    assert len(measured) == len(set(measured))
