"""Several processes share the windows of a search: the list and the losses are those of one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from command import TORCHRUN
from places import TINY

QUICK = ["--remove", "3", "--num-samples", "5", "--sequence-length", "64", "--quiet"]
ACCELERATE = ["accelerate.commands.launch", "--cpu", "--num_machines", "1", "--num_processes", "1"]
"""Without GPUs it starts several processes only through MPI."""


def search(folder, *arguments, launcher=()):
    launched = [*launcher, "-m", "streamliner"] if launcher else ["streamliner"]
    command = [sys.executable, "-m", *launched, "search", str(TINY), "-o", str(folder), *QUICK, *arguments]
    return subprocess.Popen(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


def losses(folder):
    frontier = json.loads((folder / "frontier.json").read_text())
    return [
        (point["removed"], [point["loss"], *(point["candidates"][key] for key in sorted(point["candidates"]))])
        for point in frontier["points"]
    ]


def measured(folder):
    """(removed, window) of every loss in the journals."""
    lines = [json.loads(line) for file in folder.glob("journal*.jsonl") for line in file.read_text().splitlines()]
    return [
        (tuple(removed), window)
        for line in lines
        if "windows" in line
        for removed in line["removed"]
        for window in line["windows"]
    ]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone") / "run"
    finish(search(folder))
    return folder


def test_two_processes_find_what_one_does(alone, tmp_path):
    out = finish(search(tmp_path / "two", "--json", launcher=TORCHRUN))
    json.loads(out)  # one of them printed
    for (removed, found), (expected_removed, expected) in zip(losses(tmp_path / "two"), losses(alone), strict=True):
        assert removed == expected_removed
        assert found == pytest.approx(expected, abs=1e-6)
    both = measured(tmp_path / "two")
    assert sorted(both) == sorted(measured(alone))
    assert len(both) == len(set(both))
    assert len((tmp_path / "two" / "journal.1.jsonl").read_text().splitlines()) > 5


def test_accelerate_launches_it(alone, tmp_path):
    finish(search(tmp_path / "one", launcher=ACCELERATE))
    assert losses(tmp_path / "one") == losses(alone)


def test_two_processes_adapt_as_one_does(tmp_path):
    for name, launcher in (("one", ()), ("two", TORCHRUN)):
        finish(search(tmp_path / name, "--search-effort", "adaptive", launcher=launcher))
    assert [removed for removed, _ in losses(tmp_path / "two")] == [removed for removed, _ in losses(tmp_path / "one")]


def test_killed_two_processes_are_continued_by_one(alone, tmp_path):
    process = search(tmp_path / "two", launcher=TORCHRUN)
    second = tmp_path / "two" / "journal.1.jsonl"
    while not (second.exists() and len(second.read_text().splitlines()) > 5) and process.poll() is None:
        time.sleep(0.005)
    subprocess.run(["pkill", "-KILL", "-f", f"streamliner search .* -o {tmp_path / 'two'}"], check=False)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "two" / "frontier.json").exists()
    finish(search(tmp_path / "two"))
    assert [removed for removed, _ in losses(tmp_path / "two")] == [removed for removed, _ in losses(alone)]
    assert len(measured(tmp_path / "two")) == len(set(measured(tmp_path / "two")))


def test_what_the_user_got_wrong_is_said(tmp_path):
    process = search(tmp_path / "two", "--seed", "1", "--method", "slob", launcher=TORCHRUN)
    _, err = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "Did you mean sleb?" in err
    assert not (tmp_path / "two").exists()
