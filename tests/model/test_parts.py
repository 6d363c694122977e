"""Looking inside blocks: linear maps, gated parts, shared parameters."""

from __future__ import annotations

import pytest
import torch

from families import make_model
from streamliner.model.blocks import Blocks
from streamliner.model.parts import (
    count_parameters,
    find_part,
    gated_parts,
    linear_names,
    linears_outside,
    plain_attributes,
    shared_parameters,
    weight_bytes,
    weighted_children,
)


@pytest.fixture
def block():
    return Blocks(make_model("llama")).modules[0]


def test_parts_of_a_llama_block(block):
    attention = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
    assert linear_names(block) == [*attention, "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    assert gated_parts(block) == ["mlp"]
    assert linears_outside(block, ["mlp"]) == [find_part(block, name) for name in attention]
    assert weighted_children(block, [32]) == ["input_layernorm", "post_attention_layernorm"]


def test_conv1d_is_a_linear_map():
    assert len(linear_names(Blocks(make_model("gpt2")).modules[0])) == 4


def test_plain_attributes_are_public_and_simple(block):
    block.attention_type, block.scale, block._private, block.tensor = "sliding", 2.0, 3, torch.zeros(1)
    found = plain_attributes(block)
    assert found["attention_type"] == "sliding"
    assert found["scale"] == 2.0
    assert not found.keys() & {"_private", "tensor", "mlp"}


def test_shared_parameters_are_found_with_all_their_places():
    model = make_model("llama")
    layers = model.model.layers
    assert shared_parameters(layers) == []
    layers[4].mlp.up_proj.weight = layers[1].mlp.up_proj.weight
    assert shared_parameters(layers) == [[(1, "mlp.up_proj.weight"), (4, "mlp.up_proj.weight")]]


def test_sizes_count_shared_tensors_once():
    tied, untied = make_model("llama", tie_word_embeddings=True), make_model("llama", tie_word_embeddings=False)
    assert count_parameters(untied) - count_parameters(tied) == 128 * 32
    assert weight_bytes(untied) - weight_bytes(tied) == 128 * 32 * 4
