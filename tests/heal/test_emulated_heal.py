"""Healing on an accelerator that exists only in the tests (`emulated.py`) is healing on the CPU."""

from __future__ import annotations

import pytest

from emulated import emulated
from families import make_model
from healing import heal, training_text
from streamliner.heal.folding import fold
from streamliner.heal.graft import Graft
from streamliner.heal_settings import HealSettings
from streamliner.model.blocks import Blocks

WAYS = {
    "mse": {},
    "normalized-mse, two networks": {"loss": "normalized-mse", "network_depth": 2},
    "lm": {"loss": "lm", "clip": 0.1},
    "kd": {"loss": "kd", "network": "ffn"},
    "kd, top k": {"loss": "kd", "top_k": 3, "network": "swiglu"},
    "mse and kd": {"loss": {"mse": 1.0, "kd": 0.5}, "network_input": "cut"},
    "sampled softmax": {"loss": {"kd": 1.0, "lm": 0.5}, "sampled_softmax": 50},
    "LoRA": {"loss": "lm", "network": "none", "lora": 2},
    "whole blocks and the head": {"loss": "kd", "network": "none", "train_blocks": 1, "train_head": True},
    "mixed precision": {"loss": "lm", "mixed_precision": "bf16"},
    "learning rate": {"find_learning_rate": True},
}


SHORT = {"sequence_length": 16, "steps": 2, "global_batch_size": 2, "micro_batch": 2, "validation_windows": 2}


def small(tokenizer):
    return make_model("llama", vocab_size=len(tokenizer), num_hidden_layers=4)


@pytest.mark.parametrize("way", WAYS)
def test_losses_are_those_of_the_cpu(way, tokenizer, tmp_path, capsys):
    """Within rounding: with autograd torch takes another attention for such a device."""
    if "lora" in WAYS[way]:
        pytest.importorskip("peft")
    _, _, expected = heal(small(tokenizer), tokenizer, tmp_path / "cpu", (2,), **SHORT | WAYS[way])
    with emulated(has_float64=False):
        _, _, rows = heal(small(tokenizer).to("emulated:0"), tokenizer, tmp_path / "gpu", (2,), **SHORT | WAYS[way])
    assert ("random others" in capsys.readouterr().out) == ("sampled" in way)
    tolerance = 2e-3 if "precision" in way else 2e-6
    for row, other in zip(rows, expected, strict=True):
        assert row == {name: value and pytest.approx(value, rel=tolerance) for name, value in other.items()}


@pytest.mark.parametrize(("name", "has_float64"), [("auto", False), ("gain", False), ("replaceme", True)])
def test_folds_are_those_of_the_cpu(name, has_float64, tokenizer):
    expected = folded(small(tokenizer), tokenizer, name)
    with emulated(has_float64=has_float64):
        found = folded(small(tokenizer).to("emulated:0"), tokenizer, name)
    assert [each[0] for each in found] == [each[0] for each in expected]
    assert [each[1] for each in found] == pytest.approx([each[1] for each in expected], rel=1e-5)


def folded(model, tokenizer, name):
    """What was folded, each with its loss afterwards."""
    chosen = HealSettings(data="python-docs", fold=name, fold_tokens=128, sequence_length=16, validation_windows=2)
    graft = Graft(Blocks(model), (), {}, (2,))
    done = fold(graft, chosen, training_text(tokenizer, chosen), lambda message: None)
    return [((each.block, each.fold, each.kept), each.loss_after) for each in done]
