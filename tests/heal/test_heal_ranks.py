"""Healing in several processes: each trains on its part of every batch, and the losses are those of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from safetensors.torch import load_file

from command import TORCHRUN
from kill import finish, start_pair
from places import TINY

HEAL = [
    *(
        "--steps",
        "5",
        "--global-batch-size",
        "4",
        "--micro-batch",
        "1",
        "--sequence-length",
        "64",
        "--learning-rate",
        "1e-3",
    ),
    *("--validation-windows", "5", "--validations", "2", "--dtype", "float32", "--json"),
]


def command(folder, name, *arguments):
    return ("heal", folder / "cut", "--dense", TINY, *HEAL, *arguments, "-o", folder / name)


def torchrun(*arguments):
    """In two processes that torchrun starts, which stops both if one fails."""
    done = subprocess.run(
        [sys.executable, "-m", *TORCHRUN, *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def rows(folder):
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("ranks")
    finish("cut", TINY, "--blocks", "4,5,9", "-o", path / "cut", "-q")
    return path


KINDS = {
    "networks": ["--loss", "mse", "--loss", "lm"],
    "adapters": ["--lora", "2", "--loss", "mse", "--loss", "kd"],
    "sampled": [
        *("--network", "none", "--train-blocks", "2"),
        *("--loss", "lm", "--loss", "kd", "--sampled-softmax", "64"),
    ],
}


def assert_as_one(folder, kind, name, two):
    """A run of two processes has the losses and the weights of one, which runs for the test that is first to ask."""
    if not (folder / f"{kind}-one").exists():
        finish(*command(folder, f"{kind}-one", *KINDS[kind]))
    status, out, err = two
    assert status == 0, err
    assert json.loads(out)["verification"]["cached_generation"]  # one of them printed
    for ours, theirs in zip(rows(folder / f"{name}.run"), rows(folder / f"{kind}-one.run"), strict=True):
        ours, theirs = ({key: value for key, value in row.items() if value is not None} for row in (ours, theirs))
        assert ours == pytest.approx(theirs, rel=1e-5)
    ours, theirs = (load_file(folder / each / "model.safetensors") for each in (name, f"{kind}-one"))
    assert all((ours[name] - theirs[name]).abs().max() < 2e-2 for name in theirs)


def test_two_processes_have_the_losses_of_one(folder):
    two = torchrun("-m", "streamliner", *command(folder, "networks-two", *KINDS["networks"]))
    assert_as_one(folder, "networks", "networks-two", two)


def test_two_processes_train_the_adapters_of_one(folder, tmp_path):
    two = start_pair(tmp_path, *command(folder, "adapters-two", *KINDS["adapters"])).wait()
    assert_as_one(folder, "adapters", "adapters-two", two)


def test_two_processes_draw_the_samples_of_one(folder, tmp_path):
    """Of the vocabulary, by the windows at work."""
    two = start_pair(tmp_path, *command(folder, "sampled-two", *KINDS["sampled"])).wait()
    assert_as_one(folder, "sampled", "sampled-two", two)
    assert two[2].count("random others") == 1  # one of them said it


def test_two_processes_that_divide_frozen_blocks_have_the_losses_of_one(folder, tmp_path):
    two = start_pair(tmp_path, *command(folder, "sharded", "--shard", *KINDS["adapters"])).wait()
    assert_as_one(folder, "adapters", "sharded", two)
    assert "Each process holds 2.44 MB of the 4.88 MB" in two[2]


def test_a_batch_that_cannot_be_divided_is_refused(folder, tmp_path):
    status, _, err = start_pair(tmp_path, *command(folder, "odd", "--global-batch-size", "3")).wait()
    assert status == 2
    assert "cannot be divided among 2 processes" in err
    assert not (folder / "odd").exists()


def test_the_first_process_decides_when_to_save(folder, tmp_path):
    """Clocks differ: with a save whenever a third of the time has gone into saving, each process would decide alone."""
    often = {("streamliner.heal.trainer", "SAVE_SECONDS"): 0.0, ("streamliner.heal.trainer", "SAVE_SHARE"): 0.3}
    status, _, err = start_pair(tmp_path, *command(folder, "often", "--steps", "60"), changed=often).wait()
    assert status == 0, err
