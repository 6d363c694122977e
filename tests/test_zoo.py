"""Architectures beyond the named families, built from nothing but their config class: rules and checks are general."""

from __future__ import annotations

import pytest
import torch

from streamliner.blocks import Blocks
from streamliner.cut import cut_checkpoint, cut_model, expect, verify
from streamliner.errors import UnsupportedModelError
from zoo import tiny_model

SAMPLE = torch.randint(8, 120, (1, 24), generator=torch.Generator().manual_seed(0))

# Tuples from blocks, recurrent and hybrid stacks, encoder-decoders' decoders, ranges and lists of many kinds.
EXACT = [
    *("apertus", "bamba", "bart", "bloom", "cohere2", "ernie4_5_moe", "falcon_mamba", "fuyu", "granite_swa"),
    *("laguna", "lfm2", "llama4_text"),
]


@pytest.mark.parametrize("model_type", EXACT)
def test_cut_equals_bypass(model_type, tmp_path):
    model = tiny_model(model_type)
    blocks = Blocks(model)
    expected = expect(blocks, (1, 3), SAMPLE)
    cut_model(model, (1, 3))
    model.save_pretrained(tmp_path / "dense")
    (tmp_path / "cut").mkdir()
    cut_checkpoint(tmp_path / "dense", tmp_path / "cut", model.config, blocks.stack, (1, 3))
    assert verify(tmp_path / "cut", expected).exact


# What cannot be said by the cut config, or would be another block at its new place.
REFUSED = {
    "beam": ((1,), "attn_residual_add_idx"),
    "diffllama": ((1,), "lambda_init"),
    "gemma4_text": ((1,), "per_layer_config"),
    "jamba": ((2,), "expert_layer_period"),
    "modernbert-decoder": ((0,), "attn_norm"),
    "olmo_hybrid": ((1, 3), "at least one attention layer"),
}


@pytest.mark.parametrize("model_type", REFUSED)
def test_what_would_be_wrong_is_refused_with_the_reason(model_type):
    removed, reason = REFUSED[model_type]
    with pytest.raises(UnsupportedModelError, match=reason):
        cut_model(tiny_model(model_type), removed)
