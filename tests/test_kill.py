"""SIGKILL at any moment leaves no output folder or a whole one; the same command then ends as if undisturbed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

from conftest import TINY

KILLS = 6


def command(folder):
    return [
        *(sys.executable, "-m", "streamliner", "prune", str(TINY), "--remove", "3", "-o", str(folder / "out")),
        *("--num-samples", "4", "--sequence-length", "128", "--quiet"),
    ]


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_sigkill(tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    (tmp_path / "whole").mkdir()
    start = time.monotonic()
    subprocess.run(command(tmp_path / "whole"), check=True, env=environment, stdout=subprocess.DEVNULL)
    duration = time.monotonic() - start
    expected = contents(tmp_path / "whole" / "out")
    frontier = (tmp_path / "whole" / "out.run" / "frontier.json").read_bytes()

    folder = tmp_path / "killed"
    folder.mkdir()
    moments = random.Random(0)
    killed = 0
    for _ in range(KILLS):
        process = subprocess.Popen(command(folder), env=environment, stdout=subprocess.DEVNULL)
        time.sleep(moments.uniform(0.3, 1.0) * duration)
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        if (folder / "out").exists():
            assert contents(folder / "out") == expected
            break
    assert killed
    if not (folder / "out").exists():
        subprocess.run(command(folder), check=True, env=environment, stdout=subprocess.DEVNULL)
    assert contents(folder / "out") == expected
    assert (folder / "out.run" / "frontier.json").read_bytes() == frontier
    assert sorted(path.name for path in folder.iterdir()) == ["out", "out.run"]
