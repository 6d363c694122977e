"""Budgets, and settings that contradict each other."""

from __future__ import annotations

import pytest

from healing import settings, training_text
from streamliner.errors import HealingError, UserError
from streamliner.heal.healing import count_steps


def test_budgets(tokenizer):
    text = training_text(tokenizer, settings())
    assert count_steps(settings(steps=7), text) == 7
    assert count_steps(settings(steps=None, tokens=4 * 64 * 9 + 5), text) == 9
    windows = text.windows_in_a_pass()
    assert count_steps(settings(steps=None, epochs=2), text) == 2 * windows // 4
    assert text.batch(2).tolist() == training_text(tokenizer, settings()).batch(2).tolist()  # counting changes nothing
    with pytest.raises(HealingError, match="less than one step"):
        count_steps(settings(steps=None, tokens=5), text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": "mlp"}, "--network has no mlp"),
        ({"loss": {"mae": 1.0}}, "--loss has no mae"),
        ({"loss": {"mse": -1.0}}, "must be more than 0"),
        ({"network": "none"}, "nothing to train"),
        ({"network": "none", "lora": 4}, "needs the loss lm or kd"),
        ({"network": "none", "train_blocks": 4}, "needs the loss lm or kd"),
        ({"network": "none", "train_blocks": "some", "loss": "kd"}, "is not a number of blocks"),
        ({"train_blocks": "some", "loss": "kd"}, "is not a number of blocks"),
        ({"network": "swiglu", "train_blocks": 4, "loss": "kd"}, "works only with --network block"),
        ({"network": "none", "train_head": True}, "needs the loss lm or kd"),
        ({"tokens": 5, "epochs": 1.0, "steps": None}, "more than once"),
        ({"top_k": 5}, "--loss kd"),
        ({"global_batch_size": 0}, "--global-batch-size must be at least 1"),
        ({"learning_rate": -1.0}, "must be more than 0"),
    ],
)
def test_settings_that_make_no_sense(changes, message):
    with pytest.raises(UserError, match=message):
        settings(**changes)
