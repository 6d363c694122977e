"""Healing of models in memory: the dense model does not change, and the result is saved and loaded as any model."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch
from transformers import AutoModelForCausalLM

from close import assert_close
from healing import SHORT
from places import BFLOAT16
from streamliner.errors import HealingError, ModelError, PlanError
from streamliner.heal.state import HISTORY, RESULT
from streamliner.heal_settings import HealSettings
from streamliner.model.session import open_model
from streamliner.verbs.cut import cut
from streamliner.verbs.heal import heal

REMOVED = (5, 6)
IDS = torch.arange(2, 34)[None]


def everything_of(model):
    """What a user could notice if it changed."""
    return {
        "tensors": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "modules": [(name, id(module)) for name, module in model.named_modules()],
        "training": [module.training for module in model.modules()],
        "trainable": [parameter.requires_grad for parameter in model.parameters()],
        "forwards": [name for name, module in model.named_modules() if "forward" in vars(module)],
        "hooks": [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
    }


def assert_unchanged(model, before):
    after = everything_of(model)
    tensors = before.pop("tensors")
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in after.pop("tensors").items())
    assert after == before


def logits_of(model):
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def settings(dense, tokenizer, **changes):
    return HealSettings(dense=dense, tokenizer=tokenizer, quiet=True, **(SHORT | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"network": "none", "lora": 4, "loss": "kd", "learning_rate": 1e-2},
        {"network": "none", "train_blocks": "all", "loss": "kd"},
        {"network": "ffn"},
    ],
)
def test_the_healed_model_is_better_and_the_dense_one_unchanged(tiny, tokenizer, tmp_path, changes):
    tiny.requires_grad_(True)
    small = cut(tiny, REMOVED)
    before, small_before = everything_of(tiny), everything_of(small)
    healed = heal(small, settings(tiny, tokenizer, **changes))
    assert_unchanged(tiny, before)
    assert_unchanged(small, small_before)
    dense_logits, cut_logits, healed_logits = logits_of(tiny), logits_of(small), logits_of(healed)
    if changes.get("network") != "ffn":  # six steps are too few for a network that starts at random
        assert (healed_logits - dense_logits).square().mean() < (cut_logits - dense_logits).square().mean()
    assert not healed.training
    assert open_model(healed).describe()["method"] == "manual, healed"
    custom = changes.get("network") == "ffn"
    assert (type(healed) is type(tiny)) != custom
    assert healed.config.num_hidden_layers == small.config.num_hidden_layers == 10
    healed.save_pretrained(tmp_path / "healed")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "healed", trust_remote_code=custom, dtype=torch.float32)
    assert_close(logits_of(again), healed_logits)


def test_a_run_folder_keeps_history_and_continues(tiny, tokenizer, tmp_path):
    small, chosen = cut(tiny, REMOVED), settings(tiny, tokenizer, run=tmp_path / "run")
    first = heal(small, chosen)
    history = (tmp_path / "run" / HISTORY).read_bytes()
    assert (tmp_path / "run" / RESULT).exists()
    again = heal(small, chosen)
    assert (tmp_path / "run" / HISTORY).read_bytes() == history
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in first.state_dict().items())


def test_the_dense_model_may_be_named(capsys):
    """Both models are loaded in the checkpoint's own precision, bfloat16."""
    chosen = dataclasses.replace(settings(str(BFLOAT16), None, steps=1), quiet=False)
    healed = heal(cut(str(BFLOAT16), REMOVED), chosen)
    assert re.search(r"held-out windows: dense [\d.]+, cut [\d.]+, healed [\d.]+\.", capsys.readouterr().err)
    assert healed.dtype == torch.bfloat16
    assert healed.config.num_hidden_layers == 10


def test_mistakes(tiny, tokenizer):
    small = cut(tiny, REMOVED)
    with pytest.raises(HealingError, match="needs the dense model"):
        heal(small, settings(None, tokenizer))
    with pytest.raises(ModelError, match="without a tokenizer"):
        heal(small, settings(tiny, None))
    with pytest.raises(ModelError, match="of 10 blocks; the dense one is a LlamaForCausalLM, which has 8"):
        heal(small, settings(small, tokenizer))
    with pytest.raises(HealingError, match=r"torch\.float16 and the dense one in torch\.float32"):
        heal(cut(tiny, REMOVED).half(), settings(tiny, tokenizer))
    small.model.layers[0].mlp.up_proj.weight.data = small.model.layers[0].mlp.up_proj.weight * 2
    with pytest.raises(ModelError, match=r"was not cut from this dense model: model.layers.0.mlp.up_proj.weight"):
        heal(small, settings(tiny, tokenizer))
    with pytest.raises(PlanError, match="what was removed"):
        heal(tiny, settings(tiny, tokenizer))
