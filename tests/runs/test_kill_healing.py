"""A healing that was killed continues and ends with the same bytes: weights, losses, and the state that was best."""

from __future__ import annotations

import random

from kill import contents, count_lines, finish, kill_when
from places import TINY


def test_sigkill_at_twenty_random_moments(tmp_path):
    finish("cut", TINY, "--blocks", "4,5,9", "-o", tmp_path / "cut", "-q")

    def heal(name):
        return [
            *("heal", tmp_path / "cut", "--dense", TINY, "-o", tmp_path / name, "--quiet", "--dtype", "float32"),
            *("--loss", "mse", "--loss", "lm=0.1", "--lora", "2", "--steps", "60", "--global-batch-size", "2"),
            *("--sequence-length", "64", "--validation-windows", "4", "--validations", "7", "--save-every", "3"),
            *("--sampled-softmax", "64"),
        ]

    finish(*heal("whole"))
    history = tmp_path / "killed.run" / "history.jsonl"
    moments = random.Random(0)
    kills, steps = 0, []
    # In order: while starting, in each part of the training, and twice while writing and verifying.
    for until in [*sorted(moments.sample(range(61), 18)), 61, 61]:
        reached = lambda until=until: count_lines(history) >= until  # noqa: E731
        delay = moments.random() * (0.05 if until < 61 else 0.3)
        kills += kill_when(reached, delay, *heal("killed"))
        steps.append(count_lines(history))
        if (tmp_path / "killed").exists():
            break
    assert kills >= 18
    assert len(set(steps)) > 10
    if not (tmp_path / "killed").exists():
        finish(*heal("killed"))
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert history.read_bytes() == (tmp_path / "whole.run" / "history.jsonl").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut", "killed", "killed.run", "whole", "whole.run"]
