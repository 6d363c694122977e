"""SIGKILL at any moment leaves no output folder or a whole one; the same command then ends as if undisturbed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from places import TINY


def command(folder):
    return [
        *(sys.executable, "-m", "streamliner", "prune", str(TINY), "--remove", "3", "-o", str(folder / "out")),
        *("--num-samples", "40", "--sequence-length", "128", "--quiet"),
    ]


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_interrupt(tmp_path):
    """Ctrl-C is a sentence and exit status 130, and leaves no output."""
    process = subprocess.Popen(command(tmp_path / "x"), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while not (tmp_path / "x" / "out.run" / "journal.jsonl").exists():
        time.sleep(0.05)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Stopped." in err
    assert "Traceback" not in err
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["out.run"]


def journal_lines(folder):
    journal = folder / "out.run" / "journal.jsonl"
    return len(journal.read_bytes().splitlines()) if journal.exists() else 0


# Kill once this holds and so many more seconds have passed: during the search, while writing, while verifying.
MOMENTS = [
    (lambda folder: True, 0.4),
    (lambda folder: journal_lines(folder) >= 4, 0.0),
    (lambda folder: journal_lines(folder) >= 60, 0.05),
    (lambda folder: any(folder.glob(".out.partial-*")), 0.0),
    (lambda folder: any(folder.glob(".out.partial-*/model.safetensors")), 0.0),
    (lambda folder: any(folder.glob(".out.partial-*/tokenizer.json")), 0.3),
]


def test_sigkill(tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    (tmp_path / "whole").mkdir()
    subprocess.run(command(tmp_path / "whole"), check=True, env=environment, stdout=subprocess.DEVNULL)
    expected = contents(tmp_path / "whole" / "out")
    frontier = (tmp_path / "whole" / "out.run" / "frontier.json").read_bytes()

    folder = tmp_path / "killed"
    folder.mkdir()
    killed = 0
    for happened, delay in MOMENTS:
        process = subprocess.Popen(command(folder), env=environment, stdout=subprocess.DEVNULL)
        while process.poll() is None and not happened(folder):
            time.sleep(0.002)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        if (folder / "out").exists():
            assert contents(folder / "out") == expected
            break
    assert killed >= 4
    if not (folder / "out").exists():
        subprocess.run(command(folder), check=True, env=environment, stdout=subprocess.DEVNULL)
    assert contents(folder / "out") == expected
    assert (folder / "out.run" / "frontier.json").read_bytes() == frontier
    assert sorted(path.name for path in folder.iterdir()) == ["out", "out.run"]


@pytest.mark.parametrize("effort", ["exact", "adaptive"])
def test_sigkill_at_ten_random_moments_of_a_search(tmp_path, effort):
    """The result is that of a run that was not killed, and no loss is measured twice."""

    def search(folder):
        return [
            *(sys.executable, "-m", "streamliner", "search", str(TINY), "--remove", "6", "-o", str(folder)),
            *("--num-samples", "40", "--sequence-length", "128", "--quiet", "--search-effort", effort),
        ]

    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(search(tmp_path / "whole.run"), check=True, env=environment, stdout=subprocess.DEVNULL)
    total = len((tmp_path / "whole.run" / "journal.jsonl").read_text().splitlines())
    moments = random.Random(effort)
    kills = 0
    killed = tmp_path / "out.run"
    for until in sorted(moments.sample(range(total), 10)):
        process = subprocess.Popen(search(killed), env=environment, stdout=subprocess.DEVNULL)
        while process.poll() is None and journal_lines(tmp_path) < until:
            time.sleep(0.001)
        time.sleep(moments.random() * 0.02)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills >= 8
    subprocess.run(search(killed), check=True, env=environment, stdout=subprocess.DEVNULL)
    for name in ("frontier.json", "plan.json"):
        assert (killed / name).read_bytes() == (tmp_path / "whole.run" / name).read_bytes()
    measured = [
        (tuple(removed), window)
        for line in map(json.loads, (killed / "journal.jsonl").read_text().splitlines())
        for removed in line.get("removed", [])
        for window in line["windows"]
    ]
    assert len(measured) == len(set(measured))


def test_interrupted_healing_keeps_its_last_step(tmp_path):
    """Ctrl-C waits for the end of the step and saves."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    cut = [sys.executable, "-m", "streamliner", "cut", str(TINY), "--blocks", "4,5", "-o", str(tmp_path / "cut"), "-q"]
    subprocess.run(cut, check=True, env=environment, stdout=subprocess.DEVNULL)
    heal = [
        *(sys.executable, "-m", "streamliner", "heal", str(tmp_path / "cut"), "--dense", str(TINY)),
        *("-o", str(tmp_path / "healed"), "--steps", "2000", "--batch-size", "2", "--sequence-length", "64"),
        *("--validation-windows", "2", "--validations", "1"),
    ]
    process = subprocess.Popen(heal, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    history = tmp_path / "healed.run" / "history.jsonl"
    while not history.exists() or len(history.read_bytes().splitlines()) < 30:
        time.sleep(0.01)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command continues" in err
    steps = len(history.read_bytes().splitlines()) - 1
    process = subprocess.Popen(heal, env=environment, stderr=subprocess.PIPE, text=True)
    assert any(f"after step {steps} of 2000" in line for line in process.stderr)
    process.kill()
    process.wait()
    process.stderr.close()


def test_sigkill_at_twenty_random_moments_of_healing(tmp_path):
    """The same command then ends with the same bytes: weights, losses, and the state that was best."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    cut = [
        sys.executable,
        "-m",
        "streamliner",
        "cut",
        str(TINY),
        "--blocks",
        "4,5,9",
        "-o",
        str(tmp_path / "cut"),
        "-q",
    ]
    subprocess.run(cut, check=True, env=environment, stdout=subprocess.DEVNULL)

    def heal(name):
        return [
            *(sys.executable, "-m", "streamliner", "heal", str(tmp_path / "cut"), "--dense", str(TINY), "--quiet"),
            *("-o", str(tmp_path / name), "--loss", "mse", "--loss", "lm=0.1", "--lora", "2", "--dtype", "float32"),
            *("--steps", "60", "--batch-size", "2", "--sequence-length", "64", "--validation-windows", "4"),
            *("--validations", "7", "--save-every", "3"),
        ]

    subprocess.run(heal("whole"), check=True, env=environment, stdout=subprocess.DEVNULL)
    moments = random.Random(0)
    kills, steps_seen = 0, []
    history = tmp_path / "killed.run" / "history.jsonl"

    def step():
        return len(history.read_bytes().splitlines()) if history.exists() else 0

    # Twenty moments in order: while starting, in each part of the training, and while writing and verifying.
    for until in [*sorted(moments.sample(range(61), 18)), 61, 61]:
        process = subprocess.Popen(heal("killed"), env=environment, stdout=subprocess.DEVNULL)
        while process.poll() is None and step() < until:
            time.sleep(0.001)
        time.sleep(moments.random() * (0.05 if until < 61 else 1.0))
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        steps_seen.append(step())
        if (tmp_path / "killed").exists():
            break
    assert kills >= 18
    assert len(set(steps_seen)) > 10
    if not (tmp_path / "killed").exists():
        subprocess.run(heal("killed"), check=True, env=environment, stdout=subprocess.DEVNULL)
    whole, killed = contents(tmp_path / "whole"), contents(tmp_path / "killed")
    assert whole.keys() == killed.keys()
    assert whole["model.safetensors"] == killed["model.safetensors"]
    assert whole == killed
    assert history.read_bytes() == (tmp_path / "whole.run" / "history.jsonl").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut", "killed", "killed.run", "whole", "whole.run"]
