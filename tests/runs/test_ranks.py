"""Several processes share the windows of a search: the list and the losses are those of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from command import TORCHRUN, run
from kill import finish, start_pair
from places import TINY
from streamliner.errors import OutputError
from streamliner.runs.files import read_json_lines
from streamliner.runs.journal import Journal, open_journal
from streamliner.runs.ranks import Ranks

QUICK = ["--remove", "3", "--num-samples", "5", "--sequence-length", "64", "--dtype", "float32", "--quiet"]
ACCELERATE = [
    *("accelerate.commands.launch", "--multi_gpu", "--num_machines", "1", "--num_processes", "2"),
    *("--mixed_precision", "no", "--dynamo_backend", "no"),
]
"""With --cpu accelerate starts several processes only through MPI; --multi_gpu starts them without GPUs too."""


def search(folder, *arguments):
    return ("search", TINY, "-o", folder, *QUICK, *arguments)


def points(folder):
    """The removed blocks of each point, and its losses: its own, then those of the candidates."""
    frontier = json.loads((folder / "frontier.json").read_text())
    return [
        (point["removed"], [point["loss"], *(point["candidates"][key] for key in sorted(point["candidates"]))])
        for point in frontier["points"]
    ]


def assert_same_points(found, expected):
    for (removed, losses), (expected_removed, expected_losses) in zip(points(found), points(expected), strict=True):
        assert removed == expected_removed
        assert losses == pytest.approx(expected_losses, rel=1e-5)


def measured(folder):
    """(removed, window) of every loss in the journals."""
    return [
        (tuple(removed), window)
        for file in folder.glob("journal*.jsonl")
        for line in read_json_lines(file)
        if "windows" in line
        for removed in line["removed"]
        for window in line["windows"]
    ]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone") / "run"
    finish(*search(folder))
    return folder


@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate"])
def test_two_processes_find_what_one_does(alone, tmp_path, launcher):
    command = [sys.executable, "-m", *launcher, "-m", "streamliner", *map(str, search(tmp_path / "two", "--json"))]
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    json.loads(done.stdout)  # one of them printed
    assert_same_points(tmp_path / "two", alone)
    both = measured(tmp_path / "two")
    assert sorted(both) == sorted(measured(alone))
    assert len(both) == len(set(both))
    assert len(read_json_lines(tmp_path / "two" / "journal.1.jsonl")) > 5


@pytest.mark.parametrize("arguments", [(), ("--objective", "kl")], ids=["loss", "kl"])
def test_two_processes_adapt_as_one_does(tmp_path, arguments):
    one, two = (search(tmp_path / name, "--search-effort", "adaptive", *arguments) for name in ("one", "two"))
    finish(*one)
    status, _, err = start_pair(tmp_path / "printed", *two).wait()
    assert status == 0, err
    losses = [[losses[0] for _, losses in points(tmp_path / name)] for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert [removed for removed, _ in points(tmp_path / "two")] == [removed for removed, _ in points(tmp_path / "one")]


def test_killed_two_processes_are_continued_by_one(alone, tmp_path):
    two = start_pair(tmp_path / "printed", *search(tmp_path / "two"))
    second = tmp_path / "two" / "journal.1.jsonl"
    while len(read_json_lines(second)) <= 5 and any(process.is_alive() for process in two.processes):
        time.sleep(0.005)
    two.kill()
    assert not (tmp_path / "two" / "frontier.json").exists()
    finish(*search(tmp_path / "two"))
    assert_same_points(tmp_path / "two", alone)
    assert len(measured(tmp_path / "two")) == len(set(measured(tmp_path / "two")))


def test_a_mistake_is_explained(tmp_path):
    status, _, err = start_pair(tmp_path / "printed", *search(tmp_path / "two", "--method", "slob")).wait()
    assert status == 2
    assert "Did you mean sleb?" in err
    assert not (tmp_path / "two").exists()


@pytest.mark.parametrize("verb", ["cut", "evaluate", "benchmark", "verify"])
def test_verbs_for_one_process_say_so(capsys, monkeypatch, verb):
    monkeypatch.setenv("WORLD_SIZE", "2")
    _, err = run(capsys, verb, TINY, *(("-o", "out") if verb == "cut" else ()), status=2)
    assert f"streamliner {verb} is for one process" in err


def test_processes_that_see_different_journals_are_refused(tmp_path):
    class Two(Ranks):
        def total(self, values):
            return values + 5  # what another process found

    with pytest.raises(OutputError, match="different journals"):
        open_journal(tmp_path / "run", {"a": 1}, Two(0, 2))


def test_a_broken_journal_is_replaced_if_asked(tmp_path):
    journal = Journal(tmp_path / "run", {"a": 1})
    journal.remember([0], {(3,): [1.5]})
    file = tmp_path / "run" / "journal.jsonl"
    for broken in ("{\n", '{"windows": 3}\n'):
        file.write_text(file.read_text() + broken)
        with pytest.raises(OutputError, match="is broken"):
            Journal(tmp_path / "run", {"a": 1})
        assert Journal(tmp_path / "run", {"a": 1}, overwrite=True).losses == {}
