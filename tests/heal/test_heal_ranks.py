"""Healing in several processes: each trains on its part of every batch, and the losses are those of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from safetensors.torch import load_file

from command import TORCHRUN
from kill import finish
from places import TINY

HEAL = [
    *(
        "--steps",
        "12",
        "--global-batch-size",
        "4",
        "--micro-batch",
        "1",
        "--sequence-length",
        "64",
        "--learning-rate",
        "1e-3",
    ),
    *("--validation-windows", "5", "--validations", "3", "--dtype", "float32", "--json"),
]


def heal(folder, name, *arguments, launcher=(), **environment):
    launched = [*launcher, "-m", "streamliner"] if launcher else ["streamliner"]
    command = [sys.executable, "-m", *launched, "heal", str(folder / "cut"), "--dense", str(TINY), *HEAL, *arguments]
    return subprocess.run(
        [*command, "-o", str(folder / name)],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def rows(folder):
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("ranks")
    finish("cut", TINY, "--blocks", "4,5,9", "-o", path / "cut", "-q")
    return path


@pytest.mark.parametrize("kind", ["mse", "lora"])
def test_two_processes_have_the_losses_of_one(folder, kind):
    more = ["--network", "none", "--lora", "2", "--loss", "kd"] if kind == "lora" else ["--loss", "mse", "--loss", "lm"]
    one = heal(folder, f"{kind}-one", *more)
    two = heal(folder, f"{kind}-two", *more, launcher=TORCHRUN)
    assert one.returncode == 0, one.stderr
    assert two.returncode == 0, two.stderr
    assert json.loads(two.stdout)["verification"]["cached_generation"]  # one of them printed
    for ours, theirs in zip(rows(folder / f"{kind}-two.run"), rows(folder / f"{kind}-one.run"), strict=True):
        ours, theirs = ({key: value for key, value in row.items() if value is not None} for row in (ours, theirs))
        assert ours == pytest.approx(theirs, rel=1e-5)
    ours, theirs = (load_file(folder / f"{kind}-{name}" / "model.safetensors") for name in ("two", "one"))
    assert all((ours[name] - theirs[name]).abs().max() < 2e-2 for name in theirs)


def test_a_batch_that_cannot_be_divided_is_refused(folder):
    process = heal(folder, "odd", "--global-batch-size", "3", launcher=TORCHRUN)
    assert process.returncode != 0
    assert "cannot be divided among 2 processes" in process.stderr
    assert not (folder / "odd").exists()


def test_the_first_process_decides_when_to_save(folder, tmp_path):
    """Clocks differ: with a save whenever a third of the time has gone into saving, each process would decide alone."""
    script = tmp_path / "often.py"
    script.write_text(
        "import sys\nfrom streamliner.heal import trainer\ntrainer.SAVE_SECONDS, trainer.SAVE_SHARE = 0.0, 0.3\n"
        "from streamliner.cli import main\nmain(sys.argv[1:])\n"
    )
    command = [sys.executable, "-m", *TORCHRUN, str(script), "heal", str(folder / "cut"), "--dense", str(TINY), *HEAL]
    done = subprocess.run(
        [*command, "--steps", "60", "-o", str(tmp_path / "out")],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
